"""Which points belong to which targets: boxes and points in, a bool mask of pairs out."""

import torch
from torch import Tensor

from uotod.geometry.boxes import box_area, box_centers, pairwise_intersection


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
    cx, cy = box_centers(boxes).unsqueeze(2).unbind(-1)
    offset = torch.maximum((x - cx).abs(), (y - cy).abs())
    return (nearest > 0) & (offset < radius) & (farthest >= low) & (farthest <= high)


def contains(boxes: Tensor, points: Tensor) -> Tensor:
    """Tell which (B, P, 2) points lie inside, not on a side of, which (B, T, 4) boxes: (B, T, P) bool."""
    x, y = points.unsqueeze(1).unbind(-1)  # (B, 1, P)
    x1, y1, x2, y2 = boxes.unsqueeze(2).unbind(-1)  # (B, T, 1)
    return (x > x1) & (x < x2) & (y > y1) & (y < y2)


def near_center(points: Tensor, stride: Tensor, boxes: Tensor, radius: float) -> Tensor:
    """Return which points lie strictly inside the square of `2 · radius · stride` around a box's centre, (B, T, P)."""
    reach = (radius * stride).unsqueeze(1)  # (B, 1, P)
    x, y = points.unsqueeze(1).unbind(-1)
    cx, cy = box_centers(boxes).unsqueeze(2).unbind(-1)  # (B, T, 1)
    return ((x - cx).abs() < reach) & ((y - cy).abs() < reach)


def center_distance(points: Tensor, stride: Tensor, boxes: Tensor) -> Tensor:
    """Return the distance from each point to each box's centre, in strides of the point, (B, T, P)."""
    x, y = points.unsqueeze(1).unbind(-1)  # (B, 1, P)
    cx, cy = box_centers(boxes).unsqueeze(2).unbind(-1)  # (B, T, 1)
    return ((x - cx) ** 2 + (y - cy) ** 2).sqrt() / stride.unsqueeze(1)


def overlaps(boxes: Tensor, cells: Tensor, share: float) -> Tensor:
    """Tell which (B, P, 4) cells have more than a share of their area in which (B, T, 4) boxes: (B, T, P) bool."""
    return pairwise_intersection(boxes, cells) > share * box_area(cells).unsqueeze(1)


def cells(centers: Tensor, stride: Tensor, level: Tensor, num_levels: int) -> Tensor:
    """Return the cell of each point in the grid of its level, and the extent of that grid.

    Args:
        centers: (B, P, 2) points (x, y).
        stride: (B, P) width of a cell, in the unit of the points.
        level: (B, P) index of the grid, below `num_levels`.
        num_levels: number of grids.

    Returns:
        (B, P, 7): the stride; the cell (column, row); the first and the last cell of its grid.
    """
    cell = (centers / stride.unsqueeze(-1)).floor()  # (B, P, 2)
    index = level.unsqueeze(-1).expand_as(cell)
    blank = cell.new_zeros(len(cell), num_levels, 2)
    first, last = (blank.scatter_reduce(1, index, cell, kind, include_self=False) for kind in ("amin", "amax"))
    return torch.cat((stride.unsqueeze(-1), cell, first.gather(1, index), last.gather(1, index)), dim=-1)


def in_cell(boxes: Tensor, cells: Tensor) -> Tensor:
    """Tell which cells hold the centre of a box; a centre outside the grid is held by the nearest cell.

    A centre on the border of two cells belongs to the one on the right or below.

    Args:
        boxes: (B, T, 4) boxes, xyxy.
        cells: (B, P, 7) as `cells` returns them.

    Returns:
        (B, T, P) bool.
    """
    stride, column, row, left, top, right, bottom = cells.unsqueeze(1).unbind(-1)  # (B, 1, P)
    x, y = box_centers(boxes).unsqueeze(2).unbind(-1)  # (B, T, 1)
    same_column = (x / stride).floor().clamp(left, right) == column
    return same_column & ((y / stride).floor().clamp(top, bottom) == row)


def _side_distances(x: Tensor, y: Tensor, box: tuple[Tensor, Tensor, Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """Return the least and the largest of the distances to the left, upper, right and lower side."""
    x1, y1, x2, y2 = box
    left, right, top, bottom = x - x1, x2 - x, y - y1, y2 - y
    nearest = torch.minimum(torch.minimum(left, right), torch.minimum(top, bottom))
    farthest = torch.maximum(torch.maximum(left, right), torch.maximum(top, bottom))
    return nearest, farthest
