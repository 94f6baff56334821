"""Assignments in which a target takes its best predictions: how well pairs fit in, an assignment and scores out."""

import math
from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor

from uotod.solvers.candidates import RunningMax, stable_topk, suitors


class Block(NamedTuple):
    """Values of (B, t, P) pairs of a few targets.

    Attributes:
        metric: how much a target wants a prediction, `-inf` for a pair that is forbidden.
        overlap: decides conflicts, the largest wins.
        inside: where a target may take what is among its largest, bool; None for everywhere.
        most: (B, t) number of predictions that a target takes, at least 1; None for the largest number.
    """

    metric: Tensor
    overlap: Tensor
    inside: Tensor | None = None
    most: Tensor | None = None


def align(blocks: Iterable[Block], preds: int, topk: int, *, among_all: bool) -> Tensor:
    """Assign to each target the predictions of its largest metric, and each prediction to one target at most.

    A prediction that several targets take goes to the target of largest overlap: with `among_all` of all targets with
    a metric for it, otherwise of those that took it. The lowest index wins ties. Memory: a few blocks and O(B·T·topk).
    It reads no value on the host; where that costs nothing, `aligned_image` is faster.

    Args:
        blocks: the pairs of a few targets at a time, in their order; all together are T.
        preds: P.
        topk: number of predictions that a target takes, or the bound of each block's `most`.
        among_all: see above.

    Returns:
        (B, P) index of the target, T for none.
    """
    nearest, lists, start = RunningMax(), [], 0
    for metric, overlap, inside, most in blocks:
        value, pred = stable_topk(metric, min(topk, preds))  # (B, t, k)
        taken = value > -math.inf
        if most is not None:
            taken = taken & (torch.arange(value.shape[2], device=value.device) < most.unsqueeze(2))
        if inside is not None:
            taken = taken & inside.gather(2, pred)
        lists.append((overlap.gather(2, pred).masked_fill(~taken, -math.inf), pred))
        if among_all:
            nearest.add(overlap.masked_fill(metric == -math.inf, -math.inf), start)
        start += metric.shape[1]
    overlap, pred = (torch.cat(parts, dim=1) for parts in zip(*lists, strict=True))  # (B, T, k)
    owner = suitors(overlap, pred, preds)
    if not among_all:
        return owner
    takers = torch.zeros_like(owner, dtype=torch.int32)
    takers.scatter_add_(1, pred.flatten(1), (overlap > -math.inf).flatten(1).int())
    return torch.where(takers > 1, nearest.index, owner)


def keep_best(index: Tensor, metric: Tensor, num_targets: int, most: int) -> Tensor:
    """Return the assignment (B, P) in which a target keeps the `most` predictions of its largest (B, P) metric."""
    order = metric.argsort(dim=1, descending=True, stable=True)
    order = order.gather(1, index.gather(1, order).argsort(dim=1, stable=True))  # by target, the best first
    target = index.gather(1, order)
    first = torch.searchsorted(target, torch.arange(num_targets + 1, device=index.device).repeat(len(index), 1))
    rank = torch.arange(index.shape[1], device=index.device) - first.gather(1, target)
    return torch.empty_like(index).scatter_(1, order, torch.where(rank < most, target, num_targets))


def relative_scores(
    index: Tensor, log_metric: Tensor, num_targets: int, eps: float = 0.0, weight: Tensor | None = None
) -> Tensor:
    r"""Return the (B, P) metric of each assigned prediction relative to the best of its target, 0 for the others.

    .. math:: \left( \frac{t_i}{\max_k t_k + \text{eps}} \right)^w

    with the maximum over the predictions of the same target. In logarithms, for the metric may be below all that the
    dtype holds, or above.

    Args:
        index: (B, P) target of each prediction, T for none.
        log_metric: (B, P) logarithm of the metric `t` of each prediction with its target; not read without one.
        num_targets: T.
        eps: in units of the metric.
        weight: (B, P) exponent `w` of each prediction's target; None for 1.

    References:
        Feng et al., "TOOD: task-aligned one-stage object detection", ICCV 2021, sec. 3.2.
    """
    best = best_of_target(log_metric, index, num_targets)
    if eps > 0:
        best = torch.logaddexp(best, best.new_full((), math.log(eps)))
    ratio = log_metric - best
    if weight is not None:
        ratio = ratio * weight
    return ratio.masked_fill(index == num_targets, -math.inf).exp()


def pick(value: Tensor, index: Tensor, other: float) -> Tensor:
    """Return the (B, P) entries of (B, T, P) values in the rows of `index`, and `other` where that is T."""
    num_targets = value.shape[1]
    if not num_targets:
        return value.new_full(index.shape, other)
    row = index.clamp(max=num_targets - 1).unsqueeze(1)
    return value.gather(1, row).squeeze(1).masked_fill(index == num_targets, other)


def best_of_target(value: Tensor, index: Tensor, num_targets: int) -> Tensor:
    """Return for each prediction the largest of the (B, P) values of the predictions with the same `index`."""
    most = value.new_full((len(value), num_targets + 1), -math.inf)
    return most.scatter_reduce(1, index, value, "amax").gather(1, index)
