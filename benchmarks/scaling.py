"""Grow images, predictions, targets and classes one at a time: time and peak memory in, exponents out."""

import argparse
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from benchmarks.contender import Contender
from benchmarks.environment import environment
from benchmarks.measure import interleave
from benchmarks.ours import contender, on_points
from benchmarks.report import exponent_table, markdown
from benchmarks.targets import Row
from benchmarks.workloads import Workload, make_problem
from uotod import recipes
from uotod.loss import DetectionLoss
from uotod.match import Hungarian, UnbalancedSinkhorn

BASE = Workload("grid", 4, 32, (32, 32), queries=48**2)
SIZES: dict[str, list[int]] = {
    "B": [2, 4, 8, 16, 32],
    "P": [side**2 for side in (32, 45, 64, 90, 128)],
    "T": [8, 16, 32, 64, 128],
    "C": [16, 32, 64, 128, 256],
}
CRITERIA: dict[str, Callable[[int], DetectionLoss]] = {
    "Hungarian": lambda classes: on_points(Hungarian),
    "UnbalancedSinkhorn": lambda classes: on_points(UnbalancedSinkhorn),
    "IoUThreshold": recipes.retinanet,
    "TaskAligned": lambda classes: recipes.yolov8(classes, weights={"dfl": 0.0}),
}
STEEP = 1.1  # an exponent above which growth is worse than B · P · T, noise aside


def main() -> None:
    """Run the study and warn of what grows too fast."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scaling", description=__doc__)
    parser.add_argument("--json", type=Path, help="also write points and exponents to this file")
    parser.add_argument("--budget", type=float, default=4.0, help="seconds for the points of one size of one criterion")
    options = parser.parse_args()
    torch.set_num_threads(1)
    points = [point for name in CRITERIA for size in SIZES for point in measure(name, size, options.budget)]
    found = exponents(points)
    print(markdown(exponent_table(found)))
    for line in steep(found):
        print(line)
    if options.json:
        facts = {"environment": environment(), "points": points, "exponents": found}
        options.json.write_text(json.dumps(facts, indent=2) + "\n")


def measure(name: str, size: str, budget: float) -> list[Row]:
    """Return time and memory of forward and backward of a criterion as one size grows."""
    steps = {value: _contender(name, enlarged(size, value)) for value in SIZES[size]}
    timings = interleave({str(value): step.stages["full"] for value, step in steps.items()}, repeats=9, budget=budget)
    return [
        {
            "criterion": name,
            "size": size,
            "value": value,
            "time_ms": 1e3 * timings[str(value)].cpu,
            "peak_mib": step.growth(),
        }
        for value, step in steps.items()
    ]


def enlarged(size: str, value: int) -> Workload:
    """Return the workload of the study with one size replaced."""
    changes: dict[str, Any] = {
        "B": {"images": value},
        "P": {"queries": value},
        "T": {"targets": (value, value)},
        "C": {"classes": value},
    }
    return replace(BASE, **changes[size])


def exponents(points: Sequence[Row]) -> list[Row]:
    """Return the exponents of time and memory for each criterion and size, over the larger half of its points."""
    groups: dict[tuple[str, str], list[Row]] = {}
    for point in points:
        groups.setdefault((point["criterion"], point["size"]), []).append(point)
    rows: list[Row] = []
    for (name, size), group in groups.items():
        half = sorted(group, key=lambda point: float(point["value"]))[len(group) // 2 :]
        values = [float(point["value"]) for point in half]
        fits = {key: fit_exponent(values, [float(x[field]) for x in half]) for key, field in _FIELDS.items()}
        rows.append({"criterion": name, "size": size, **fits})
    return rows


def fit_exponent(sizes: Sequence[float], values: Sequence[float]) -> float | None:
    """Return the slope of the least-squares line through the logarithms, None unless all values are positive."""
    if len(sizes) < 2 or min(values) <= 0:
        return None
    x, y = ([math.log(value) for value in given] for given in (sizes, values))
    middle, height = sum(x) / len(x), sum(y) / len(y)
    return sum((a - middle) * (b - height) for a, b in zip(x, y, strict=True)) / sum((a - middle) ** 2 for a in x)


def steep(rows: Sequence[Row]) -> list[str]:
    """Return a warning for each exponent that is larger than those of B · P · T."""
    return [
        f"warning: {key} of {row['criterion']} grows as {row['size']}^{row[key]:.2f}"
        for row in rows
        for key in _FIELDS
        if row[key] is not None and row[key] > STEEP
    ]


def _contender(name: str, workload: Workload) -> Contender:
    return contender(name, CRITERIA[name](workload.classes), workload, make_problem(workload))


_FIELDS = {"time": "time_ms", "memory": "peak_mib"}

if __name__ == "__main__":
    main()
