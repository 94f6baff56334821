"""The negative probability of the target's class, DETR's classification cost."""

from collections.abc import Callable

from torch import Tensor

from uotod.loss.affine import LabelLoss


class NegativeProbLoss(LabelLoss):
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
        super().__init__(reduction)

    def _gain(self, logits: Tensor) -> Tensor:
        return -logits.softmax(-1)

    def _of_labels(self, logits: Tensor, pick: Callable[[Tensor], Tensor]) -> Tensor:
        return pick(logits.softmax(-1)).neg_()
