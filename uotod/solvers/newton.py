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

from uotod.solvers.scaling import (
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
    rounding,
    sweep,
)

FIRST_SWEEPS = 2  # before the first step: far from the solution they do as much, at a fraction of the cost
ANNEAL_FROM = 0.4  # of an image's largest absolute cost
ANNEAL_RATIO = 0.4
LOOSE = 1.5  # gap at which the next, smaller reg begins
LONGEST, LENGTHEN, SHORTEN = 1e8, 5.0, 0.5  # horizon
FARTHEST_HORIZON = 1e13  # that rounding leaves a meaning
LONG = 1e4  # horizon whose step tells what Newton's would
ANY_GAP, LARGEST_GAP = 50.0, 0.05  # that a step may leave: in units of reg, and of the step
WORTH_LEAVING = 1 << 15  # pairs of finished images for which the others are moved: it takes dozens of calls
LARGEST_BLIND = 2.0  # step that nothing judges, in units of reg


Values = TypeVar("Values", Problem, Kernel, Sweep, "State")


class State(NamedTuple):
    """Where each image stands; the first dimension of every field is the image."""

    image: Tensor  # (B,) its place in the batch
    candidate: Tensor  # (B, K) potential to try
    reg: Tensor  # (B, 1) level of the annealing
    last: Tensor  # (B,) bool: that level is the last
    step: Tensor  # (B, K) what led to the candidate, in units of reg
    slope: Tensor  # (B,) of the dual at the start of the step
    horizon: Tensor  # (B,)
    trusted: Tensor  # (B,) bool: the candidate is accepted unseen
    potential: Tensor  # (B, K) last accepted one, and what is known there:
    mass: Tensor  # (B, K)
    gap: Tensor  # (B, K)
    gradient: Tensor  # (B, K) of the dual
    coupling: Tensor  # (B, K, K) M below the diagonal, without the gains of its columns
    log_gain: Tensor  # (B, K)
    merit: Tensor  # (B,) largest gap
    residual: Tensor  # (B,)
    steps: Tensor  # (B,)
    before: Tensor  # (B, K) solution of the level before
    reg_before: Tensor  # (B, 1) that level, inf for none
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
    for _ in range(0 if sync_free else FIRST_SWEEPS):
        gap = sweep(problem, kernel, state.candidate).gap
        state = state._replace(candidate=torch.addcmul(state.candidate, state.reg, gap))
        kernel = _refresh(problem, penalties, kernel, state, sync_free)
    for iteration in range(num_iter):
        if iteration:
            kernel = _refresh(problem, penalties, kernel, state, sync_free)
        at = sweep(problem, kernel, state.candidate)
        state, accepted, every = _judge(state, problem, penalties, at, tol, attainable, sync_free)
        finished = 0 if sync_free else int(state.done.sum())
        if finished == len(state.done) or finished * problem.cost[0].numel() >= WORTH_LEAVING:
            yield _leave(state, problem, penalties, kernel, at, accepted)
            if finished == len(state.done):
                return
            keep = (~state.done).nonzero().squeeze(1)
            problem, kernel, at, state = _take(problem, keep), _take(kernel, keep), _take(at, keep), _take(state, keep)
            accepted, finished = accepted[keep], 0
        coupling, log_gain = _coupling(kernel, at), at.log_gain
        if not every:
            coupling = _choose(accepted, coupling, state.coupling)
            log_gain = _choose(accepted, log_gain, state.log_gain)
        state = _propose(
            state._replace(coupling=coupling, log_gain=log_gain), problem, kernel, accepted, every, tol, sync_free
        )
        if sync_free or finished:
            state = state._replace(candidate=_choose(state.done, state.potential, state.candidate))
    kernel, at = _at_potential(state, problem, penalties)
    left = torch.where(state.done, state.residual, residual(at.moved(), at.mass))
    yield Solved(state.image, problem.dead, kernel, at, state.potential, state.steps, left)


def _leave(state: State, problem: Problem, penalties: Penalties, kernel: Kernel, at: Sweep, accepted: Tensor) -> Solved:
    """Return the images that are done; those that were so before still have their kernels and sweeps."""
    done = state.done.nonzero().squeeze(1)
    valid = bool(accepted[done].all())
    if len(done) < len(accepted):
        state, problem = _take(state, done), _take(problem, done)
        kernel, at = (_take(kernel, done), _take(at, done)) if valid else (kernel, at)
    if not valid:
        kernel, at = _at_potential(state, problem, penalties)
    return Solved(state.image, problem.dead, kernel, at, state.potential, state.steps, state.residual)


def _at_potential(state: State, problem: Problem, penalties: Penalties) -> tuple[Kernel, Sweep]:
    """Return the kernel at the last accepted potential, and the sweep there."""
    kernel = absorb(problem, rates(penalties, problem.reg), state.potential)
    return kernel, sweep(problem, kernel, state.potential)


def _take(values: Values, images: Tensor) -> Values:
    """Return the part of some images of a tuple of tensors."""
    return type(values)(*(x.index_select(0, images) for x in values))


def _start(problem: Problem, penalties: Penalties, sync_free: bool) -> State:
    cost, reg = problem.cost, problem.reg
    highest = cost.amax(2).masked_fill_(problem.dead, -math.inf).amax(1)
    forbids = highest == math.inf
    if sync_free or bool(forbids.any()):
        # a prediction without an allowed pair takes part as little as a dead column
        absent = problem.dead.unsqueeze(2) | (cost.amin(1, keepdim=True) == math.inf)
        forbids = ((cost == math.inf) & ~absent).flatten(1).any(1)
        highest = cost.masked_fill(cost == math.inf, -math.inf).amax((1, 2))
    largest = torch.maximum(-cost.amin((1, 2)), highest)
    if not math.isinf(min(penalties)):
        # forbidden pairs may drive parts of the problem as far apart as both penalties let
        largest = torch.where(forbids, largest.clamp(min=min(penalties)), largest)
    levels = (ANNEAL_FROM * largest.clamp(min=0.0).double().unsqueeze(1) / reg).log() / -math.log(ANNEAL_RATIO)
    level = reg * ANNEAL_RATIO ** -levels.floor().clamp(min=0.0)
    potential = first_potential(problem, rates(penalties, level))
    columns, scalar = torch.zeros_like(potential), torch.zeros_like(potential[:, 0])
    return State(
        image=torch.arange(len(cost), device=cost.device),
        candidate=potential,
        reg=level,
        last=(level <= reg).squeeze(1),
        step=columns,
        slope=scalar,
        horizon=scalar + FARTHEST_HORIZON,
        trusted=scalar == 0,
        potential=potential,
        mass=columns,
        gap=columns,
        gradient=columns,
        coupling=columns.unsqueeze(2) * columns.unsqueeze(1),
        log_gain=columns,
        merit=scalar + math.inf,
        residual=scalar + math.inf,
        steps=torch.zeros_like(scalar, dtype=torch.long),
        before=columns,
        reg_before=torch.full_like(level, math.inf),
        done=scalar != 0,
    )


def _refresh(problem: Problem, penalties: Penalties, kernel: Kernel, state: State, sync_free: bool) -> Kernel:
    """Return a kernel that is near the candidates."""
    if sync_free:
        return absorb(problem, rates(penalties, state.reg), state.candidate)
    far = (state.candidate - kernel.potential).abs_().amax(1, keepdim=True) > FARTHEST * state.reg
    away = (far | (state.reg != kernel.reg)).nonzero()[:, 0]
    if not len(away):
        return kernel
    if len(away) == len(far):
        return absorb(problem, rates(penalties, state.reg), state.candidate)
    part = absorb(_take(problem, away), rates(penalties, state.reg[away]), state.candidate[away])
    return Kernel(*(whole.index_copy_(0, away, new) for whole, new in zip(kernel, part, strict=True)))


def _judge(
    state: State, problem: Problem, penalties: Penalties, at: Sweep, tol: float, attainable: float, sync_free: bool
) -> tuple[State, Tensor, bool]:
    """Accept the candidates to which the concave dual rises; tell which are, and whether it is known that all are.

    It does where it still rises at the step's end. Where it no longer does there, gap and residual have to shrink, and
    the mean of both slopes to be positive: two steps that undo each other might shrink one measure each, for ever.
    """
    demand = problem.mass
    if not math.isinf(penalties.target):
        demand = (problem.log_mass - state.candidate / penalties.target).clamp(max=300.0).exp()
    gradient = (demand - at.mass).masked_fill_(problem.dead, 0.0)
    merit, moved, heavy = at.gap.abs().amax(1), at.moved(), at.mass.clamp(min=1.0)
    left = (moved / heavy).amax(1)
    end = (gradient * state.step).sum(1)
    shrinks = (merit < state.merit) & (left <= state.residual) & (state.slope + end > 0)
    # a finished image stands still: its candidate is its potential
    # the dual may rise to where a column starves, by far more than a step can mend
    starves = merit > torch.maximum(LARGEST_GAP * state.step.abs().amax(1), torch.full_like(merit, ANY_GAP))
    accepted = state.done | state.trusted | ((state.slope > 0) & (((end >= 0) & ~starves) | shrinks))
    # relative to the background's mass its last bits are nothing, and they may exceed tol
    eps = torch.finfo(problem.cost.dtype).eps
    met = (moved.sub_(heavy, alpha=eps).amax(1) <= tol - eps) | (left <= rounding(state.candidate, state.reg))
    # where a step improves nothing any more, rounding leaves no less
    stalled = (left <= attainable) & (left >= state.residual / 2)
    met = torch.where(accepted, met | stalled, state.residual <= attainable)
    seen: tuple[Tensor, ...] = (state.candidate, at.mass, at.gap, gradient, merit, left)
    every = not sync_free and bool(accepted.all())
    if not every:
        past = (state.potential, state.mass, state.gap, state.gradient, state.merit, state.residual)
        seen = tuple(_choose(accepted, *pair) for pair in zip(seen, past, strict=True))
    potential, mass, gap, gradient, merit, left = seen
    state = state._replace(
        potential=potential,
        mass=mass,
        gap=gap,
        gradient=gradient,
        merit=merit,
        residual=torch.where(state.done, state.residual, left),
        steps=state.steps + ~state.done,
        done=state.done | (met & state.last),
    )
    return state, accepted, every


def _choose(accepted: Tensor, new: Tensor, old: Tensor) -> Tensor:
    """Return new values (B, ...) where accepted, (B,)."""
    return torch.where(accepted.view(-1, *[1] * (new.dim() - 1)), new, old)


def _propose(
    state: State, problem: Problem, kernel: Kernel, accepted: Tensor, every: bool, tol: float, sync_free: bool
) -> State:
    """Step from the last accepted potential; where it is good enough, go to the next level of reg as well."""
    horizon = state.horizon * LENGTHEN
    if not every:
        shorter = torch.minimum(state.horizon / 2, SHORTEN * state.step.abs().amax(1) / state.merit.clamp(min=1e-300))
        horizon = torch.where(accepted, horizon, shorter)
    # that of Newton's step where a marginal may give way: parts that nothing couples are as far apart as penalties let
    newton = torch.where(kernel.leak > 0, 1 / kernel.leak, LONGEST).clamp_(LONGEST, FARTHEST_HORIZON).squeeze(1)
    horizon = torch.minimum(horizon.clamp_(min=1.0), newton)
    shift, gap, gradient = _level(state, kernel)
    step = _direction(state, problem, kernel, gap, horizon.unsqueeze(1), sync_free)
    trusted = horizon < 1.5
    if not every:  # a horizon has just been lengthened
        step = torch.where(trusted.unsqueeze(1), gap, step)
    reg, last = state.reg, state.last
    if sync_free or not bool(last.all()):
        # nothing judges the step to the next level, and one that goes far may starve columns there
        near = (state.merit <= LOOSE) & (step.abs().amax(1) <= LARGEST_BLIND) & (horizon >= LONG)
        # columns whose masses are nothing may be far from their potentials
        finer = accepted & ~last & (near | (state.residual <= tol))
        step = torch.where(finer.unsqueeze(1), step.clamp(-LARGEST_BLIND, LARGEST_BLIND), step)
        trusted = trusted | finer
        reg = torch.where(finer.unsqueeze(1), torch.maximum(ANNEAL_RATIO * reg, problem.reg), reg)
        last = (reg <= problem.reg).squeeze(1)
    solution = torch.addcmul(state.potential, state.reg, (step + shift).masked_fill_(problem.dead, 0.0))
    # along a line through the solutions of two levels, where reg is small beside what drives the potentials
    ahead = (reg - state.reg) / (state.reg - state.reg_before)
    return state._replace(
        candidate=torch.addcmul(solution, ahead, solution - state.before),
        before=torch.where(reg < state.reg, solution, state.before),
        reg_before=torch.where(reg < state.reg, state.reg, state.reg_before),
        reg=reg,
        last=last,
        step=step,
        slope=(gradient * step).sum(1),
        horizon=horizon,
        trusted=trusted,
    )


def _level(state: State, kernel: Kernel) -> tuple[Tensor, Tensor, Tensor]:
    """Return the shift (B, 1) of all potentials that raises the dual most, in units of reg; gap and gradient there.

    It has a closed form (Séjourné, Vialard and Peyré, "Faster unbalanced optimal transport", AISTATS 2022), where a
    step, which linearises, would need as many as the penalties are large. With two equalities it changes nothing.
    """
    demand = (state.gradient + state.mass).clamp_(min=1e-300)
    by_mass, by_demand = kernel.pred_left, kernel.reg * kernel.pull / kernel.target
    wanted = demand.sum(1, keepdim=True).log() - state.mass.sum(1, keepdim=True).log()
    shift = torch.where(kernel.leak > 0, wanted / (by_mass + by_demand).clamp(min=1e-300), 0.0)
    gradient = demand * (-shift * by_demand).exp() - state.mass * (shift * by_mass).exp()
    return shift, state.gap - kernel.leak * shift, gradient


def _coupling(kernel: Kernel, at: Sweep) -> Tensor:
    """Return M (B, K, K) below the diagonal, in units of the columns' gains."""
    images, columns, preds = kernel.plan.shape
    # to the next multiple of 8: of other matrices the product takes up to three times as long
    rows = kernel.plan.new_zeros(images, -(-columns // 8) * 8, preds)
    torch.mul(kernel.plan, (at.scale / at.row).sqrt_().unsqueeze(1), out=rows[:, :columns])
    # bmm's halves may differ in their last bits, more than what leaks: the system would have no M-matrix
    return torch.bmm(rows, rows.transpose(1, 2)).tril_(-1)[:, :columns, :columns].double()


def _direction(state: State, problem: Problem, kernel: Kernel, gap: Tensor, horizon: Tensor, sync_free: bool) -> Tensor:
    """Return the step (B, K) of a horizon (B, 1) at a level with that gap, which leaves it there, in units of reg."""
    mass, lower, gain = state.mass, state.coupling, state.log_gain.exp()
    leak = torch.maximum(kernel.leak, 1 / horizon)  # 1 − λ_N
    # an M-matrix, built from what couples and what leaks: `S − λ M` would cancel where λ is near 1
    line = gain.unsqueeze(1)
    coupled = (torch.bmm(line, lower) + torch.bmm(line, lower.transpose(1, 2))).squeeze(1).mul_(gain)
    diagonal = (leak * mass).addcmul_(1 - leak, coupled).masked_fill_(problem.dead, 1.0)
    root = diagonal.rsqrt()
    scale = root * gain
    matrix = lower * (scale * (leak - 1)).unsqueeze(2)  # of which the factorisation reads the lower half
    matrix *= scale.unsqueeze(1)
    matrix.diagonal(dim1=1, dim2=2).fill_(1.0)
    factor, failed = torch.linalg.cholesky_ex(matrix)
    share = mass / mass.sum(1, keepdim=True)
    # rounding in the sum of the gaps would become a shift of all potentials, which hardly anything opposes
    right = (gap - (gap * share).sum(1, keepdim=True)).mul_(mass).mul_(root).unsqueeze(2)
    step = torch.cholesky_solve(right, factor).squeeze(2).mul_(root)
    if sync_free or bool(failed.any()) or not math.isfinite(float(step.sum())):
        step = torch.where((failed == 0).unsqueeze(1) & step.isfinite(), step, gap)
    step = step - (step * share).sum(1, keepdim=True)
    return step.masked_fill_(problem.dead, 0.0)
