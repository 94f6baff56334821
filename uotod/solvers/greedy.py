"""Greedy pairing: the best choices of each target in, pairs in the order of decreasing value out."""

import heapq
import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from uotod.solvers.candidates import stable_topk, suitors

FIRST_CHOICES = 16  # of a target that has lost its best prediction; more are found if it loses all of these


def greedy_pairs(value: Tensor, index: Tensor, preds: int) -> Tensor:
    """Pair targets and predictions in the order of decreasing value, each target and each prediction at most once.

    The lowest target, then the lowest prediction wins ties. All pairs that are best for both of their sides are fixed
    at once, which gives the result of the sequential rule in `min(T, P)` rounds at most. It reads no value on the
    host; where that costs nothing, `greedy_pairs_of_image` is faster.

    Args:
        value: (B, T, K) values of the best candidates of each target, in descending order; `-inf` for none.
        index: (B, T, K) predictions of these values, the lowest first on ties.
        preds: number of predictions.

    Returns:
        (B, P) target of each prediction, -1 for none.
    """
    images, num_targets, _ = value.shape
    targets = torch.arange(num_targets, device=value.device).expand(images, -1)
    owner = torch.full((images, preds), -1, device=value.device)
    for _ in range(min(num_targets, preds)):
        best, slot = value.max(2)  # (B, T)
        wish = index.gather(2, slot.unsqueeze(2)).squeeze(2)
        wins = (best > -math.inf) & (suitors(value, index, preds).gather(1, wish) == targets)
        owner = owner.scatter_reduce(1, wish, torch.where(wins, targets, -1), "amax")
        taken = (owner >= 0).gather(1, index.flatten(1)).view_as(value)
        value = value.masked_fill(wins.unsqueeze(2) | taken, -math.inf)
    return owner


def greedy_pairs_of_image(
    best: list[float], wish: list[int], row: Callable[[int], Tensor], preds: int, floor: float = -math.inf
) -> dict[int, int]:
    """Return the target of each prediction that `greedy_pairs` pairs in one image, on the host.

    Args:
        best: largest value of each of T targets, `-inf` for none.
        wish: its prediction, the lowest on ties.
        row: function of a target that has lost that prediction, which returns its (P,) values.
        preds: number of predictions.
        floor: least value of a pair.
    """
    queue = [(-value, target, pred) for target, (value, pred) in enumerate(zip(best, wish, strict=True))]
    heapq.heapify(queue)
    choices: dict[int, Iterator[tuple[float, int]]] = {}
    owner: dict[int, int] = {}
    while queue:
        value, target, pred = heapq.heappop(queue)
        if value == math.inf or -value < floor:
            break
        if pred not in owner:
            owner[pred] = target
            continue
        if target not in choices:
            choices[target] = _ranking(row, target, min(len(best), preds))
        following = next((x for x in choices[target] if x[1] not in owner), None)
        if following is not None:
            heapq.heappush(queue, (-following[0], target, following[1]))
    return owner


def _ranking(row: Callable[[int], Tensor], target: int, most: int) -> Iterator[tuple[float, int]]:
    """Yield value and index of the `most` best predictions of a target, found a few at first and then more."""
    done, count = 0, min(FIRST_CHOICES, most)
    while done < most:
        value, pred = stable_topk(row(target), count)
        yield from zip(value[done:].tolist(), pred[done:].tolist(), strict=True)
        done, count = count, min(8 * count, most)
