"""The negative probability of the target's class, DETR's classification cost."""

from collections.abc import Callable

from torch import Tensor, nn

from uotod.cost.adapters import ClassTerms
from uotod.geometry.boxes import full_precision
from uotod.loss.one_hot import one_hot_rows
from uotod.loss.reduce import check_reduction, reduce_loss


class NegativeProbLoss(nn.Module):
    r"""Return minus the softmax probability of the target's class.

    .. math:: L(x, y) = -\operatorname{softmax}(x)_y

    Args:
        reduction: "none", "mean" or "sum".

    Shape:
        input: (..., C) logits; target: (...) integers in [0, C), or (..., C) one-hot. Output: (...) or ().

    References:
        Carion et al., "End-to-end object detection with transformers", ECCV 2020, sec. 3.1.

    Examples:
        >>> import torch
        >>> NegativeProbLoss()(torch.zeros(2, 4), torch.tensor([0, 3]))
        tensor(-0.2500)
    """

    def __init__(self, *, reduction: str = "mean") -> None:
        super().__init__()
        self.reduction = check_reduction(reduction)

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        """Return the loss of each row, or its mean or sum."""
        logits = full_precision(input)
        loss = (self.class_terms(logits).gain * one_hot_rows(target, logits)).sum(-1)
        return reduce_loss(loss, self.reduction)

    def class_terms(self, logits: Tensor) -> ClassTerms:
        """Return the loss as an affine function of the one-hot target."""
        return ClassTerms(-logits.softmax(-1), None)

    def label_cost(self, logits: Tensor, pick: Callable[[Tensor], Tensor]) -> Tensor:
        """Return the cost of all pairs; `pick` selects the labels' (B, T, P) of (B, P, C) values."""
        return pick(logits.softmax(-1)).neg_()

    def extra_repr(self) -> str:
        """Return the arguments for `repr`."""
        return f"reduction={self.reduction!r}"
