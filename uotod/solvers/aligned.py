"""Assignments in which a target takes its best predictions: how well pairs fit in, an assignment and scores out."""

import math
from collections.abc import Callable, Iterable
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from uotod.cost.blocks import slices
from uotod.solvers.candidates import RunningMax, stable_topk, suitors

MAX_MASK_ELEMENTS = 1 << 20  # of a (t, P) mask of pairs, a byte each, of which few are listed

Array = NDArray[np.floating]
Index = NDArray[np.int64]


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


class PairList(NamedTuple):
    """Pairs of a few targets, those of a target together and its predictions in ascending order.

    Attributes:
        bounds: (t + 1,) where the pairs of each target begin and end.
        pred: (N,) their predictions.
        metric: (N,) metric; `-inf` forbids a pair.
        overlap: (N,) overlap, which decides conflicts.
        inside: (N,) bool, where a target may take what is among its largest; None for everywhere.
    """

    bounds: Index
    pred: Index
    metric: Array
    overlap: Array
    inside: NDArray[np.bool_] | None


def align(blocks: Iterable[Block], preds: int, topk: int, *, among_all: bool) -> Tensor:
    """Assign to each target the predictions of its largest metric, and each prediction to one target at most.

    A prediction that several targets take goes to the target of largest overlap: with `among_all` of all targets with
    a metric for it, otherwise of those that took it. The lowest index wins ties. Memory: a few blocks and O(B·T·topk).
    It reads no value on the host; where that costs nothing, `align_image` is faster.

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


def align_image(
    rows: Callable[[slice], PairList],
    columns: Callable[[Index], Array],
    num_targets: int,
    preds: int,
    topk: int,
    *,
    among_all: bool,
) -> Index:
    """Return the (P,) target of each prediction of one image on the host, T for none; see `align`.

    Args:
        rows: function of a slice of the targets that returns those of their pairs that count.
        columns: function of (N,) predictions that returns their overlap (T, N), `-inf` for pairs that are forbidden.
        num_targets: T.
        preds: P.
        topk: number of predictions that a target takes.
        among_all: see `align`.
    """
    parts = []
    for some in slices(num_targets, preds, MAX_MASK_ELEMENTS):
        pairs = rows(some)
        chosen, target = _largest_of_each(pairs, topk)
        parts.append((target + some.start, pairs.pred[chosen], pairs.overlap[chosen]))
    target, pred, overlap = (np.concatenate(x) for x in zip(*parts, strict=True))
    owner = np.full(preds, num_targets)
    # later entries overwrite earlier ones: the largest overlap, of equal ones the lowest target, comes last
    order = np.lexsort((-target, overlap))
    owner[pred[order]] = target[order]
    if among_all:
        contested = np.flatnonzero(np.bincount(pred, minlength=preds) > 1)
        for some in slices(len(contested), num_targets, MAX_MASK_ELEMENTS):
            owner[contested[some]] = columns(contested[some]).argmax(0)
    return owner


def _largest_of_each(pairs: PairList, topk: int) -> tuple[Index, Index]:
    """Return the positions of the pairs that the targets take, and their targets; the lowest index wins ties."""
    bounds, metric = pairs.bounds, pairs.metric
    rows = [metric[start:stop] for start, stop in pairwise(bounds.tolist())]
    last = [np.partition(x, -topk)[-topk] if len(x) > topk else -np.inf for x in rows]  # that a target takes
    least = np.repeat(np.array(last, dtype=metric.dtype), np.diff(bounds))
    found = np.flatnonzero((metric >= least) & (metric > -np.inf))
    target = np.searchsorted(bounds, found, side="right") - 1
    above = metric[found] > least[found]
    first = np.searchsorted(target, target)
    ties: Index = np.cumsum(~above) - np.concatenate(([0], np.cumsum(~above)))[first]  # up to this one, of its target
    taken = above | (ties <= topk - np.bincount(target[above], minlength=len(rows))[target])
    if pairs.inside is not None:
        taken &= pairs.inside[found]
    return found[taken], target[taken]


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
