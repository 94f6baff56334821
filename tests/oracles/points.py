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
