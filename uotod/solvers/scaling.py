"""A transport problem and a potential of its columns in, one Sinkhorn sweep out: the marginals of the plan there.

The kernel holds the plan at a reference potential, so that its entries are masses: what underflows there is mass that
the plan does not have. Between two references a sweep is two products of a matrix and a vector, without exponentials of
size `K·P`. Potentials and all else of size `K` are float64.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from uotod.cost.blocks import slices

# of (B, K, p) blocks of float64 on a CPU, and the least p of one
MAX_BLOCK_ELEMENTS, MIN_BLOCK_PREDS = 1 << 20, 64
# reg by which a potential may leave the kernel's reference: entries cut off in float32 stay below exp(2 · 20 - 80)
FARTHEST = 20.0
LEAST_PEAK = -30.0  # log of a column's largest entry, below which the kernel holds the column by itself
LEAST_GAIN = -300.0  # log of a factor, below which it is a number no more


class Penalties(NamedTuple):
    """Weights of the marginals' divergences; `inf` is an equality, 0 leaves that side free."""

    pred: float
    target: float


class Problem(NamedTuple):
    """What is given, an entry an image.

    Attributes:
        cost: (B, K, P); `inf` forbids a pair.
        mass: (B, K) float64 marginals of the columns, 1 for a column without one.
        log_mass: (B, K) their logarithm.
        dead: (B, K) bool, True for a column that takes no mass.
        reg: (B, 1) float64 weight of the entropy.
    """

    cost: Tensor
    mass: Tensor
    log_mass: Tensor
    dead: Tensor
    reg: Tensor


class Rates(NamedTuple):
    """How a sweep damps, all (B, 1) float64.

    Attributes:
        reg: weight of the entropy.
        pred, target: `penalty / (penalty + reg)` of each side.
        pred_left: `1 - pred`.
        pull: `1 / (penalty + reg)` of the targets, by which a sweep draws their potentials to 0.
        leak: `1 - pred · target`.
    """

    reg: Tensor
    pred: Tensor
    target: Tensor
    pred_left: Tensor
    pull: Tensor
    leak: Tensor


class Kernel(NamedTuple):
    """The plan at a reference, each prediction relative to its largest entry.

    Attributes:
        plan: (B, K, P) entries in units of the largest of their prediction and of their column's `log_unit`; cut off at
            the lower end of `log_range(dtype)`.
        peak: (B, P) largest entry of each prediction, `exp((f_i + g_j − C_ij) / reg + log P)`, cut off at both ends; 0
            for one without an allowed pair.
        best: (B, P) float64 largest `(g_j − C_ij) / reg + log P` of each prediction; `f / reg` is `−rate · best`.
        potential: (B, K) float64 reference `g`.
        log_unit: (B, K) float64, 0 but for a column that starves, all of whose entries would be cut off.
        reg, pred, target, pred_left, pull, leak: the rates in force.
    """

    plan: Tensor
    peak: Tensor
    best: Tensor
    potential: Tensor
    log_unit: Tensor
    reg: Tensor
    pred: Tensor
    target: Tensor
    pred_left: Tensor
    pull: Tensor
    leak: Tensor


class Sweep(NamedTuple):
    """What a sweep finds: it meets the predictions' marginals and measures the columns'.

    Attributes:
        log_gain: (B, K) float64 logarithm of the factor of each column on the kernel's plan, at least `LEAST_GAIN`.
        gain: (B, K) that factor.
        row: (B, P) row sums of the kernel's plan after the gain, in units of the largest entry at the reference.
        scale: (B, P) factor of each prediction on the kernel's plan.
        mass: (B, K) float64 column masses.
        gap: (B, K) float64 what the sweep would add to `g / reg`: 0 at the solution.
    """

    log_gain: Tensor
    gain: Tensor
    row: Tensor
    scale: Tensor
    mass: Tensor
    gap: Tensor

    def moved(self) -> Tensor:
        """Return the mass that the sweep would move in each column, (B, K)."""
        return (self.mass * self.gap.clamp(max=80.0).expm1()).abs()


class Solved(NamedTuple):
    """Images whose potentials are found.

    Attributes:
        image: (n,) their places in the problem.
        dead: (n, K) bool as in `Problem`.
        kernel: near their potentials.
        at: the sweep at their potentials.
        potential: (n, K) float64.
        steps: (n,) sweeps or Newton steps.
        residual: (n,) largest mass that the sweep would move, as `residual` measures it.
    """

    image: Tensor
    dead: Tensor
    kernel: Kernel
    at: Sweep
    potential: Tensor
    steps: Tensor
    residual: Tensor

    def reached(self) -> Tensor:
        """Return the residual (n,), `inf` where masses may have been cut off at the upper end of `log_range`."""
        heaviest = (self.at.row * self.at.scale).amax(1)
        return torch.where(heaviest > math.exp(log_range(heaviest.dtype)[1] - 15), math.inf, self.residual)


def residual(moved: Tensor, mass: Tensor) -> Tensor:
    """Return the largest mass moved (B,), relative for columns heavier than one prediction."""
    return (moved / mass.clamp(min=1.0)).amax(1)


def rounding(potential: Tensor, reg: float | Tensor) -> Tensor:
    """Return the residual (B,) that the last bits of potentials (B, K) leave, `reg` one number or (B, 1).

    It is 1e-10 at most where costs are in [0, 1] and `reg` is 1e-4. Only penalties of 1e7 and more, on marginals that
    forbidden pairs leave no way to meet, drive potentials so far that it counts.
    """
    return (8 * torch.finfo(torch.float64).eps * potential.abs() / reg).amax(1)


def rates(penalties: Penalties, reg: Tensor) -> Rates:
    """Return the rates at a reg (B, 1)."""
    (pred, pred_pull), (target, target_pull) = (_rate(penalty, reg) for penalty in penalties)
    pred_left = reg * pred_pull
    return Rates(reg, pred, target, pred_left, target_pull, pred_left + pred * reg * target_pull)


def _rate(penalty: float, reg: Tensor) -> tuple[Tensor, Tensor]:
    if math.isinf(penalty):
        return torch.ones_like(reg), torch.zeros_like(reg)
    return penalty / (penalty + reg), 1 / (penalty + reg)


def log_range(dtype: torch.dtype) -> tuple[float, float]:
    """Return the logarithms between which entries of the kernel's plan are kept."""
    # above denormals, which are slow, and so far below the largest number that sums of products stay finite
    return (-80.0, 60.0) if dtype == torch.float32 else (-600.0, 500.0)


def pred_blocks(cost: Tensor) -> list[slice]:
    """Return slices of the predictions of (B, K, P) entries: on a CPU no temporary exceeds a block."""
    images, columns, preds = cost.shape
    size = preds if cost.is_cuda else max(MAX_BLOCK_ELEMENTS // max(images * columns, 1), MIN_BLOCK_PREDS)
    return slices(preds, 1, size)


def first_potential(problem: Problem, rates: Rates) -> Tensor:
    """Return the columns' potentials (B, K) after a sweep from 0 with maxima in place of log-sum-exps.

    They leave each column an entry of the kernel in range, however far its costs are from the others'.
    """
    least_in_column = torch.full_like(problem.mass, math.inf)
    for block in pred_blocks(problem.cost):
        cost = problem.cost[:, :, block]
        pred = (rates.pred * _finite(cost.amin(1))).to(cost.dtype)  # (B, p)
        least_in_column = torch.minimum(least_in_column, (cost - pred.unsqueeze(1)).amin(2))
    log_column = rates.pred_left * math.log(problem.cost.shape[2]) - _finite(least_in_column) / rates.reg
    return (rates.reg * rates.target * (problem.log_mass - log_column)).masked_fill_(problem.dead, 0.0)


def absorb(problem: Problem, rates: Rates, potential: Tensor) -> Kernel:
    """Return the kernel at a potential (B, K)."""
    cost, reg = problem.cost, rates.reg
    dtype, log_preds = cost.dtype, math.log(cost.shape[2])
    low, high = log_range(dtype)
    logs, leasts = [], []
    for block in pred_blocks(cost):
        # differences in float64: rounding (g − C) / reg in float32 loses the plan's digits once C / reg is in the
        # hundreds
        excess = cost[:, :, block].to(torch.float64, copy=True)
        excess -= potential.unsqueeze(2)  # (B, K, p)
        least = excess.amin(1)
        excess -= _finite(least).unsqueeze(1)
        logs.append(excess.to(dtype).mul_((-1 / reg).to(dtype).unsqueeze(2)))
        leasts.append(least)
    plan, least = (x[0] if len(x) == 1 else torch.cat(x, dim=-1) for x in (logs, leasts))
    log_unit = (plan.amax(2) - LEAST_PEAK).clamp_(max=0.0).masked_fill_(problem.dead, 0.0)
    plan.sub_(log_unit.unsqueeze(2)).clamp_(low, high).exp_()
    best = log_preds - least / reg
    peak = (rates.pred_left * best).clamp_(low, high).exp_().masked_fill_(least == math.inf, 0.0)
    return Kernel(plan, peak.to(dtype), best, potential.clone(), log_unit.double(), *(x.clone() for x in rates))


def sweep(problem: Problem, kernel: Kernel, potential: Tensor) -> Sweep:
    """Return the sweep at a potential (B, K) near the kernel's."""
    plan = kernel.plan
    log_gain = (potential - kernel.potential).div_(kernel.reg).add_(kernel.log_unit)
    gain = log_gain.exp().to(plan.dtype)
    row = torch.bmm(gain.unsqueeze(1), plan).squeeze(1).clamp_(min=torch.finfo(plan.dtype).tiny)
    # by logarithms it would lose the digits they begin with
    scale = row.pow(-kernel.pred.to(row.dtype)).mul_(kernel.peak)
    share = torch.bmm(scale.unsqueeze(1), plan.transpose(1, 2)).squeeze(1).double().clamp_(min=1e-300)
    # a starving column's mass is known by its logarithm alone
    log_mass = share.log().add_(log_gain)
    log_gain = log_gain.clamp_(min=LEAST_GAIN)
    mass = _complete(share.mul_(log_gain.exp()), row, scale)
    log_mass = torch.where(log_gain > LEAST_GAIN / 2, mass.log(), log_mass)
    gap = (problem.log_mass - log_mass).mul_(kernel.target).addcmul_(kernel.pull, potential, value=-1.0)
    return Sweep(log_gain, gain, row, scale, mass, gap.masked_fill_(problem.dead, 0.0))


def write_plan(dead: Tensor, kernel: Kernel, at: Sweep) -> Tensor:
    """Return the plan of a sweep, which overwrites the kernel's; `dead` as in `Problem`."""
    plan = torch.threshold_(kernel.plan, 1.01 * math.exp(log_range(kernel.plan.dtype)[0]), 0.0)
    plan *= at.gain.masked_fill(dead, 0.0).unsqueeze(2)
    plan *= at.scale.unsqueeze(1)
    return plan


def pred_potential(kernel: Kernel, at: Sweep) -> Tensor:
    """Return the predictions' potentials (B, P) in units of cost; 0 for a prediction without an allowed pair."""
    potential = -kernel.reg * kernel.pred * (at.row.log() + kernel.best)
    return torch.where(kernel.best == -math.inf, 0.0, potential)


def _complete(mass: Tensor, row: Tensor, scale: Tensor) -> Tensor:
    """Return column masses (B, K), where one that outweighs all others is what they leave of the predictions' total.

    That is the background with its thousands of predictions: summed in float32 on its own, it would be off by more than
    all the targets are, and the balanced problem would spread this over them.
    """
    total, found = (row * scale).sum(1, keepdim=True, dtype=torch.float64), mass.sum(1, keepdim=True)
    return torch.where(2 * mass > found, mass + (total - found), mass).clamp_(min=1e-300)


def _finite(x: Tensor) -> Tensor:
    return torch.where(x < math.inf, x, 0.0)
