"""The gradient harmonised classification loss."""

import torch
from torch import Tensor
from torch.nn import functional as F

from uotod.check import check_integer
from uotod.cost.labels import SoftTarget
from uotod.loss.soft_target import SoftTargetLoss
from uotod.scene.absent import is_present


class GHMCLoss(SoftTargetLoss):
    r"""Divide the binary cross-entropy of each score by how many scores have a gradient as large.

    .. math::
        L(x, t) = -\frac{M}{K R(g)} \big(t \ln p + (1 - t) \ln(1 - p)\big), \qquad g = |p - t|, \qquad p = \sigma(x)

    `R(g)` is the number of scores in the bin of `g`, `K` the number of bins that are not empty and `M` the number of
    scores in all of them. The weights average to 1, and have no gradient. `bins=1` is the binary cross-entropy.

    The histogram is taken over all that one call sees: in `DetectionLoss` over the predictions of a decoder layer,
    counted by their mass, so that those which are ignored do not count. There is no moving average of it, which would
    be state. The published loss is the mean over all scores: `DetectionLoss` with `TotalMassNormalizer` gives C times
    that, as it sums over the classes.

    Args:
        bins: number of equal bins of the gradient's size in [0, 1], at least 1.
        reduction: "none", "mean" (over all N·C values) or "sum".

    Shape:
        input: (..., C) logits; target: (..., C) values in [0, 1], or (...) integers in [0, C). Output: (..., C) or ().

    References:
        Li et al., "Gradient harmonized single-stage detector", AAAI 2019 (GHM-C).

    Examples:
        >>> GHMCLoss(reduction="none")(torch.tensor([[0.0, 0.0, 9.0]]), torch.tensor([[1.0, 0.0, 0.0]]))
        tensor([[ 0.5199,  0.5199, 13.5002]])
    """

    is_rowwise = False

    def __init__(self, *, bins: int = 10, reduction: str = "mean") -> None:
        super().__init__(reduction)
        self.bins = check_integer("bins", bins, low=1)

    def _values(self, logits: Tensor, target: SoftTarget) -> Tensor:
        loss = F.binary_cross_entropy_with_logits(logits, target.quality, reduction="none")
        size = (logits.detach().sigmoid() - target.quality).abs().contiguous()
        edges = torch.arange(1, self.bins, device=size.device).to(size.dtype) / self.bins
        index = torch.bucketize(size, edges, right=True)  # a bin holds its lower edge, the last one both
        mass = target.mass.unsqueeze(-1) * is_present(logits)
        count = size.new_zeros(self.bins).scatter_add(0, index.flatten(), mass.flatten())
        occupied = (count > 0).sum().clamp(min=1)
        weight = count.sum() / (occupied * torch.where(count > 0, count, 1))
        return weight[index] * loss
