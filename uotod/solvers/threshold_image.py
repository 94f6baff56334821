"""Matching by thresholds image by image on the host: the rule of `threshold`, where values may be read."""

import heapq
import math
from collections.abc import Callable, Iterator
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from uotod.check import reads_values
from uotod.solvers.candidates import stable_topk
from uotod.solvers.threshold import ThresholdRule, threshold_match

Array = NDArray[np.floating]
Index = NDArray[np.int64]

FIRST_CHOICES = 16  # of a target that has lost its best prediction; more are found if it loses all of these


class Similarity(Protocol):
    """The similarities of T targets and P predictions of one image on the CPU; `-inf` forbids a pair."""

    def rows(self, targets: slice) -> Tensor:
        """Return the values (t, P), which are read before the next call."""

    def columns(self, preds: Tensor) -> Tensor:
        """Return the values (T, N) of the predictions of (N,) indices."""


def threshold_match_images(
    similarity: Callable[[int, Tensor], Similarity], mask: Tensor, preds: int, rule: ThresholdRule, block: int
) -> Tensor:
    """Return what `threshold_match` returns, computed image by image without padding, on the host.

    The targets are visited once for the largest values. Only predictions that go to a target are looked up again, for
    which one it is, and a target that loses its best prediction for its next choices. Memory: a few blocks.

    Args:
        similarity: function of an image and the (T_b,) indices of its targets.
        mask: (B, T) bool, False for padding.
        preds: P.
        rule: thresholds and what is forced.
        block: number of pairs at a time.

    Returns:
        (B, P) index of the target, T for the background, -1 for an ignored prediction.
    """
    images, num_targets = mask.shape
    result = np.full((images, preds), num_targets)
    for image in range(images if preds else 0):
        real = mask[image].nonzero().squeeze(1)
        if len(real):
            found = _match_image(similarity(image, real), len(real), preds, rule, block)
            # the background comes after the last real target, and -1 counts from the end
            result[image] = np.append(real.numpy(), (num_targets, -1))[found]
    return torch.from_numpy(result)


def match_similarity(similarity: Tensor, mask: Tensor, rule: ThresholdRule) -> Tensor:
    """Return what `threshold_match` returns for (B, T, P) similarities, on the CPU image by image."""
    num_targets, preds = similarity.shape[1:]
    if not reads_values(similarity, validate=False):
        return threshold_match(lambda some: similarity[:, some], mask, preds, rule, max(num_targets, 1))
    return threshold_match_images(
        lambda image, real: _Table(similarity[image], real), mask, preds, rule, max(num_targets * preds, 1)
    )


class _Table:
    """The similarities of some targets in a (T, P) tensor."""

    def __init__(self, values: Tensor, real: Tensor) -> None:
        self._values = values if len(real) == len(values) else values[real]

    def rows(self, targets: slice) -> Tensor:
        return self._values[targets]

    def columns(self, preds: Tensor) -> Tensor:
        return self._values[:, preds]


def _match_image(similarity: Similarity, count: int, preds: int, rule: ThresholdRule, block: int) -> Index:
    """Return the (P,) target of each prediction, T for the background and -1 if it is ignored."""
    nearest: Array | None = None  # (P,)
    best, wish = [], []
    is_tied = np.zeros(preds, dtype=bool)
    size = max(block // preds, 1)
    for start in range(0, count, size):
        values = similarity.rows(slice(start, min(start + size, count))).numpy()  # (t, P)
        nearest = values.max(0) if nearest is None else np.maximum(nearest, values.max(0), out=nearest)
        if rule.force_match is None:
            continue
        wish.append(values.argmax(1))  # the first of equal ones
        best.append(values[np.arange(len(values)), wish[-1]])
        if rule.force_match != "best":
            is_tied |= (values == _to_tie(best[-1], rule)).any(0)
    assert nearest is not None

    low, high = rule.negative
    assigned = np.full(preds, count)
    assigned[(nearest < low) | (nearest >= high)] = -1
    for part, values in _columns(similarity, (nearest >= rule.positive) | is_tied, count, block):
        assigned[part] = values.argmax(0)
    if rule.force_match == "all_best":
        tie = _to_tie(np.concatenate(best), rule)
        for part, values in _columns(similarity, is_tied, count, block):
            assigned[part] = np.where(values == tie, values, -np.inf).argmax(0)
    if rule.force_match == "best":
        for target, pred in _one_each(similarity, np.concatenate(best), np.concatenate(wish), rule, preds):
            assigned[pred] = target
    return assigned


def _to_tie(best: Array, rule: ThresholdRule) -> Array:
    """Return the (t, 1) values that predictions must have to tie the best ones, (t,), of their targets."""
    return np.where((best > 0) & (best >= rule.floor), best, np.inf)[:, None]


def _columns(similarity: Similarity, mask: NDArray[np.bool_], count: int, block: int) -> Iterator[tuple[Index, Array]]:
    """Yield predictions in a (P,) mask, (N,), and their values, (T, N), a block at a time."""
    preds = np.flatnonzero(mask)
    size = max(block // count, 1)
    for start in range(0, len(preds), size):
        part = preds[start : start + size]
        yield part, similarity.columns(torch.from_numpy(part)).numpy()


def _one_each(
    similarity: Similarity, best: Array, wish: Index, rule: ThresholdRule, preds: int
) -> Iterator[tuple[int, int]]:
    """Yield pairs in the order of decreasing value, each target and each prediction at most once.

    The lowest target, then the lowest prediction wins ties.

    Args:
        similarity: values of the pairs.
        best: (T,) largest value of each target.
        wish: (T,) its prediction.
        rule: its floor bounds the values of pairs.
        preds: P.
    """
    floor = float(best.dtype.type(rule.floor))
    queue = list(zip((-best).tolist(), range(len(best)), wish.tolist(), strict=True))
    heapq.heapify(queue)
    choices: dict[int, Iterator[tuple[float, int]]] = {}
    taken: set[int] = set()
    while queue:
        value, target, pred = heapq.heappop(queue)
        if value == math.inf or -value < floor:
            return
        if pred not in taken:
            taken.add(pred)
            yield target, pred
            continue
        if target not in choices:
            choices[target] = _ranking(similarity, target, min(len(best), preds))
        following = next((x for x in choices[target] if x[1] not in taken), None)
        if following is not None:
            heapq.heappush(queue, (-following[0], target, following[1]))


def _ranking(similarity: Similarity, target: int, most: int) -> Iterator[tuple[float, int]]:
    """Yield value and index of the `most` best predictions of a target, found a few at first and then more."""
    done, count = 0, min(FIRST_CHOICES, most)
    while done < most:
        value, pred = stable_topk(similarity.rows(slice(target, target + 1)), count)
        yield from zip(value[0, done:].tolist(), pred[0, done:].tolist(), strict=True)
        done, count = count, min(8 * count, most)
