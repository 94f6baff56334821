"""Rules that look at one side at a time: the nearest partner, hard or soft."""

import math
from collections.abc import Iterable

import torch
from torch import Tensor

from uotod.solvers.candidates import RunningMax


def nearest_target(cost: Tensor) -> Tensor:
    """Return the (B, P) index of the cheapest column of each prediction, the lowest on ties.

    The limit `reg_pred → ∞, reg_target = 0, reg → 0` of unbalanced transport (De Plaen et al., CVPR 2023, prop. 2).

    Args:
        cost: (B, K, P); `inf` forbids a pair.

    Returns:
        (B, P) index in [0, K), or -1 where every column is forbidden.
    """
    if not cost.shape[1]:
        return torch.full((cost.shape[0], cost.shape[2]), -1, device=cost.device)
    value, index = cost.min(1)
    return index.masked_fill(value == math.inf, -1)


def nearest_of_parts(costs: Iterable[Tensor]) -> Tensor:
    """Return `nearest_target` of the (B, t, P) columns of all `costs`, of which one at a time is held; K for -1."""
    nearest, start = RunningMax(), 0
    for cost in costs:
        if not cost.shape[1]:
            return torch.zeros(len(cost), cost.shape[2], dtype=torch.long, device=cost.device)
        nearest.add(-cost, start)
        start += cost.shape[1]
    return nearest.index.masked_fill(nearest.value == -math.inf, start)


def nearest_prediction(cost: Tensor, threshold: float | None) -> Tensor:
    """Return a plan (B, T, P) with mass 1 from each target's cheapest prediction, the lowest on ties.

    The limit `reg_pred = 0, reg_target → ∞, reg → 0` of unbalanced transport (De Plaen et al., CVPR 2023).

    Args:
        cost: (B, T, P); `inf` forbids a pair.
        threshold: the largest cost that matches, or None for no limit.
    """
    plan = torch.zeros_like(cost)
    if not cost.numel():
        return plan
    value, index = cost.min(2)  # (B, T)
    matched = value < math.inf if threshold is None else value <= threshold
    return plan.scatter_(2, index.unsqueeze(-1), matched.to(plan.dtype).unsqueeze(-1))


def soft_minimum(cost: Tensor, dim: int, reg: float) -> Tensor:
    """Return `softmax(-cost / reg)` over `dim`, zero where everything is forbidden.

    Args:
        cost: (B, K, P); `inf` forbids a pair.
        dim: 1 to share each prediction among columns, 2 to share each column among predictions.
        reg: temperature, in units of the cost.
    """
    if not cost.numel():
        return torch.zeros_like(cost)
    forbidden = (cost == math.inf).all(dim, keepdim=True)
    # the division comes after the shift by the minimum: -cost / reg may overflow
    shifted = cost - cost.amin(dim, keepdim=True).masked_fill(forbidden, 0.0)
    return (-shifted / reg).softmax(dim).masked_fill(forbidden, 0.0)


def left_over(positive: Tensor, uniform: bool) -> Tensor:
    """Return the background mass (B, P) that a plan on targets leaves.

    Args:
        positive: (B, T, P) masses on the targets.
        uniform: spread what the targets leave of the total mass `P` evenly, instead of filling each row up to 1.
    """
    if not uniform:
        return (1 - positive.sum(1)).clamp(min=0)
    preds = positive.shape[2]
    share = (1 - positive.sum((1, 2)) / max(preds, 1)).clamp(min=0)  # (B,)
    return share.unsqueeze(1).expand(-1, preds)
