"""Task-aligned assignment of one image on the host: the rule of `aligned` on lists of the pairs that count."""

from itertools import pairwise
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.floating]
Index = NDArray[np.int64]


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


class Pairs(Protocol):
    """The pairs that count of the T targets and P predictions of one image."""

    def rows(self, targets: slice) -> PairList:
        """Return the pairs of a few targets."""

    def columns(self, preds: Index) -> Array:
        """Return the overlap (T, N) with predictions of (N,) indices, `-inf` for pairs that are forbidden."""


def align_image(pairs: Pairs, num_targets: int, preds: int, topk: int, block: int, *, among_all: bool) -> Index:
    """Return the (P,) target of each prediction, T for none; see `align`.

    Args:
        pairs: the pairs that count.
        num_targets: T.
        preds: P.
        topk: number of predictions that a target takes.
        block: number of pairs at a time.
        among_all: see `align`.
    """
    parts = []
    size = max(block // preds, 1)
    for start in range(0, num_targets, size):
        some = pairs.rows(slice(start, min(start + size, num_targets)))
        chosen, target = _largest_of_each(some, topk)
        parts.append((target + start, some.pred[chosen], some.overlap[chosen]))
    target, pred, overlap = (np.concatenate(x) for x in zip(*parts, strict=True))
    owner = np.full(preds, num_targets)
    # later entries overwrite earlier ones: the largest overlap, of equal ones the lowest target, comes last
    order = np.lexsort((-target, overlap))
    owner[pred[order]] = target[order]
    if among_all:
        contested = np.flatnonzero(np.bincount(pred, minlength=preds) > 1)
        size = max(block // num_targets, 1)
        for start in range(0, len(contested), size):
            some_preds = contested[start : start + size]
            owner[some_preds] = pairs.columns(some_preds).argmax(0)
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
