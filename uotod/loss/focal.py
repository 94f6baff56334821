"""The sigmoid focal loss, and the matching cost made from it."""

from collections.abc import Callable

from torch import Tensor

from uotod.check import check_number
from uotod.cost.alpha import Alpha, alpha_of, set_alpha
from uotod.cost.focal import focal_terms, zero_terms
from uotod.loss.affine import LabelLoss, SigmoidLoss


class SigmoidFocalLoss(SigmoidLoss):
    r"""Down-weight easy examples in the binary cross-entropy of every class.

    .. math::
        L(x, t) = -\alpha\, t\, (1 - p)^\gamma \ln p - (1 - \alpha)(1 - t)\, p^\gamma \ln(1 - p),
        \qquad p = \sigma(x)

    `gamma=0` without `alpha` is the binary cross-entropy. A background without a class of its own is a target of
    zeros.

    Args:
        alpha: weight of a one in [0, 1], `1 - alpha` that of a zero; -1 for no weights; or (C,) one for each class.
        gamma: focusing exponent, at least 0.
        label_smoothing: share in [0, 1] of a label that is spread over all classes; the background stays zero.
        reduction: "none", "mean" (over all N·C values) or "sum".

    Shape:
        input: (..., C) logits; target: (...) integers in [0, C), or (..., C) one-hot. Output: (..., C) or ().

    References:
        Lin et al., "Focal loss for dense object detection", ICCV 2017, eqs. 4-5.

    Examples:
        >>> import torch
        >>> SigmoidFocalLoss(alpha=0.25, reduction="none")(torch.zeros(1, 2), torch.tensor([0]))
        tensor([[0.0433, 0.1300]])
    """

    alpha: float | Tensor

    def __init__(
        self, *, alpha: Alpha = -1, gamma: float = 2.0, label_smoothing: float = 0.0, reduction: str = "mean"
    ) -> None:
        super().__init__(label_smoothing, reduction)
        set_alpha(self, alpha, high=1.0, none=-1.0)
        self.gamma = check_number("gamma", gamma, low=0.0)

    def _of_label(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        return focal_terms(logits, alpha_of(self, logits), self.gamma)

    def _zeros(self, logits: Tensor, slope: Tensor) -> Tensor | None:
        if self.label_smoothing or isinstance(self.alpha, Tensor):
            return None
        return zero_terms(logits, self.alpha, self.gamma, slope)


class SigmoidFocalCost(LabelLoss):
    r"""Return the change of the focal loss that calling a prediction the target's class would make.

    .. math:: L(x, y) = -\alpha (1 - p_y)^\gamma \ln p_y + (1 - \alpha)\, p_y^\gamma \ln(1 - p_y), \qquad p = \sigma(x)

    Args:
        alpha: weight of the first term in [0, 1], `1 - alpha` that of the second; -1 for no weights; or (C,) one for
            each class.
        gamma: focusing exponent, at least 0.
        reduction: "none", "mean" or "sum".

    Shape:
        input: (..., C) logits; target: (...) integers in [0, C), or (..., C) one-hot. Output: (...) or ().

    References:
        Zhu et al., "Deformable DETR", ICLR 2021 (the matching cost of its implementation, without an epsilon).

    Examples:
        >>> import torch
        >>> SigmoidFocalCost()(torch.zeros(1, 2), torch.tensor([0]))
        tensor(-0.0866)
    """

    alpha: float | Tensor

    def __init__(self, *, alpha: Alpha = 0.25, gamma: float = 2.0, reduction: str = "mean") -> None:
        super().__init__(reduction)
        set_alpha(self, alpha, high=1.0, none=-1.0)
        self.gamma = check_number("gamma", gamma, low=0.0)

    def _gain(self, logits: Tensor) -> Tensor:
        positive, negative = focal_terms(logits, alpha_of(self, logits), self.gamma)
        return positive - negative

    def _of_labels(self, logits: Tensor, pick: Callable[[Tensor], Tensor]) -> Tensor:
        return pick(self._gain(logits)) if isinstance(self.alpha, Tensor) else self._gain(pick(logits))
