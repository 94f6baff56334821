"""Time functions side by side: contenders in, medians and ratios of interleaved repeats out."""

import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

Step = Callable[[], object]


class Timing(NamedTuple):
    """Seconds of one contender in one stage.

    Attributes:
        wall: median time.
        cpu: median processor time of the process.
        spread: (75th - 25th percentile) / median of the wall time.
    """

    wall: float
    cpu: float
    spread: float


def interleave(steps: Mapping[str, Step], *, repeats: int = 15, budget: float = 20.0) -> dict[str, Timing]:
    """Run all steps in turn, again and again, so that a slow moment of the machine meets them all.

    Args:
        steps: one function for each contender; each is run once before it counts.
        repeats: rounds at most.
        budget: seconds after which no further round begins; three rounds are run in any case.
    """
    for step in steps.values():
        step()
    wall: dict[str, list[float]] = {name: [] for name in steps}
    cpu: dict[str, list[float]] = {name: [] for name in steps}
    begin = time.perf_counter()
    for done in range(repeats):
        if done >= 3 and time.perf_counter() - begin > budget:
            break
        for name, step in steps.items():
            start, start_cpu = time.perf_counter(), time.process_time()
            step()
            cpu[name].append(time.process_time() - start_cpu)
            wall[name].append(time.perf_counter() - start)
    return {
        name: Timing(statistics.median(wall[name]), statistics.median(cpu[name]), _spread(wall[name])) for name in steps
    }


def peak_memory(arguments: list[str]) -> float:
    """Return the MiB by which a step raises the peak resident memory of a fresh process.

    The process runs `python -m benchmarks --peak ...`, which prints `resident_growth` of its step.
    """
    command = [sys.executable, "-m", "benchmarks", "--peak", *arguments]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[-1])


def resident_growth(step: Step) -> float:
    """Return the MiB by which `step` raises the peak resident memory of this process, where Linux tells."""
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts again at what is resident now
    before = _status("VmRSS")
    step()
    return (_status("VmHWM") - before) / 1024


def _status(field: str) -> int:
    """Return a field of the process's status, in KiB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{field}:"))


def _spread(values: list[float]) -> float:
    if len(values) < 4:
        return 0.0
    low, middle, high = statistics.quantiles(values, n=4)
    return (high - low) / middle
