"""The quality focal loss: the focal loss of a score that is taught the quality of its box."""

from torch import Tensor
from torch.nn import functional as F

from uotod.check import check_number
from uotod.cost.labels import SoftTarget
from uotod.loss.soft_target import SoftTargetLoss, power


class QualityFocalLoss(SoftTargetLoss):
    r"""Teach scores a quality `q` in [0, 1], and down-weight those that are close to it.

    .. math::
        L(x, q) = -|q - p|^\beta \big(q \ln p + (1 - q) \ln(1 - p)\big), \qquad p = \sigma(x)

    The gradient flows through the factor, too. `beta=0` is the binary cross-entropy; with qualities of 0 and 1 it is
    `SigmoidFocalLoss(gamma=beta)`.

    Args:
        beta: focusing exponent, at least 0.
        reduction: "none", "mean" (over all N·C values) or "sum".

    Shape:
        input: (..., C) logits; target: (..., C) qualities, or (...) integers in [0, C). Output: (..., C) or ().

    References:
        Li et al., "Generalized focal loss", NeurIPS 2020 (QFL).

    Examples:
        >>> import torch
        >>> QualityFocalLoss(reduction="none")(torch.zeros(1, 2), torch.tensor([[1.0, 0.5]]))
        tensor([[0.1733, 0.0000]])
    """

    def __init__(self, *, beta: float = 2.0, reduction: str = "mean") -> None:
        super().__init__(reduction)
        self.beta = check_number("beta", beta, low=0.0)

    def _values(self, logits: Tensor, target: SoftTarget) -> Tensor:
        loss = F.binary_cross_entropy_with_logits(logits, target.quality, reduction="none")
        return power((target.quality - logits.sigmoid()).abs(), self.beta) * loss
