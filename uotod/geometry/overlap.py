"""The IoU family on broadcastable coordinates: two boxes in, their overlap and its terms out.

Operations in place save a CPU half of the memory traffic of all pairs; autograd knows them.
"""

import math
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from uotod.check import is_transformed, known_positive, least_positive

Coordinates = tuple[Tensor, Tensor, Tensor, Tensor]  # x1, y1, x2, y2
OverlapKind = Literal["iou", "giou", "diou", "ciou", "eiou", "siou"]
OVERLAP_KINDS: tuple[OverlapKind, ...] = ("iou", "giou", "diou", "ciou", "eiou", "siou")


def overlap(box: Coordinates, other: Coordinates, kind: OverlapKind, eps: float) -> Tensor:
    """Return one member of the IoU family: the IoU less the penalties of `overlap_terms`."""
    value, *penalties = overlap_terms(box, other, kind, eps)
    for penalty in penalties:
        value.sub_(penalty)
    return value


def overlap_terms(
    box: Coordinates, other: Coordinates, kind: OverlapKind, eps: float, *, theta: float = 4.0
) -> tuple[Tensor, ...]:
    """Return the IoU and the penalties that a member of the family takes off it, each at least 0 for proper boxes.

    `eps` is added to the denominators. With `eps=0` the values do not depend on the unit of the boxes, and a
    denominator that is not positive makes its quotient zero. `theta` is the exponent of the shape in "siou".
    """
    (aw, ah), (bw, bh) = sizes(box), sizes(other)
    shared = intersection(box, other)
    box_area, other_area = aw * ah, bw * bh
    union = (box_area + other_area).sub_(shared)
    # the union and the hull are at least as large as either box, of which there are fewer than pairs
    positive = eps == 0 and (known_positive(box_area) or known_positive(other_area))
    iou = quotient(shared, union, eps, positive)
    if kind == "iou":
        return (iou,)

    hull_w, hull_h = hull(box, other)
    if kind == "giou":
        area = hull_w.mul_(hull_h)
        return iou, quotient(area - union, area, eps, positive)

    dx, dy = center_offsets(box, other)
    if kind == "siou":
        return (iou, *_angular_penalties((dx, dy), (hull_w, hull_h), (aw, ah), (bw, bh), eps, theta))
    distance = quotient(dx**2 + dy**2, hull_w**2 + hull_h**2, eps, positive)
    if kind == "diou":
        return iou, distance
    if kind == "eiou":
        return iou, distance, quotient((aw - bw) ** 2, hull_w**2, eps), quotient((ah - bh) ** 2, hull_h**2, eps)

    v = 4 / math.pi**2 * (_aspect_angle(bw, bh) - _aspect_angle(aw, ah)) ** 2
    held = v.detach()  # from forward-mode differentiation too, of which `no_grad` knows nothing
    alpha = quotient(held.clone(), 1 - iou.detach() + held, eps)
    return iou, distance, alpha * v


def sizes(box: Coordinates) -> tuple[Tensor, Tensor]:
    """Return width and height, 0 for an inverted box."""
    x1, y1, x2, y2 = box
    return (x2 - x1).clamp(min=0), (y2 - y1).clamp(min=0)


def center_offsets(box: Coordinates, other: Coordinates) -> tuple[Tensor, Tensor]:
    """Return the offsets in x and y of the centres."""
    (ax1, ay1, ax2, ay2), (bx1, by1, bx2, by2) = box, other
    return (ax1 + ax2 - bx1 - bx2) / 2, (ay1 + ay2 - by1 - by2) / 2


def hull(box: Coordinates, other: Coordinates) -> tuple[Tensor, Tensor]:
    """Return width and height of the smallest box around two boxes."""
    (ax1, ay1, ax2, ay2), (bx1, by1, bx2, by2) = box, other
    width = torch.maximum(ax2, bx2).sub_(torch.minimum(ax1, bx1))
    return width, torch.maximum(ay2, by2).sub_(torch.minimum(ay1, by1))


def intersection(box: Coordinates, other: Coordinates) -> Tensor:
    """Return the area that two boxes share."""
    (ax1, ay1, ax2, ay2), (bx1, by1, bx2, by2) = box, other
    width = torch.minimum(ax2, bx2).sub_(torch.maximum(ax1, bx1)).clamp_min_(0)
    height = torch.minimum(ay2, by2).sub_(torch.maximum(ay1, by1)).clamp_min_(0)
    return width.mul_(height)


def scaled(box: Coordinates, ratio: float) -> Coordinates:
    """Return the box of `ratio` times the size around the same centre; an inverted box stays inverted."""
    x1, y1, x2, y2 = box
    cx, cy, half_w, half_h = (x1 + x2) / 2, (y1 + y2) / 2, ratio * (x2 - x1) / 2, ratio * (y2 - y1) / 2
    return cx - half_w, cy - half_h, cx + half_w, cy + half_h


def quotient(numerator: Tensor, denominator: Tensor, eps: float, positive: bool = False) -> Tensor:
    """Return a quotient whose denominator is padded with `eps`; without one, 0 where the denominator is not positive.

    It takes the place of the numerator, which must have its shape. `positive` tells that all denominators are: at least
    `least_positive`. Integers have a quotient in float32.
    """
    if not numerator.is_floating_point():
        numerator = numerator.float()
    if eps > 0:
        return numerator.div_(denominator + eps)
    if positive:
        return numerator.div_(denominator)
    # infinity for what is not positive, before the division: the gradient of a masked 0 / 0 would still be NaN
    least, denominator = least_positive(denominator.dtype), denominator.to(numerator.dtype)
    if is_transformed():  # a threshold has no derivative forwards
        return numerator.div_(torch.where(denominator < least, math.inf, denominator))
    # `where` takes ten times as long on CPUs
    return numerator.div_(F.threshold(denominator, least, math.inf))


def _angular_penalties(
    offset: tuple[Tensor, Tensor],
    hull_size: tuple[Tensor, Tensor],
    size: tuple[Tensor, Tensor],
    other_size: tuple[Tensor, Tensor],
    eps: float,
    theta: float,
) -> tuple[Tensor, Tensor]:
    """Return half the distance and half the shape cost of SIoU."""
    dx, dy = offset
    # sin(2 arcsin s) = 2 s √(1 - s²): without the arcsine, whose gradient is infinite along the axes
    angle = quotient(2 * (dx * dy).abs(), dx**2 + dy**2, eps)
    distance, shape = torch.zeros_like(angle), torch.zeros_like(angle)
    for d, length, a, b in zip(offset, hull_size, size, other_size, strict=True):
        distance = distance - torch.expm1((angle - 2) * quotient(d**2, length**2, eps))
        shape = shape + (-torch.expm1(-quotient((a - b).abs(), torch.maximum(a, b), eps))) ** theta
    return distance / 2, shape / 2


def _aspect_angle(width: Tensor, height: Tensor) -> Tensor:
    """Return arctan(width / height), with a value and a zero gradient for a box without extent."""
    # in units of the larger side: the gradient divides by w² + h², which under- and overflows in float32
    unit = torch.maximum(width, height).detach()
    empty = unit < least_positive(unit.dtype)
    unit = torch.where(empty, 1.0, unit)
    return torch.atan2(torch.where(empty, 1.0, width / unit), torch.where(empty, 1.0, height / unit))
