"""The matchability-aware loss of DEIM: a varifocal loss that does not give up on poor pairs."""

from torch import Tensor
from torch.nn import functional as F

from uotod.check import check_number
from uotod.cost.alpha import Alpha, alpha_of, set_alpha
from uotod.cost.labels import SoftTarget
from uotod.loss.soft_target import SoftTargetLoss


class MatchabilityAwareLoss(SoftTargetLoss):
    r"""Teach scores a power of the quality `q`, with full weight on positives however poor they are.

    .. math::
        L(x, q) = -w \big(q^\gamma \ln p + (1 - q^\gamma) \ln(1 - p)\big), \qquad
        w = y + \alpha p^\gamma (1 - y), \qquad p = \sigma(x)

    The weight, with the one-hot label `y`, has no gradient. `gamma=0` is the binary cross-entropy on labels, if no
    quality is 0.

    Args:
        gamma: exponent of the quality and of the focus on hard negatives, at least 0.
        alpha: weight of negatives, at least 0; or (C,) one for each class.
        reduction: "none", "mean" (over all N·C values) or "sum".

    Shape:
        input: (..., C) logits; target: (..., C) qualities, or (...) integers in [0, C). Output: (..., C) or ().

    References:
        Huang et al., "DEIM: DETR with improved matching for fast convergence", CVPR 2025 (MAL).

    Examples:
        >>> import torch
        >>> MatchabilityAwareLoss(reduction="none")(torch.zeros(1, 2), torch.tensor([[0.5, 0.0]]))
        tensor([[0.6931, 0.2451]])
    """

    def __init__(self, *, gamma: float = 1.5, alpha: Alpha = 1.0, reduction: str = "mean") -> None:
        super().__init__(reduction)
        self.gamma = check_number("gamma", gamma, low=0.0)
        set_alpha(self, alpha)

    def _values(self, logits: Tensor, target: SoftTarget) -> Tensor:
        alpha = alpha_of(self, logits)
        positive, focus = target.positive, (self.gamma * F.logsigmoid(logits.detach())).exp()
        goal = target.quality.clamp(min=0) ** self.gamma
        if self.gamma == 0:
            goal = positive  # 0 ** 0 would make every negative a positive
        loss = F.binary_cross_entropy_with_logits(logits, goal, reduction="none")
        return (positive + alpha * focus * (1 - positive)) * loss
