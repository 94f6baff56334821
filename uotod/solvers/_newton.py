"""A transport problem that plain sweeps solve slowly in, its columns' potentials out, by a damped Newton method.

In the logarithms of the columns' masses, the fixed point of a sweep has the Jacobian `I − λ S⁻¹ M`, where `S` holds the
column masses, `M = Σ_i π_i π_iᵀ / r_i` couples columns that share predictions (`r_i` is a row's mass), and `λ` is the
product of both sides' `penalty / (penalty + reg)`. A step solves

    (λ_N (diag(M 1) − M) + (1 − λ_N) S) dv = S gap,        λ_N = min(λ, 1 − 1/N).

`N` is the horizon: the step is what `N` sweeps would add up to if the plan stayed as it is. `N = 1` is one sweep, which
contracts from anywhere; `N = ∞` is Newton's step. A rejected step shortens the horizon, an accepted one lengthens it.
"""

import math
from collections.abc import Iterator
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor

from uotod.solvers._scaling import (
    FARTHEST,
    Kernel,
    Penalties,
    Problem,
    Solved,
    Sweep,
    absorb,
    first_potential,
    rates,
    residual,
    sweep,
)

ANNEAL_FROM = 0.1  # of an image's largest absolute cost
ANNEAL_RATIO = 0.25
LOOSE = 1.5  # gap at which the next, smaller reg begins
LONGEST, LENGTHEN, SHORTEN = 1e8, 3.0, 0.25  # horizon
LARGEST_STEP = 200.0  # in units of reg
LARGEST_BLIND = 10.0  # step that nothing judges, in units of reg


Values = TypeVar("Values", Problem, Kernel, Sweep, "State")


class State(NamedTuple):
    """Where each image stands; the first dimension of every field is the image."""

    image: Tensor  # (B,) its place in the batch
    candidate: Tensor  # (B, K) potential to try
    reg: Tensor  # (B, 1) level of the annealing
    step: Tensor  # (B, K) what led to the candidate, in units of reg
    slope: Tensor  # (B,) of the dual at the start of the step
    horizon: Tensor  # (B,)
    trusted: Tensor  # (B,) bool: the candidate is accepted unseen
    potential: Tensor  # (B, K) last accepted one, and what is known there:
    mass: Tensor  # (B, K)
    gap: Tensor  # (B, K)
    gradient: Tensor  # (B, K) of the dual
    coupling: Tensor  # (B, K, K) M, 0 on the diagonal
    merit: Tensor  # (B,) largest gap
    residual: Tensor  # (B,)
    steps: Tensor  # (B,)
    done: Tensor  # (B,) bool


def solve_newton(
    problem: Problem, penalties: Penalties, num_iter: int, tol: float, attainable: float, sync_free: bool
) -> Iterator[Solved]:
    """Yield images as they are solved, and after `num_iter` steps those that are left.

    Args:
        problem: the images.
        penalties: both positive.
        num_iter: most steps of an image, rejected ones included.
        tol: mass moved by a sweep at which an image is finished.
        attainable: residual at which it is finished too, once a step improves nothing.
        sync_free: take `num_iter` steps whatever the values; finished images stand still, and all are yielded together.
    """
    state = _start(problem, penalties, sync_free)
    kernel = absorb(problem, rates(penalties, state.reg), state.candidate)
    for iteration in range(num_iter):
        if iteration:
            kernel = _refresh(problem, penalties, kernel, state, sync_free)
        at = sweep(problem, kernel, state.candidate)
        state, accepted = _judge(state, problem, penalties, at, tol, attainable)
        every = not sync_free and bool(accepted.all())
        if not sync_free and bool(state.done.any()):
            done = state.done.nonzero().squeeze(1)
            if every and len(done) == len(state.done):
                yield Solved(state.image, problem.live, kernel, at, state.potential, state.steps, state.residual)
                return
            finished, given = _take(state, done), _take(problem, done)
            if bool(accepted[done].all()):
                reached, there = _take(kernel, done), _take(at, done)
            else:
                reached, there = _at_potential(finished, given, penalties)
            yield Solved(
                finished.image, given.live, reached, there, finished.potential, finished.steps, finished.residual
            )
            keep = (~state.done).nonzero().squeeze(1)
            if not len(keep):
                return
            problem, kernel, at, state = _take(problem, keep), _take(kernel, keep), _take(at, keep), _take(state, keep)
            accepted = accepted[keep]
        coupling = _coupling(kernel, at)
        if not every:
            coupling = torch.where(accepted[:, None, None], coupling, state.coupling)
        state = _propose(state._replace(coupling=coupling), problem, kernel, accepted)
    kernel, at = _at_potential(state, problem, penalties)
    left = torch.where(state.done, state.residual, residual(at.moved(), at.mass))
    yield Solved(state.image, problem.live, kernel, at, state.potential, state.steps, left)


def _at_potential(state: State, problem: Problem, penalties: Penalties) -> tuple[Kernel, Sweep]:
    """Return the kernel at the last accepted potential, and the sweep there."""
    kernel = absorb(problem, rates(penalties, problem.reg), state.potential)
    return kernel, sweep(problem, kernel, state.potential)


def _take(values: Values, images: Tensor) -> Values:
    """Return the part of some images of a tuple of tensors."""
    return type(values)(*(x.index_select(0, images) for x in values))


def _start(problem: Problem, penalties: Penalties, sync_free: bool) -> State:
    cost, reg = problem.cost, problem.reg
    highest = cost.amax(2).masked_fill_(~problem.live, -math.inf).amax(1)
    if sync_free or bool((highest == math.inf).any()):
        highest = cost.masked_fill(cost == math.inf, -math.inf).amax((1, 2))
    largest = torch.maximum(-cost.amin((1, 2)), highest)
    levels = (ANNEAL_FROM * largest.clamp(min=0.0).double().unsqueeze(1) / reg).log() / -math.log(ANNEAL_RATIO)
    level = reg * ANNEAL_RATIO ** -levels.floor().clamp(min=0.0)
    potential = first_potential(problem, rates(penalties, level))
    columns, scalar = torch.zeros_like(potential), torch.zeros_like(potential[:, 0])
    return State(
        image=torch.arange(len(cost), device=cost.device),
        candidate=potential,
        reg=level,
        step=columns,
        slope=scalar,
        horizon=scalar + LONGEST,
        trusted=scalar == 0,
        potential=potential,
        mass=columns,
        gap=columns,
        gradient=columns,
        coupling=columns.unsqueeze(2) * columns.unsqueeze(1),
        merit=scalar + math.inf,
        residual=scalar + math.inf,
        steps=torch.zeros_like(scalar, dtype=torch.long),
        done=scalar != 0,
    )


def _refresh(problem: Problem, penalties: Penalties, kernel: Kernel, state: State, sync_free: bool) -> Kernel:
    """Return a kernel that is near the candidates."""
    if sync_free:
        return absorb(problem, rates(penalties, state.reg), state.candidate)
    near = (state.candidate - kernel.potential).abs().amax(1, keepdim=True) <= FARTHEST * state.reg
    away = (~near | (state.reg != kernel.reg)).squeeze(1).nonzero().squeeze(1)
    if not len(away):
        return kernel
    if len(away) == len(near):
        return absorb(problem, rates(penalties, state.reg), state.candidate)
    part = absorb(_take(problem, away), rates(penalties, state.reg[away]), state.candidate[away])
    return Kernel(*(whole.index_copy_(0, away, new) for whole, new in zip(kernel, part, strict=True)))


def _judge(
    state: State, problem: Problem, penalties: Penalties, at: Sweep, tol: float, attainable: float
) -> tuple[State, Tensor]:
    """Accept the candidates to which the concave dual rises.

    It does where it still rises at the step's end. Where it no longer does there, gap and residual have to shrink, and
    the mean of both slopes to be positive: two steps that undo each other might shrink one measure each, for ever.
    """
    demand = problem.mass
    if not math.isinf(penalties.target):
        demand = (problem.log_mass - state.candidate / penalties.target).clamp(max=300.0).exp()
    gradient = torch.where(problem.live, demand - at.mass, 0.0)
    merit, moved = at.gap.abs().amax(1), at.moved()
    left = residual(moved, at.mass)
    end = (gradient * state.step).sum(1)
    shrinks = (merit < state.merit) & (left <= state.residual) & (state.slope + end > 0)
    accepted = ~state.done & (state.trusted | ((state.slope > 0) & ((end >= 0) | shrinks)))
    column = accepted.unsqueeze(1)
    # relative to the background's mass its last bits are nothing, and they may exceed tol
    rounding = torch.finfo(problem.cost.dtype).eps * (at.mass - 1).clamp(min=0.0)
    met = accepted & ((moved - rounding).amax(1) <= tol)
    stalled = ~accepted & (state.residual <= attainable)
    state = state._replace(
        potential=torch.where(column, state.candidate, state.potential),
        mass=torch.where(column, at.mass, state.mass),
        gap=torch.where(column, at.gap, state.gap),
        gradient=torch.where(column, gradient, state.gradient),
        merit=torch.where(accepted, merit, state.merit),
        residual=torch.where(accepted, left, state.residual),
        steps=state.steps + ~state.done,
        done=state.done | ((state.reg <= problem.reg).squeeze(1) & (met | stalled)),
    )
    return state, accepted


def _propose(state: State, problem: Problem, kernel: Kernel, accepted: Tensor) -> State:
    """Step from the last accepted potential; where it is good enough, go to the next level of reg as well."""
    shorter = torch.minimum(state.horizon / 2, SHORTEN * state.step.abs().amax(1) / state.merit.clamp(min=1e-300))
    horizon = torch.where(accepted, state.horizon * LENGTHEN, shorter).clamp(1.0, LONGEST)
    is_sweep = horizon < 1.5
    step = torch.where(is_sweep.unsqueeze(1), state.gap, _direction(state, problem, kernel, horizon.unsqueeze(1)))
    finer = accepted & (state.reg > problem.reg).squeeze(1) & (state.merit <= LOOSE)
    # nothing judges the step to the next level, and one that goes far may starve columns there
    step = torch.where((finer & (step.abs().amax(1) > LARGEST_BLIND)).unsqueeze(1), state.gap, step)
    candidate = state.potential + state.reg * step
    return state._replace(
        candidate=torch.where(state.done.unsqueeze(1), state.potential, candidate),
        reg=torch.where(finer.unsqueeze(1), torch.maximum(ANNEAL_RATIO * state.reg, problem.reg), state.reg),
        step=step,
        slope=(state.gradient * step).sum(1),
        horizon=horizon,
        trusted=is_sweep | finer,
    )


def _coupling(kernel: Kernel, at: Sweep) -> Tensor:
    rows = kernel.plan * (at.scale / at.row).sqrt_().unsqueeze(1)
    coupling = torch.bmm(rows, rows.transpose(1, 2)).double()
    coupling *= at.gain.unsqueeze(2)
    coupling *= at.gain.unsqueeze(1)
    # bmm's halves may differ in their last bits, more than what leaks: the system would have no M-matrix
    coupling.tril_(-1)
    return coupling + coupling.transpose(1, 2)


def _direction(state: State, problem: Problem, kernel: Kernel, horizon: Tensor) -> Tensor:
    """Return the step (B, K) of a horizon (B, 1), in units of reg."""
    live, mass, gap = problem.live, state.mass, state.gap
    leak = torch.maximum(kernel.pred_left + kernel.pred * kernel.target_left, 1 / horizon)  # 1 − λ_N
    # an M-matrix, built from what couples and what leaks: `S − λ M` would cancel where λ is near 1
    diagonal = torch.where(live, (1 - leak) * state.coupling.sum(2) + leak * mass, 1.0)
    root = diagonal.rsqrt()
    matrix = state.coupling * ((leak - 1) * root).unsqueeze(2)
    matrix *= root.unsqueeze(1)
    matrix.diagonal(dim1=1, dim2=2).fill_(1.0)
    factor, failed = torch.linalg.cholesky_ex(matrix)
    # the mean of the gaps is replaced by the logarithm of the mean ratio: mass that linearising the logarithms makes up
    # would become a shift of all potentials, which hardly anything opposes where penalties are large
    share, peak = mass / mass.sum(1, keepdim=True), gap.amax(1, keepdim=True)
    level = ((gap - peak).exp() * share).sum(1, keepdim=True).log() + peak - (gap * share).sum(1, keepdim=True)
    right = (mass * (gap + level) * root).unsqueeze(2)
    step = torch.cholesky_solve(right, factor).squeeze(2) * root
    step = torch.where((failed == 0).unsqueeze(1) & step.isfinite(), step, gap)
    return torch.where(live, step, 0.0).clamp_(-LARGEST_STEP, LARGEST_STEP)
