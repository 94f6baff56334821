"""Write 1000 random transport problems and their plans, by the oracle in float64, to `tests/data/unbalanced_plans.npz`.

Run `python -m tests.oracles.make_unbalanced_plans` from the root of the repository; it takes about a minute. Every plan
has passed the oracle's own check, `optimality_residual`, which knows nothing of how the plan was found.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import NamedTuple

import numpy as np

from tests.oracles.transport import Array, marginals, optimality_residual, unbalanced_plan

FILE = Path(__file__).resolve().parents[1] / "data" / "unbalanced_plans.npz"
NUMBER = 1000
REGS = (1.0, 0.1, 0.05, 0.02, 0.005, 1e-3)
PENALTIES = (
    (1.0, 1.0),
    (0.1, 0.1),
    (100.0, 0.01),
    (0.01, 100.0),
    (1e3, 1e-3),
    (100.0, 100.0),
    (math.inf, 0.0),
    (0.0, math.inf),
    (math.inf, math.inf),
)


class Problem(NamedTuple):
    """One image: what a matcher is given, and the settings it is solved at."""

    cost: Array  # (P, K) float32 numbers whose largest absolute one is 1; K = T + 1 with a background, else T
    mask: np.ndarray  # (T,) bool
    background: bool
    reg: float
    reg_pred: float
    reg_target: float

    @property
    def columns(self) -> np.ndarray:
        """Where a column is no padding, (K,) bool."""
        return np.append(self.mask, True) if self.background else self.mask


def random_problem(index: int) -> Problem:
    """Return a problem that depends on nothing but its index; the settings pass through the grid in turn."""
    draw = np.random.default_rng(index)
    (reg_pred, reg_target), reg = list(product(PENALTIES, REGS))[index % (len(PENALTIES) * len(REGS))]
    preds, targets, background = int(draw.integers(1, 41)), int(draw.integers(0, 11)), bool(draw.random() < 0.75)
    mask = draw.random(targets) < 0.8
    if not background and not mask.any():
        mask = np.append(mask, True)
    cost = draw.random((preds, len(mask) + background))
    kind = draw.integers(4)
    if kind == 1:  # ties
        cost = cost.round(1)
    elif kind == 2:  # negative costs, such as −probability and −GIoU
        cost = cost - 0.5
    elif kind == 3:  # a few good pairs among many bad ones
        cost = 1 - cost**4
    if background:
        cost[:, -1] = draw.choice([0.25, 0.5, 1.0])
    problem = Problem(cost, mask, background, reg, reg_pred, reg_target)
    largest = np.abs(cost[:, problem.columns]).max() or 1.0
    return problem._replace(cost=(cost / largest).astype(np.float32))


def oracle_plan(problem: Problem) -> Array:
    """Return the plan (P, K), 0 on padding."""
    cost, (a, b) = (
        problem.cost[:, problem.columns],
        marginals(len(problem.cost), int(problem.mask.sum()), problem.background),
    )
    penalties = problem.reg, problem.reg_pred, problem.reg_target
    plan = np.zeros(problem.cost.shape)
    found = unbalanced_plan(cost, a, b, *penalties)
    if optimality_residual(found, cost, a, b, *penalties) > 1e-10:
        raise ArithmeticError(f"the plan of {problem} is not optimal")
    plan[:, problem.columns] = found
    return plan


def stored() -> Iterator[tuple[Problem, Array]]:
    """Yield the stored problems and their plans."""
    with np.load(FILE) as file:
        data = {name: file[name] for name in file.files}
    entry = column = 0
    for preds, targets, background, *settings in data["settings"].tolist():
        targets = int(targets)
        shape = int(preds), targets + int(background)
        part = slice(entry, entry + math.prod(shape))
        cost, plan = (data[name][part].reshape(shape) for name in ("cost", "plan"))
        yield Problem(cost, data["mask"][column : column + targets], bool(background), *settings), plan
        entry, column = part.stop, column + targets


def main() -> None:
    """Write the file."""
    problems = [random_problem(index) for index in range(NUMBER)]
    np.savez_compressed(
        FILE,
        settings=np.array([(len(p.cost), len(p.mask), *p[2:]) for p in problems], dtype=np.float64),
        mask=np.concatenate([p.mask for p in problems]),
        cost=np.concatenate([p.cost.ravel() for p in problems]),
        # rounded to 6e-8 of a mass; float64 would not fit in 1 MB
        plan=np.concatenate([oracle_plan(p).ravel() for p in problems]).astype(np.float32),
    )


if __name__ == "__main__":
    main()
