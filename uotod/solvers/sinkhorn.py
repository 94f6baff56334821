"""Costs and marginals in, entropic transport plans out: balanced, unbalanced and half of each are one problem."""

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from uotod.check import is_traced
from uotod.solvers.chunks import Chunk, chunks
from uotod.solvers.newton import solve_newton
from uotod.solvers.operator import operator
from uotod.solvers.scaling import (
    FARTHEST,
    Penalties,
    Problem,
    Solved,
    absorb,
    first_potential,
    pred_potential,
    rates,
    residual,
    sweep,
    write_plan,
)

NUM_ITER, TOL = 1000, 1e-6  # the defaults of all solvers and matchers
# contraction of a sweep above which Newton steps overtake sweeps: on the host, and where a number of steps is fixed
SLOW, SLOW_UNSEEN = 0.3, 0.6


class Transport(NamedTuple):
    """A plan, its potentials, and how they were reached.

    Attributes:
        plan: (B, K, P) masses in units of a prediction's.
        pred_potential: (B, P) `f` in units of cost; 0 for a prediction without an allowed pair.
        target_potential: (B, K) `g` in units of cost; 0 for a column that takes no mass.
        iterations: (B,) sweeps, or Newton steps; the two sweeps before these are not counted.
        residual: (B,) largest mass that a further sweep would move in a column; relative for a column heavier than 1.
            `inf` where masses are too large for the dtype (penalties near 0 with negative costs).
    """

    plan: Tensor
    pred_potential: Tensor
    target_potential: Tensor
    iterations: Tensor
    residual: Tensor


class _Budget(NamedTuple):
    """Which method, and when it stops."""

    newton: bool
    num_iter: int
    tol: float
    attainable: float  # residual that rounding allows
    sync_free: bool


def solve_sinkhorn(
    cost: Tensor,
    column_mass: Tensor,
    active: Tensor,
    reg: float | Tensor,
    reg_pred: float,
    reg_target: float,
    *,
    num_iter: int = NUM_ITER,
    tol: float = TOL,
    sync_free: bool | None = None,
    unit: Tensor | None = None,
) -> Transport:
    r"""Solve entropic optimal transport for a batch of images, each on its own.

    With the plan `π` in units in which a prediction has mass 1, `r` its row sums and `s` its column sums,

        min_π  <π, C> + reg Σ π (log(π / P) − 1) + reg_pred KL(r | 1) + reg_target KL(s | b).

    The solution is `π_ij = P exp((f_i + g_j − C_ij) / reg)` with `f_i = −reg_pred log r_i` and
    `g_j = −reg_target log(s_j / b_j)`. An infinite penalty makes its marginal an equality, 0 leaves it free.

    A sweep of Sinkhorn's algorithm contracts by `λ = Π penalty / (penalty + reg)`. Sweeps are repeated where `λ` is at
    most 0.3 (0.6 without synchronisation); elsewhere Newton steps on the columns' potentials, with the predictions'
    eliminated and `reg` annealed, replace the `1 / (1 − λ)` sweeps that each digit would take.

    To first order no entry of the plan is off by more than the sum over columns of the mass that a sweep moves:
    around the solution, errors of the marginals spread like currents in a network of resistors, whose conductances are
    the plan, and no current exceeds what is fed in.

    Args:
        cost: (B, K, P) float32 or float64, P contiguous; `inf` forbids a pair, and equality constraints that it makes
            impossible are not detected. What stands under an inactive column is not read.
        column_mass: (B, K) marginals `b`; a column of mass 0 stays empty. Not read where `reg_target` is 0.
        active: (B, K) bool, False for a column that is absent.
        reg: weight of the entropy, finite and positive, one number or (B,).
        reg_pred: weight of the predictions' marginals, in [0, inf].
        reg_target: weight of the columns' marginals, in [0, inf].
        num_iter: most sweeps or Newton steps.
        tol: an image is finished when a sweep would move at most this mass in any column. Float32 attains 1e-6.
        sync_free: run a number of steps that no value decides, so that a GPU need not be waited for; finished images
            stand still. Default: on a GPU. On a CPU an image leaves the batch once it is finished.
        unit: (B,) by which each image's cost is divided first.

    Returns:
        The plan, exactly 0 in inactive columns and forbidden pairs, its potentials, the iterations and the residual.

    Examples:
        >>> cost = torch.tensor([[[0.1, 0.9, 0.8], [0.5, 0.5, 0.5]]], dtype=torch.float64)  # 1 target, background
        >>> mass, active = torch.tensor([[1.0, 2.0]]), torch.ones(1, 2, dtype=torch.bool)
        >>> transport = solve_sinkhorn(cost, mass, active, 0.2, math.inf, math.inf)
        >>> print(transport.plan.round(decimals=2))
        tensor([[[0.8100, 0.0700, 0.1200],
                 [0.1900, 0.9300, 0.8800]]], dtype=torch.float64)

    References:
        M. Cuturi, "Sinkhorn distances: lightspeed computation of optimal transport", NeurIPS 2013.
        L. Chizat et al., "Scaling algorithms for unbalanced optimal transport problems", Math. Comp. 2018 (the sweep).
        B. Schmitzer, "Stabilized sparse scaling algorithms for entropy regularized transport problems", SIAM J. Sci.
        Comput. 2019 (absorbed potentials, annealing).
        H. De Plaen et al., "Unbalanced optimal transport: a unified framework for object detection", CVPR 2023.
    """
    if is_traced(cost):
        regs = reg if isinstance(reg, Tensor) else None
        weights = (0.0 if isinstance(reg, Tensor) else reg, regs, reg_pred, reg_target)
        return Transport(*_operator(cost, column_mass, active, *weights, num_iter, tol, sync_free, unit))
    sync_free = cost.is_cuda if sync_free is None else sync_free
    penalties = Penalties(float(reg_pred), float(reg_target))
    images, _, preds = cost.shape
    if not cost.numel():
        return blank(cost)
    regs = torch.full((images,), reg, dtype=torch.float64, device=cost.device) if not isinstance(reg, Tensor) else reg
    known = float(reg) if not isinstance(reg, Tensor) else None if sync_free else float(reg.min())
    budget = _budget(penalties, known, num_iter, tol, cost.dtype, sync_free)
    used = active if penalties.target == 0 else active & (column_mass > 0)
    mass, regs = _masses(column_mass, used, preds, penalties), regs.double().unsqueeze(1)
    solve = _at_once if sync_free else _by_chunks
    return solve(cost, mass, used, regs, unit, penalties, budget)


def _solve_values(
    cost: Tensor,
    column_mass: Tensor,
    active: Tensor,
    reg: float,
    regs: Tensor | None,
    reg_pred: float,
    reg_target: float,
    num_iter: int,
    tol: float,
    sync_free: bool | None,
    unit: Tensor | None,
) -> tuple[Tensor, ...]:
    options: dict[str, Any] = {"num_iter": num_iter, "tol": tol, "sync_free": sync_free, "unit": unit}
    return tuple(
        solve_sinkhorn(cost, column_mass, active, reg if regs is None else regs, reg_pred, reg_target, **options)
    )


_operator = operator(
    "solve_sinkhorn(Tensor cost, Tensor column_mass, Tensor active, float reg, Tensor? regs, float reg_pred, "
    "float reg_target, int num_iter, float tol, bool? sync_free, Tensor? unit) -> (Tensor, Tensor, Tensor, Tensor, "
    "Tensor)",
    _solve_values,
    lambda cost, *_: tuple(blank(cost)),
)


def _at_once(
    cost: Tensor, mass: Tensor, used: Tensor, reg: Tensor, unit: Tensor | None, penalties: Penalties, budget: _Budget
) -> Transport:
    """Solve all images together."""
    cost = cost if unit is None else cost / unit[:, None, None]
    problem = _problem(cost.masked_fill(~used.unsqueeze(2), math.inf), mass, used, reg)
    solved = next(_solve(problem, penalties, budget))
    return Transport(
        write_plan(solved.dead, solved.kernel, solved.at),
        pred_potential(solved.kernel, solved.at).to(cost.dtype),
        solved.potential.to(cost.dtype),
        solved.steps,
        solved.reached().to(cost.dtype),
    )


def _by_chunks(
    cost: Tensor, mass: Tensor, used: Tensor, reg: Tensor, unit: Tensor | None, penalties: Penalties, budget: _Budget
) -> Transport:
    """Solve images of similar size together, as many as a processor's cache holds, without columns of padding."""
    out, preds = blank(cost), cost.shape[2]
    for chunk in chunks(used, preds, cost.element_size()):
        part, takes_part = chunk.rows(cost), chunk.rows(used)
        if unit is not None:
            part /= unit[chunk.image, None, None]
        part.flatten(0, 1).index_fill_(0, (~takes_part).flatten().nonzero().squeeze(1), math.inf)
        out.plan.view(-1, preds).index_fill_(0, chunk.left_out, 0.0)
        problem = _problem(part, chunk.rows(mass), takes_part, reg[chunk.image])
        for solved in _solve(problem, penalties, budget):
            _write(solved, chunk, out)
    return out


def blank(cost: Tensor) -> Transport:
    """Return room for the solution of a cost (B, K, P): its plan uninitialised, all else 0."""
    images, columns, preds = cost.shape
    return Transport(
        torch.empty_like(cost),
        cost.new_zeros(images, preds),
        cost.new_zeros(images, columns),
        torch.zeros(images, dtype=torch.long, device=cost.device),
        cost.new_zeros(images),
    )


def sweep_contraction(penalties: Penalties, reg: float | None) -> float:
    """Return the factor by which a sweep contracts; its bound where `reg` is None, because it must not be read."""
    contraction = 1.0
    for penalty in penalties:
        contraction *= 0.0 if penalty == 0 else 1.0 if reg is None or math.isinf(penalty) else penalty / (penalty + reg)
    return contraction


def _budget(
    penalties: Penalties, reg: float | None, num_iter: int, tol: float, dtype: torch.dtype, sync_free: bool
) -> _Budget:
    """Choose the method by the contraction of a sweep; `reg` is None where reading it would synchronise."""
    attainable = max(tol, 8 * torch.finfo(dtype).eps)
    contraction = sweep_contraction(penalties, reg)
    newton = contraction > (SLOW_UNSEEN if sync_free else SLOW)
    if sync_free and newton and reg is not None:
        levels = math.ceil(max(0.0, math.log(0.1 / reg) / math.log(4)))
        # no less than the hardest of ten thousand random problems took at each of reg 1e-4, 1e-3 and 1e-2
        num_iter = min(num_iter, 12 + math.ceil(max(6, 1.6 * levels) * levels**2))
    elif sync_free and not newton:
        # a first gap of exp(10) at most, reduced to what is attainable
        sweeps = (math.log(attainable) - 10) / math.log(contraction) if contraction > 0 else 0
        num_iter = min(num_iter, 2 + math.ceil(sweeps))
    return _Budget(newton, num_iter, tol, attainable, sync_free)


def _masses(column_mass: Tensor, used: Tensor, preds: int, penalties: Penalties) -> Tensor:
    """Return the marginals (B, K) in float64, 1 where there is none."""
    mass = column_mass.double()
    if math.isinf(penalties.pred) and math.isinf(penalties.target):
        # float32 masses add up to P only to rounding, and what is missing would remain as a residual
        mass = mass * (preds / mass.masked_fill(~used, 0.0).sum(1, keepdim=True).clamp(min=1e-300))
    return torch.where(used & (mass > 0), mass, 1.0)


def _problem(cost: Tensor, mass: Tensor, used: Tensor, reg: Tensor) -> Problem:
    """Return the problem of a cost that is `inf` in columns that take no part."""
    return Problem(cost, mass, mass.log(), ~used | (cost.amin(2) == math.inf), reg)


def _write(solved: Solved, chunk: Chunk, out: Transport) -> None:
    """Write solved images of a chunk into a batch's solution."""
    image = chunk.image[solved.image]
    found = (pred_potential(solved.kernel, solved.at), solved.steps, solved.reached())
    for whole, part in zip((out.pred_potential, out.iterations, out.residual), found, strict=True):
        whole.index_copy_(0, image, part.to(whole.dtype))
    chunk.write(out.target_potential, solved.image, solved.potential)
    chunk.write(out.plan, solved.image, write_plan(solved.dead, solved.kernel, solved.at))


def _solve(problem: Problem, penalties: Penalties, budget: _Budget) -> Iterator[Solved]:
    """Yield the solutions of a chunk, image by image as they are found."""
    if budget.newton:
        return solve_newton(problem, penalties, *budget[1:])
    return _repeat_sweeps(problem, penalties, budget)


def _repeat_sweeps(problem: Problem, penalties: Penalties, budget: _Budget) -> Iterator[Solved]:
    """Yield the potentials at which a sweep moves nothing, of all images at once."""
    reg = problem.reg
    rate = rates(penalties, reg)
    potential = first_potential(problem, rate)
    kernel = absorb(problem, rate, potential)
    at = sweep(problem, kernel, potential)
    steps = torch.zeros_like(potential[:, 0], dtype=torch.long)
    done = torch.zeros_like(steps, dtype=torch.bool)
    for _ in range(budget.num_iter):
        done = done | (residual(at.moved(), at.mass) <= budget.attainable)
        if not budget.sync_free and bool(done.all()):
            break
        steps = steps + ~done
        potential = torch.where(done.unsqueeze(1), potential, potential + reg * at.gap)
        if budget.sync_free or bool(((potential - kernel.potential).abs() > FARTHEST * reg).any()):
            kernel = absorb(problem, rate, potential)
        at = sweep(problem, kernel, potential)
    everything = torch.arange(len(reg), device=reg.device)
    yield Solved(everything, problem.dead, kernel, at, potential, steps, residual(at.moved(), at.mass))
