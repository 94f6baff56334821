"""The confidence loss of YOLO: one value a prediction in, the error of objects and of the background, weighed, out."""

from torch import Tensor
from torch.nn import functional as F

from uotod.check import check_choice, check_number
from uotod.cost.labels import SoftTarget
from uotod.loss.soft_target import SoftTargetLoss


class ConfidenceLoss(SoftTargetLoss):
    r"""Teach confidence its target, with one weight where there is an object and another where there is none.

    .. math::
        L(x, t, y) = \big( \lambda_1 y + \lambda_0 (1 - y) \big)\, \ell(x, t), \qquad
        \ell(x, t) = (x - t)^2 \ \text{or}\ -t \ln \sigma(x) - (1 - t) \ln(1 - \sigma(x))

    `y` tells whether there is an object and `t` what confidence it shall have: 1, or the IoU of its box with
    the term `Objectness(ConfidenceLoss(...), quality="iou")`. For a target of 0 or 1 the cross-entropy is
    `ObjectnessLoss`, in which the share `1 - t` of an object weighs as the background does.

    Args:
        kind: "mse", the squared error of the value itself (YOLO v1), or "bce", the cross-entropy of a logit (YOLO v3).
        positive_weight: `λ₁`, at least 0.
        negative_weight: `λ₀`, at least 0; 0.5 for YOLO v1.
        reduction: "none", "mean" or "sum".

    Shape:
        input: (..., 1) values or logits; target: (..., 1) in [0, 1]. Output: (..., 1) or ().

    Raises:
        ValueError: an argument is out of its range.

    References:
        Redmon et al., "You only look once", CVPR 2016, eq. 3, third and fourth line.

    Examples:
        >>> import torch
        >>> loss = ConfidenceLoss(kind="mse", negative_weight=0.5, reduction="none")
        >>> loss(torch.tensor([[0.5], [0.5]]), torch.tensor([[0.75], [0.0]]))
        tensor([[0.0625],
                [0.1250]])
    """

    def __init__(
        self,
        *,
        kind: str = "bce",
        positive_weight: float = 1.0,
        negative_weight: float = 1.0,
        reduction: str = "mean",
    ) -> None:
        super().__init__(reduction)
        self.kind = check_choice("kind", kind, ("mse", "bce"))
        self.positive_weight = check_number("positive_weight", positive_weight, low=0.0)
        self.negative_weight = check_number("negative_weight", negative_weight, low=0.0)

    def _values(self, logits: Tensor, target: SoftTarget) -> Tensor:
        weight = self.negative_weight + (self.positive_weight - self.negative_weight) * target.positive
        return weight * error(logits, target.quality, self.kind)


def error(input: Tensor, target: Tensor, kind: str) -> Tensor:
    """Return errors one by one: squared ones ("mse"), cross-entropies of logits ("bce") or "bce_of_probabilities"."""
    if kind == "mse":
        return (input - target) ** 2
    if kind == "bce_of_probabilities":
        return F.binary_cross_entropy(input, target, reduction="none")
    return F.binary_cross_entropy_with_logits(input, target, reduction="none")
