"""Exact minimum-cost assignment of predictions to targets, by scipy on the host."""

import math

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from uotod.check import is_traced
from uotod.solvers.operator import operator

Array = NDArray[np.floating]
Index = NDArray[np.int64]


def assign_predictions(cost: Tensor, mask: Tensor, *, copies: int = 1, groups: int = 1, rounds: int = 1) -> Tensor:
    """Return the target of each prediction in the assignment of least total cost.

    `min(P, T_b)` pairs are matched in each image, fewer where `inf` forbids it: then as many as possible, at the least
    cost among those. The batch crosses to the host and back in one transfer each way.

    Args:
        cost: (B, T, P); `inf` forbids a pair.
        mask: (B, T) bool, False for padding, whose cost is not read.
        copies: times that each target takes part, less where there are fewer predictions: `P // T_b`, at least 1.
        groups: number of equal runs of predictions, a divisor of P, each of which is assigned on its own.
        rounds: number of assignments in turn, each of the predictions that those before have left.

    Raises:
        ValueError: the cost of a target that is not padding is NaN or -inf.

    Returns:
        (B, P) index of the target, T for a prediction without one.

    References:
        D. F. Crouse, "On implementing 2D rectangular assignment algorithms", IEEE TAES 2016 (scipy's solver).
    """
    if is_traced(cost):
        assigned: Tensor = _operator(cost, mask, copies, groups, rounds)
        return assigned
    images, num_targets, preds = cost.shape
    if cost.device.type == "cpu":
        host, present = cost.cpu().numpy(), mask.numpy()
    else:
        # NaN marks padded rows, so that mask and cost make the crossing together; a NaN or -inf cost becomes -inf
        cost = cost.nan_to_num(nan=-math.inf, posinf=math.inf, neginf=-math.inf)
        host = cost.masked_fill(~mask.unsqueeze(-1), math.nan).cpu().numpy()
        present = ~np.isnan(host[:, :, 0]) if preds else np.zeros((images, num_targets), dtype=np.bool_)
    result = np.full((images, preds), num_targets, dtype=np.int64)
    if preds:
        for matrix, here, found in zip(host, present, result.reshape(images, groups, preds // groups), strict=True):
            rows = here.nonzero()[0]
            if rows.size:
                last = int(rows[-1]) + 1
                _assign_image(matrix[:last] if rows.size == last else matrix[rows], rows, found, copies, rounds)
    return torch.from_numpy(result).to(cost.device)


_operator = operator(
    "assign_predictions(Tensor cost, Tensor mask, int copies, int groups, int rounds) -> Tensor",
    lambda cost, mask, copies, groups, rounds: assign_predictions(
        cost, mask, copies=copies, groups=groups, rounds=rounds
    ),
    lambda cost, *_: cost.new_empty(len(cost), cost.shape[2], dtype=torch.int64),
)


def _assign_image(matrix: Array, rows: Index, found: Index, copies: int, rounds: int) -> None:
    """Write the target, one of `rows`, of each prediction into `found`, (groups, P / groups); `matrix` is (T_b, P)."""
    size = found.shape[1]
    copies = max(min(copies, size // len(rows)), 1)
    for group, index in enumerate(found):
        block = matrix[:, group * size : (group + 1) * size]
        if copies > 1:
            block = block.repeat(copies, axis=0)
        free = np.arange(size)
        for _ in range(rounds):
            row, column = _least_cost_pairs(block.take(free, axis=1) if free.size < size else block)
            index[free[column]] = rows[row // copies]
            free = np.delete(free, column)


def _least_cost_pairs(matrix: Array) -> tuple[Index, Index]:
    """Return rows and columns of the assignment of a matrix in which `inf` forbids a pair."""
    try:
        row, column = linear_sum_assignment(matrix)  # which checks the values
        if matrix[row, column].max(initial=0.0) < math.inf:
            return row, column
    except ValueError:
        if matrix.size and not matrix.min() > -math.inf:  # the minimum of values with a NaN is NaN
            raise ValueError("the cost must not hold NaN or -inf, got one for a target that is not padding") from None
    allowed = matrix < math.inf
    finite = matrix[allowed]
    if not finite.size:
        return np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64)
    # one forbidden pair costs more than all finite ones together could save: most pairs first, then least cost
    low, high = float(finite.min()), float(finite.max())
    worst = (high - low + 1.0) * (min(matrix.shape) + 1.0)
    row, column = linear_sum_assignment(np.where(allowed, matrix.astype(np.float64) - low, worst))
    found = allowed[row, column]
    return row[found], column[found]
