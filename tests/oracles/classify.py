"""Scores of one class and a soft target in, a classification loss out: plain loops over numbers, float64."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

# score, quality, one-hot label -> loss
Scalar = Callable[[Tensor, float, float], Tensor]


def sigmoid(x: Tensor) -> Tensor:
    return 1 / (1 + torch.exp(-x))


def cross_entropy(x: Tensor, t: float) -> Tensor:
    """Return −t log p − (1 − t) log(1 − p)."""
    zero = torch.zeros_like(x)
    return t * torch.logaddexp(zero, -x) + (1 - t) * torch.logaddexp(zero, x)


def quality_focal(x: Tensor, q: float, y: float, beta: float = 2.0) -> Tensor:
    return abs(sigmoid(x) - q) ** beta * cross_entropy(x, q)


def varifocal(x: Tensor, q: float, y: float, alpha: float = 0.75, gamma: float = 2.0) -> Tensor:
    if q > 0:
        return q * cross_entropy(x, q)
    return alpha * sigmoid(x) ** gamma * cross_entropy(x, 0.0)


def varifocal_rtdetr(x: Tensor, q: float, y: float, alpha: float = 0.75, gamma: float = 2.0) -> Tensor:
    p = sigmoid(x).detach()
    return (alpha * p**gamma * (1 - y) + q) * cross_entropy(x, q)


def varifocal_ultralytics(x: Tensor, q: float, y: float, alpha: float = 0.75, gamma: float = 2.0) -> Tensor:
    return (alpha * sigmoid(x) ** gamma * (1 - y) + q) * cross_entropy(x, q)


def matchability(x: Tensor, q: float, y: float, gamma: float = 1.5, alpha: float = 1.0) -> Tensor:
    p = sigmoid(x).detach()
    return (alpha * p**gamma * (1 - y) + y) * cross_entropy(x, q**gamma)


def iou_aware(x: Tensor, q: float, y: float, alpha: float = 0.25, gamma: float = 2.0) -> Tensor:
    p = sigmoid(x)
    t = max(float(p.detach()) ** alpha * q ** (1 - alpha), 0.01)
    return y * cross_entropy(x, t) + (1 - y) * p**gamma * cross_entropy(x, 0.0)


def soft_bce(x: Tensor, q: float, y: float) -> Tensor:
    return cross_entropy(x, q)


def ghm(logits: Tensor, target: Tensor, mass: Sequence[float] | None = None, bins: int = 10) -> Tensor:
    """Return the loss of each of (N, C) scores; the histogram counts rows by their mass."""
    rows, classes = logits.shape
    mass = [1.0] * rows if mass is None else mass
    count = [0.0] * bins
    where = {}
    for i in range(rows):
        for c in range(classes):
            g = abs(float(sigmoid(logits[i, c]).detach()) - float(target[i, c]))
            where[i, c] = max(k for k in range(bins) if g >= k / bins)
            count[where[i, c]] += mass[i]
    occupied = sum(n > 0 for n in count)
    loss = torch.zeros(rows, classes, dtype=torch.float64)
    for (i, c), k in where.items():
        if count[k] > 0:
            loss[i, c] = sum(count) / (occupied * count[k]) * cross_entropy(logits[i, c], float(target[i, c]))
    return loss


def softmax_focal(
    x: Tensor, target: int, gamma: float = 2.0, weight: Tensor | None = None, smoothing: float = 0.0
) -> Tensor:
    """Return −w_c (1 − p_c)^γ log p_c, averaged over the smoothed label."""
    return _softmax(x, target, weight, smoothing, lambda p, n: (1 - p) ** gamma * n)


def poly(x: Tensor, target: int, epsilon: float = 1.0, weight: Tensor | None = None, smoothing: float = 0.0) -> Tensor:
    """Return w_c (−log p_c + ε (1 − p_c)), averaged over the smoothed label."""
    return _softmax(x, target, weight, smoothing, lambda p, n: n + epsilon * (1 - p))


def _softmax(
    x: Tensor, target: int, weight: Tensor | None, smoothing: float, of: Callable[[Tensor, Tensor], Tensor]
) -> Tensor:
    total = torch.zeros((), dtype=x.dtype)
    for c in range(len(x)):
        n = torch.logsumexp(x, 0) - x[c]
        share = smoothing / len(x) + (1 - smoothing) * (c == target)
        total = total + share * (1.0 if weight is None else float(weight[c])) * of(torch.exp(-n), n)
    return total


def sigmoid_poly(x: Tensor, t: float, epsilon: float = 1.0, gamma: float = 0.0) -> Tensor:
    """Return (1 − p_t)^γ (−log p_t) + ε (1 − p_t)^(γ + 1) of one class, t ∈ {0, 1}."""
    z = x if t == 1 else -x
    wrong = sigmoid(-z)
    return wrong**gamma * torch.logaddexp(torch.zeros_like(z), -z) + epsilon * wrong ** (gamma + 1)


def iou(box: Sequence[float], other: Sequence[float]) -> float:
    """Return the intersection over union; 0 of two empty boxes."""
    side = lambda low, high: max(high - low, 0.0)  # noqa: E731
    inter = side(max(box[0], other[0]), min(box[2], other[2])) * side(max(box[1], other[1]), min(box[3], other[3]))
    areas = sum(side(b[0], b[2]) * side(b[1], b[3]) for b in (box, other))
    return inter / (areas - inter) if areas > inter else 0.0


def soft_target_loss(
    logits: Tensor,
    labels: Tensor,
    plan: Tensor,
    quality: Tensor,
    scalar: Scalar,
    background_class: int | None = None,
) -> tuple[Tensor, float]:
    """Return the sum over the predictions of mass · Σ_c loss(x_c, quality share_c, share_c), and the sum of scores.

    Shape: logits (B, P, C), labels (B, T), plan (B, P, T + 1), quality (B, P, T).
    """
    images, preds, classes = logits.shape
    total, scores = (logits * 0).sum(), 0.0
    for b in range(images):
        for i in range(preds):
            mass = math.fsum(float(m) for m in plan[b, i])
            if mass == 0:
                continue
            scaled, before = [0.0] * classes, [0.0] * classes
            lost = 0.0
            for j in range(labels.shape[1]):
                m = float(plan[b, i, j])
                if m > 0:
                    q = float(quality[b, i, j])
                    scaled[int(labels[b, j])] += m * q
                    before[int(labels[b, j])] += m
                    lost += m * (1 - q)
                    scores += m * q
            if background_class is not None:
                scaled[background_class] += float(plan[b, i, -1]) + lost
                before[background_class] += float(plan[b, i, -1])
            for c in range(classes):
                total = total + mass * scalar(logits[b, i, c], scaled[c] / mass, before[c] / mass)
    return total, scores
