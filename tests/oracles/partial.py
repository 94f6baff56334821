"""One image's cost (P, T) and a total in, its least partial cost out; and how far an entropic plan is from optimal."""

import numpy as np
from scipy.optimize import linprog

from tests.oracles.transport import Array


def exact_partial_cost(cost: Array, total: float) -> float:
    """Return the least cost of `total` mass with at most 1 a row and a column, by a linear program."""
    preds, targets = cost.shape
    bounds, upper = [(0, None)] * cost.size, []
    for i in range(preds):
        upper.append([float(k // targets == i) for k in range(cost.size)])
    for j in range(targets):
        upper.append([float(k % targets == j) for k in range(cost.size)])
    solution = linprog(
        cost.ravel(), A_ub=upper, b_ub=np.ones(len(upper)), A_eq=np.ones((1, cost.size)), b_eq=[total], bounds=bounds
    )
    assert solution.status == 0
    return float(solution.fun)


def partial_residual(plan: Array, cost: Array, total: float, reg: float) -> float:
    """Return the largest violation of the optimality conditions by a plan without zeros.

    `cost + reg log plan` must be a sum `f_i + h_j`. The largest `f` and the largest `h` are those of what is slack, if
    anything is; what lies below them must be full.
    """
    excess = cost + reg * np.log(plan)
    f, h = excess.mean(axis=1), excess.mean(axis=0)
    violations = [np.abs(excess - f[:, None] - h[None, :] + excess.mean()).max(), abs(plan.sum() - total)]
    for potential, mass in ((f, plan.sum(axis=1)), (h, plan.sum(axis=0))):
        violations.append((mass - 1).max())
        below = np.exp((potential - potential.max()) / reg)  # 1 where the bound has no price
        violations.append((np.minimum(1 - below, 1) * (1 - mass)).max())
    return float(max(violations))
