"""One image's cost (P, K) and marginals in, its exact transport plan (P, K) out: float64, slow, verified.

The problem, for a plan `P · π` of `P` predictions, with KL(x | y) = Σ x log(x / y) − x + y:

    min_π  <π, C> + reg Σ π (log π − 1) + reg_pred KL(π 1 | a) + reg_target KL(πᵀ 1 | b).

Its optimality conditions, with potentials `f` (P,) and `g` (K,):

    π_ij = exp((f_i + g_j − C_ij) / reg),   (π 1)_i = a_i exp(−f_i / reg_pred),   (πᵀ 1)_j = b_j exp(−g_j / reg_target).
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import linprog
from scipy.special import logsumexp

Array = NDArray[np.float64]


def marginals(num_predictions: int, num_targets: int, background: bool = True) -> tuple[Array, Array]:
    """Return `(a, b)`: 1/P a prediction; 1/P a target, the rest background (1/T a target if there is no background)."""
    P, T = num_predictions, num_targets
    a = [1 / P for _ in range(P)]
    b = [1 / P if background and P >= T else 1 / T for _ in range(T)]
    if background:
        b.append(max(P - T, 0) / max(P, 1))
    return np.array(a), np.array(b)


def unbalanced_plan(
    cost: ArrayLike, a: ArrayLike, b: ArrayLike, reg: float, reg_pred: float, reg_target: float
) -> Array:
    """Solve the problem above by damped Newton on its dual, with `reg` annealed, and verify what comes out.

    An infinite penalty is an equality, 0 leaves that side free, a zero marginal with a positive penalty empties its
    column (row), a cost of `+inf` forbids a pair. `ValueError`: the equalities cannot be met; `OverflowError`: the plan
    leaves the range of float64; `ArithmeticError`: its `optimality_residual` exceeds 1e-10, a defect of this oracle.
    """
    problem = _problem(cost, a, b, reg, reg_pred, reg_target)
    plan, allowed = np.zeros_like(problem.cost), _support(problem)
    if not allowed.any():
        return plan
    used = np.ix_(allowed.any(axis=1), allowed.any(axis=0))
    reached = np.where(allowed, problem.cost, np.inf)[used]
    log_pi = _newton(problem._replace(cost=reached, a=problem.a[used[0][:, 0]], b=problem.b[used[1][0]]))
    if log_pi.max() > 700:
        raise OverflowError(f"the plan's largest mass is about exp({log_pi.max():.0f})")
    plan[used] = len(plan) * np.exp(log_pi)
    residual = optimality_residual(plan, cost, a, b, reg, reg_pred, reg_target)
    if not residual <= 1e-10:
        raise ArithmeticError(f"residual {residual:.1e} > 1e-10 at {reg=}, {reg_pred=}, {reg_target=}")
    return plan


def optimality_residual(
    plan: ArrayLike, cost: ArrayLike, a: ArrayLike, b: ArrayLike, reg: float, reg_pred: float, reg_target: float
) -> float:
    """Measure how far a plan is from the optimality conditions, knowing nothing of how it was found.

    The potentials are read off the plan along its strongest links (`_potentials`), with and without its tiniest masses,
    and all conditions evaluated. The result is the largest violation, as mass, of the best ÷ max(1, largest mass).
    """
    problem, plan = _problem(cost, a, b, reg, reg_pred, reg_target), np.asarray(plan, dtype=np.float64)
    if plan.shape != problem.cost.shape:
        raise ValueError(f"plan must have the cost's shape {problem.cost.shape}, got {plan.shape}")
    if plan.size == 0:
        return 0.0
    if not np.isfinite(plan).all() or plan.min() < 0:
        return math.inf
    allowed, best = problem.allowed, math.inf
    pi = np.where(allowed, plan, 0.0) / len(plan)
    for floor in (0.0, 1e-14, 1e-11, 1e-8):
        f, g = _potentials(np.where(pi > floor, pi, 0.0), problem)
        wanted = np.exp(np.minimum((f[:, None] + g[None, :] - problem.cost)[allowed] / reg, 700.0))
        violations = [plan[~allowed].max(initial=0.0) / len(plan), np.abs(pi[allowed] - wanted).max(initial=0.0)]
        for axis, marginal, penalty, potential in ((1, problem.a, reg_pred, f), (0, problem.b, reg_target, g)):
            mass, possible = pi.sum(axis=axis), allowed.any(axis=axis)
            if math.isinf(penalty):
                violations.append(np.abs(mass - marginal).max())
            elif penalty > 0:
                wanted = marginal * np.exp(np.minimum(-potential / penalty, 700.0))
                violations.append(np.abs(mass - wanted)[possible].max(initial=0.0))
        best = min(best, len(plan) * max(violations) / max(1.0, plan.max()))
        if best < 1e-11:
            break
    return float(best)


def exact_plan(cost: ArrayLike, a: ArrayLike, b: ArrayLike) -> Array:
    """Solve the balanced problem without entropy, `min <π, C>` with `π 1 = a`, `πᵀ 1 = b`, as a linear program."""
    problem = _problem(cost, a, b, 1.0, math.inf, math.inf)
    P, K = problem.cost.shape
    if P * K == 0:
        return np.zeros((P, K))
    bounds = [(0, None if finite else 0) for finite in problem.allowed.ravel()]
    objective = np.where(problem.allowed, problem.cost, 0.0).ravel()
    solution = linprog(objective, A_eq=_marginal_matrix(P, K), b_eq=P * np.hstack(problem[1:3]), bounds=bounds)
    if solution.status != 0:
        raise ValueError(f"no plan has these marginals: {solution.message}")
    return np.asarray(solution.x, dtype=np.float64).reshape(P, K)


def closest_target(cost: ArrayLike) -> Array:
    """Give each prediction to its cheapest column, lowest index on ties: the limit (∞, 0), reg → 0."""
    cost = np.asarray(cost, dtype=np.float64)
    plan = np.zeros_like(cost)
    for i, row in enumerate(cost):
        plan[i, int(np.argmin(row))] = np.isfinite(row).any()
    return plan


def closest_prediction(cost: ArrayLike, uniform_background: bool = True, threshold: float | None = None) -> Array:
    """Give each target (not the last column) to its cheapest prediction, at mass 1: the limit (0, ∞), reg → 0.

    The background is spread evenly over the predictions, or goes to those without a target. A target whose cheapest
    prediction is forbidden or costs more than `threshold` stays unmatched.
    """
    cost = np.asarray(cost, dtype=np.float64)
    (P, K), plan = cost.shape, np.zeros_like(cost)
    for j in range(K - 1 if P > 0 else 0):
        i = int(np.argmin(cost[:, j]))
        if np.isfinite(cost[i, j]) and (threshold is None or cost[i, j] <= threshold):
            plan[i, j] = 1
    matched = plan.sum(axis=1)
    plan[:, -1] = max(P - matched.sum(), 0) / max(P, 1) if uniform_background else matched == 0
    return plan


def hungarian(cost: ArrayLike, background: bool = True) -> Array:
    """Match min(P, T ≤ 12) pairs one to one at the least total cost; what is left goes to the background (last column).

    Forbidden pairs are avoided first, whatever the cost, and never appear in the plan.
    """
    cost = np.asarray(cost, dtype=np.float64)
    pairwise = cost[:, :-1] if background else cost
    tall = pairwise if pairwise.shape[0] >= pairwise.shape[1] else pairwise.T
    best: dict[int, tuple[int, float, dict[int, int]]] = {0: (0, 0.0, {})}  # columns used: forbidden pairs, cost, rows
    for i, row in enumerate(tall):
        for used, (forbidden, total, pairs) in sorted(best.items(), reverse=True):  # each row is used once at most
            for j, c in enumerate(row):
                if not used >> j & 1:
                    value = (forbidden, total + c) if np.isfinite(c) else (forbidden + 1, total)
                    if (used | 1 << j) not in best or value < best[used | 1 << j][:2]:
                        best[used | 1 << j] = (*value, {**pairs, j: i})
    plan = np.zeros_like(cost)
    for j, i in best[2 ** tall.shape[1] - 1][2].items():
        if np.isfinite(tall[i, j]):
            plan[(i, j) if tall is pairwise else (j, i)] = 1
    if background:
        plan[:, -1] = 1 - plan[:, :-1].sum(axis=1)
    return plan


class _Problem(NamedTuple):
    cost: Array  # (P, K)
    a: Array  # (P,)
    b: Array  # (K,)
    reg: float
    reg_pred: float
    reg_target: float

    @property
    def allowed(self) -> NDArray[np.bool_]:
        """Where a plan of finite objective may be positive, (P, K)."""
        row, col = (self.a > 0) | (self.reg_pred == 0), (self.b > 0) | (self.reg_target == 0)
        return np.isfinite(self.cost) & row[:, None] & col[None, :]


def _problem(cost: ArrayLike, a: ArrayLike, b: ArrayLike, reg: float, reg_pred: float, reg_target: float) -> _Problem:
    cost, a, b = (np.array(x, dtype=np.float64) for x in (cost, a, b))
    if cost.ndim != 2 or a.shape != cost.shape[:1] or b.shape != cost.shape[1:]:
        raise ValueError(f"cost, a, b must have shapes (P, K), (P,), (K,), got {cost.shape}, {a.shape}, {b.shape}")
    if not ((cost > -math.inf).all() and 0 < reg < math.inf and reg_pred >= 0 and reg_target >= 0):
        raise ValueError(f"need cost > -inf, 0 < reg < inf, penalties ≥ 0, got {reg=}, {reg_pred=}, {reg_target=}")
    problem = _Problem(cost, a, b, reg, reg_pred, reg_target)
    if cost.size > 0 and math.isinf(min(reg_pred, reg_target)) and abs(a.sum() - b.sum()) > 1e-12:
        raise ValueError(f"equality on both sides needs equal sums, got {a.sum()} and {b.sum()}")
    return problem


def _marginal_matrix(P: int, K: int) -> Array:
    """Return the matrix (P + K, P · K) that maps a flattened plan to its row sums and column sums."""
    return np.vstack([np.kron(np.eye(P), np.ones((1, K))), np.kron(np.ones((1, P)), np.eye(K))])


def _support(problem: _Problem) -> NDArray[np.bool_]:
    """Return where the optimal plan is positive: all that is allowed, save what two equalities force to 0."""
    allowed = problem.allowed
    for axis, marginal, penalty in ((1, problem.a, problem.reg_pred), (0, problem.b, problem.reg_target)):
        if allowed.size > 0 and math.isinf(penalty) and (marginal[~allowed.any(axis=axis)] > 0).any():
            raise ValueError(f"no plan has these marginals: all pairs of a row or column are forbidden, {allowed}")
    if math.isfinite(min(problem.reg_pred, problem.reg_target)) or allowed[problem.a > 0][:, problem.b > 0].all():
        return allowed
    # max Σ s over 0 ≤ s ≤ 1, s ≤ x, A x = t (a, b), t ≥ 1: all that can be positive is ≥ 1 in some multiple of a plan
    (P, K), n = allowed.shape, allowed.size
    equal = np.hstack([_marginal_matrix(P, K), np.zeros((P + K, n)), -np.hstack(problem[1:3])[:, None]])
    below = np.hstack([-np.eye(n), np.eye(n), np.zeros((n, 1))])
    bounds = [(0, None if ok else 0) for ok in allowed.ravel()] + [(0, 1)] * n + [(1, None)]
    objective = np.concatenate([np.zeros(n), -np.ones(n), [0.0]])
    solution = linprog(objective, A_ub=below, b_ub=np.zeros(n), A_eq=equal, b_eq=np.zeros(P + K), bounds=bounds)
    if solution.status != 0:
        raise ValueError(f"no plan has these marginals: {solution.message}")
    return np.array(allowed & (solution.x[n : 2 * n].reshape(P, K) > 0.5), dtype=np.bool_)


def _newton(problem: _Problem) -> Array:
    """Return log π (P, K) of the solution; every row and column has a finite cost and the problem is feasible."""
    spread = float(np.ptp(problem.cost[np.isfinite(problem.cost)]))
    stages = max(0, math.ceil(math.log2(max(spread, problem.reg) / problem.reg)))
    g = np.zeros(len(problem.b))
    for stage in range(stages, -1, -1):
        annealed = problem._replace(reg=problem.reg * 2.0**stage)
        log_pi, error = _evaluate(annealed, g)
        while np.abs(error).max(initial=0.0) > (1e-2 if stage > 0 else 0.0):
            step, length, before = _direction(annealed, log_pi, error), 1.0, np.abs(error).max()
            tried = _evaluate(annealed, g + step)
            while not np.abs(tried[1]).max() < (1 - 1e-4 * length) * before and length > 1e-9:
                length /= 2
                tried = _evaluate(annealed, g + length * step)
            if length <= 1e-9 or (before < 1e-11 and length < 1):
                break  # rounding: the error decreases no further
            g, (log_pi, error) = g + length * step, tried
    return log_pi


def _evaluate(problem: _Problem, g: Array) -> tuple[Array, Array]:
    """Return log π with the rows' conditions met exactly, and log(mass / wanted mass) of each column."""
    cost, a, b, reg, reg_pred, reg_target = problem
    log_pi = (g[None, :] - cost) / reg
    if reg_pred > 0:
        rows = np.log(a) - logsumexp(log_pi, axis=1)
        log_pi = log_pi + rows[:, None] * (1.0 if math.isinf(reg_pred) else reg_pred / (reg_pred + reg))
    if reg_target == 0:
        return log_pi, np.zeros_like(g)
    return log_pi, np.asarray(logsumexp(log_pi, axis=0) - np.log(b) + g / reg_target)


def _direction(problem: _Problem, log_pi: Array, error: Array) -> Array:
    """Return Newton's step: (D + soft · (diag(W 1) − W)) step = −reg · error, with W the walk column → row → column."""
    _, _, _, reg, reg_pred, reg_target = problem
    soft, rest = (1.0, 0.0) if math.isinf(reg_pred) else (reg_pred / (reg_pred + reg), reg / (reg_pred + reg))
    to_row = np.exp(log_pi - logsumexp(log_pi, axis=0, keepdims=True))  # (P, K)
    to_col = np.exp(log_pi - logsumexp(log_pi, axis=1, keepdims=True))  # (P, K)
    walk = to_row.T @ to_col  # (K, K)
    np.fill_diagonal(walk, 0.0)  # a Laplacian without cancellation, however weak its links
    matrix = soft * (np.diag(walk.sum(axis=1)) - walk)
    if math.isfinite(min(reg_pred, reg_target)):
        return np.linalg.solve(matrix + np.eye(len(error)) * (rest + reg / reg_target), -reg * error)
    # The level of g is free: its last entry is pinned. Links weaker than 1e-14 carry less than the rounding.
    wanted = reg * np.expm1(-np.clip(error, -50, 50))  # the dual's own gradient, whose parts sum to 0
    return np.append(np.linalg.solve((matrix + 1e-14 * np.eye(len(error)))[:-1, :-1], wanted[:-1]), 0.0)


def _potentials(pi: Array, problem: _Problem) -> tuple[Array, Array]:
    """Read (f, g) off a plan: along its strongest links first, then, between the parts, by the widest margin.

    With x = (f, −g, 0), a pair links f_i + g_j = x_i − x_{P+j} to C_ij + reg log π_ij and a soft marginal links f_i or
    g_j to −penalty · log(mass / marginal); the heavier a link, the better it is known. A zero only says "at most".
    """
    (P, K), ground = pi.shape, sum(pi.shape)
    links, limits = [], []  # x_head − x_tail = value, of some strength; x_head − x_tail ≤ value, on some scale
    for i, j in zip(*np.nonzero(problem.allowed), strict=True):
        limits.append((problem.reg, i, P + j, problem.cost[i, j]))
        if pi[i, j] > 0:
            links.append((pi[i, j] / problem.reg, i, P + j, problem.cost[i, j] + problem.reg * math.log(pi[i, j])))
    rows = [(i, ground, pi[i].sum(), problem.a[i], problem.reg_pred) for i in range(P)]
    cols = [(ground, P + j, pi[:, j].sum(), problem.b[j], problem.reg_target) for j in range(K)]
    for head, tail, mass, marginal, penalty in rows + cols:
        if penalty == 0:
            links.append((math.inf, head, tail, 0.0))
        elif math.isfinite(penalty) and marginal > 0:
            limits.append((penalty, tail, head, -penalty * math.log(marginal)))
            if mass > 0:
                links.append((mass / penalty, head, tail, -penalty * math.log(mass / marginal)))
    links.sort(key=lambda link: -link[0])
    x, part = np.zeros(P + K + 1), np.full(P + K + 1, -1)
    for root in (ground, *range(P + K)):
        part[root] = root if part[root] < 0 else part[root]
        while (link := next((k for k in links if (part[k[1]] == root) != (part[k[2]] == root)), None)) is not None:
            _, head, tail, value = link
            if part[head] == root:
                x[tail] = x[head] - value
            else:
                x[head] = x[tail] + value
            part[head] = part[tail] = root
    between = [limit for limit in limits if part[limit[1]] != part[limit[2]]]
    if between:  # shift the parts by s: min t with (x_head + s_head − x_tail − s_tail − value) / scale ≤ t
        matrix, excess = np.zeros((len(between), P + K + 2)), np.zeros(len(between))
        for k, (scale, head, tail, value) in enumerate(between):
            matrix[k, [part[head], part[tail], -1]] = 1 / scale, -1 / scale, -1
            excess[k] = (value - x[head] + x[tail]) / scale
        bounds = [(None, None)] * ground + [(0, 0), (-745, None)]  # exp(−745) is 0 in float64
        solution = linprog(np.eye(P + K + 2)[-1], A_ub=matrix, b_ub=excess, bounds=bounds)
        x += solution.x[part]
    return x[:P], -x[P:ground]
