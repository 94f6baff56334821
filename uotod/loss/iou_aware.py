"""The IoU-aware binary cross-entropy of LW-DETR and RF-DETR."""

from torch import Tensor
from torch.nn import functional as F

from uotod.check import check_number
from uotod.cost.alpha import Alpha, alpha_of, set_alpha
from uotod.cost.labels import SoftTarget
from uotod.loss.soft_target import SoftTargetLoss


class IoUAwareBCELoss(SoftTargetLoss):
    r"""Teach scores a mean of what they say and of the quality `u` of their box.

    .. math::
        L(x, u) = -y \big(t \ln p + (1 - t) \ln(1 - p)\big) - (1 - y)\, p^\gamma \ln(1 - p), \qquad
        t = \max(p^\alpha u^{1 - \alpha}, 0.01), \qquad p = \sigma(x)

    with the one-hot label `y`; `t` has no gradient. `alpha=0` makes the quality itself the target.

    Args:
        alpha: share of the score in the target, in [0, 1]; or (C,) one for each class.
        gamma: focusing exponent of negatives, at least 0.
        reduction: "none", "mean" (over all N·C values) or "sum".

    Shape:
        input: (..., C) logits; target: (..., C) qualities, or (...) integers in [0, C). Output: (..., C) or ().

    References:
        Cai et al., "Align-DETR", 2023 (without its decay by rank); Chen et al., "LW-DETR", 2024 (IA-BCE).

    Examples:
        >>> import torch
        >>> IoUAwareBCELoss(reduction="none")(torch.zeros(1, 2), torch.tensor([[0.5, 0.0]]))
        tensor([[0.6931, 0.1733]])
    """

    def __init__(self, *, alpha: Alpha = 0.25, gamma: float = 2.0, reduction: str = "mean") -> None:
        super().__init__(reduction)
        set_alpha(self, alpha, high=1.0)
        self.gamma = check_number("gamma", gamma, low=0.0)

    def _values(self, logits: Tensor, target: SoftTarget) -> Tensor:
        alpha = alpha_of(self, logits)
        log_p, log_q = F.logsigmoid(logits), F.logsigmoid(-logits)  # q = 1 - p
        goal = (alpha * log_p.detach()).exp() * target.quality.clamp(min=0) ** (1 - alpha)
        one = target.positive * goal.clamp(min=0.01)
        zero = (target.positive - one) + (1 - target.positive) * (self.gamma * log_p).exp()
        return -one * log_p - zero * log_q
