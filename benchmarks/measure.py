"""Time functions side by side: contenders in, medians of interleaved repeats out, and the growth of memory of one."""

import ctypes
import random
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

Step = Callable[[], object]


class Spent(NamedTuple):
    """Seconds that a step took; a step that runs in another process returns its own."""

    wall: float
    cpu: float


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


def interleave(steps: Mapping[str, Step], *, repeats: int = 41, budget: float = 20.0) -> dict[str, Timing]:
    """Run all steps in turn, again and again, so that a slow moment of the machine meets them all.

    The order of a round is random, with a fixed seed: whoever comes after the largest finds the caches empty.

    Args:
        steps: one function for each contender; each is run once before it counts.
        repeats: rounds at most.
        budget: seconds after which no further round begins; three rounds are run in any case.
    """
    for step in steps.values():
        step()
    spent: dict[str, list[Spent]] = {name: [] for name in steps}
    order, random_order = list(steps), random.Random(0)
    begin = time.perf_counter()
    for done in range(repeats):
        if done >= 3 and time.perf_counter() - begin > budget:
            break
        random_order.shuffle(order)
        for name in order:
            spent[name].append(timed(steps[name]))
    return {name: _summarise(rounds) for name, rounds in spent.items()}


def timed(step: Step) -> Spent:
    """Run a step and return what it took, by its own account if it has one."""
    start, start_cpu = time.perf_counter(), time.process_time()
    own = step()
    cpu, wall = time.process_time() - start_cpu, time.perf_counter() - start
    return own if isinstance(own, Spent) else Spent(wall, cpu)


def resident_growth(step: Step) -> float:
    """Return the MiB by which `step` raises the peak resident memory of this process, where Linux tells."""
    ctypes.CDLL(None).malloc_trim(0)  # memory freed earlier is the system's again, so that the step has to ask for it
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts again at what is resident now
    before = _status("VmRSS")
    step()
    return max(_status("VmHWM") - before, 0) / 1024


def _status(field: str) -> int:
    """Return a field of the process's status, in KiB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{field}:"))


def _summarise(rounds: list[Spent]) -> Timing:
    wall = [spent.wall for spent in rounds]
    return Timing(statistics.median(wall), statistics.median(spent.cpu for spent in rounds), _spread(wall))


def _spread(values: list[float]) -> float:
    if len(values) < 4:
        return 0.0
    low, middle, high = statistics.quantiles(values, n=4)
    return (high - low) / middle
