"""What the tests of points and cells share: a small feature pyramid, targets, and the assignment of one image."""

import math
from typing import Any

import torch
from torch import Tensor

from tests.support.problems import random_boxes
from uotod.match import Matcher
from uotod.utils import Anchors, Points

UNITS = [1.0, 1 / 64]  # pixels, and the unit square
SHAPES, STRIDES = [(8, 8), (4, 4), (2, 2)], [8.0, 16.0, 32.0]  # an image of 64 x 64


def pyramid(unit: float = 1.0, dtype: torch.dtype = torch.float64) -> Points:
    return Points.from_levels(SHAPES, [s * unit for s in STRIDES], dtype=dtype)


def some_targets(seed: int, unit: float = 1.0) -> list[list[float]]:
    """Return 0 to 5 targets: whole pixels, which tie, in one half of the problems; duplicates; tiny ones."""
    torch.manual_seed(seed)
    boxes = 64 * random_boxes(seed % 6)
    boxes = boxes.round() if seed % 2 else boxes
    if seed % 5 == 4:
        boxes = torch.cat((boxes[-1:], boxes, boxes[:1], boxes[:1] / 64))
    return (boxes * unit).tolist()


def detect(matcher: Matcher, places: Any, targets: list[list[float]], pred_boxes: Tensor | None = None) -> list[Any]:
    """Return the target of each prediction of an image: a number, None for the background, "ignored" for neither."""
    preds = places.places.shape[-2]
    dtype = places.places.dtype
    if pred_boxes is None:
        pred_boxes = torch.zeros(preds, 4, dtype=dtype)
    input = {"pred_logits": torch.zeros(1, preds, 2, dtype=dtype), "pred_boxes": pred_boxes[None]}
    boxes = torch.tensor(targets, dtype=torch.float64).view(1, -1, 4)
    padding = torch.full((1, 1, 4), math.nan, dtype=torch.float64)
    mask = torch.ones(1, len(targets) + 1, dtype=torch.bool)
    mask[:, -1] = False
    target = {"boxes": torch.cat((boxes, padding), 1), "labels": torch.ones(mask.shape).long(), "mask": mask}
    plan = matcher(input, target, places)[0]
    assert ((plan == 0) | (plan == 1)).all()
    assert (plan.sum(1) <= 1).all()
    result = plan.argmax(1).tolist()
    rows = plan.sum(1).tolist()
    return ["ignored" if not row else None if j > len(targets) else j for j, row in zip(result, rows, strict=True)]


SIZES = [[(6.0, 9.0), (10.0, 6.0)], [(20.0, 14.0), (15.0, 24.0)], [(50.0, 30.0), (32.0, 45.0)]]


def anchors_of_cells(unit: float = 1.0, dtype: torch.dtype = torch.float64) -> Anchors:
    """Return two anchors at each cell of the pyramid."""
    levels = []
    points = pyramid(unit, dtype)
    for centers, sizes in zip(points.centers.split([64, 16, 4]), SIZES, strict=True):
        half = torch.tensor(sizes, dtype=dtype) * unit / 2
        boxes = torch.cat((centers[:, None] - half, centers[:, None] + half), dim=-1)  # (cells, 2, 4)
        levels.append(boxes.flatten(0, 1))
    return Anchors.from_levels(levels, [s * unit for s in STRIDES])
