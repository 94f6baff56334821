"""The α-IoU loss: every term of a loss of the IoU family raised to a power."""

import torch
from torch import Tensor

from uotod.check import check_choice, check_number
from uotod.geometry.overlap import OVERLAP_KINDS, Coordinates, OverlapKind, overlap_terms
from uotod.loss.box_pair import BoxPairLoss

FLOOR = 1e-6  # below, a power less than 1 continues as a straight line


class AlphaIoULoss(BoxPairLoss):
    r"""Raise the IoU `u` and every penalty of a loss of its family to the power `α`.

    .. math:: L = 1 - u^\alpha + \sum_k p_k^\alpha

    The penalties are `(H − U) / H` of the generalised IoU with the union `U` and the hull `H`, `ρ² / c²` of the
    distance IoU, `ρ² / c²` and `βv` of the complete IoU, and so on. With `α > 1` boxes of a high IoU weigh more in the
    gradient; with `α = 1` it is the loss of its kind. With `α < 1` a term below 1e-6 goes to 0 along a straight line,
    because the power has an infinite gradient there.

    Args:
        kind: "iou", "giou", "diou", "ciou", "eiou" or "siou".
        alpha: the power, positive; 3 by default.
        eps: added to the denominators, in squared units of the boxes; 0 leaves the value without a unit.
        reduction: "none", "mean" or "sum".

    Shape:
        input and target: (..., 4) boxes, xyxy, in any common unit. Inverted boxes have area 0. Output: (...) or ().

    References:
        He et al., "Alpha-IoU: a family of power intersection over union losses for bounding box regression", NeurIPS
        2021, eqs. 3-4.

    Examples:
        >>> half = torch.tensor([[0.0, 0.0, 2.0, 1.0]]), torch.tensor([[0.0, 0.0, 2.0, 2.0]])
        >>> [round(float(AlphaIoULoss(alpha=alpha)(*half)), 4) for alpha in (1, 3)]
        [0.5, 0.875]
    """

    def __init__(
        self, *, kind: OverlapKind = "iou", alpha: float = 3.0, eps: float = 0.0, reduction: str = "mean"
    ) -> None:
        super().__init__(eps=eps, reduction=reduction)
        self.kind = check_choice("kind", kind, OVERLAP_KINDS)
        self.alpha = check_number("alpha", alpha, low=0.0, low_open=True)

    def _of_pair(self, box: Coordinates, target: Coordinates) -> Tensor:
        iou, *penalties = overlap_terms(box, target, self.kind, self.eps)
        loss = 1 - _power(iou, self.alpha)
        for penalty in penalties:
            loss = loss + _power(penalty, self.alpha)
        return loss


def _power(x: Tensor, alpha: float) -> Tensor:
    """Return x to the power of `alpha`, with a finite gradient where x is 0 or, by rounding, less."""
    if alpha >= 1:
        return x.clamp(min=0) ** alpha
    line = x.clamp(min=0) * FLOOR ** (alpha - 1)
    return torch.where(x > FLOOR, x.clamp(min=FLOOR) ** alpha, line)
