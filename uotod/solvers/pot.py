"""Costs and marginals in, transport plans by Python Optimal Transport (POT) out, an image at a time and checked."""

import math
import warnings
from typing import Any, NamedTuple

import torch
from torch import Tensor

from uotod.check import is_traced
from uotod.solvers.operator import operator
from uotod.solvers.sinkhorn import NUM_ITER, TOL, Transport, blank

# of POT's other unbalanced methods, "sinkhorn_reg_scaling" is "sinkhorn" under another name, and
# "sinkhorn_translation_invariant" returns another plan where the two penalties differ
UNBALANCED_METHODS = ("sinkhorn", "sinkhorn_stabilized")
BALANCED_METHODS = (*UNBALANCED_METHODS, "sinkhorn_log", "sinkhorn_epsilon_scaling", "greenkhorn")
BACKENDS = ("numpy", "torch")


class _Image(NamedTuple):
    """What POT found for one image, over the columns that it was given."""

    plan: Tensor  # (P, K)
    pred_potential: Tensor  # (P,)
    target_potential: Tensor  # (K,)
    iterations: int
    residual: float


def pot_methods(reg_pred: float, reg_target: float) -> tuple[str, ...]:
    """Return the names of POT's methods that solve the problem of these penalties."""
    return BALANCED_METHODS if math.isinf(reg_pred) and math.isinf(reg_target) else UNBALANCED_METHODS


def solve_pot(
    cost: Tensor,
    column_mass: Tensor,
    active: Tensor,
    reg: float | Tensor,
    reg_pred: float,
    reg_target: float,
    *,
    num_iter: int = NUM_ITER,
    tol: float = TOL,
    backend: str | None = None,
    method: str = "sinkhorn",
) -> Transport:
    """Solve the problem of `solve_sinkhorn` with POT.

    Each image goes to `ot.unbalanced.sinkhorn_unbalanced` with `reg_type="entropy"`, the marginals `1 / P` and
    `column_mass / P`, and `reg_m=(reg_pred, reg_target)`; with two infinite penalties to `ot.sinkhorn`. Columns that
    are inactive or have no marginal are left out. POT computes in float64. It iterates on `exp(−cost / reg)`, which
    underflows where `cost / reg` is in the hundreds, and stops by increments, for which `stopThr` is `tol / P`: the
    residual is measured on what comes back.

    Args:
        cost: (B, K, P); `inf` forbids a pair.
        column_mass: (B, K) marginal of each column in units where a prediction has 1; not read with `reg_target=0`.
        active: (B, K) bool, False for a column that is absent.
        reg: weight of the entropy, one number or (B,).
        reg_pred: weight of the predictions' marginals, in [0, inf].
        reg_target: weight of the columns' marginals, in [0, inf].
        num_iter: most iterations.
        tol: mass moved by a further sweep at which POT should stop.
        backend: "numpy", or "torch" to stay on the device of `cost`; None for "numpy" on a CPU and "torch" elsewhere.
        method: POT's name of one, of those in `pot_methods`.

    Returns:
        As `solve_sinkhorn`; the residual covers both sides, because POT ends on the columns.

    Raises:
        ValueError: `backend` or `method` is none of those above.
        RuntimeError: POT met numerical errors or returned masses that are not finite or all zero.

    References:
        R. Flamary et al., "POT: Python Optimal Transport", JMLR 2021.
    """
    if backend is None:
        backend = "numpy" if cost.device.type == "cpu" else "torch"
    if backend not in BACKENDS:
        raise ValueError(f"backend must be one of {BACKENDS}, got {backend!r}")
    if method not in pot_methods(reg_pred, reg_target):
        raise ValueError(f"method must be one of {pot_methods(reg_pred, reg_target)}, got {method!r}")
    if is_traced(cost):
        weights = (torch.as_tensor(reg, dtype=torch.float64, device=cost.device), reg_pred, reg_target)
        return Transport(*_operator(cost, column_mass, active, *weights, num_iter, tol, backend, method))
    out, preds = blank(cost), cost.shape[2]
    out.plan.zero_()
    regs = torch.as_tensor(reg, dtype=torch.float64).expand(len(cost)).tolist()
    for image in range(len(cost) if cost.numel() else 0):
        live = active[image] if reg_target == 0 else active[image] & (column_mass[image] > 0)
        columns = (live & cost[image].isfinite().any(1)).nonzero().squeeze(1)
        if not len(columns):
            continue
        matrix = cost[image, columns].T.double()
        masses = column_mass[image, columns].double() / preds
        found = _solve_image(matrix, masses, regs[image], reg_pred, reg_target, num_iter, tol, backend, method)
        out.plan[image, columns] = found.plan.T.to(cost)
        out.pred_potential[image] = found.pred_potential.to(cost)
        out.target_potential[image, columns] = found.target_potential.to(cost)
        out.iterations[image], out.residual[image] = found.iterations, found.residual
    return out


_operator = operator(
    "solve_pot(Tensor cost, Tensor column_mass, Tensor active, Tensor reg, float reg_pred, float reg_target, "
    "int num_iter, float tol, str backend, str method) -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
    lambda cost, column_mass, active, reg, reg_pred, reg_target, num_iter, tol, backend, method: tuple(
        solve_pot(
            cost,
            column_mass,
            active,
            reg,
            reg_pred,
            reg_target,
            num_iter=num_iter,
            tol=tol,
            backend=backend,
            method=method,
        )
    ),
    lambda cost, *_: tuple(blank(cost)),
)


def _solve_image(
    cost: Tensor,
    column_mass: Tensor,
    reg: float,
    reg_pred: float,
    reg_target: float,
    num_iter: int,
    tol: float,
    backend: str,
    method: str,
) -> _Image:
    """Solve one image: `cost` is (P, K), `column_mass` (K,) adds up to about 1."""
    import ot

    preds = len(cost)
    allowed = cost.isfinite().any(1)
    row_mass = torch.full_like(cost[allowed, 0], 1 / preds)
    if reg_target == 0:  # POT divides by the marginal before it takes the power 0
        column_mass = torch.full_like(column_mass, 1 / len(column_mass))
    given: list[Any] = [row_mass, column_mass, cost[allowed]]
    if backend == "numpy":
        given = [x.cpu().numpy() for x in given]
    options = {"method": method, "numItermax": num_iter, "stopThr": tol / preds, "log": True}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        if math.isinf(reg_pred) and math.isinf(reg_target):
            plan, log = ot.sinkhorn(*given, reg, warn=False, **options)
        else:
            penalties = (float(reg_pred), float(reg_target))
            plan, log = ot.unbalanced.sinkhorn_unbalanced(*given, reg, penalties, reg_type="entropy", **options)
    part = preds * torch.as_tensor(plan, device=cost.device)
    broken = any("numerical errors" in str(warning.message).lower() for warning in caught)
    if broken or part.shape != cost[allowed].shape or not bool(part.isfinite().all()) or not float(part.sum()) > 0:
        raise RuntimeError(
            f"POT's {method!r} failed numerically at reg={reg:g}, reg_pred={reg_pred:g}, reg_target={reg_target:g}: "
            "raise reg or use solver='torch'"
        )
    log_row, log_column = (x.to(cost.device) for x in _log_scalings(log, reg))
    whole, potential = torch.zeros_like(cost), torch.zeros_like(cost[:, 0])
    whole[allowed], potential[allowed] = part, reg * log_row
    moved_rows = _moved(part.sum(1), preds * row_mass, log_row, reg, reg_pred)
    moved_columns = _moved(part.sum(0), preds * column_mass, log_column, reg, reg_target)
    residual = max(float(moved_rows.max()), float(moved_columns.max()))
    return _Image(whole, potential, reg * log_column, _count(log), residual)


def _log_scalings(log: dict[str, Any], reg: float) -> tuple[Tensor, Tensor]:
    """Return the logarithms of POT's scalings `u` (P,) and `v` (K,), which each of its methods reports its own way."""
    for names in (("logu", "logv"), ("log_u", "log_v")):
        if names[0] in log:
            return torch.as_tensor(log[names[0]]), torch.as_tensor(log[names[1]])
    if "alpha" in log:
        return torch.as_tensor(log["alpha"]) / reg, torch.as_tensor(log["beta"]) / reg
    return torch.as_tensor(log["u"]).log(), torch.as_tensor(log["v"]).log()


def _count(log: dict[str, Any]) -> int:
    """Return POT's iterations, which it names differently in each solver; one error an iteration where it does not."""
    last = log.get("niter", log.get("n_iter"))
    return len(log["err"]) if last is None else int(last) + 1


def _moved(mass: Tensor, marginal: Tensor, log_scaling: Tensor, reg: float, penalty: float) -> Tensor:
    """Return the mass that a further half-sweep would move, relative above 1, for each entry of one side."""
    share = 1.0 if math.isinf(penalty) else penalty / (penalty + reg)
    gap = share * (marginal.log() - mass.clamp(min=1e-300).log()) - (1 - share) * log_scaling
    return (mass * gap.expm1()).abs() / mass.clamp(min=1.0)
