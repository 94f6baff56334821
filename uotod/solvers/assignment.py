"""Exact minimum-cost assignment of predictions to targets, by scipy on the host."""

import math

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor


def assign(cost: Tensor, mask: Tensor) -> Tensor:
    """Return the prediction of each target in the assignment of least total cost.

    `min(P, T_b)` pairs are matched in each image, fewer where `inf` forbids it: then as many as possible, at the least
    cost among those. The batch crosses to the host and back in one transfer each way.

    Args:
        cost: (B, T, P); `inf` forbids a pair.
        mask: (B, T) bool, False for padding, whose cost is not read.

    Raises:
        ValueError: the cost of a target that is not padding is NaN or -inf.

    Returns:
        (B, T) index of the prediction, -1 for a target without one.

    References:
        D. F. Crouse, "On implementing 2D rectangular assignment algorithms", IEEE TAES 2016 (scipy's solver).
    """
    # NaN marks padded rows, so that mask and cost make the crossing together; a NaN or -inf cost becomes -inf
    cost = cost.nan_to_num(nan=-math.inf, posinf=math.inf, neginf=-math.inf)
    host = cost.masked_fill(~mask.unsqueeze(-1), math.nan).cpu().numpy()
    result = np.full(cost.shape[:2], -1, dtype=np.int64)
    if cost.shape[2]:
        for image, matrix in enumerate(host):
            rows = np.flatnonzero(~np.isnan(matrix[:, 0]))
            if rows.size:
                _assign_image(matrix if rows.size == len(matrix) else matrix[rows], rows, result[image])
    return torch.from_numpy(result).to(cost.device)


def _assign_image(matrix: np.ndarray, rows: np.ndarray, result: np.ndarray) -> None:
    """Write the prediction of each of `rows` into `result`; `matrix` is (len(rows), P)."""
    if matrix.min() == -math.inf:
        raise ValueError("the cost must not hold NaN or -inf, got one for a target that is not padding")
    forbidden = ~np.isfinite(matrix)
    if forbidden.any():
        finite = matrix[~forbidden]
        if not finite.size:
            return
        # one forbidden pair costs more than all finite ones together could save: most pairs first, then least cost
        low, high = float(finite.min()), float(finite.max())
        matrix = np.where(forbidden, (high - low + 1.0) * (min(matrix.shape) + 1.0), matrix.astype(np.float64) - low)
    target, pred = linear_sum_assignment(matrix)
    allowed = ~forbidden[target, pred]
    result[rows[target[allowed]]] = pred[allowed]
