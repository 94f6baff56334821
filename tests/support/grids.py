"""Random problems of dense detectors: a grid of points, predictions around the targets, and ties and slivers."""

import torch
from torch import Tensor

from tests.oracles.dynamic import Image
from tests.support.problems import Problem
from uotod.utils import Points

STRIDES = (8, 16, 32)


class GridProblem(Problem):
    """A problem with points instead of anchors."""

    anchors: Points


def grid_problem(
    images: int = 2, targets: int = 5, classes: int = 4, size: int = 64, *, ties: bool = True
) -> GridProblem:
    """Return a problem in pixels; among its targets are copies, slivers without a point and padding.

    Half the predictions lie near a target, and with `ties` some are copies of another one.
    """
    points = Points.from_levels([(size // s, size // s) for s in STRIDES], STRIDES, dtype=torch.float64)
    count = len(points.centers)
    boxes = _boxes(images, targets, size)
    mask = torch.rand(images, targets) > 0.25
    if targets > 2:
        boxes[:, 1] = boxes[:, 0]
        boxes[:, 2, 2:] = boxes[:, 2, :2] + torch.tensor([0.5, 3.0])
    pred_boxes = _boxes(images, count, size)
    if targets:
        near = boxes.gather(1, torch.randint(targets, (images, count, 1)).expand(-1, -1, 4))
        near = near + 3 * torch.randn_like(near)
        near = torch.cat((near[..., :2], torch.maximum(near[..., 2:], near[..., :2] + 1)), dim=-1)
        pred_boxes = torch.where(torch.rand(images, count, 1) < 0.5, near, pred_boxes)
    logits = 2 * torch.randn(images, count, classes, dtype=torch.float64)
    objectness = 2 * torch.randn(images, count, dtype=torch.float64)
    labels = torch.randint(classes, (images, targets))
    if targets > 2:
        labels[:, 1] = labels[:, 0]
    for values in (pred_boxes, logits, objectness) if ties else ():
        values[:, 1::7] = values[:, 0::7][:, : values[:, 1::7].shape[1]]
    return GridProblem(
        {"pred_logits": logits, "pred_boxes": pred_boxes, "pred_objectness": objectness},
        {"boxes": boxes.masked_fill(~mask.unsqueeze(-1), float("nan")), "labels": labels, "mask": mask},
        points,
    )


def images_of(problem: GridProblem) -> list[tuple[Image, list[int]]]:
    """Return each image as lists, with the columns of its real targets."""
    result = []
    objectness = problem.input.get("pred_objectness")
    for b, mask in enumerate(problem.target["mask"]):
        columns = [j for j, real in enumerate(mask.tolist()) if real]
        stride = problem.anchors.stride
        assert isinstance(stride, Tensor)
        image = Image(
            problem.input["pred_logits"][b].tolist(),
            None if objectness is None else objectness[b].tolist(),
            problem.input["pred_boxes"][b].tolist(),
            problem.anchors.centers.tolist(),
            stride.tolist(),
            problem.target["labels"][b, columns].tolist(),
            problem.target["boxes"][b, columns].tolist(),
        )
        result.append((image, columns))
    return result


def assigned(plan: Tensor) -> Tensor:
    """Return the column of each prediction of a hard plan (B, P, T + 1), the background's being T."""
    assert (plan.sum(-1) == 1).all()
    return plan.argmax(-1)


def expected(results: list[list[int | None]], columns: list[list[int]], num_targets: int) -> Tensor:
    """Return the loops' assignments as columns of the padded plan."""
    rows = [[num_targets if j is None else own[j] for j in row] for row, own in zip(results, columns, strict=True)]
    return torch.tensor(rows)


def _boxes(images: int, count: int, size: int) -> Tensor:
    extent = (0.05 + 0.6 * torch.rand(images, count, 2, dtype=torch.float64)) * size
    low = torch.rand(images, count, 2, dtype=torch.float64) * (size - extent)
    return torch.cat((low, low + extent), dim=-1)
