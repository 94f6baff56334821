"""One image's predictions and targets in, the published matching costs of detectors of sets out: plain loops."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from tests.oracles.loss import l1

Weights = Sequence[float]


def center_size(box: Tensor) -> Tensor:
    """Return centre and size of an xyxy box (4,)."""
    x1, y1, x2, y2 = box
    return torch.stack([(x1 + x2) / 2, (y1 + y2) / 2, x2 - x1, y2 - y1])


def giou_loss(box: Tensor, target: Tensor) -> Tensor:
    """Return 1 − GIoU of boxes of positive area, without an epsilon."""
    low, high = torch.maximum(box[:2], target[:2]), torch.minimum(box[2:], target[2:])
    inter = (high - low).clamp(min=0).prod()
    union = (box[2:] - box[:2]).prod() + (target[2:] - target[:2]).prod() - inter
    hull = (torch.maximum(box[2:], target[2:]) - torch.minimum(box[:2], target[:2])).prod()
    return 1 - inter / union + (hull - union) / hull


def box_loss(box: Tensor, target: Tensor, weights: Weights = (1, 5, 2)) -> Tensor:
    """Return λ₁ |cxcywh difference| + λ_g (1 − GIoU)."""
    return weights[1] * l1(center_size(box), center_size(target)) + weights[2] * giou_loss(box, target)


def missing_prob(logits: Tensor, label: int, activation: str) -> float:
    """Return 1 − p of the label."""
    x = [float(v) for v in logits]
    if activation == "sigmoid":
        return 1 - 1 / (1 + math.exp(-x[label]))
    return 1 - math.exp(x[label]) / sum(math.exp(v) for v in x)


def transport_cost(
    logits: Tensor, boxes: Tensor, labels: Sequence[int], targets: Tensor, weights: Weights, activation: str
) -> list[list[float]]:
    """Return the cost (P, T + 1), with 10 for the background, over its largest absolute entry."""
    rows = []
    for x, box in zip(logits, boxes, strict=True):
        row = [
            weights[0] * missing_prob(x, y, activation) + float(box_loss(box, target, weights))
            for y, target in zip(labels, targets, strict=True)
        ]
        rows.append([*row, 10.0])
    largest = max(abs(value) for row in rows for value in row)
    return [[value / largest for value in row] for row in rows]
