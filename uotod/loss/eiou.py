"""The two losses called EIoU: efficient IoU with its focal weight, and extended IoU."""

import torch
from torch import Tensor

from uotod.check import check_number
from uotod.geometry.overlap import Coordinates, overlap_terms, quotient, sizes
from uotod.loss.box_pair import BoxPairLoss


class EIoULoss(BoxPairLoss):
    r"""Penalise a small efficient IoU: the distance IoU loss plus a term for the width and one for the height.

    .. math:: L = u^\gamma \left( 1 - u + \frac{\rho^2}{w_c^2 + h_c^2} + \frac{(w - w_t)^2}{w_c^2}
        + \frac{(h - h_t)^2}{h_c^2} \right)

    with the IoU `u`, the distance of the centres `ρ` and the width `w_c` and height `h_c` of the smallest hull. With
    `gamma > 0` it is Focal-EIoU. Its weight carries no gradient: otherwise moving a box off its target would lower the
    loss. Disjoint boxes have weight 0.

    Args:
        gamma: exponent of the focal weight, at least 0; 0.5 in Focal-EIoU.
        eps: added to the denominators, in squared units of the boxes; 0 leaves the value without a unit.
        reduction: "none", "mean" or "sum".

    Shape:
        input and target: (..., 4) boxes, xyxy, in any common unit. Inverted boxes have area 0. Output: (...) or ().

    References:
        Zhang et al., "Focal and efficient IOU loss for accurate bounding box regression", Neurocomputing 2022, eqs. 6
        and 13. The loss of the same name in mmdet is `ExtendedIoULoss`.

    Examples:
        >>> EIoULoss()(torch.tensor([[0.0, 0.0, 1.0, 1.0]]), torch.tensor([[0.0, 0.0, 2.0, 1.0]]))
        tensor(0.8000)
    """

    def __init__(self, *, gamma: float = 0.0, eps: float = 0.0, reduction: str = "mean") -> None:
        super().__init__(eps=eps, reduction=reduction)
        self.gamma = check_number("gamma", gamma, low=0.0)

    def _of_pair(self, box: Coordinates, target: Coordinates) -> Tensor:
        iou, distance, width, height = overlap_terms(box, target, "eiou", self.eps)
        loss = 1 - iou + distance + width + height
        return loss if self.gamma == 0 else iou.detach() ** self.gamma * loss


class ExtendedIoULoss(BoxPairLoss):
    r"""Penalise a small extended IoU, whose intersection is negative for disjoint boxes and so has a gradient.

    .. math:: L = \begin{cases} d^2 / 2s & d < s \\ d - s/2 & d \ge s \end{cases}, \qquad
        d = 1 - \frac{I}{A + A_t - I}

    With the upper left corner of the smallest hull as the origin, the intersection has the corners `(x1, y1)` and
    `(x2, y2)`, in the wrong order where the boxes are disjoint, and `I` adds and subtracts the rectangles from the
    origin: `I = x2 y2 + min(x1, x2) min(y1, y2) − x1 max(y1, y2) − max(x1, x2) y1`. For boxes that meet that is the
    area which they share.

    Args:
        smooth_point: `s > 0`, below which the loss is a parabola; 0.1 in the paper's implementations.
        eps: added to the union, in squared units of the boxes; 0 leaves the value without a unit.
        reduction: "none", "mean" or "sum".

    Shape:
        input and target: (..., 4) boxes, xyxy, in any common unit. Inverted boxes have area 0. Output: (...) or ().

    References:
        Peng and Yu, "A systematic IoU-related method: beyond simplified regression for better localization", IEEE TIP
        2021 (`EIoULoss` of mmdet).

    Examples:
        >>> ExtendedIoULoss()(torch.tensor([[0.0, 0.0, 1.0, 1.0]]), torch.tensor([[0.0, 0.0, 2.0, 1.0]]))
        tensor(0.4500)
    """

    def __init__(self, *, smooth_point: float = 0.1, eps: float = 0.0, reduction: str = "mean") -> None:
        super().__init__(eps=eps, reduction=reduction)
        self.smooth_point = check_number("smooth_point", smooth_point, low=0.0, low_open=True)

    def _of_pair(self, box: Coordinates, target: Coordinates) -> Tensor:
        (aw, ah), (bw, bh) = sizes(box), sizes(target)
        shared = _extended_intersection(box, target)
        # the rectangles of an inverted box have an area, but it shares none: the loss is to make them smaller
        shared = torch.where(_is_inverted(box) | _is_inverted(target), -shared.abs(), shared)
        # proper boxes have a union of at least the larger area; that of inverted ones may be anything
        union = torch.maximum(aw * ah + bw * bh - shared, torch.maximum(aw * ah, bw * bh))
        distance = 1 - quotient(shared, union, self.eps)
        point = self.smooth_point
        return torch.where(distance < point, distance**2 / (2 * point), distance - point / 2)


def _is_inverted(box: Coordinates) -> Tensor:
    x1, y1, x2, y2 = box
    return (x2 < x1) | (y2 < y1)


def _extended_intersection(box: Coordinates, target: Coordinates) -> Tensor:
    (ax1, ay1, ax2, ay2), (bx1, by1, bx2, by2) = box, target
    left, top = torch.minimum(ax1, bx1), torch.minimum(ay1, by1)
    x1, y1 = torch.maximum(ax1, bx1) - left, torch.maximum(ay1, by1) - top
    x2, y2 = torch.minimum(ax2, bx2) - left, torch.minimum(ay2, by2) - top
    area = x2 * y2 + torch.minimum(x1, x2) * torch.minimum(y1, y2)
    return area - x1 * torch.maximum(y1, y2) - torch.maximum(x1, x2) * y1
