"""Predictions, targets and a plan in, the detection loss out: plain loops over images, predictions, targets, float64.

A target class is an `int`, or `None` for "no class" (the background where it has no logit of its own).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


def detection_loss(
    logits: Tensor,
    boxes: Tensor,
    labels: Tensor,
    target_boxes: Tensor,
    mask: Tensor,
    plan: Tensor | NDArray[Any],
    *,
    cls: Callable[[Tensor, int | None], Tensor],
    loc: Callable[[Tensor, Tensor], Tensor],
    class_weight: Callable[[int | None], float | Tensor] | Tensor | None = None,
    bg_class_position: Literal["first", "last", "none"] = "first",
    ratio: float | None = None,
    reduction: Literal["mean", "sum"] = "mean",
) -> dict[str, Tensor]:
    """Sum plan_ij (L_cls + L_loc) over the pairs and plan_i∅ L_cls(∅) over the predictions.

    "mean": localisation ÷ N_pos; classification ÷ (positive + background mass, each times its class's weight), the
    background's share left out with mining (`ratio`) or without a background class; divisors are ≥ 1. `cls` contains
    its class weights, `class_weight` acts on the divisor only. What has no mass contributes nothing, NaN or not.

    Shape: logits (B, P, C), boxes (B, P, 4), labels (B, T), target_boxes (B, T, 4), mask (B, T), plan (B, P, T + 1).
    """
    B, P, C = logits.shape
    T = labels.shape[1]
    logits, boxes, target_boxes = logits.double(), boxes.double(), target_boxes.double()
    plan = (plan.detach() if isinstance(plan, Tensor) else torch.tensor(plan)).double()
    background = {"first": 0, "last": C - 1, "none": None}[bg_class_position]
    loss_cls, loss_loc = ((x * 0).nan_to_num().sum() for x in (logits, boxes))  # 0, with a gradient of 0
    n_pos = positive_weight = background_weight = 0.0
    for b in range(B):
        n_pos_of_image = 0.0
        for i in range(P):
            for j in range(T):
                mass = float(plan[b, i, j])
                assert mass == 0 or bool(mask[b, j]), f"plan[{b}, {i}, {j}] is {mass} on a padded target"
                if mass != 0:
                    label = int(labels[b, j])
                    loss_cls = loss_cls + mass * cls(logits[b, i], label)
                    loss_loc = loss_loc + mass * loc(boxes[b, i], target_boxes[b, j])
                    n_pos_of_image += mass
                    positive_weight += mass * _weight(class_weight, label)
        n_pos += n_pos_of_image
        bg_mass = plan[b, :, T]
        if ratio is not None:
            bg_loss = torch.stack([cls(logits[b, i], background).detach() for i in range(P)]) if P > 0 else bg_mass
            bg_mass = hard_negative_mass(bg_mass, bg_loss, n_pos_of_image, ratio)
        for i in range(P):
            mass = float(bg_mass[i])
            if mass != 0:
                loss_cls = loss_cls + mass * cls(logits[b, i], background)
                if ratio is None and background is not None:
                    background_weight += mass * _weight(class_weight, background)
    if reduction == "mean":
        loss_loc = loss_loc / max(n_pos, 1.0)
        loss_cls = loss_cls / max(positive_weight + background_weight, 1.0)
    return {"loss": loss_cls + loss_loc, "loss_cls": loss_cls, "loss_loc": loss_loc}


def denoising_loss(
    logits: Tensor, boxes: Tensor, labels: Tensor, target_boxes: Tensor, mask: Tensor, groups: int
) -> tuple[Tensor, Tensor]:
    """Return focal loss and L1 loss of `groups` groups of T positive and T negative queries, in target order.

    Both are divided by groups · (number of targets); queries of padded targets do not count.
    """
    T = labels.shape[1]
    loss_cls, loss_loc = (logits * 0).sum(), (boxes * 0).sum()
    for b in range(len(logits)):
        for i in range(groups * 2 * T):
            t = i % T
            if bool(mask[b, t]):
                positive = (i // T) % 2 == 0
                loss_cls = loss_cls + sigmoid_focal(logits[b, i], int(labels[b, t]) if positive else None)
                if positive:
                    loss_loc = loss_loc + l1(boxes[b, i], target_boxes[b, t])
    count = max(groups * int(mask.sum()), 1)
    return loss_cls / count, loss_loc / count


def hard_negative_mass(plan_bg: Tensor, bg_loss: Tensor, n_pos: float, ratio: float) -> Tensor:
    """Keep background mass (P,) from the hardest prediction down to `ratio · n_pos` exactly, the last one in part."""
    kept = torch.zeros_like(plan_bg)
    left = ratio * n_pos
    for i in sorted(range(len(plan_bg)), key=lambda i: (-float(bg_loss[i]), i)):
        kept[i] = min(float(plan_bg[i]), left)
        left -= float(kept[i])
    return kept


def _weight(class_weight: Callable[[int | None], float | Tensor] | Tensor | None, label: int | None) -> float:
    if class_weight is None:
        return 1.0
    if isinstance(class_weight, Tensor):
        assert label is not None
        return float(class_weight[label])
    return float(class_weight(label))


def cross_entropy(x: Tensor, target: int | None, weight: Tensor | None = None, smoothing: float = 0.0) -> Tensor:
    """Return (1 − ε) w_y n_y + ε/C Σ_c w_c n_c with n = −log softmax(x), as `torch.nn.CrossEntropyLoss` does."""
    if target is None:
        raise ValueError("cross-entropy needs a class: it has no 'no class'")
    n = [torch.logsumexp(x, dim=0) - x[c] for c in range(len(x))]
    w = [1.0 if weight is None else float(weight[c]) for c in range(len(x))]
    smooth = sum((w[c] * n[c] for c in range(len(x))), torch.zeros((), dtype=x.dtype))
    return (1 - smoothing) * w[target] * n[target] + smoothing / len(x) * smooth


def binary_cross_entropy(x: Tensor, target: int | None) -> Tensor:
    """Return −log σ(x_y) − Σ_{c ≠ y} log(1 − σ(x_c)); all classes are negative for "no class"."""
    zero = torch.zeros((), dtype=x.dtype)
    return sum((torch.logaddexp(zero, -x[c] if c == target else x[c]) for c in range(len(x))), zero)


def sigmoid_focal(x: Tensor, target: int | None, alpha: float = -1.0, gamma: float = 2.0) -> Tensor:
    """Return Σ_c −α_t (1 − p_t)^γ log p_t, p_t = p (class `target`) or 1 − p (others), α_t likewise (−1: none)."""
    total = torch.zeros((), dtype=x.dtype)
    for c in range(len(x)):
        z = x[c] if c == target else -x[c]  # p_t = σ(z)
        alpha_t = 1.0 if alpha == -1 else alpha if c == target else 1 - alpha
        total = total + alpha_t * torch.sigmoid(-z) ** gamma * torch.logaddexp(torch.zeros_like(z), -z)
    return total


def negative_probability(x: Tensor, target: int | None) -> Tensor:
    """Return −softmax(x)_y."""
    if target is None:
        raise ValueError("the negative probability needs a class: it has no 'no class'")
    return -torch.exp(x[target] - torch.logsumexp(x, dim=0))


def l1(box: Tensor, target: Tensor) -> Tensor:
    """Return Σ |d| over the 4 coordinates."""
    return sum((abs(box[k] - target[k]) for k in range(4)), torch.zeros((), dtype=box.dtype))


def smooth_l1(box: Tensor, target: Tensor, beta: float = 1.0) -> Tensor:
    """Return Σ d² / 2β where |d| < β, |d| − β / 2 elsewhere."""
    total = torch.zeros((), dtype=box.dtype)
    for k in range(4):
        d = abs(box[k] - target[k])
        total = total + (d * d / (2 * beta) if d < beta else d - beta / 2)
    return total


def mse(box: Tensor, target: Tensor) -> Tensor:
    """Return Σ d² over the 4 coordinates."""
    return sum(((box[k] - target[k]) ** 2 for k in range(4)), torch.zeros((), dtype=box.dtype))


def _side(low: Tensor, high: Tensor) -> Tensor:
    """Return the length of an interval, 0 if it is inverted."""
    return torch.clamp(high - low, min=0)


def _inter_union(box: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    x1, y1, x2, y2 = box
    x1g, y1g, x2g, y2g = target
    width = _side(torch.maximum(x1, x1g), torch.minimum(x2, x2g))
    height = _side(torch.maximum(y1, y1g), torch.minimum(y2, y2g))
    inter = width * height
    return inter, _side(x1, x2) * _side(y1, y2) + _side(x1g, x2g) * _side(y1g, y2g) - inter


def _hull(box: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Return the sides of the smallest box around both."""
    x1, y1, x2, y2 = box
    x1g, y1g, x2g, y2g = target
    width = torch.maximum(x2, x2g) - torch.minimum(x1, x1g)
    height = torch.maximum(y2, y2g) - torch.minimum(y1, y1g)
    return width, height


def _over(numerator: Tensor, denominator: Tensor) -> Tensor:
    """Return a quotient, 0 over what is not positive."""
    return numerator / denominator if denominator > 0 else 0 * numerator


def iou_loss(box: Tensor, target: Tensor, kind: Literal["linear", "log", "square"] = "linear") -> Tensor:
    """Return 1 − u, −log max(u, 1e-6) or 1 − u², with u = inter / union."""
    inter, union = _inter_union(box, target)
    u = _over(inter, union)
    return {"linear": 1 - u, "log": -torch.log(torch.clamp(u, min=1e-6)), "square": 1 - u * u}[kind]


def giou_loss(box: Tensor, target: Tensor) -> Tensor:
    """Return 1 − (u − (hull − union) / hull)."""
    inter, union = _inter_union(box, target)
    width, height = _hull(box, target)
    hull = width * height
    return 1 - (_over(inter, union) - _over(hull - union, hull))


def diou_loss(box: Tensor, target: Tensor) -> Tensor:
    """Return 1 − u + ρ² / c²: distance of the centres over the hull's diagonal, squared."""
    inter, union = _inter_union(box, target)
    width, height = _hull(box, target)
    dx = (box[0] + box[2]) / 2 - (target[0] + target[2]) / 2
    dy = (box[1] + box[3]) / 2 - (target[1] + target[3]) / 2
    return 1 - _over(inter, union) + _over(dx**2 + dy**2, width**2 + height**2)


def ciou_loss(box: Tensor, target: Tensor) -> Tensor:
    """Return DIoU + α v, v = 4/π² (atan(w_g/h_g) − atan(w/h))², α = v / (1 − u + v) without gradient."""
    inter, union = _inter_union(box, target)
    w, h, wg, hg = (_side(b[k], b[k + 2]) for b in (box, target) for k in (0, 1))
    v = 4 / math.pi**2 * (torch.atan2(wg, hg) - torch.atan2(w, h)) ** 2
    alpha = _over(v, 1 - _over(inter, union) + v).detach()
    return diou_loss(box, target) + alpha * v


def iou(box: Tensor, other: Tensor) -> float:
    """Return the textbook intersection over union, without eps; 0 if both boxes are empty."""
    inter, union = _inter_union(box.detach().double(), other.detach().double())
    return float(inter / union) if union > 0 else 0.0


def nms(boxes: Tensor, scores: Tensor, threshold: float) -> list[int]:
    """Keep, by decreasing score (lowest index on ties), each box that no kept one overlaps by IoU > threshold."""
    kept: list[int] = []
    for i in sorted(range(len(scores)), key=lambda i: (-float(scores[i]), i)):
        if all(iou(boxes[i], boxes[k]) <= threshold for k in kept):
            kept.append(i)
    return kept


def iou_threshold_assignment(
    overlap: Tensor | NDArray[Any],
    positive: float = 0.5,
    negative: float | None = None,
    force_match: Literal["best", "low_quality"] | None = "best",
) -> NDArray[np.float64]:
    """Assign anchors by their IoU (P, T) with the targets; return the plan (P, T + 1).

    IoU ≥ positive: the best target; < negative (default: positive): background; between: ignored, a row of zeros.
    "best": besides, pairs are fixed in the order of decreasing IoU (lowest target, then lowest anchor on ties), each
    target and each anchor once, and override the rule. "low_quality": besides, each anchor that ties a target's best
    IoU (> 0) becomes positive, with its own best target.
    """
    u = [[float(value) for value in row] for row in overlap]
    P, T = overlap.shape
    negative = positive if negative is None else negative
    plan = np.zeros((P, T + 1))
    for i in range(P):
        best = max(range(T), key=lambda j: (u[i][j], -j), default=None)
        if best is None or u[i][best] < negative:
            plan[i, T] = 1
        if best is not None and u[i][best] >= positive:
            plan[i] = 0
            plan[i, best] = 1
        if force_match == "low_quality" and any(0 < u[i][j] == max(row[j] for row in u) for j in range(T)):
            assert best is not None
            plan[i] = 0
            plan[i, best] = 1
    if force_match == "best":
        free_anchors, free_targets = set(range(P)), set(range(T))
        for _, j, i in sorted((-u[i][j], j, i) for i in range(P) for j in range(T)):
            if i in free_anchors and j in free_targets:
                free_anchors.remove(i)
                free_targets.remove(j)
                plan[i] = 0
                plan[i, j] = 1
    return plan
