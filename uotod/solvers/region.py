"""Which points belong to which targets: boxes and points in, a bool mask of pairs out."""

import torch
from torch import Tensor


def reaches(boxes: Tensor, points: Tensor) -> Tensor:
    """Tell which points lie in a box, near its centre, and at a distance from its sides that is in their range.

    Args:
        boxes: (B, T, 4) boxes, xyxy.
        points: (B, P, 5): x, y, the largest distance from the centre along an axis (exclusive), and the least and the
            largest distance from the farthest side (inclusive).

    Returns:
        (B, T, P) bool.
    """
    x, y, radius, low, high = points.unsqueeze(1).unbind(-1)  # (B, 1, P)
    x1, y1, x2, y2 = boxes.unsqueeze(2).unbind(-1)  # (B, T, 1)
    nearest, farthest = _side_distances(x, y, (x1, y1, x2, y2))
    offset = torch.maximum((x - (x1 + x2) / 2).abs(), (y - (y1 + y2) / 2).abs())
    return (nearest > 0) & (offset < radius) & (farthest >= low) & (farthest <= high)


def _side_distances(x: Tensor, y: Tensor, box: tuple[Tensor, Tensor, Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """Return the least and the largest of the distances to the left, upper, right and lower side."""
    x1, y1, x2, y2 = box
    left, right, top, bottom = x - x1, x2 - x, y - y1, y2 - y
    nearest = torch.minimum(torch.minimum(left, right), torch.minimum(top, bottom))
    farthest = torch.maximum(torch.maximum(left, right), torch.maximum(top, bottom))
    return nearest, farthest
