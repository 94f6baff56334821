"""Costs that are hard for transport by their structure, drawn from a seed: what the sweep and its test solve."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy.optimize import linprog
from torch import Generator, Tensor

INF = math.inf
SIZES = [(1, 1), (1, 4), (3, 1), (5, 5), (8, 3), (4, 12), (20, 20), (60, 12), (30, 100), (100, 40), (300, 20)]  # P, T
PENALTIES = [
    *[(INF, INF)] * 6,  # the balanced problem is the hardest
    *[(INF, 1.0), (1.0, INF), (INF, 1e-3), (1e-3, INF), (INF, 1e6), (1e6, INF), (INF, 0.0), (0.0, INF)],
    *[(1.0, 1.0), (0.1, 0.1), (10.0, 10.0), (1e3, 1e3), (1e5, 1e5), (1e6, 1e6), (1e8, 1e8)],
    *[(1e3, 1e-3), (1e-3, 1e3), (1e-3, 1e-3), (1.0, 1e6), (1e6, 1.0), (0.0, 1.0), (1.0, 0.0), (0.0, 0.0)],
]
REGS = [0.12, 0.12, 0.12, 1.0, 0.012, 0.0012]  # reg_dimless


@dataclass(frozen=True)
class Batch:
    """Problems of one structure.

    Attributes:
        structure: name in `STRUCTURES`.
        pattern: name in `PATTERNS`, of the forbidden pairs.
        cost: (B, P, K), `inf` where a pair is forbidden.
        mask: (B, T).
        background: whether the last column is one.
        penalties: of predictions and targets; or the share that is transported, twice, if `partial`.
        reg_dimless: entropy.
        partial: whether it is a problem of partial transport.
    """

    structure: str
    pattern: str
    cost: Tensor
    mask: Tensor
    background: bool
    penalties: tuple[float, float]
    reg_dimless: float
    partial: bool

    def says(self) -> str:
        """Return what kind of problems these are."""
        _, preds, columns = self.cost.shape
        kind = f"partial {self.penalties[0]:g}" if self.partial else "{:g}, {:g}".format(*self.penalties)
        size = f"{preds} x {columns}{' with background' if self.background else ''}"
        dtype = str(self.cost.dtype).removeprefix("torch.")
        return f"{self.structure}, {self.pattern}; {size}; {kind}; reg_dimless {self.reg_dimless:g}; {dtype}"


Draw = Callable[[Generator, int, int, int], Tensor]  # of images, predictions and columns


def batches(problems: int, seed: int, images: int = 20) -> Iterator[Batch]:
    """Yield batches of `problems` problems in all; a seed draws the same ones everywhere."""
    random = torch.Generator().manual_seed(seed)
    for start in range(0, problems, images):
        yield draw(random, min(images, problems - start))


def draw(random: Generator, images: int) -> Batch:
    """Return a batch of everything at random."""
    structure, pattern = _pick(random, list(STRUCTURES)), _pick(random, list(PATTERNS))
    preds, targets = _pick(random, SIZES)
    background = _uniform(random) < 0.7
    partial = _uniform(random) < 0.05 and preds * targets < 500
    penalties = _pick(random, [(x, x) for x in (0.2, 0.7, 1.0)] if partial else PENALTIES)
    cost = STRUCTURES[structure](random, images, preds, targets + background)
    allowed = PATTERNS[pattern](random, images, preds, targets + background)
    if background and not partial and _uniform(random) < 0.7:  # as of a matcher: a constant that nothing forbids
        cost[:, :, -1], allowed[:, :, -1] = _uniform(random), True
    if _uniform(random) < 0.1 and max(penalties) >= 1:  # else masses grow beyond a dtype
        cost = cost - _uniform(random)
    mask = torch.ones(images, targets, dtype=torch.bool)
    if _uniform(random) < 0.3:
        mask = torch.rand(images, targets, generator=random) < 0.8
        mask[:, 0] |= not background
    dtype = _pick(random, [torch.float32, torch.float64])
    cost = cost.masked_fill(~allowed, INF).to(dtype)
    return Batch(structure, pattern, cost, mask, background, penalties, _pick(random, REGS), partial)


def is_feasible(allowed: Tensor, columns: Tensor, penalties: tuple[float, float], rows: Tensor | None = None) -> bool:
    """Tell whether a plan meets the marginals, by linear programming.

    Args:
        allowed: (P, K) bool.
        columns: (K,) masses of the columns, where a prediction has 1.
        penalties: of predictions and columns.
        rows: (P,) masses of the predictions; None for 1.
    """
    pred, column = penalties
    usable = allowed & ((columns > 0) | (column == 0))
    if pred == INF and column < INF:
        return bool(usable.any(1).all())
    if column == INF and pred < INF:
        return bool((usable.any(0) | (columns == 0)).all())
    if column < INF or not allowed.numel():
        return True
    preds, count = allowed.shape
    sums = np.vstack([np.kron(np.eye(preds), np.ones((1, count))), np.kron(np.ones((1, preds)), np.eye(count))])
    each = np.ones(preds) if rows is None else rows.numpy()
    right = np.concatenate([each, columns.double().numpy()])
    bounds = [(0, None if x else 0) for x in usable.flatten().tolist()]
    return int(linprog(np.zeros(preds * count), A_eq=sums, b_eq=right, bounds=bounds).status) == 0


def _uniform(random: Generator) -> float:
    return float(torch.rand((), generator=random, dtype=torch.float64))


def _pick(random: Generator, choices: list[Any]) -> Any:
    return choices[int(torch.randint(len(choices), (), generator=random))]


def _rand(random: Generator, *shape: int) -> Tensor:
    return torch.rand(*shape, generator=random, dtype=torch.float64)


def _places(images: int, preds: int, columns: int) -> tuple[Tensor, Tensor]:
    """Return positions of predictions (B, P, 1) and columns (B, 1, K) in [0, 1)."""
    pred, column = (torch.arange(n, dtype=torch.float64) / n for n in (preds, columns))
    return pred[None, :, None].expand(images, -1, 1), column[None, None, :].expand(images, 1, -1)


def _zero_one(random: Generator, images: int, preds: int, columns: int) -> Tensor:
    return (_rand(random, images, preds, columns) < _rand(random, images, 1, 1)).double()


def _identity(random: Generator, images: int, preds: int, columns: int) -> Tensor:
    apart = torch.arange(preds)[:, None] != torch.arange(columns)
    return apart.double().expand(images, -1, -1).clone()


def _rank_one(random: Generator, images: int, preds: int, columns: int) -> Tensor:
    power = 1 + 4 * _rand(random, images, 1, 1)
    return (_rand(random, images, preds, 1) * _rand(random, images, 1, columns)) ** power


def _blocks(random: Generator, images: int, preds: int, columns: int) -> Tensor:
    count = 1 + int(4 * _uniform(random))
    pred, column = (torch.randint(count, (images, n), generator=random) for n in (preds, columns))
    small = 0.1 * _rand(random, images, preds, columns) * (_uniform(random) < 0.5)
    return (pred.unsqueeze(2) != column.unsqueeze(1)).double() + small


def _staircase(random: Generator, images: int, preds: int, columns: int) -> Tensor:
    pred, column = _places(images, preds, columns)
    steps = 1 + torch.randint(6, (images, 1, 1), generator=random)
    return ((pred - column) * steps).ceil().clamp(min=0.0)


def _ties(random: Generator, images: int, preds: int, columns: int) -> Tensor:
    return torch.randint(4, (images, preds, columns), generator=random).double()


def _one_column(random: Generator, images: int, preds: int, columns: int) -> Tensor:
    cost = torch.ones(images, preds, columns, dtype=torch.float64)
    cost[:, :, int(columns * _uniform(random))] = _rand(random, images, preds) * (_uniform(random) < 0.5)
    return cost


def _huge_range(random: Generator, images: int, preds: int, columns: int) -> Tensor:
    return 10 ** (-8 * _rand(random, images, preds, columns))


def _one_outlier(random: Generator, images: int, preds: int, columns: int) -> Tensor:
    cost = _rand(random, images, preds, columns)
    cost[:, int(preds * _uniform(random)), int(columns * _uniform(random))] = 10 ** (4 * _uniform(random))
    return cost


def _tiers(random: Generator, images: int, preds: int, columns: int) -> Tensor:
    distance = (_rand(random, images, preds, 1) - _rand(random, images, 1, columns)).abs()
    radius, wide = _rand(random, images, 1, columns) / 4, 10 ** (3 * _rand(random, images, 1, 1))
    return _rand(random, images, preds, columns) + wide * (distance > radius) + wide / 9 * (distance > radius / 2)


def _line(random: Generator, images: int, preds: int, columns: int) -> Tensor:
    power = 0.5 + 3 * _rand(random, images, 1, 1)
    return (_rand(random, images, preds, 1) - _rand(random, images, 1, columns)).abs() ** power


def _shared(random: Generator, images: int, preds: int, columns: int) -> Tensor:
    return _rand(random, images, preds, 1).expand(-1, -1, columns) + 1e-3 * _rand(random, images, preds, columns)


STRUCTURES: dict[str, Draw] = {
    "uniform": _rand,
    "0/1": _zero_one,
    "identity": _identity,
    "rank one": _rank_one,
    "blocks": _blocks,
    "staircase": _staircase,
    "ties": _ties,
    "one column": _one_column,
    "huge range": _huge_range,
    "one outlier": _one_outlier,
    "tiers": _tiers,
    "line": _line,
    "columns alike": _shared,
}


def _all(random: Generator, images: int, preds: int, columns: int) -> Tensor:
    return torch.ones(images, preds, columns, dtype=torch.bool)


def _some(random: Generator, images: int, preds: int, columns: int) -> Tensor:
    allowed = _rand(random, images, preds, columns) < _rand(random, images, 1, 1)
    return allowed | (_rand(random, images, 1, 1) < 0.5) & _diagonal(preds, columns)


def _triangle(random: Generator, images: int, preds: int, columns: int) -> Tensor:
    """Return pairs of which a balanced plan can use those of the diagonal alone, if there are as many of both."""
    pred, column = _places(images, preds, columns)
    allowed = pred >= column
    return torch.where(_rand(random, images, 1, 1) < 0.5, allowed, allowed | _diagonal(preds, columns))


def _empty_line(random: Generator, images: int, preds: int, columns: int) -> Tensor:
    allowed = _all(random, images, preds, columns)
    if _uniform(random) < 0.5:
        allowed[:, int(preds * _uniform(random))] = False
    else:
        allowed[:, :, int(columns * _uniform(random))] = False
    return allowed


def _bottleneck(random: Generator, images: int, preds: int, columns: int) -> Tensor:
    """Return pairs of which some predictions may take a few columns alone: too few, or just enough."""
    few = torch.arange(preds)[None, :, None] < preds * _rand(random, images, 1, 1)
    narrow = torch.arange(columns) < columns * _rand(random, images, 1, 1)
    return ~few | narrow


def _components(random: Generator, images: int, preds: int, columns: int) -> Tensor:
    pred, column = _places(images, preds, columns)
    count = 1 + torch.randint(5, (images, 1, 1), generator=random)
    return (pred * count).floor() == (column * count).floor()


def _diagonal(preds: int, columns: int) -> Tensor:
    """Return pairs (1, P, K) that give every prediction a column and every column a prediction."""
    pred, column = torch.arange(preds)[:, None], torch.arange(columns)
    return ((pred % columns == column) | (column % preds == pred))[None]


PATTERNS: dict[str, Draw] = {
    "nothing forbidden": _all,
    "nothing forbidden either": _all,
    "nothing forbidden at all": _all,
    "some forbidden": _some,
    "triangle": _triangle,
    "empty line": _empty_line,
    "bottleneck": _bottleneck,
    "components": _components,
}
