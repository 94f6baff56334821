"""Images with predictions, points and targets in, the terms of a dense detector's loss out: plain loops, float64.

Matching is that of the other loops of this package; scores are differentiable, assignments and weights are not.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from tests.oracles import dynamic
from tests.oracles.classify import cross_entropy, quality_focal
from tests.oracles.loss import ciou_loss, giou_loss
from tests.oracles.task_aligned import task_aligned

Terms = dict[str, Tensor]


class Image(NamedTuple):
    """One image without padding: P predictions with their points, T targets."""

    logits: Tensor  # (P, C)
    boxes: Tensor  # (P, 4)
    points: Tensor  # (P, 2)
    strides: Tensor  # (P,)
    labels: Tensor  # (T,)
    targets: Tensor  # (T, 4)
    dist: Tensor | None = None  # (P, 4, K + 1)
    objectness: Tensor | None = None  # (P,)

    def detached(self) -> dynamic.Image:
        """Return the image as lists."""
        objectness = None if self.objectness is None else self.objectness.tolist()
        logits, boxes, points, strides, labels, targets = (x.tolist() for x in self[:6])
        return dynamic.Image(logits, objectness, boxes, points, strides, labels, targets)


def yolov8(images: Sequence[Image], *, least_side: float) -> Terms:
    """Return 0.5 Σ BCE(x, s), 7.5 Σ s CIoU and 1.5 Σ s DFL, each over max(1, Σ s)."""
    cls, box, dfl, total = (zero(images[0].logits) for _ in range(4))
    for image in images:
        assert image.dist is not None
        assigned, scores = aligned(image, 10, 0.5, "ciou", True, least_side, 1e-9)
        for i, (j, score) in enumerate(zip(assigned, scores, strict=True)):
            cls = cls + sum_classes(image, i, j, score, cross_entropy)
            if j >= 0:
                box = box + score * ciou_loss(image.boxes[i], image.targets[j])
                dfl = dfl + score * distribution_focal(image.dist[i], distances(image, i, j))
                total = total + score
    divisor = max(float(total), 1.0)
    return {"cls": 0.5 * cls / divisor, "box": 7.5 * box / divisor, "dfl": 1.5 * dfl / divisor}


def tood(images: Sequence[Image]) -> Terms:
    """Return Σ |s − p|² BCE(x, s) and 2 Σ s GIoU, each over max(1, Σ s)."""
    cls, box, total = (zero(images[0].logits) for _ in range(3))
    for image in images:
        assigned, scores = aligned(image, 13, 1.0, "iou", False, 0.0, 1e-7)
        for i, (j, score) in enumerate(zip(assigned, scores, strict=True)):
            cls = cls + sum_classes(image, i, j, score, focal_to_quality)
            if j >= 0:
                box = box + score * giou_loss(image.boxes[i], image.targets[j])
                total = total + score
    divisor = max(float(total), 1.0)
    return {"cls": cls / divisor, "box": 2 * box / divisor}


def focal_to_quality(x: Tensor, q: float) -> Tensor:
    return quality_focal(x, q, float(q > 0))


def aligned(
    image: Image, topk: int, alpha: float, kind: str, inside_first: bool, least_side: float, eps: float
) -> tuple[list[int], list[float]]:
    """Return the target of each prediction, or -1, and its score."""
    return task_aligned(
        image.logits.detach(),
        image.boxes.detach(),
        image.points,
        image.labels,
        image.targets,
        torch.ones(len(image.labels), dtype=torch.bool),
        topk=topk,
        alpha=alpha,
        beta=6.0,
        kind=kind,
        inside_first=inside_first,
        topk2=None,
        min_size=least_side,
        eps=eps,
    )


def sum_classes(image: Image, i: int, j: int | None, score: float, loss) -> Tensor:
    """Return the sum over the classes of `loss(x, score on the class of target j and 0 elsewhere)`."""
    own = None if j is None or j < 0 else int(image.labels[j])
    return sum((loss(x, score if c == own else 0.0) for c, x in enumerate(image.logits[i])), zero(image.logits))


def distances(image: Image, i: int, j: int) -> list[float]:
    """Return the distances of the sides of a target from a point, in strides."""
    x, y, stride = *image.points[i].tolist(), float(image.strides[i])
    left, top, right, bottom = image.targets[j].tolist()
    return [d / stride for d in (x - left, y - top, right - x, bottom - y)]


def distribution_focal(logits: Tensor, target: Sequence[float]) -> Tensor:
    """Return the mean over the sides of the cross-entropy with the two bins around a distance."""
    last, total = logits.shape[1] - 1, zero(logits)
    for side, distance in zip(logits, target, strict=True):
        y = min(max(distance, 0.0), float(last))
        n = min(int(y), last - 1)
        log_p = side - torch.logsumexp(side, 0)
        total = total - (n + 1 - y) * log_p[n] - (y - n) * log_p[n + 1]
    return total / len(logits)


def zero(like: Tensor) -> Tensor:
    return torch.zeros((), dtype=like.dtype)
