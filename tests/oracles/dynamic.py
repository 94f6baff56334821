"""One image's predictions, points and targets in, an assignment out: SimOTA, RTMDet's rule and OTA as plain loops.

Everything is a list of floats or ints; a prediction's entry of the result is its target, or `None` for the background.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Box = Sequence[float]
Matrix = list[list[float]]  # [target][prediction]


class Image(NamedTuple):
    logits: list[list[float]]
    objectness: list[float] | None
    boxes: list[Box]
    points: list[Sequence[float]]
    strides: list[float]
    labels: list[int]
    targets: list[Box]


def iou(a: Box, b: Box) -> float:
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    shared = max(width, 0) * max(height, 0)
    area = [max(x[2] - x[0], 0) * max(x[3] - x[1], 0) for x in (a, b)]
    union = sum(area) - shared
    return shared / union if union > 0 else 0.0


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x)) if x >= 0 else math.exp(x) / (1 + math.exp(x))


def bce(p: float, target: float) -> float:
    log = lambda x: max(math.log(x), -100) if x > 0 else -100  # noqa: E731
    return -target * log(p) - (1 - target) * log(1 - p)


def bce_with_logits(x: float, target: float) -> float:
    return max(x, 0) - target * x + math.log1p(math.exp(-abs(x)))


def focal(x: float, target: int, alpha: float = 0.25, gamma: float = 2.0) -> float:
    p = sigmoid(x)
    weight, right = (alpha, p) if target else (1 - alpha, 1 - p)
    return weight * (1 - right) ** gamma * bce_with_logits(x, target)


def center(box: Box) -> tuple[float, float]:
    return (box[0] + box[2]) / 2, (box[1] + box[3]) / 2


def in_box(point: Sequence[float], box: Box) -> bool:
    return box[0] < point[0] < box[2] and box[1] < point[1] < box[3]


def in_center(point: Sequence[float], stride: float, box: Box, radius: float) -> bool:
    return all(abs(point[axis] - center(box)[axis]) < radius * stride for axis in range(2))


def sim_ota(
    image: Image,
    *,
    radius: float = 1.5,
    both: bool = False,
    penalty: float = 1e6,
    eps: float = 1e-8,
    topk: int = 10,
    takers_only: bool = False,
) -> list[int | None]:
    """Return SimOTA's assignment; `both` asks for the box as well as for the square around its centre."""
    targets, preds = range(len(image.targets)), range(len(image.boxes))
    near = [[in_center(image.points[i], image.strides[i], t, radius) for i in preds] for t in image.targets]
    inside = [[in_box(image.points[i], t) for i in preds] for t in image.targets]
    if both:
        candidate = [any(near[j][i] or inside[j][i] for j in targets) for i in preds]
        region = [[near[j][i] and inside[j][i] for i in preds] for j in targets]
    else:
        candidate = [any(near[j][i] for j in targets) for i in preds]
        region = near
    overlap = [[iou(box, t) for box in image.boxes] for t in image.targets]
    cost = [[0.0 for _ in preds] for _ in targets]
    for j in targets:
        for i in preds:
            joint = 1.0 if image.objectness is None else sigmoid(image.objectness[i])
            for c, x in enumerate(image.logits[i]):
                cost[j][i] += bce(math.sqrt(sigmoid(x) * joint), c == image.labels[j])
            cost[j][i] += 3 * -math.log(overlap[j][i] + eps)
            cost[j][i] += 0 if region[j][i] else penalty
    return dynamic_k(cost, overlap, candidate, topk, takers_only)


def soft_label_cost(image: Image, *, radius: float = 3.0, loc_weight: float = 3.0) -> tuple[Matrix, Matrix, list[bool]]:
    """Return RTMDet's cost, the overlap, and which predictions are candidates."""
    targets, preds = range(len(image.targets)), range(len(image.boxes))
    candidate = [any(in_box(image.points[i], t) for t in image.targets) for i in preds]
    overlap = [[iou(box, t) for box in image.boxes] for t in image.targets]
    cost = [[0.0 for _ in preds] for _ in targets]
    for j in targets:
        for i in preds:
            for c, x in enumerate(image.logits[i]):
                soft = overlap[j][i] if c == image.labels[j] else 0.0
                cost[j][i] += bce_with_logits(x, soft) * (soft - sigmoid(x)) ** 2
            cost[j][i] += loc_weight * -math.log(overlap[j][i] + 1e-7)
            distance = math.dist(image.points[i], center(image.targets[j])) / image.strides[i]
            cost[j][i] += 10 ** (distance - radius)
    return cost, overlap, candidate


def dynamic_k(
    cost: Matrix, overlap: Matrix | None, candidate: list[bool], topk: int, takers_only: bool = False
) -> list[int | None]:
    """Let each target take its k cheapest candidates, and settle who keeps what; costs of `inf` are never taken."""
    preds = [i for i, allowed in enumerate(candidate) if allowed]
    takers: list[list[int]] = [[] for _ in candidate]
    for j, row in enumerate(cost):
        allowed = [i for i in preds if row[i] < math.inf]
        count = 1
        if overlap is not None:
            count = max(1, int(sum(sorted((overlap[j][i] for i in allowed), reverse=True)[:topk])))
        for i in sorted(allowed, key=lambda i: (row[i], i))[:count]:
            takers[i].append(j)
    result: list[int | None] = [None] * len(candidate)
    for i in preds:
        rivals = range(len(cost)) if len(takers[i]) > 1 and not takers_only else takers[i]
        if takers[i]:
            result[i] = min(rivals, key=lambda j: (cost[j][i], j))
    return result


class Supply(NamedTuple):
    cost: NDArray[np.float64]  # (T + 1, P), the background last
    mass: NDArray[np.float64]  # (T + 1,)


def ota_problem(
    image: Image, *, radius: float = 2.5, topk: int = 20, reg_weight: float = 1.5, penalty: float = 1e6
) -> Supply:
    """Return OTA's transport problem."""
    preds = range(len(image.boxes))
    rows, mass = [], []
    for label, target in zip(image.labels, image.targets, strict=True):
        row, inside = [], []
        for i in preds:
            classes = sum(focal(x, int(c == label)) for c, x in enumerate(image.logits[i]))
            u = iou(image.boxes[i], target)
            allowed = in_box(image.points[i], target) and in_center(image.points[i], image.strides[i], target, radius)
            row.append(classes + reg_weight * -math.log(max(u, 2.0**-23)) + (0 if allowed else penalty))
            inside.append(u if allowed else 0.0)
        rows.append(row)
        mass.append(max(1, int(sum(sorted(inside, reverse=True)[:topk]))))
    rows.append([sum(focal(x, 0) for x in logits) for logits in image.logits])
    total = sum(mass)
    if total > len(image.boxes):
        mass = [m * len(image.boxes) / total for m in mass]
    mass.append(max(len(image.boxes) - total, 0))
    return Supply(np.array(rows), np.array(mass, dtype=float))


def sinkhorn_loop(problem: Supply, reg: float = 0.1, num_iter: int = 50) -> tuple[NDArray[np.float64], float]:
    """Return the plan (K, P) after so many log-domain sweeps, and the largest error of a column's marginal."""
    from scipy.special import logsumexp

    cost, supply = problem
    used = supply > 0
    u, v = np.zeros(len(cost)), np.zeros(cost.shape[1])
    log_mass = np.log(np.where(used, supply, 1.0))
    cost = np.where(used[:, None], cost, np.inf)
    for _ in range(num_iter):
        v = -reg * logsumexp((-cost + u[:, None]) / reg, axis=0)
        u = np.where(used, reg * (log_mass - logsumexp((-cost + v[None, :]) / reg, axis=1)), 0.0)
    plan = np.exp((-cost + u[:, None] + v[None, :]) / reg)
    return plan, float(np.abs(plan.sum(0) - 1).max())


def ota_assignment(plan: NDArray[np.float64]) -> list[int | None]:
    """Return the row in which each prediction's share of the row's largest mass is highest, to six digits."""
    largest = plan.max(1, keepdims=True)
    best = (plan / np.where(largest > 0, largest, 1)).round(6).argmax(0)
    return [int(j) if j < len(plan) - 1 else None for j in best]
