"""The focal loss of softmax probabilities."""

import torch
from torch import Tensor

from uotod.check import check_number
from uotod.loss.soft_target import power
from uotod.loss.softmax import SoftmaxLoss


class SoftmaxFocalLoss(SoftmaxLoss):
    r"""Down-weight easy examples in the cross-entropy.

    .. math:: L(x, y) = -w_y (1 - p_y)^\gamma \ln p_y, \qquad p = \operatorname{softmax}(x)

    `gamma=0` is the cross-entropy. With label smoothing `ε` it is the mean of the loss over a target that has
    `1 - ε` on the class and `ε / C` on each. Like cross-entropy it needs a class for the background.

    Args:
        gamma: focusing exponent, at least 0.
        class_weight: (C,) weight `w` of each class, by which a mean in `DetectionLoss` divides as well; None for 1.
        label_smoothing: `ε` in [0, 1].
        reduction: "none", "mean" (over the rows) or "sum".

    Shape:
        input: (..., C) logits; target: (...) integers in [0, C), or (..., C) one-hot. Output: (...) or ().

    References:
        Lin et al., "Focal loss for dense object detection", ICCV 2017, eq. 4, with a softmax.

    Examples:
        >>> import torch
        >>> SoftmaxFocalLoss()(torch.zeros(1, 2), torch.tensor([0]))
        tensor(0.1733)
    """

    def __init__(
        self,
        *,
        gamma: float = 2.0,
        class_weight: Tensor | None = None,
        label_smoothing: float = 0.0,
        reduction: str = "mean",
    ) -> None:
        super().__init__(class_weight, label_smoothing, reduction)
        self.gamma = check_number("gamma", gamma, low=0.0)

    def _of_log_probability(self, log_p: Tensor) -> Tensor:
        # below, 1 - p is 1 and has no gradient; the product of that zero with a log_p that is huge would be NaN
        near = log_p.clamp(min=-100)
        return (near - log_p) - power(-torch.expm1(near), self.gamma) * near
