"""Slow loops for set prediction: repeated targets, groups, rounds, class weights, and votes of decoder layers."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from scipy.optimize import linear_sum_assignment

Pair = tuple[int, int]  # prediction, target


def best_with_capacity(cost: Sequence[Sequence[float]], capacity: int) -> tuple[int, float]:
    """Return (number of pairs, total cost) of the best way to give each target at most `capacity` predictions.

    By exhaustion over the predictions of a (P, T) cost, where `inf` forbids a pair: most pairs first, then least cost.
    """
    targets = len(cost[0]) if cost else 0
    states: dict[tuple[int, ...], tuple[int, float]] = {(0,) * targets: (0, 0.0)}
    for row in cost:
        after = dict(states)
        for used, (missing, total) in states.items():
            for j, value in enumerate(row):
                if used[j] < capacity and math.isfinite(value):
                    state = (*used[:j], used[j] + 1, *used[j + 1 :])
                    found = (missing - 1, total + value)  # minus the number of pairs: less is better
                    if state not in after or found < after[state]:
                        after[state] = found
        states = after
    missing, total = min(states.values())
    return -missing, total


def copies_per_target(preds: int, targets: int, copies: int) -> int:
    """Return how many predictions a target takes: never so many that another target has none for that reason."""
    while copies > 1 and copies * targets > preds:
        copies -= 1
    return copies


def repeated(cost: np.ndarray, copies: int) -> list[Pair]:
    """Return the pairs of one rectangular assignment of a finite (P, T) cost whose columns are repeated."""
    columns = [j for j in range(cost.shape[1]) for _ in range(copies_per_target(*cost.shape, copies))]
    wide = np.stack([cost[:, j] for j in columns], axis=1)
    return sorted((int(i), columns[int(j)]) for i, j in zip(*linear_sum_assignment(wide), strict=True))


def in_rounds(cost: np.ndarray, rounds: int) -> list[Pair]:
    """Return the pairs of one assignment after another of a finite (P, T) cost, each of the predictions left over."""
    left, pairs = list(range(len(cost))), []
    for _ in range(rounds):
        if left:
            taken = linear_sum_assignment(np.stack([cost[i] for i in left]))
            new = [(left[int(i)], int(j)) for i, j in zip(*taken, strict=True)]
            pairs += new
            left = [i for i in left if i not in {p for p, _ in new}]
    return sorted(pairs)


def in_groups(cost: np.ndarray, groups: int, pairs_of) -> list[Pair]:
    """Return the pairs that `pairs_of` finds in each of equal runs of the predictions of a (P, T) cost."""
    size, pairs = len(cost) // groups, []
    for group in range(groups):
        start = group * size
        pairs += [(start + i, j) for i, j in pairs_of(cost[start : start + size])]
    return sorted(pairs)


def class_weighted(cost, labels, class_weight) -> list[list[float]]:
    """Return a (P, T) cost times the weight of each target's class; the label of a target is a class or a row."""
    weights = []
    for label in labels:
        if isinstance(label, int):
            weights.append(class_weight[label])
        else:
            total = sum(label)
            weights.append(sum(y * w for y, w in zip(label, class_weight, strict=True)) / total if total else 1.0)
    return [[value * w for value, w in zip(row, weights, strict=True)] for row in cost]


def union_vote(layers: Sequence[Sequence[int]], targets: int) -> list[list[int]]:
    """Return the target of each prediction of each layer after the vote, for one image.

    `layers[l][i]` is the target of prediction `i` in layer `l`, `targets` for the background and -1 for ignored. A
    prediction without a vote for a target keeps what its layer says.
    """
    result = [list(layer) for layer in layers]
    for i in range(len(layers[0])):
        votes = [0] * targets
        for layer in layers:
            if 0 <= layer[i] < targets:
                votes[layer[i]] += 1
        if any(votes):
            winner = next(j for j in range(targets) if votes[j] == max(votes))
            for row in result:
                row[i] = winner
    return result
