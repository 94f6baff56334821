"""A grid of predictions and its target in, the terms of YOLO's loss out: loops over cells; and the grid of targets."""

import torch
from torch import Tensor
from torch.nn import functional as F

from tests.oracles import loss as loss_oracle

OVERLAPS = {"iou": loss_oracle.iou_loss, "giou": loss_oracle.giou_loss, "ciou": loss_oracle.ciou_loss}
COMPRESSED = {"sqrt": torch.sqrt, "log": torch.log, "linear": torch.clone}


def corners(cell: Tensor, row: int, column: int, side: int) -> Tensor:
    x, y = (column + cell[0]) / side, (row + cell[1]) / side
    return torch.stack((x - cell[2] / 2, y - cell[3] / 2, x + cell[2] / 2, y + cell[3] / 2))


def error(value: Tensor, target: Tensor | float, kind: str) -> Tensor:
    if kind == "mse":
        return (value - target) ** 2
    p = value.sigmoid()
    return -target * p.log() - (1 - target) * (1 - p).log()


def yolo(
    input: Tensor,
    target: Tensor,
    weights: tuple[float, float, float, float],
    *,
    box: str = "mse",
    size: str = "sqrt",
    confidence: str = "mse",
    classes: str = "mse",
    obj_quality: str | None = None,
) -> dict[str, Tensor]:
    """Return the sums over the cells of all images, each times its weight (coord, obj, noobj, class)."""
    terms = {name: input[..., :0].sum() for name in ("loss_loc", "loss_obj", "loss_noobj", "loss_cls")}
    images, side = input.shape[:2]
    coord, obj, noobj, category = weights
    for b in range(images):
        for row in range(side):
            for column in range(side):
                cell, wanted = input[b, row, column], target[b, row, column]
                if wanted[4] == 0:
                    terms["loss_noobj"] += noobj * error(cell[4], 0.0, confidence)
                if wanted[4] <= 0:
                    continue
                ours, theirs = (corners(x, row, column, side) for x in (cell, wanted))
                quality = loss_oracle.iou(ours.detach(), theirs) if obj_quality else 1.0
                terms["loss_obj"] += obj * error(cell[4], wanted[4] * quality, confidence)
                terms["loss_cls"] += category * error(cell[5:], wanted[5:], classes).sum()
                if box in OVERLAPS:
                    terms["loss_loc"] += coord * OVERLAPS[box](ours, theirs)
                    continue
                values = [torch.cat((x[:2], COMPRESSED[size](x[2:4]))) for x in (cell, wanted)]
                loss = loss_oracle.mse if box == "mse" else loss_oracle.smooth_l1
                terms["loss_loc"] += coord * loss(*values)
    return terms


def textbook_mse(input: Tensor, target: Tensor) -> Tensor:
    """Return the mean squared errors of boxes, confidences and classes over all cells, added up."""
    box, confidence, classes = [], [], []
    for ours, theirs in zip(input.flatten(0, 2), target.flatten(0, 2), strict=True):
        if theirs[4] < 0:
            continue
        box += [(ours[k] - theirs[k]) ** 2 for k in range(4)]
        confidence.append((ours[4] - theirs[4]) ** 2)
        classes += [(ours[k] - theirs[k]) ** 2 for k in range(5, len(ours))]
    return mean(box, input) + mean(confidence, input) + mean(classes, input)


def textbook_smooth_l1(input: Tensor, target: Tensor, *, by_overlap: bool = False) -> Tensor:
    """Return 5 box + confidence with an object + 0.5 confidence without + classes with an object, each a mean."""
    box, with_object, without, classes = [], [], [], []
    for index in torch.cartesian_prod(*(torch.arange(n) for n in input.shape[:3])).tolist():
        ours, theirs = input[tuple(index)], target[tuple(index)]
        if theirs[4] < 0:
            continue
        there = theirs[4] > 0
        if by_overlap:
            there = loss_oracle.iou(*(corners(x, *index[1:], input.shape[1]) for x in (ours, theirs))) > 0.5
        box += [F.smooth_l1_loss(ours[k], theirs[k]) for k in range(4)]
        (with_object if there else without).append((ours[4] - theirs[4]) ** 2)
        classes += [F.binary_cross_entropy(ours[k], theirs[k]) for k in range(5, len(ours)) if there]
    return 5 * mean(box, input) + mean(with_object, input) + 0.5 * mean(without, input) + mean(classes, input)


def mean(values: list[Tensor], like: Tensor) -> Tensor:
    return torch.stack(values).mean() if values else like.sum() * 0


def grid_target(targets: list[list[tuple[Tensor, int]]], side: int, classes: int) -> Tensor:
    """Write the targets of each image, boxes xyxy as fractions of the image, into the cells of their centres."""
    grid = torch.zeros(len(targets), side, side, classes + 5, dtype=torch.float64)
    for b, image in enumerate(targets):
        for (x1, y1, x2, y2), label in image:
            x, y = side * (x1 + x2) / 2, side * (y1 + y2) / 2
            row, column = (min(int(v), side - 1) for v in (y, x))
            assert grid[b, row, column, 4] == 0, "two targets in a cell"
            grid[b, row, column, :5] = torch.tensor([x - column, y - row, x2 - x1, y2 - y1, 1.0])
            grid[b, row, column, 5 + label] = 1.0
    return grid
