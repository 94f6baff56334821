"""Costs and a total mass in, partial transport plans out: marginals are upper bounds; with entropy or exact."""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from uotod.check import is_traced
from uotod.solvers.emd import solve_emd
from uotod.solvers.operator import operator
from uotod.solvers.sinkhorn import NUM_ITER, TOL, Transport, blank

ANNEAL_FROM, ANNEAL_RATIO = 0.1, 0.5  # of an image's largest absolute cost
WARM = 3  # blocks at each level but the last
BLOCK = 5  # sweeps between two Newton steps, and between two looks at the residual
LARGEST = math.exp(40.0)  # factor by which a block may scale a row or column: what underflows stays negligible
LONGEST = 1000.0  # entry of a Newton step, in units of reg
LENGTHS = tuple(0.25**k for k in range(8))  # of the step, of which the best is kept: kinks may be near
MARGINS = (0.0, 0.01, -0.01)  # log row sums from which on a row is taken as full: it may cease or begin to be so
RIDGE = 1e-10


class _Dual(NamedTuple):
    """A point of the dual; the first dimension of every field is the image."""

    pred: Tensor  # (B, P) f ≤ 0
    target: Tensor  # (B, T) g ≤ 0
    level: Tensor  # (B, 1) λ


class _Found(NamedTuple):
    """Where each image stands."""

    at: _Dual
    plan: Tensor  # (B, T, P)
    residual: Tensor  # (B,)
    steps: Tensor  # (B,)


def solve_partial(
    cost: Tensor,
    mask: Tensor,
    total: Tensor,
    reg: float,
    *,
    num_iter: int = NUM_ITER,
    tol: float = TOL,
) -> Transport:
    r"""Solve entropic partial transport for a batch of images, each on its own.

        min_π <π, C> + reg Σ π (log π − 1)   with   π 1 ≤ 1,   πᵀ 1 ≤ 1,   Σ π = total.

    The solution is `π_ij = exp((f_i + g_j + λ − C_ij) / reg)` with `f, g ≤ 0`, which is 0 where the bound is not met. A
    sweep maximises the concave dual over `g`, `f` and `λ` in turn, each in closed form. After every fifth, a Newton
    step on those `g` that are not held by their bound and on `λ`, with `f` eliminated, is taken where it raises the
    dual, at the length that does so most; and `reg` is annealed. All is done in float64, on kernels that hold the plan
    at the last potentials, so that small `reg` cannot underflow.

    Args:
        cost: (B, T, P); `inf` forbids a pair.
        mask: (B, T) bool, False for padding, whose cost is not read.
        total: (B,) mass to transport, at most `min(P, T_b)`.
        reg: weight of the entropy, finite and positive.
        num_iter: most sweeps, in blocks of 5; a block costs O(B·T²·P) and 30 times O(B·T·P).
        tol: mass that a further sweep moves in a row or column at which an image is finished. The check
            synchronises with a GPU.

    Returns:
        The plan (B, T, P), exactly 0 on padding and forbidden pairs; `f` and `g + λ` as potentials.

    References:
        J.-D. Benamou et al., "Iterative Bregman projections for regularized transportation problems", SIAM J. Sci.
        Comput. 2015, sec. 5.2 (the problem); L. Chizat et al., Math. Comp. 2018 (scaling under bounds).
    """
    if is_traced(cost):
        return Transport(*_operator(cost, mask, total, reg, num_iter, tol))
    images, targets, preds = cost.shape
    exact = cost.double().masked_fill(~mask.unsqueeze(2), math.inf)
    mass, count = total.double().unsqueeze(1), mask.sum(1, keepdim=True)  # (B, 1)
    at = _Dual(exact.new_zeros(images, preds), exact.new_zeros(images, targets), exact.new_zeros(images, 1))
    zeros = exact.new_zeros(images)
    found = _Found(at, torch.zeros_like(exact), zeros, zeros.long())
    levels = _levels(reg, exact) if cost.numel() else found.steps
    for level in range(int(levels.max()) if images else 0, 0, -1):
        weight = reg * ANNEAL_RATIO**-level
        for _ in range(WARM):
            found = _advance(exact, found, mass, count, weight, levels >= level)
    if cost.numel():
        found = found._replace(residual=zeros + math.inf)
    for _ in range(math.ceil(num_iter / BLOCK) if cost.numel() else 0):
        active = found.residual > tol
        if not bool(active.any()):
            break
        found = _advance(exact, found, mass, count, reg, active)
        found = found._replace(steps=found.steps + BLOCK * active)
    at, plan, left, steps = found
    potential = torch.where(mask, at.target + at.level, 0.0)
    return Transport(plan.to(cost), at.pred.to(cost), potential.to(cost), steps, left.to(cost))


_operator = operator(
    "solve_partial(Tensor cost, Tensor mask, Tensor total, float reg, int num_iter, float tol) -> "
    "(Tensor, Tensor, Tensor, Tensor, Tensor)",
    lambda cost, mask, total, reg, num_iter, tol: tuple(
        solve_partial(cost, mask, total, reg, num_iter=num_iter, tol=tol)
    ),
    lambda cost, *_: tuple(blank(cost)),
)


def solve_partial_exact(cost: Tensor, mask: Tensor, total: Tensor) -> Tensor:
    """Return a plan (B, T, P) of the problem of `solve_partial` without entropy, by the network simplex.

    It is a balanced problem: a further column takes what the predictions keep, a further row what the targets lack,
    both at no cost, and the pair of the two is forbidden (Chapel et al., "Partial optimal transport with applications
    on positive-unlabeled learning", NeurIPS 2020, prop. 1).

    Raises:
        ValueError: forbidden pairs leave less than `total` to transport.
    """
    images, targets, preds = cost.shape
    if not cost.numel():
        return torch.zeros_like(cost)
    count, total = mask.sum(1).double(), total.double()
    extended = cost.new_zeros(images, targets + 1, preds + 1)
    extended[:, :targets, :preds] = cost
    extended[:, targets, preds] = math.inf
    columns = torch.cat((mask.double(), (preds - total).unsqueeze(1)), dim=1)
    rows = torch.cat((total.new_ones(images, preds), (count - total).unsqueeze(1)), dim=1)
    active = torch.cat((mask, mask.new_ones(images, 1)), dim=1)
    return solve_emd(extended, columns, active, rows)[:, :targets, :preds].contiguous()


def _levels(reg: float, cost: Tensor) -> Tensor:
    """Return how many larger weights of the entropy each image passes before the last, (B,)."""
    largest = torch.where(cost.isfinite(), cost, 0.0).abs().amax((1, 2))
    return ((ANNEAL_FROM * largest / reg).log() / -math.log(ANNEAL_RATIO)).ceil().clamp(min=0.0).long()


def _advance(cost: Tensor, found: _Found, mass: Tensor, count: Tensor, reg: float, active: Tensor) -> _Found:
    """Return active (B,) images after a Newton step and a block of sweeps; the others stand still."""
    at, plan, residual = _sweeps(cost, _newton(cost, found.at, mass, count, reg), mass, reg)
    row, entry = active.unsqueeze(1), active[:, None, None]
    return _Found(
        _Dual(*(torch.where(row, new, old) for new, old in zip(at, found.at, strict=True))),
        torch.where(entry, plan, found.plan),
        torch.where(active, residual, found.residual),
        found.steps,
    )


def _sweeps(cost: Tensor, at: _Dual, mass: Tensor, reg: float) -> tuple[_Dual, Tensor, Tensor]:
    """Return the point after a block of sweeps, its plan (B, T, P) and residual (B,)."""
    pred, target, level = at
    log_plan = (pred.unsqueeze(1) + (target + level).unsqueeze(2) - cost) / reg
    missing = torch.where(mass > 0, mass, 1.0).log() - log_plan.flatten(1).logsumexp(1, keepdim=True)
    missing = torch.where(missing.isfinite(), missing, 0.0)  # nothing to transport, or nothing allowed
    kernel = (log_plan + missing.unsqueeze(2)).exp()  # (B, T, P)
    highest_pred, highest_target = ((-x / reg).clamp(max=math.log(LARGEST)).exp() for x in (pred, target))
    u, v, w = torch.ones_like(pred), torch.ones_like(target), torch.ones_like(mass)
    for _ in range(BLOCK):
        column = w * torch.bmm(u.unsqueeze(1), kernel.transpose(1, 2)).squeeze(1)
        v = torch.minimum(1 / column, highest_target).clamp(min=1 / LARGEST)
        row = torch.bmm(v.unsqueeze(1), kernel).squeeze(1)
        u = torch.minimum(1 / (w * row), highest_pred).clamp(min=1 / LARGEST)
        carried = (u * row).sum(1, keepdim=True)
        w = torch.where(carried > 0, mass / carried, w)
    plan = kernel * (w * v).unsqueeze(2) * u.unsqueeze(1)
    at = _Dual(
        (pred + reg * u.log()).clamp(max=0.0),
        (target + reg * v.log()).clamp(max=0.0),
        level + reg * (missing + torch.where(w > 0, w, 1.0).log()),
    )
    moved = [_moved(plan.sum(1), at.pred, reg), _moved(plan.sum(2), at.target, reg)]
    return at, plan, torch.cat((*moved, (plan.sum((1, 2)) - mass[:, 0]).abs().unsqueeze(1)), dim=1).amax(1)


def _newton(cost: Tensor, at: _Dual, mass: Tensor, count: Tensor, reg: float) -> _Dual:
    """Return the point after the Newton step that raises the dual most, and where none does the point as it was."""
    # g + c and λ − c are the same plan, and the largest g is best at 0: it is held there, which makes the step unique
    present = (cost < math.inf).any(2)
    peak = at.target.masked_fill(~present, -math.inf).amax(1, keepdim=True).clamp(min=-1e30)
    target, level = (at.target - peak).clamp(max=0.0), at.level + peak
    here, value, plan, row = _evaluate(cost, target, level, mass, reg)
    column = plan.sum(2)
    pinned = torch.zeros_like(present).scatter(1, torch.where(present, target, -math.inf).argmax(1, keepdim=True), True)
    whole = mass >= count  # where all targets give all their mass, a bound on g only says where λ is
    held = ~present | pinned | ((target >= -1e-12 * reg) & (column < 1) & ~whole)
    best, least = here, value - 1e-14 * value.abs()
    for margin in MARGINS:
        step = _direction(torch.where((row > margin).unsqueeze(1), plan, 0.0), column, held, mass)
        for length in LENGTHS:
            moved, raised = target + length * reg * step[:, :-1], level + length * reg * step[:, -1:]
            over = torch.where(whole, moved.amax(1, keepdim=True), 0.0)
            there, reached, _, _ = _evaluate(cost, (moved - over).clamp(max=0.0), raised + over, mass, reg)
            better = (reached >= least).unsqueeze(1)
            best = _Dual(*(torch.where(better, new, old) for new, old in zip(there, best, strict=True)))
            least = torch.maximum(least, reached)
    return best


def _direction(bound: Tensor, column: Tensor, held: Tensor, mass: Tensor) -> Tensor:
    """Return Newton's step (B, T + 1) in `g` and `λ`, in units of reg; `bound` is the plan of the full rows alone."""
    hessian = column.diag_embed() - torch.bmm(bound, bound.transpose(1, 2))  # of the columns' g, times −reg
    border = hessian.sum(2, keepdim=True)
    corner = border.sum(1, keepdim=True)
    whole = torch.cat((torch.cat((hessian, border), 2), torch.cat((border.transpose(1, 2), corner), 2)), 1)
    free = torch.cat((~held, torch.ones_like(held[:, :1])), dim=1)
    whole = torch.where(free.unsqueeze(1) & free.unsqueeze(2), whole, 0.0)
    whole = whole + torch.where(free, RIDGE, 1.0).diag_embed()
    right = torch.where(free, torch.cat((1 - column, mass - column.sum(1, keepdim=True)), dim=1), 0.0)
    factor, failed = torch.linalg.cholesky_ex(whole)
    step = torch.cholesky_solve(right.unsqueeze(2), factor).squeeze(2)
    return torch.where(step.isfinite() & (failed == 0).unsqueeze(1), step, 0.0).clamp(-LONGEST, LONGEST)


def _evaluate(
    cost: Tensor, target: Tensor, level: Tensor, mass: Tensor, reg: float
) -> tuple[_Dual, Tensor, Tensor, Tensor]:
    """Return the point with the best `f`, the dual there (B,), the plan (B, T, P), and log row sums without `f`."""
    score = ((target + level).unsqueeze(2) - cost) / reg
    row = score.logsumexp(1)
    pred = (-reg * row).clamp(max=0.0)
    plan = (score + pred.unsqueeze(1) / reg).exp()
    value = pred.sum(1) + target.sum(1) + (level * mass).squeeze(1) - reg * plan.sum((1, 2))
    return _Dual(pred, target, level), value, plan, row


def _moved(mass: Tensor, potential: Tensor, reg: float) -> Tensor:
    """Return the mass that meeting the bound 1 with a potential ≤ 0 would move in each row or column."""
    return (torch.minimum(torch.ones_like(mass), mass * (-potential / reg).exp().clamp(max=1e300)) - mass).abs()
