"""Predictions, targets and a plan in, the parts of a detection loss out: plain loops over images and pairs, float64."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tests.oracles.loss import iou


def centerness(point: Sequence[float], box: Sequence[float]) -> float:
    """Return √(min(l, r) / max(l, r) · min(t, b) / max(t, b)), 0 for a point on the border or outside."""
    left, right = point[0] - box[0], box[2] - point[0]
    top, bottom = point[1] - box[1], box[3] - point[1]
    if min(left, right, top, bottom) <= 0:
        return 0.0
    return math.sqrt(min(left, right) / max(left, right) * min(top, bottom) / max(top, bottom))


@dataclass
class Scene:
    """One decoder layer: logits (B, P, C), boxes (B, P, 4), objectness (B, P), points (P, 2), targets and plan."""

    logits: Tensor
    boxes: Tensor
    objectness: Tensor
    points: Tensor
    labels: Tensor
    target_boxes: Tensor
    plan: Tensor

    def quality(self, name: str | None, b: int, i: int, j: int) -> float:
        if name is None:
            return 1.0
        if name == "score":
            return max(1 / (1 + math.exp(-x)) for x in self.logits[b, i].tolist())
        if name == "centerness":
            return centerness(self.points[i].tolist(), self.target_boxes[b, j].tolist())
        assert name == "iou"
        return iou(self.boxes[b, i], self.target_boxes[b, j])


def detection_parts(
    scene: Scene,
    cls: Callable[[Tensor, int | None], Tensor],
    loc: Callable[[Tensor, Tensor], Tensor],
    *,
    quality: str | None = None,
    obj_quality: str | None = None,
    loc_quality: str | None = None,
    cls_background: bool = True,
    obj_background: bool = True,
    divide: str | None = None,
) -> dict[str, Tensor]:
    """Return the losses of classification, localisation and objectness (a binary cross-entropy).

    A pair of mass m and quality q has m (q L(label) + (1 − q) L(∅)), of localisation m q L. Undivided with
    `divide=None`; "positive": Σ m for the first and the last, Σ m q for localisation; all at least 1.
    """
    images, preds, targets = scene.logits.shape[0], scene.logits.shape[1], scene.labels.shape[1]
    loss_cls, loss_loc, loss_obj = ((x * 0).sum() for x in (scene.logits, scene.boxes, scene.objectness))
    zero = torch.zeros((), dtype=torch.float64)
    positive = located = 0.0
    for b in range(images):
        for i in range(preds):
            yes, no = (torch.logaddexp(zero, sign * scene.objectness[b, i]) for sign in (-1, 1))
            for j in range(targets):
                m = float(scene.plan[b, i, j])
                if m == 0:
                    continue
                q = scene.quality(quality, b, i, j)
                label = int(scene.labels[b, j])
                loss_cls = loss_cls + m * (q * cls(scene.logits[b, i], label) + (1 - q) * cls(scene.logits[b, i], None))
                q = scene.quality(loc_quality, b, i, j)
                loss_loc = loss_loc + m * q * loc(scene.boxes[b, i], scene.target_boxes[b, j])
                located += m * q
                q = scene.quality(obj_quality, b, i, j)
                loss_obj = loss_obj + m * (q * yes + (1 - q) * no)
                positive += m
            m = float(scene.plan[b, i, targets])
            if cls_background:
                loss_cls = loss_cls + m * cls(scene.logits[b, i], None)
            if obj_background:
                loss_obj = loss_obj + m * no
    if divide is not None:
        assert divide == "positive"
        loss_cls, loss_obj = loss_cls / max(positive, 1.0), loss_obj / max(positive, 1.0)
        loss_loc = loss_loc / max(located, 1.0)
    return {"loss_cls": loss_cls, "loss_loc": loss_loc, "loss_obj": loss_obj}


def class_error(logits: Tensor, labels: Tensor, plan: Tensor) -> float:
    """Return 100 − the percentage of matched mass whose largest logit (B, P, C) is that of its label."""
    right = total = 0.0
    for b in range(len(logits)):
        for i in range(logits.shape[1]):
            row = logits[b, i].tolist()
            for j in range(labels.shape[1]):
                m = float(plan[b, i, j])
                total += m
                if m > 0 and row.index(max(row)) == int(labels[b, j]):
                    right += m
    return 100 - 100 * right / total if total > 0 else 0.0


def cardinality_error(
    logits: Tensor, mask: Tensor, background: int | None, threshold: float, objectness: Tensor | None = None
) -> float:
    """Return the mean over images of | number of predictions that are objects − number of targets |."""
    total = 0
    for b in range(len(logits)):
        count = 0
        for i in range(logits.shape[1]):
            row = logits[b, i].tolist()
            if background is not None:
                count += row.index(max(row)) != background
            else:
                score = 1 / (1 + math.exp(-max(row)))
                if objectness is not None:
                    score /= 1 + math.exp(-float(objectness[b, i]))
                count += score > threshold
        total += abs(count - int(mask[b].sum()))
    return total / max(len(logits), 1)
