"""The Inner-IoU loss: any loss of the IoU family with the IoU of scaled boxes in it."""

from torch import Tensor

from uotod.check import check_choice, check_number
from uotod.geometry.overlap import OVERLAP_KINDS, Coordinates, OverlapKind, overlap, overlap_terms, scaled
from uotod.loss.box_pair import BoxPairLoss


class InnerIoULoss(BoxPairLoss):
    r"""Penalise a small IoU of auxiliary boxes, `ratio` times as large around the same centres.

    .. math:: L = 1 - u_\text{inner} + \text{penalties} = L_\text{kind} + u - u_\text{inner}

    A ratio below 1 makes the gradient of boxes that overlap much steeper; one above 1 reaches boxes that are farther
    apart. With ratio 1 it is the loss of its kind.

    Args:
        kind: "iou", "giou", "diou", "ciou", "eiou" or "siou": the loss whose penalties are added.
        ratio: size of the auxiliary boxes, positive; from 0.5 to 1.5 in the paper, about 0.75 for ordinary objects and
            1.2 for small ones.
        eps: added to the denominators, in squared units of the boxes; 0 leaves the value without a unit.
        reduction: "none", "mean" or "sum".

    Shape:
        input and target: (..., 4) boxes, xyxy, in any common unit. Inverted boxes have area 0. Output: (...) or ().

    References:
        Zhang et al., "Inner-IoU: more effective intersection over union loss with auxiliary bounding box", 2023,
        section 3.2.

    Examples:
        >>> import torch
        >>> boxes = torch.tensor([[0.0, 0.0, 4.0, 4.0]]), torch.tensor([[1.0, 0.0, 5.0, 4.0]])
        >>> [round(float(InnerIoULoss(ratio=ratio)(*boxes)), 4) for ratio in (0.5, 1.0)]
        [0.6667, 0.4]
    """

    def __init__(
        self, *, kind: OverlapKind = "iou", ratio: float = 0.75, eps: float = 0.0, reduction: str = "mean"
    ) -> None:
        super().__init__(eps=eps, reduction=reduction)
        self.kind = check_choice("kind", kind, OVERLAP_KINDS)
        self.ratio = check_number("ratio", ratio, low=0.0, low_open=True)

    def _of_pair(self, box: Coordinates, target: Coordinates) -> Tensor:
        loss = 1 - overlap(scaled(box, self.ratio), scaled(target, self.ratio), "iou", self.eps)
        for penalty in overlap_terms(box, target, self.kind, self.eps)[1:]:
            loss = loss + penalty
        return loss
