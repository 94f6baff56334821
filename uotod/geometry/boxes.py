"""All geometry of axis-aligned boxes: tensors of boxes in, converted boxes, areas or overlaps out.

Integer boxes are computed in int64, in which no sum and no area of pixels overflows; quotients of them are float32.
"""

import math
from typing import Any

import torch
from torch import Tensor

from uotod.geometry.overlap import Coordinates, OverlapKind, intersection, overlap, scaled


def box_cxcywh_to_xyxy(boxes: Tensor) -> Tensor:
    """Convert boxes from centre and size to corners, in any unit.

    Args:
        boxes: (..., 4) boxes `(cx, cy, w, h)`.

    Returns:
        (..., 4) boxes `(x1, y1, x2, y2)`.

    Examples:
        >>> box_cxcywh_to_xyxy(torch.tensor([2.0, 3.0, 2.0, 4.0]))
        tensor([1., 1., 3., 5.])
    """
    boxes = _checked_boxes("boxes", boxes)
    center, half = boxes[..., :2], boxes[..., 2:] / 2
    return torch.cat((center - half, center + half), dim=-1)


def box_xyxy_to_cxcywh(boxes: Tensor) -> Tensor:
    """Convert boxes from corners to centre and size, in any unit.

    Args:
        boxes: (..., 4) boxes `(x1, y1, x2, y2)`.

    Returns:
        (..., 4) boxes `(cx, cy, w, h)`.

    Examples:
        >>> box_xyxy_to_cxcywh(torch.tensor([1.0, 1.0, 3.0, 5.0]))
        tensor([2., 3., 2., 4.])
    """
    boxes = _checked_boxes("boxes", boxes)
    low, high = boxes[..., :2], boxes[..., 2:]
    return torch.cat(((low + high) / 2, high - low), dim=-1)


def box_xywh_to_xyxy(boxes: Tensor) -> Tensor:
    """Convert boxes from first corner and size (the layout of COCO) to corners, in any unit.

    Args:
        boxes: (..., 4) boxes `(x1, y1, w, h)`.

    Returns:
        (..., 4) boxes `(x1, y1, x2, y2)`.

    Examples:
        >>> box_xywh_to_xyxy(torch.tensor([1.0, 1.0, 2.0, 4.0]))
        tensor([1., 1., 3., 5.])
    """
    boxes = _checked_boxes("boxes", boxes)
    return torch.cat((boxes[..., :2], boxes[..., :2] + boxes[..., 2:]), dim=-1)


def box_xyxy_to_xywh(boxes: Tensor) -> Tensor:
    """Convert boxes from corners to first corner and size (the layout of COCO), in any unit.

    Args:
        boxes: (..., 4) boxes `(x1, y1, x2, y2)`.

    Returns:
        (..., 4) boxes `(x1, y1, w, h)`.

    Examples:
        >>> box_xyxy_to_xywh(torch.tensor([1.0, 1.0, 3.0, 5.0]))
        tensor([1., 1., 2., 4.])
    """
    boxes = _checked_boxes("boxes", boxes)
    return torch.cat((boxes[..., :2], boxes[..., 2:] - boxes[..., :2]), dim=-1)


def box_area(boxes: Tensor) -> Tensor:
    """Return the area of each box, in squared units of the boxes; an inverted box has area 0.

    Args:
        boxes: (..., 4) boxes `(x1, y1, x2, y2)`.

    Returns:
        (...) areas, int64 for integers and at least float32 for others.

    Examples:
        >>> box_area(torch.tensor([[0.0, 0.0, 2.0, 3.0], [2.0, 0.0, 0.0, 3.0]]))
        tensor([6., 0.])
    """
    boxes = full_precision(_checked_boxes("boxes", boxes))
    size = (boxes[..., 2:] - boxes[..., :2]).clamp(min=0)
    return size[..., 0] * size[..., 1]


def box_iou(boxes: Tensor, other: Tensor) -> Tensor:
    """Return the intersection over union of every box with every other box.

    The union is not padded with an epsilon: equal boxes of positive area have an IoU of exactly 1. Two boxes whose
    union is empty have an IoU of 0.

    Args:
        boxes: (..., N, 4) boxes `(x1, y1, x2, y2)`.
        other: (..., M, 4) boxes of the same leading shape.

    Returns:
        (..., N, M) values in [0, 1], float32 for integer boxes.

    Raises:
        TypeError: one of the arguments is not a tensor.
        ValueError: one of the arguments has not the shape of boxes, or their leading shapes differ.

    Examples:
        >>> box_iou(torch.tensor([[0.0, 0.0, 2.0, 2.0]]), torch.tensor([[0.0, 0.0, 2.0, 1.0], [5.0, 5.0, 6.0, 6.0]]))
        tensor([[0.5000, 0.0000]])
    """
    return pairwise_overlap(boxes, other, "iou", eps=0.0)


def box_giou(boxes: Tensor, other: Tensor) -> Tensor:
    """Return the generalised IoU (Rezatofighi et al., CVPR 2019, eq. 1 and algorithm 1) of every pair of boxes.

    Args:
        boxes: (..., N, 4) boxes `(x1, y1, x2, y2)`.
        other: (..., M, 4) boxes of the same leading shape.

    Returns:
        (..., N, M) values in (-1, 1].

    Examples:
        >>> box_giou(torch.tensor([[0.0, 0.0, 1.0, 1.0]]), torch.tensor([[1.0, 0.0, 2.0, 1.0], [3.0, 0.0, 4.0, 1.0]]))
        tensor([[ 0.0000, -0.5000]])
    """
    return pairwise_overlap(boxes, other, "giou", eps=0.0)


def box_diou(boxes: Tensor, other: Tensor) -> Tensor:
    """Return the distance IoU (Zheng et al., AAAI 2020, eq. 7) of every pair of boxes.

    Args:
        boxes: (..., N, 4) boxes `(x1, y1, x2, y2)`.
        other: (..., M, 4) boxes of the same leading shape.

    Returns:
        (..., N, M) values in (-1, 1].

    Examples:
        >>> box_diou(torch.tensor([[0.0, 0.0, 1.0, 1.0]]), torch.tensor([[0.0, 0.0, 1.0, 1.0], [1.0, 0.0, 2.0, 1.0]]))
        tensor([[ 1.0000, -0.2000]])
    """
    return pairwise_overlap(boxes, other, "diou", eps=0.0)


def box_ciou(boxes: Tensor, other: Tensor) -> Tensor:
    """Return the complete IoU (Zheng et al., AAAI 2020, eqs. 8-11) of every pair of boxes.

    Args:
        boxes: (..., N, 4) boxes `(x1, y1, x2, y2)`.
        other: (..., M, 4) boxes of the same leading shape.

    Returns:
        (..., N, M) values of at most 1.

    Examples:
        >>> box_ciou(torch.tensor([[0.0, 0.0, 1.0, 1.0]]), torch.tensor([[0.0, 0.0, 1.0, 1.0], [1.0, 0.0, 2.0, 1.0]]))
        tensor([[ 1.0000, -0.2000]])
    """
    return pairwise_overlap(boxes, other, "ciou", eps=0.0)


def box_centers(boxes: Tensor) -> Tensor:
    """Return the centres (..., 2) of (..., 4) boxes `(x1, y1, x2, y2)`."""
    boxes = _checked_boxes("boxes", boxes)
    return (boxes[..., :2] + boxes[..., 2:]) / 2


def box_scaled(boxes: Tensor, scale: float) -> Tensor:
    """Return (..., 4) boxes `(x1, y1, x2, y2)` with sides `scale` times as long around the same centres."""
    return torch.stack(scaled(aligned_coordinates(boxes), scale), dim=-1)


def pairwise_overlap(boxes: Tensor, other: Tensor, kind: OverlapKind, eps: float) -> Tensor:
    """Return the overlap of every pair of (..., N, 4) and (..., M, 4) boxes as (..., N, M); see `aligned_overlap`."""
    return overlap(*pairwise_coordinates(boxes, other), kind, eps)


def pairwise_intersection(boxes: Tensor, other: Tensor) -> Tensor:
    """Return the area that every pair of (..., N, 4) and (..., M, 4) boxes shares, as (..., N, M)."""
    return intersection(*pairwise_coordinates(boxes, other))


def aligned_overlap(boxes: Tensor, other: Tensor, kind: OverlapKind, eps: float) -> Tensor:
    """Return the overlap of (..., 4) boxes with the boxes in the same rows of `other`.

    `eps` is added to the denominators (union, enclosing area, squared diagonal). With `eps=0` the value does not depend
    on the unit of the boxes, and a denominator of zero makes its quotient zero.
    """
    return overlap(aligned_coordinates(boxes), aligned_coordinates(other), kind, eps)


def aligned_coordinates(boxes: Tensor) -> Coordinates:
    """Return `(x1, y1, x2, y2)` of (..., 4) boxes, each (...), for functions of boxes in the same rows."""
    x1, y1, x2, y2 = boxes.unbind(-1)
    return x1, y1, x2, y2


def pairwise_coordinates(boxes: Tensor, other: Tensor) -> tuple[Coordinates, Coordinates]:
    """Return the coordinates of (..., N, 4) and (..., M, 4) boxes, which broadcast to all pairs (..., N, M)."""
    boxes = _checked_boxes("boxes", boxes, min_dim=2)
    other = _checked_boxes("other", other, min_dim=2)
    if boxes.shape[:-2] != other.shape[:-2]:
        raise ValueError(f"other must have the leading shape {tuple(boxes.shape[:-2])}, got {tuple(other.shape[:-2])}")
    x1, y1, x2, y2 = (x[..., :, None] for x in _coordinates(boxes))
    a1, b1, a2, b2 = (x[..., None, :] for x in _coordinates(other))
    return (x1, y1, x2, y2), (a1, b1, a2, b2)


def own_format(boxes: Tensor) -> str | None:
    """Return the format that boxes state themselves, by name, as `torchvision.tv_tensors.BoundingBoxes` do, or None."""
    if type(boxes) is Tensor or not isinstance(boxes, Tensor):
        return None
    stated: Any = getattr(boxes, "format", None)
    found = getattr(stated, "name", stated)
    return found.lower() if isinstance(found, str) else None


def largest_side(boxes: Tensor) -> float:
    """Return the largest coordinate of boxes that the areas of their unions and hulls can be computed of.

    Of anything but four numbers a box nothing is known: infinity.
    """
    return math.sqrt(torch.finfo(boxes.dtype).max) / 4 if boxes.shape[-1] == 4 else math.inf


def full_precision(x: Tensor) -> Tensor:
    """Return half-precision tensors in float32, integers in int64, and all others as they are."""
    if x.is_floating_point():
        return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
    return x if x.dtype in (torch.bool, torch.complex64, torch.complex128) else x.long()


def _coordinates(boxes: Tensor) -> tuple[Tensor, ...]:
    # contiguous planes: strided coordinates slow every pairwise operation that follows
    return full_precision(boxes).movedim(-1, 0).contiguous().unbind(0)


def _checked_boxes(name: str, boxes: Tensor, min_dim: int = 1) -> Tensor:
    if not isinstance(boxes, Tensor):
        raise TypeError(f"{name} must be a tensor, got {type(boxes).__name__}")
    if boxes.dim() < min_dim or boxes.shape[-1] != 4:
        expected = "(..., N, 4)" if min_dim == 2 else "(..., 4)"
        raise ValueError(f"{name} must have shape {expected}, got {tuple(boxes.shape)}")
    return boxes if boxes.is_floating_point() else boxes.long()
