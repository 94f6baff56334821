"""The original uotod, which shares our name: in a process of its own that takes turns with ours."""

import functools
import os
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from torch.nn.functional import one_hot

from benchmarks.contender import Contender
from benchmarks.measure import Spent, Step
from benchmarks.packages import PEERS
from benchmarks.workloads import Problem, Workload

# What it is asked for, by the kind of the workload. RetinaNet is left out, and Y8 with it: its tensors of predictions
# times targets times classes would need several times 1.5 GiB an image.
RULES = {
    "detr": "Hungarian",
    "dino": "Hungarian",
    "uot": "unbalanced",
    "ssd": "closest target",  # the nearest to SSD's rule that it has
    "yolo": "Hungarian",
}
# Its transport stops after 70 iterations, and mining keeps a negative less in each image.
TOLERANCE = {"uot": 1e-2}
_FOLDER = PEERS / "uotod"


class Server:
    """A process that imports the original."""

    def __init__(self) -> None:
        path = os.pathsep.join((str(_FOLDER), str(Path(__file__).parents[2])))
        self._process = subprocess.Popen(
            [sys.executable, "-W", "ignore", "-m", "benchmarks.original_server"],
            cwd=_FOLDER,
            env=os.environ | {"PYTHONPATH": path},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )

    def ask(self, operation: str, *given: Any) -> Any:
        """Return the answer to a request."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        pickle.dump((operation, given), self._process.stdin)
        self._process.stdin.flush()
        return pickle.load(self._process.stdout)

    def time(self, operation: str) -> Spent:
        """Return what a step took there."""
        return Spent(*self.ask(operation))


@functools.cache
def _server() -> Server:
    return Server()


def installed() -> bool:
    """Tell whether `make peers` has fetched it."""
    return (_FOLDER / "uotod").is_dir()


def original(workload: Workload, problem: Problem) -> Contender:
    """Return its criterion; the process holds one problem at a time, the one loaded last."""
    server = _server()
    target = problem.padded()
    if workload.background == "first":
        target["labels"] = target["labels"] + target["mask"]
    elif workload.background == "none":  # then it wants one-hot labels
        target["labels"] = one_hot(target["labels"], workload.classes).float()
    given: dict[str, Any] = target | {"pred_logits": problem.logits.detach(), "pred_boxes": problem.boxes.detach()}
    given["anchors"] = None
    if workload.background == "first":  # SSD's: on points it is asked for what reads none
        assert problem.anchors is not None
        given["anchors"] = problem.anchors.places.expand_as(given["pred_boxes"][0])
    server.ask("load", workload.kind, workload.classes, given)
    stages: dict[str, Step] = {stage: functools.partial(server.time, stage) for stage in ("match", "forward", "full")}
    result = functools.partial(server.ask, "result")
    growth = functools.partial(server.ask, "growth")
    tolerance = TOLERANCE.get(workload.kind, 1e-4)
    return Contender("original uotod", RULES[workload.kind], lambda: torch.tensor(result()), stages, growth, tolerance)
