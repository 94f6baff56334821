"""Device functions of the Triton solver: where Newton's method stands in, its next step out.

What is computed is that of `uotod.solvers.newton`, an image a program.
"""

import triton
import triton.language as tl

from uotod.solvers.triton.passes import rate


@triton.jit
def gaps(mass, potential, live, log_mass, reg, target_penalty: tl.constexpr):
    """Return what a sweep would add to each column's `g / reg` and the mass that this would move."""
    target, target_left = rate(target_penalty, reg)
    gap = tl.where(live, target * (log_mass - tl.log(mass)) - target_left / reg * potential, 0.0)
    return gap, tl.abs(mass * (tl.exp(tl.minimum(gap, 80.0)) - 1))


@triton.jit
def residual(moved, mass):
    """Return the largest mass moved, relative for columns heavier than one prediction."""
    return tl.max(moved / tl.maximum(mass, 1.0), 0)


@triton.jit
def dual_gradient(mass, potential, live, log_mass, target_penalty: tl.constexpr):
    """Return the gradient of the dual."""
    if target_penalty == float("inf"):
        demand = tl.exp(log_mass)
    else:
        demand = tl.exp(tl.minimum(log_mass - potential / tl.full([], target_penalty, tl.float64), 300.0))
    return tl.where(live, demand - mass, 0.0)


@triton.jit
def level_out(mass, gap, gradient, live, reg, pred_penalty: tl.constexpr, target_penalty: tl.constexpr):
    """Return the shift of all potentials that raises the dual most, in units of reg; gap and gradient there."""
    shift = tl.full([], 0.0, tl.float64)
    if (pred_penalty != float("inf")) | (target_penalty != float("inf")):
        pred, pred_left = rate(pred_penalty, reg)
        target, target_left = rate(target_penalty, reg)
        by_demand = target_left / target
        demand = tl.maximum(gradient + mass, tl.full([], 1e-300, tl.float64))
        shift = (tl.log(tl.sum(demand, 0)) - tl.log(tl.sum(mass, 0))) / (pred_left + by_demand)
        gradient = tl.where(live, demand * tl.exp(-shift * by_demand) - mass * tl.exp(shift * pred_left), 0.0)
        gap = tl.where(live, gap - (pred_left + pred * target_left) * shift, 0.0)
    return shift, gap, gradient


@triton.jit
def direction(
    coupling,
    mass,
    gap,
    live,
    horizon,
    reg,
    columns,
    pred_penalty: tl.constexpr,
    target_penalty: tl.constexpr,
    K: tl.constexpr,
):
    """Return the step of a horizon at the level of `gap`, in units of reg; the sweep's where no system is solved."""
    pred, pred_left = rate(pred_penalty, reg)
    _, target_left = rate(target_penalty, reg)
    leak = tl.maximum(pred_left + pred * target_left, 1 / horizon)
    # an M-matrix, built from what couples and what leaks
    shared = coupling.to(tl.float64)
    diagonal = tl.where(live, (1 - leak) * tl.sum(shared, 1) + leak * mass, 1.0)
    root = 1 / tl.sqrt(diagonal)
    # rounding in the sum of the gaps would become a shift of all potentials, which hardly anything opposes
    share = mass / tl.sum(mass, 0)
    right = (gap - tl.sum(gap * share, 0)) * mass
    column = tl.arange(0, K)
    matrix = shared * ((leak - 1) * root)[:, None] * root[None, :]
    matrix = tl.where(column[:, None] == column[None, :], 1.0, matrix)
    solution, solved = _solve(matrix, right * root, columns, K)
    step = solution * root
    found = solved & (tl.max(tl.where(tl.abs(step) < float("inf"), 0, 1), 0) == 0)
    step = tl.where(found, step, gap)
    return tl.where(live, step - tl.sum(step * share, 0), 0.0)


@triton.jit
def _solve(matrix, right, columns, K: tl.constexpr):
    """Solve a positive definite system, and tell whether it is one, by eliminating a column after the other.

    The matrix is inverted in its place in registers, where an entry between an eliminated and another column is the
    opposite of its mirror image and all others are equal to theirs: one reduction finds a pivot's row and its column
    (J. H. Goodnight, "A tutorial on the SWEEP operator", The American Statistician 1979).
    """
    index = tl.arange(0, K)
    smallest = tl.full([], float("inf"), tl.float64)
    for pivot in range(columns):
        chosen = index == pivot
        row = tl.sum(tl.where(chosen[:, None], matrix, 0.0), 0)
        column = tl.where(index < pivot, -row, row)
        size = tl.sum(tl.where(chosen, row, 0.0), 0)
        smallest = tl.minimum(smallest, size)
        row = tl.where(chosen, 1.0, row) / size
        entry = tl.sum(tl.where(chosen, right, 0.0), 0) / size
        rest = tl.where(chosen[None, :], 0.0, matrix) - column[:, None] * row[None, :]
        matrix = tl.where(chosen[:, None], row[None, :], rest)
        right = tl.where(chosen, entry, right - column * entry)
    return right, smallest > 0
