"""Scores, boxes, points and targets of one image in, the task-aligned assignment out: plain loops over python floats.

The YOLOv8 form with `inside_first`, the TOOD form without.
"""

from __future__ import annotations

import math

from torch import Tensor

Box = list[float]


def task_aligned(
    logits: Tensor,
    boxes: Tensor,
    points: Tensor,
    labels: Tensor,
    targets: Tensor,
    mask: Tensor,
    *,
    topk: int,
    alpha: float,
    beta: float,
    kind: str,
    inside_first: bool,
    topk2: int | None,
    min_size: float,
    eps: float,
) -> tuple[list[int], list[float]]:
    """Return for each prediction its target, or -1, and its normalised score, 0 without a target.

    Shape: logits (P, C), boxes (P, 4), points (P, 2), labels (T,), targets (T, 4), mask (T,).
    """
    P, real = len(boxes), [j for j in range(len(targets)) if mask[j]]
    t: dict[int, list[float]] = {}
    u: dict[int, list[float]] = {}
    inside: dict[int, list[bool]] = {}
    for j in real:
        target = targets[j].tolist()
        u[j] = [max(overlap(boxes[i].tolist(), target, kind), 0.0) for i in range(P)]
        score = [1 / (1 + math.exp(-float(logits[i, labels[j]]))) for i in range(P)]
        t[j] = [score[i] ** alpha * u[j][i] ** beta for i in range(P)]
        inside[j] = [contains(target, points[i].tolist(), min_size) for i in range(P)]

    takers: list[list[int]] = [[] for _ in range(P)]
    for j in real:
        pool = [i for i in range(P) if inside[j][i] or not inside_first]
        for i in sorted(pool, key=lambda i: (-t[j][i], i))[:topk]:
            if t[j][i] > 0 and inside[j][i]:
                takers[i].append(j)
    assigned = [-1] * P
    for i in range(P):
        rivals = takers[i]
        if inside_first and len(rivals) > 1:
            rivals = [j for j in real if inside[j][i] and t[j][i] > 0]
        if rivals:
            assigned[i] = min(rivals, key=lambda j: (-u[j][i], j))
    if topk2 is not None:
        for j in real:
            own = [i for i in range(P) if assigned[i] == j]
            for i in sorted(own, key=lambda i: (-t[j][i], i))[topk2:]:
                assigned[i] = -1
    scores = [0.0] * P
    for j in real:
        own = [i for i in range(P) if assigned[i] == j]
        for i in own:
            scores[i] = t[j][i] * max(u[j][k] for k in own) / (max(t[j][k] for k in own) + eps)
    return assigned, scores


def contains(box: Box, point: list[float], min_size: float) -> bool:
    """Tell whether a point lies strictly inside a box whose sides are at least `min_size`."""
    for k in range(2):
        low, high = box[k], box[k + 2]
        if high - low < min_size:
            low, high = (low + high - min_size) / 2, (low + high + min_size) / 2
        if not low < point[k] < high:
            return False
    return True


def overlap(a: Box, b: Box, kind: str) -> float:
    """Return the IoU, or the CIoU, of two boxes."""
    width, height = (max(min(a[k + 2], b[k + 2]) - max(a[k], b[k]), 0.0) for k in range(2))
    union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - width * height
    iou = width * height / union if union > 0 else 0.0
    if kind == "iou":
        return iou
    diagonal = sum((max(a[k + 2], b[k + 2]) - min(a[k], b[k])) ** 2 for k in range(2))
    distance = sum(((a[k] + a[k + 2] - b[k] - b[k + 2]) / 2) ** 2 for k in range(2))
    angle = [math.atan2(c[2] - c[0], c[3] - c[1]) for c in (a, b)]
    v = 4 / math.pi**2 * (angle[0] - angle[1]) ** 2
    weight = v / (1 - iou + v) if 1 - iou + v > 0 else 0.0
    return iou - (distance / diagonal if diagonal > 0 else 0.0) - weight * v


def yolov8_class_loss(logits: Tensor, labels: list[list[int]], scores: list[list[float]]) -> float:
    """Return Σ BCE(x, s) / max(Σ s, 1), s on the class of each prediction's label (-1: no class) and 0 elsewhere.

    Shape: logits (B, P, C); labels and scores B lists of P.
    """
    total = 0.0
    for b in range(logits.shape[0]):
        for i in range(logits.shape[1]):
            for c in range(logits.shape[2]):
                x = float(logits[b, i, c])
                s = scores[b][i] if labels[b][i] == c else 0.0
                total += s * math.log1p(math.exp(-x)) + (1 - s) * math.log1p(math.exp(x))
    return total / max(sum(map(sum, scores)), 1.0)
