"""Images with predictions, points and targets in, the terms of a dense detector's loss out: plain loops, float64.

Matching is that of the other loops of this package; scores are differentiable, assignments and weights are not.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from tests.oracles import anchors as anchor_rules, dynamic, points
from tests.oracles.classify import cross_entropy, quality_focal
from tests.oracles.loss import ciou_loss, giou_loss, iou, iou_loss, sigmoid_focal
from tests.oracles.task_aligned import task_aligned
from tests.oracles.transport import unbalanced_plan

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


def rtmdet(images: Sequence[Image]) -> Terms:
    """Return Σ |u − p|² BCE(x, u) and 2 Σ u GIoU, each over max(1, Σ u)."""
    cls, box, total = (zero(images[0].logits) for _ in range(3))
    for image in images:
        for i, j in enumerate(dynamic.dynamic_k(*dynamic.soft_label_cost(image.detached()), 13)):
            u = 0.0 if j is None else iou(image.boxes[i], image.targets[j])
            cls = cls + sum_classes(image, i, j, u, focal_to_quality)
            if j is not None:
                box = box + u * giou_loss(image.boxes[i], image.targets[j])
                total = total + u
    divisor = max(float(total), 1.0)
    return {"cls": cls / divisor, "box": 2 * box / divisor}


def ota(images: Sequence[Image]) -> Terms:
    """Return Σ focal, 2 Σ GIoU and 0.5 Σ BCE(o, u), the last two over matched predictions, each over their number."""
    cls, box, obj, matched = (zero(images[0].logits) for _ in range(4))
    for image in images:
        assert image.objectness is not None
        cost, mass = dynamic.ota_problem(image.detached(), penalty=1e4)  # 1e6 leaves float64 too few digits
        preds = cost.shape[1]
        share = np.full(preds, 1 / preds)
        plan = unbalanced_plan(cost.T, share, mass / preds, 0.1, math.inf, math.inf).T
        for i, j in enumerate(dynamic.ota_assignment(plan)):
            cls = cls + sigmoid_focal(image.logits[i], None if j is None else int(image.labels[j]), 0.25)
            if j is not None:
                box = box + giou_loss(image.boxes[i], image.targets[j])
                obj = obj + cross_entropy(image.objectness[i], iou(image.boxes[i], image.targets[j]))
                matched = matched + 1
    divisor = max(float(matched), 1.0)
    return {"cls": cls / divisor, "box": 2 * box / divisor, "obj": 0.5 * obj / divisor}


def yolox(images: Sequence[Image], *, l1_weight: float) -> Terms:
    """Return Σ BCE(x, u), 5 Σ (1 − u²), L1 of the offsets, all over matched predictions, and Σ BCE(o, matched)."""
    cls, box, l1, obj, matched = (zero(images[0].logits) for _ in range(5))
    for image in images:
        assert image.objectness is not None
        for i, j in enumerate(dynamic.sim_ota(image.detached())):
            obj = obj + cross_entropy(image.objectness[i], float(j is not None))
            if j is not None:
                target = image.targets[j]
                cls = cls + sum_classes(image, i, j, iou(image.boxes[i], target), cross_entropy)
                box = box + iou_loss(image.boxes[i], target, "square")
                ours, theirs = (offsets(image, i, b) for b in (image.boxes[i], target))
                l1 = l1 + sum(abs(a - b) for a, b in zip(ours, theirs, strict=True))
                matched = matched + 1
    divisor = max(float(matched), 1.0)
    terms = {"cls": cls, "box": 5 * box, "l1": l1_weight * l1, "obj": obj}
    return {k: v / divisor for k, v in terms.items()}


def fcos(images: Sequence[Image], levels: Sequence[int], *, weigh: bool) -> Terms:
    """Return Σ focal, Σ box loss and Σ BCE(o, c) over matched predictions, each over their number, at least 1.

    With `weigh` the box loss is −ln u, weighted by the centerness c and over Σ c, else it is GIoU.
    """
    assigned = []
    for image in images:
        strides = image.strides.tolist()
        ranges = points.default_ranges(strides, levels, max(levels) + 1)
        reach = [1.5 * s for s in strides]
        assigned.append(points.fcos(image.points.tolist(), reach, ranges, image.targets.tolist()))
    cls, box, obj, numbers, total = with_centerness(images, assigned, weigh, "log" if weigh else "giou")
    number = max(sum(numbers), 1)
    return {"cls": cls / number, "box": box / max(total, 1e-6 if weigh else 1.0), "obj": obj / number}


def atss(images: Sequence[Image], anchors: Sequence[list[float]], levels: Sequence[int]) -> Terms:
    """Return Σ focal and Σ BCE(o, c), each over the matches, at least 1 an image, and 2 Σ c GIoU over max(1, Σ c).

    Here c is the centerness of a point in its target.
    """
    assigned = [nearest(image, anchors, levels) for image in images]
    cls, box, obj, numbers, total = with_centerness(images, assigned, True, "giou")
    number = sum(max(n, 1) for n in numbers)
    return {"cls": cls / number, "box": 2 * box / max(total, 1.0), "obj": obj / number}


def gfl(images: Sequence[Image], anchors: Sequence[list[float]], levels: Sequence[int]) -> Terms:
    """Return Σ |u − p|² BCE(x, u) over the matches, at least 1 an image, and 2 Σ s GIoU and 0.25 Σ s DFL.

    The last two are over max(1, Σ s), where s is the largest score of a prediction.
    """
    cls, box, dfl = (zero(images[0].logits) for _ in range(3))
    number, total = 0, 0.0
    for image in images:
        assert image.dist is not None
        assigned = nearest(image, anchors, levels)
        number += max(sum(j is not None for j in assigned), 1)
        for i, j in enumerate(assigned):
            u = 0.0 if j is None else iou(image.boxes[i], image.targets[j])
            cls = cls + sum_classes(image, i, j, u, focal_to_quality)
            if j is not None:
                score = max(dynamic.sigmoid(x) for x in image.logits[i].tolist())
                box = box + score * giou_loss(image.boxes[i], image.targets[j])
                dfl = dfl + score * distribution_focal(image.dist[i], distances(image, i, j))
                total += score
    divisor = max(total, 1.0)
    return {"cls": cls / number, "box": 2 * box / divisor, "dfl": 0.25 * dfl / divisor}


def nearest(image: Image, anchors: Sequence[list[float]], levels: Sequence[int]) -> list[int | None]:
    """Return the target of each anchor by the rule of ATSS."""
    targets = image.targets.tolist()
    overlap = [[dynamic.iou(a, t) for t in targets] for a in anchors]
    assigned = anchor_rules.atss_assignment(overlap, anchors, levels, targets, 9, 0.0)
    return [None if j == len(targets) else j for j in assigned]


def with_centerness(
    images: Sequence[Image], assigned: Sequence[Sequence[int | None]], weigh: bool, kind: Literal["log", "giou"]
) -> tuple[Tensor, Tensor, Tensor, list[int], float]:
    """Return sums of the focal loss, the box loss, weighted or not, and the loss of centerness; matches and weights."""
    cls, box, obj = (zero(images[0].logits) for _ in range(3))
    numbers, total = [], 0.0
    for image, row in zip(images, assigned, strict=True):
        assert image.objectness is not None
        for i, j in enumerate(row):
            cls = cls + sigmoid_focal(image.logits[i], None if j is None else int(image.labels[j]), 0.25)
            if j is not None:
                pair = image.boxes[i], image.targets[j]
                left, top, right, bottom = distances(image, i, j)
                central = math.sqrt(min(left, right) * min(top, bottom) / (max(left, right) * max(top, bottom)))
                weight = central if weigh else 1.0
                box = box + weight * (iou_loss(*pair, "log") if kind == "log" else giou_loss(*pair))
                obj = obj + cross_entropy(image.objectness[i], central)
                total += weight
        numbers.append(sum(j is not None for j in row))
    return cls, box, obj, numbers, total


def offsets(image: Image, i: int, box: Tensor) -> list[Tensor]:
    """Return the centre of a box from a point, in strides, and the logarithm of its size in strides."""
    stride = image.strides[i]
    centre = [((box[k] + box[k + 2]) / 2 - image.points[i, k]) / stride for k in (0, 1)]
    return centre + [torch.log((box[k + 2] - box[k]) / stride) for k in (0, 1)]


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
