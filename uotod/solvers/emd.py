"""Exact transport without entropy, by POT's network simplex on the host."""

import numpy as np
import torch
from torch import Tensor

from uotod.check import is_traced
from uotod.solvers.operator import operator

PIVOTS = 10_000_000


def solve_emd(cost: Tensor, column_mass: Tensor, active: Tensor, row_mass: Tensor | None = None) -> Tensor:
    """Return a plan of least cost with given marginals, `min <π, C>` with `π 1 = a` and `πᵀ 1 = b`.

    It is a vertex of the polytope: at most `P + K − 1` entries are positive, and all are integers where the masses are.
    The batch crosses to the host and back in one transfer each way, and each image is solved in float64.

    Args:
        cost: (B, K, P); `inf` forbids a pair. What stands under an inactive column is not read.
        column_mass: (B, K) masses `b` ≥ 0, which add up to those of the rows.
        active: (B, K) bool, False for a column that is absent.
        row_mass: (B, P) masses `a` ≥ 0; default: 1 each.

    Returns:
        (B, K, P) the plan, exactly 0 in inactive columns and forbidden pairs; 0 in an image without active columns.

    Raises:
        ValueError: forbidden pairs leave no plan with these marginals.
        RuntimeError: POT met its limit of pivots or reported another failure.

    References:
        N. Bonneel et al., "Displacement interpolation using Lagrangian mass transport", ACM TOG 2011 (POT's solver).
    """
    if is_traced(cost):
        solved: Tensor = _operator(cost, column_mass, active, row_mass)
        return solved
    images, columns, preds = cost.shape
    if not cost.numel():
        return torch.zeros_like(cost)
    rows = cost.new_ones(images, preds) if row_mass is None else row_mass
    # one crossing: an absent column has the mass NaN
    masses = column_mass.double().masked_fill(~active, torch.nan)
    whole = torch.cat((cost.double().flatten(1), masses, rows.double()), dim=1).cpu().numpy()
    plan = np.zeros((images, columns, preds))
    for image, packed in enumerate(whole):
        matrix, mass, row = np.split(packed, (columns * preds, columns * preds + columns))
        used, reached = np.flatnonzero(mass > 0), np.flatnonzero(row > 0)
        if not np.isnan(mass).all() and used.size and reached.size:
            part = np.ix_(used, reached)
            plan[image][part] = _solve_image(matrix.reshape(columns, preds)[part], mass[used], row[reached], image)
    return torch.from_numpy(plan).to(cost)


_operator = operator(
    "solve_emd(Tensor cost, Tensor column_mass, Tensor active, Tensor? row_mass) -> Tensor",
    solve_emd,
    lambda cost, *_: torch.empty_like(cost),
)


def _solve_image(cost: np.ndarray, column_mass: np.ndarray, row_mass: np.ndarray, image: int) -> np.ndarray:
    """Return the plan (K, P) of one image."""
    import ot

    forbidden = ~np.isfinite(cost)
    finite = cost[~forbidden] if not forbidden.all() else np.zeros(1)
    low, high = float(finite.min()), float(finite.max())
    # a forbidden pair is so dear that the least mass of a vertex there outweighs all that could be saved elsewhere
    least = min(float(column_mass.min()), float(row_mass.min()))
    dear = (high - low + 1.0) * (1.0 + float(row_mass.sum()) * len(column_mass) / least)
    # from 0 on: POT 0.9.7 calls some problems of negative costs infeasible
    cost = np.ascontiguousarray(np.where(forbidden, dear, cost - low))
    plan, log = ot.emd(column_mass, row_mass, cost, numItermax=PIVOTS, log=True)
    if log["warning"] is not None:
        raise RuntimeError(f"POT's network simplex failed in image {image}: {log['warning']}")
    if plan[forbidden].sum() > 1e-9 * plan.sum():
        raise ValueError(
            f"the cost must leave a plan with the marginals, got too many inf in image {image}: infeasible"
        )
    return np.asarray(np.where(forbidden, 0.0, plan))
