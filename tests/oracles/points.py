"""Points or anchors and targets of one image in, the target of each point out: plain loops, one rule a function.

A result is the list of the target of each point, `None` for the background and "ignored" for an ignored one. Nothing
here knows tensors: boxes are lists of four numbers, points lists of two.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

Box = Sequence[float]
Point = Sequence[float]
Range = tuple[float, float]


def area(box: Box) -> float:
    return (box[2] - box[0]) * (box[3] - box[1])


def fcos(
    points: Sequence[Point], reach: Sequence[float], ranges: Sequence[Range], targets: Sequence[Box]
) -> list[int | None]:
    """Give each point the smallest target that holds it, within `reach` of its centre and with a side in its range."""
    result: list[int | None] = []
    for (x, y), limit, (low, high) in zip(points, reach, ranges, strict=True):
        best: int | None = None
        for j, (x1, y1, x2, y2) in enumerate(targets):
            sides = [x - x1, y - y1, x2 - x, y2 - y]
            near = abs(x - (x1 + x2) / 2) < limit and abs(y - (y1 + y2) / 2) < limit
            allowed = min(sides) > 0 and near and low <= max(sides) <= high
            if allowed and (best is None or area(targets[j]) < area(targets[best])):
                best = j
        result.append(best)
    return result


def default_ranges(strides: Sequence[float], levels: Sequence[int], count: int) -> list[Range]:
    """Return 4 to 8 strides, from 0 on the first of `count` levels and to infinity on the last."""
    return [
        (0.0 if level == 0 else 4 * stride, math.inf if level == count - 1 else 8 * stride)
        for stride, level in zip(strides, levels, strict=True)
    ]


def torchvision_fcos(
    points: Sequence[Point], strides: Sequence[float], ranges: Sequence[Range], targets: Sequence[Box]
) -> list[int | None]:
    """Give each point the target of the highest score 1e8 - area among those that fit, with open ranges."""
    result: list[int | None] = []
    for (x, y), stride, (low, high) in zip(points, strides, ranges, strict=True):
        scores = []
        for x1, y1, x2, y2 in targets:
            sides = [x - x1, y - y1, x2 - x, y2 - y]
            centre = max(abs(x - (x1 + x2) / 2), abs(y - (y1 + y2) / 2))
            fits = min(sides) > 0 and centre < 1.5 * stride and low < max(sides) < high
            scores.append((1e8 - area((x1, y1, x2, y2))) * fits)
        best = max(range(len(scores)), key=lambda j: (scores[j], -j), default=None)
        result.append(best if best is not None and scores[best] > 1e-5 else None)
    return result


def iou(box: Box, other: Box) -> float:
    width = max(min(box[2], other[2]) - max(box[0], other[0]), 0.0)
    height = max(min(box[3], other[3]) - max(box[1], other[1]), 0.0)
    union = area(box) + area(other) - width * height
    return width * height / union if union > 0 else 0.0


def shape_iou(box: Box, other: Box) -> float:
    """Return the IoU of two boxes as if they had the same centre."""
    (w, h), (v, g) = ((b[2] - b[0], b[3] - b[1]) for b in (box, other))
    return iou([-w / 2, -h / 2, w / 2, h / 2], [-v / 2, -g / 2, v / 2, g / 2])


def responsible(
    points: Sequence[Point], strides: Sequence[float], levels: Sequence[int], targets: Sequence[Box]
) -> set[tuple[int, int]]:
    """Return the pairs (point, target) that share a cell; a target off the grid of a level is in its nearest cell."""
    cell = [(math.floor(x / s), math.floor(y / s)) for (x, y), s in zip(points, strides, strict=True)]
    grids = {level: [c for c, other in zip(cell, levels, strict=True) if other == level] for level in set(levels)}
    extent = {
        level: [(min(c[k] for c in grid), max(c[k] for c in grid)) for k in (0, 1)] for level, grid in grids.items()
    }
    pairs = set()
    for i, (own, stride, level) in enumerate(zip(cell, strides, levels, strict=True)):
        for j, (x1, y1, x2, y2) in enumerate(targets):
            place = []
            for axis, centre in enumerate(((x1 + x2) / 2, (y1 + y2) / 2)):
                low, high = extent[level][axis]
                place.append(min(max(math.floor(centre / stride), low), high))
            if tuple(place) == own:
                pairs.add((i, j))
    return pairs


def grid_cell(
    pairs: set[tuple[int, int]],
    similarity: Sequence[Sequence[float]],
    overlap: Sequence[Sequence[float]],
    positive: float | None,
    ignore: float | None,
) -> list[int | str | None]:
    """Give each target its best free responsible prediction, the best pair first; then apply the two thresholds.

    Args:
        pairs: (prediction, target) that share a cell.
        similarity: IoU [prediction][target] by which a prediction is chosen and `positive` matches.
        overlap: IoU [prediction][target] by which `ignore` ignores.
        positive: least similarity of a further match.
        ignore: largest overlap of the background.
    """
    result: list[int | str | None] = []
    for i, row in enumerate(similarity):
        own = [j for j in range(len(row)) if (i, j) in pairs]
        best = max(own, key=lambda j: (row[j], -j), default=None)
        if best is not None and positive is not None and row[best] >= positive:
            result.append(best)
        elif ignore is not None and any(value > ignore for value in overlap[i]):
            result.append("ignored")
        else:
            result.append(None)
    predictions, targets = set(), set()
    for _, j, i in sorted((-similarity[i][j], j, i) for i, j in pairs):
        if i not in predictions and j not in targets:
            predictions.add(i)
            targets.add(j)
            result[i] = j
    return result


def resized(box: Box, scale: float) -> list[float]:
    """Return a box with sides `scale` times as long around the same centre."""
    x, y, w, h = (box[0] + box[2]) / 2, (box[1] + box[3]) / 2, (box[2] - box[0]) / 2, (box[3] - box[1]) / 2
    return [x - scale * w, y - scale * h, x + scale * w, y + scale * h]


def center_region(
    points: Sequence[Point],
    cells: Sequence[Box],
    targets: Sequence[Box],
    positive: float,
    negative: float | None,
    min_iof: float | None,
) -> list[int | str | None]:
    """Give each point the smallest target whose core holds it, else ignore it in the ring of any."""
    result: list[int | str | None] = []
    for point, cell in zip(points, cells, strict=True):

        def holds(region: Box, point: Point = point) -> bool:
            return region[0] < point[0] < region[2] and region[1] < point[1] < region[3]

        def has_share(region: Box, cell: Box = cell) -> bool:
            width = max(min(cell[2], region[2]) - max(cell[0], region[0]), 0.0)
            height = max(min(cell[3], region[3]) - max(cell[1], region[1]), 0.0)
            return min_iof is not None and width * height > min_iof * area(cell)

        inside = holds if min_iof is None else has_share
        own = [j for j, box in enumerate(targets) if inside(resized(box, positive)) and holds(box)]
        if own:
            result.append(min(own, key=lambda j: (area(targets[j]), j)))
        elif negative is not None and any(inside(resized(box, negative)) for box in targets):
            result.append("ignored")
        else:
            result.append(None)
    return result
