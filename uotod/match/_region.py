"""Where points stand relative to targets: the rules of dense detectors for the candidates of a target."""

import torch
from torch import Tensor

from uotod._batch import Batch


def places(name: str, batch: Batch) -> tuple[Tensor, Tensor]:
    """Return the points (B, P, 2) of a batch and their strides (B, P).

    Raises:
        ValueError: the batch has no points, or they have no strides.
    """
    if batch.anchors is None:
        raise ValueError(f"{name} needs anchors: Points, or Anchors with a stride, got None")
    if batch.anchors.stride is None:
        raise ValueError(f"{name} needs anchors with a stride: Points, or Anchors with a stride, got none")
    return batch.anchors.centers, batch.anchors.stride


def in_box(points: Tensor, boxes: Tensor) -> Tensor:
    """Return which points (B, P, 2) lie strictly inside which boxes (B, T, 4), as (B, T, P) bool."""
    inside = None
    for axis in range(2):
        at = points[:, None, :, axis]  # (B, 1, P)
        low, high = boxes[..., axis, None], boxes[..., axis + 2, None]  # (B, T, 1)
        within = (at > low) & (at < high)
        inside = within if inside is None else inside & within
    assert inside is not None
    return inside


def in_center(points: Tensor, stride: Tensor, boxes: Tensor, radius: float) -> Tensor:
    """Return which points lie strictly inside the square of `2 · radius · stride` around a box's centre, (B, T, P)."""
    inside = None
    reach = (radius * stride).unsqueeze(1)  # (B, 1, P)
    for axis in range(2):
        center = (boxes[..., axis, None] + boxes[..., axis + 2, None]) / 2
        within = (points[:, None, :, axis] - center).abs() < reach
        inside = within if inside is None else inside & within
    assert inside is not None
    return inside


def center_distance(points: Tensor, stride: Tensor, boxes: Tensor) -> Tensor:
    """Return the distance from each point to each box's centre, in strides of the point, (B, T, P)."""
    squares = points.new_zeros(())
    for axis in range(2):
        center = (boxes[..., axis, None] + boxes[..., axis + 2, None]) / 2
        squares = squares + (points[:, None, :, axis] - center) ** 2
    return squares.sqrt() / stride.unsqueeze(1)


def of_any_target(pairs: Tensor, mask: Tensor) -> Tensor:
    """Return which predictions form one of the (B, T, P) pairs with a target that is not padding, (B, 1, P)."""
    return torch.any(pairs & mask.unsqueeze(-1), dim=1, keepdim=True)
