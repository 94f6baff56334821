"""Fine-grained distributions of D-FINE: bins, losses of one side and of one batch, in plain floats."""

from __future__ import annotations

from collections.abc import Sequence
from math import exp, log, sqrt

from tests.oracles.box_loss import Box, distribution_focal, iou


def bins(count: int = 32, a: float = 0.5, c: float = 0.25) -> list[float]:
    """Return W(0), ..., W(N), case by case as in the paper."""
    values = []
    for n in range(count + 1):
        if n == 0:
            values.append(-2 * a)
        elif n == count:
            values.append(2 * a)
        elif n < count / 2:
            values.append(c - c * (a / c + 1) ** ((count - 2 * n) / (count - 2)))
        else:
            values.append(-c + c * (a / c + 1) ** ((2 * n - count) / (count - 2)))
    return values


def offsets(target: Box, reference: Box) -> list[float]:
    """Return how far each side lies beyond that of the reference box of no offset, in sizes of the reference box."""
    x1, y1, x2, y2 = reference
    cx, cy, w, h = (x1 + x2) / 2, (y1 + y2) / 2, x2 - x1, y2 - y1
    return [
        (cx - target[0]) / w - 0.5,
        (cy - target[1]) / h - 0.5,
        (target[2] - cx) / w - 0.5,
        (target[3] - cy) / h - 0.5,
    ]


def fine_grained(box: Box, target: Box, reference: Box, logits: list[list[float]]) -> float:
    """Return the IoU times the sum over the sides."""
    return 4 * iou(box, target) * distribution_focal(logits, offsets(target, reference), bins(len(logits[0]) - 1))


def softmax(logits: Sequence[float], temperature: float) -> list[float]:
    total = sum(exp(x / temperature) for x in logits)
    return [exp(x / temperature) / total for x in logits]


def distillation(
    student: list, teacher: list, scores: list[list[float]], quality: list[list[float | None]], temperature: float
) -> float:
    """Return the balanced mean over the sides of matched and other predictions; `quality` is None for the others."""
    sums, counts = {True: 0.0, False: 0.0}, {True: 0, False: 0}
    for b, image in enumerate(student):
        for i, sides in enumerate(image):
            matched = quality[b][i] is not None
            weight = quality[b][i] if matched else scores[b][i]
            for k, side in enumerate(sides):
                s, t = softmax(side, temperature), softmax(teacher[b][i][k], temperature)
                sums[matched] += weight * temperature**2 * sum(q * log(q / p) for p, q in zip(s, t, strict=True))
                counts[matched] += 1
    means = {key: sums[key] / max(counts[key], 1) for key in sums}
    total = sqrt(counts[True]) + sqrt(counts[False])
    return (means[True] * sqrt(counts[True]) + means[False] * sqrt(counts[False])) / max(total, 1)
