"""Solve many hard transport problems and look for those that stall: unconverged, wrong, or of many steps."""

import argparse
import json
import math
import statistics
import time
import warnings
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.environment import environment
from benchmarks.hard_costs import INF, Batch, batches, is_feasible
from uotod.match import PartialOT, UnbalancedSinkhorn
from uotod.match.sinkhorn import EntropicMatcher, SinkhornResult

TOO_MANY = 20  # times the median number of steps of a size


@dataclass(frozen=True)
class Finding:
    """A problem, what became of it, and what it took.

    Attributes:
        problem: its kind, in words.
        batch, image: where it is in the sweep.
        size: predictions and columns.
        steps: of the solver.
        residual: by the solver's own account.
        violation: largest mass that a marginal would move, by the plan and its potentials.
        seconds: of the processor, its share of the batch.
        fault: what is wrong with the outcome; empty for nothing.
    """

    problem: str
    batch: int
    image: int
    size: str
    steps: int
    residual: float
    violation: float
    seconds: float
    fault: str


def main() -> None:
    """Run the sweep, print what stalls, and fail if something does."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.sweep", description=__doc__)
    parser.add_argument("--problems", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--num-iter", type=int, default=1000, help="a few cripple the solver: the sweep has to see it")
    parser.add_argument("--json", type=Path, help="also write the findings to this file")
    options = parser.parse_args()
    torch.set_num_threads(1)
    start = time.process_time()
    found = list(solve_all(batches(options.problems, options.seed), options.num_iter))
    facts = summary(found) | {"total seconds": time.process_time() - start}
    for key, value in facts.items():
        rows = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
        print(key if rows else f"{key}: {value}", *(f"\n  {name}: {row}" for name, row in rows), sep="")
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps({"environment": environment(), **facts}, indent=2) + "\n")
    if facts["faults"]:
        raise SystemExit(f"{facts['faults']} of {len(found)} problems stall or come out wrong")


def solve_all(given: Iterable[Batch], num_iter: int = 1000) -> Iterable[Finding]:
    """Yield what becomes of each problem."""
    for index, batch in enumerate(given):
        feasible = _feasible(batch)
        for image in (~feasible).nonzero().flatten().tolist():
            yield _refused(_part(batch, torch.tensor([image])), index, image, num_iter)
        images = feasible.nonzero().flatten()
        if len(images):
            yield from _solved(_part(batch, images), index, images.tolist(), num_iter)


def summary(found: list[Finding]) -> dict[str, Any]:
    """Return how many problems came out wrong, steps and time of each size, and the slowest ones."""
    by_size = defaultdict(list)
    for finding in found:
        by_size[finding.size].append(finding)
    sizes: dict[Any, dict[str, float]] = {}
    slow: list[Any] = []
    ratio: dict[Any, float] = {}
    for size, group in by_size.items():
        median = max(statistics.median([x.steps for x in group if x.steps >= 0] or [1]), 1)
        most = max(group, key=lambda x: x.steps)
        sizes[size] = {
            "problems": len(group),
            "median steps": median,
            "most steps": most.steps,
            "median ms": 1e3 * statistics.median(x.seconds for x in group),
            "most ms": 1e3 * max(x.seconds for x in group),
        }
        ratio |= {id(x): x.steps / median for x in group}
        slow += [x for x in group if x.steps > TOO_MANY * median]
    faults = [x for x in found if x.fault] + [x for x in slow if not x.fault]
    return {
        "problems": len(found),
        "refused as infeasible": sum(x.steps < 0 and not x.fault for x in found),
        "faults": len(faults),
        "unconverged": sum(x.fault == "unconverged" for x in found),
        "above 20 x the median": len(slow),
        "sizes": sizes,
        "first faults": [asdict(x) for x in _apart(faults)],
        "most steps": [asdict(x) for x in _apart(sorted(found, key=lambda x: -ratio[id(x)]), 10)],
        "slowest": [asdict(x) for x in _apart(sorted(found, key=lambda x: -x.seconds), 10)],
    }


def _apart(found: list[Finding], most: int = 30) -> list[Finding]:
    """Return the first finding of each batch, `most` at most."""
    first: dict[int, Finding] = {}
    for finding in found:
        first.setdefault(finding.batch, finding)
    return list(first.values())[:most]


def matcher(batch: Batch, num_iter: int = 1000) -> EntropicMatcher:
    """Return the matcher that solves a batch."""
    common: dict[str, Any] = {
        "reg_dimless": batch.reg_dimless,
        "background": batch.background,
        "num_iter": num_iter,
        "on_unconverged": "ignore",
    }
    if batch.partial:
        return PartialOT(mass=batch.penalties[0], **common)
    return UnbalancedSinkhorn(reg_pred=batch.penalties[0], reg_target=batch.penalties[1], **common)


def column_mass(batch: Batch) -> Tensor:
    """Return the masses (B, K) of the columns, from the definition."""
    preds, count = batch.cost.shape[1], batch.mask.sum(1, keepdim=True).double()
    each = torch.where(count <= preds, 1.0, preds / count) if batch.background else preds / count.clamp(min=1)
    mass = batch.mask * each
    return torch.cat((mass, (preds - count).clamp(min=0)), dim=1) if batch.background else mass


def violation(batch: Batch, result: SinkhornResult) -> Tensor:
    """Return the largest mass (B,) that a marginal would move, relative above 1, by the plan and its potentials."""
    plan = result.plan.double()
    rows, columns = plan.sum(2), plan.sum(1)
    if batch.partial:
        targets = columns[:, : batch.mask.shape[1]]
        total = batch.penalties[0] * batch.mask.sum(1).clamp(max=batch.cost.shape[1])
        over = torch.cat((rows - 1, targets - 1), dim=1).clamp(min=0.0).amax(1)
        return torch.maximum(over, (targets.sum(1) - total).abs())
    allowed = batch.cost.isfinite() & _used(batch).unsqueeze(1)
    wrong = [torch.where(allowed, 0.0, plan).flatten(1)]
    reg = batch.reg_dimless / (math.log(2 * batch.cost.shape[1]) + 1)
    sides = (
        (rows, torch.ones_like(rows), result.pred_potential, batch.penalties[0], allowed.any(2)),
        (columns, column_mass(batch), result.target_potential, batch.penalties[1], allowed.any(1)),
    )
    for mass, marginal, potential, penalty, possible in sides:
        if penalty == 0:
            continue
        # what the marginal would move: all that is missing of an equality, less where entropy holds against it
        given, kept = potential.double(), 1 / (1 + reg / penalty)
        gap = kept * (marginal.clamp(min=1e-300).log() - mass.clamp(min=1e-300).log()) - given / (penalty + reg)
        # a float32 potential is rounded: what that hides is no error of the plan
        blur = 2 * given.abs() / (penalty + reg) * torch.finfo(potential.dtype).eps
        gap = gap.sign() * (gap.abs() - blur).clamp(min=0.0)
        error = (mass * gap.clamp(max=80.0).expm1()).abs() / mass.clamp(min=1.0)
        wrong.append(torch.where(possible & (marginal > 0), error, 0.0))
    return torch.cat(wrong, dim=1).amax(1)


def _used(batch: Batch) -> Tensor:
    """Return which columns (B, K) may take mass."""
    active = batch.mask
    if batch.background:
        active = torch.cat((active, torch.ones_like(active[:, :1])), dim=1)
    return active & ((column_mass(batch) > 0) | (batch.penalties[1] == 0))


def _feasible(batch: Batch) -> Tensor:
    """Tell which images (B,) have a plan."""
    if bool(batch.cost.isfinite().all()):
        return torch.ones(len(batch.cost), dtype=torch.bool)
    if batch.partial:
        return torch.tensor([_carries(*x, batch) for x in zip(batch.cost, batch.mask, strict=True)])
    allowed, mass = batch.cost.isfinite() & _used(batch).unsqueeze(1), column_mass(batch)
    return torch.tensor([is_feasible(*x, batch.penalties) for x in zip(allowed, mass, strict=True)])


def _carries(cost: Tensor, mask: Tensor, batch: Batch) -> bool:
    """Tell whether the allowed pairs of an image carry the share that is transported."""
    preds, count = len(cost), int(mask.sum())
    total = batch.penalties[0] * min(preds, count)
    # one more column takes what predictions keep, one more row what targets lack: a balanced problem
    extended = torch.ones(preds + 1, count + 1, dtype=torch.bool)
    extended[:preds, :count], extended[-1, -1] = cost[:, : len(mask)][:, mask].isfinite(), False
    rows = torch.ones(preds + 1, dtype=torch.float64)
    rows[-1] = count - total
    columns = torch.ones(count + 1, dtype=torch.float64)
    columns[-1] = preds - total
    return is_feasible(extended, columns, (INF, INF), rows)


def _part(batch: Batch, images: Tensor) -> Batch:
    return replace(batch, cost=batch.cost[images], mask=batch.mask[images])


def _refused(batch: Batch, index: int, image: int, num_iter: int) -> Finding:
    """Return what becomes of one problem without a plan."""
    start, fault = time.process_time(), "solved, though infeasible"
    try:
        matcher(batch, num_iter).solve(batch.cost, batch.mask)
    except ValueError as error:
        fault = "" if "infeasible" in str(error) else f"not called infeasible: {error}"
    seconds = time.process_time() - start
    return Finding(batch.says(), index, image, _size(batch), -1, 0.0, 0.0, seconds, fault)


def _solved(batch: Batch, index: int, images: list[int], num_iter: int) -> Iterable[Finding]:
    """Yield what becomes of problems that have a plan."""
    start, size = time.process_time(), _size(batch)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            result = matcher(batch, num_iter).solve(batch.cost, batch.mask)
    except Exception as error:
        fault = f"{type(error).__name__}: {error}"
        yield from (Finding(batch.says(), index, x, size, 0, INF, INF, 0.0, fault) for x in images)
        return
    seconds = (time.process_time() - start) / len(images)
    reg = batch.reg_dimless / (math.log(2 * batch.cost.shape[1]) + 1)
    # what float64 leaves where penalties let potentials go far; 1e-11 at most where they stay near the costs
    rounding = (8 * torch.finfo(torch.float64).eps * result.target_potential.abs().double() / reg).amax(1)
    limits = rounding.clamp(min=max(1e-6, 8 * torch.finfo(batch.cost.dtype).eps)).tolist()
    wrongs = violation(batch, result).tolist()
    for image, steps, left, wrong, attainable in zip(
        images, result.iterations.tolist(), result.residual.tolist(), wrongs, limits, strict=True
    ):
        fault = "" if left <= attainable else "unconverged"
        fault = fault or ("" if wrong <= 20 * attainable else "violates the marginals")
        yield Finding(batch.says(), index, image, size, steps, left, wrong, seconds, fault)


def _size(batch: Batch) -> str:
    kind = "partial " if batch.partial else ""
    return kind + "{} x {}".format(*batch.cost.shape[1:])


if __name__ == "__main__":
    main()
