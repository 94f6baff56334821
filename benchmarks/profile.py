"""Where a step of ours spends its time: the stages of the library in, their shares out.

`python -m benchmarks.profile D2 D16 --json runs/profile.json` prints a table; times are of the processor, medians.
"""

import argparse
import json
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.contender import Contender
from benchmarks.ours import ours
from benchmarks.report import markdown, profile_table
from benchmarks.workloads import WORKLOADS, make_problem
from uotod.criterion import detection, terms
from uotod.criterion.terms import Classification, Localization
from uotod.match import hungarian, sinkhorn as _sinkhorn
from uotod.match.base import Matcher

# a stage that another one calls counts on its own account only
STAGES: dict[str, tuple[Any, str]] = {
    "parsing": (detection, "parse_scene"),
    "matching, the rest": (Matcher, "scene_plan"),
    "cost": (Matcher, "pair_cost"),
    "assignment": (hungarian, "assign_predictions"),
    "transport": (_sinkhorn, "solve_sinkhorn"),
    "mining": (Classification, "background_losses"),
    "folding": (terms, "fold"),
    "classification": (Classification, "losses"),
    "localisation": (Localization, "losses"),
    "backward": (torch.Tensor, "backward"),
}
REST = "the rest"
DEFAULT = ["D2", "D16", "C16", "S8", "S8h", "Y1"]


class Clock:
    """The time of each stage, without that of the stages inside it."""

    def __init__(self) -> None:
        self.spent: defaultdict[str, float] = defaultdict(float)
        self._inside = [0.0]

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Add the time until the end of the block to a stage."""
        self._inside.append(0.0)
        start = time.process_time()
        try:
            yield
        finally:
            whole = time.process_time() - start
            self.spent[name] += whole - self._inside.pop()
            self._inside[-1] += whole

    def timed(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """Return the function with its calls timed."""

        def call(*args: Any, **kwargs: Any) -> Any:
            with self.stage(name):
                return function(*args, **kwargs)

        return call


class Operations(TorchDispatchMode):
    """Count the tensor operations."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += 1
        return func(*args, **(kwargs or {}))


def profile(contender: Contender, repeats: int = 30) -> dict[str, float]:
    """Return the median seconds of each stage of forward and backward, and the number of "operations" of one."""
    clock = Clock()
    found: dict[str, list[float]] = {name: [] for name in (*STAGES, REST)}
    with ExitStack() as stack:
        for name, (owner, attribute) in STAGES.items():
            stack.enter_context(patch.object(owner, attribute, clock.timed(name, getattr(owner, attribute))))
        for repeat in range(repeats + 3):
            clock.spent.clear()
            with clock.stage(REST):
                contender.stages["full"]()
            for name, values in found.items():
                if repeat >= 3:
                    values.append(clock.spent[name])
    with Operations() as operations:
        contender.stages["full"]()
    return {name: statistics.median(values) for name, values in found.items()} | {"operations": operations.count}


def main(arguments: Sequence[str] | None = None) -> None:
    """Profile the workloads that the command line names."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.profile", description=__doc__)
    parser.add_argument("workloads", nargs="*", default=DEFAULT, help=f"of {', '.join(WORKLOADS)}")
    parser.add_argument("--json", type=Path, help="also write the profiles to this file")
    options = parser.parse_args(arguments)
    known = [name for name, workload in WORKLOADS.items() if workload.kind != "transport"]
    if unknown := set(options.workloads) - set(known):
        parser.error(f"unknown workloads {sorted(unknown)}, choose from {known}")
    torch.set_num_threads(1)
    profiles = {}
    for name in options.workloads:
        first = ours(WORKLOADS[name], make_problem(WORKLOADS[name]))[0]
        profiles[f"{name}, {first.rule}"] = profile(first)
    print(markdown(profile_table(profiles)))
    if options.json:
        options.json.write_text(json.dumps(profiles, indent=2) + "\n")


if __name__ == "__main__":
    main()
