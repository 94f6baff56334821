"""The negative probability of the target's class, DETR's classification cost."""

from collections.abc import Callable

from torch import Tensor, nn

from uotod.cost.kinds import Affine, ClassTerms
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
        loss = -(logits.softmax(-1) * one_hot_rows(target, logits)).sum(-1)
        return reduce_loss(loss, self.reduction)

    def adapter(self) -> Affine:
        """Return how the cost takes part: affine in its label."""
        return Affine(self, self._terms, self._of_labels)

    def extra_repr(self) -> str:
        """Return the arguments for `repr`."""
        return f"reduction={self.reduction!r}"

    def _terms(self, logits: Tensor) -> ClassTerms:
        return ClassTerms(-logits.softmax(-1), None)

    def _of_labels(self, logits: Tensor, pick: Callable[[Tensor], Tensor]) -> Tensor:
        return pick(logits.softmax(-1)).neg_()
