"""Steps whose memory `test_memory` bounds, each in its own process.

`python -m tests.support.memory_cases` reads a name a line and answers each with a line: P and the MiB of the step.
"""

import os
import sys
from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor, nn

from benchmarks.measure import Step, resident_growth
from benchmarks.ours import contender
from benchmarks.peers.loops import loop
from benchmarks.workloads import Problem, Workload, make_problem
from uotod import match, recipes
from uotod.loss import DetectionLoss, SigmoidFocalLoss
from uotod.match import Hungarian, Matcher

NONE = {"reduction": "none"}
SSD = Workload("ssd", 32, 20, (1, 40))
RETINA = Workload("retina", 4, 80, (1, 40))
CROWD = Workload("yolo", 1, 80, (1000, 1000))  # 8400 points
CROWDED_ANCHORS = Workload("retina", 1, 8, (1000, 1000))  # 120087 anchors
CUSTOM = Workload("yolo", 1, 80, (300, 300))


class CrossEntropy(nn.Module):
    """A classification loss of somebody's own on one-hot rows."""

    takes_one_hot = True
    reduction = "none"

    def forward(self, logits: Tensor, targets: Tensor) -> Tensor:
        return nn.functional.binary_cross_entropy_with_logits(logits, targets, reduction="none").sum(-1)


class Corners(nn.Module):
    """A localisation loss of somebody's own on rows of boxes."""

    reduction = "none"

    def forward(self, boxes: Tensor, target_boxes: Tensor) -> Tensor:
        return (boxes - target_boxes).abs().sum(-1)


class Case(NamedTuple):
    """A step on a workload, and the tensors of four bytes a number that it may have alive at once.

    Attributes:
        workload: the problem.
        step: makes the step from a problem.
        pairs: their number of size B · P · T, such as a cost; none for rules that need only maxima.
        scores: their number of size B · P · C, such as the gradient of the logits.
    """

    workload: Workload
    step: Callable[[Workload, Problem], Step]
    pairs: int = 0
    scores: int = 0

    def bound(self, preds: int) -> float:
        """Return the MiB that the step may take with P predictions; those of boxes and indices count besides."""
        size = self.workload
        each = self.pairs * size.targets[1] + self.scores * size.classes + NUMBERS_OF_A_PREDICTION
        return 4 * size.images * preds * each / 2**20 + BLOCKS


NUMBERS_OF_A_PREDICTION = 96  # boxes and their gradients of 4 numbers each, assignments of 2 (int64), masks, losses
BLOCKS = 32.0  # MiB: the dozen temporaries of a block are of a few MiB each, whatever the problem's size


def full(criterion: Callable[[int], DetectionLoss]) -> Callable[[Workload, Problem], Step]:
    """Return forward and backward of a criterion."""
    return lambda workload, problem: contender("", criterion(workload.classes), workload, problem).stages["full"]


def matched_by(matcher: Callable[[], Matcher]) -> Callable[[Workload, Problem], Step]:
    """Return forward and backward of focal loss and L1 with a matcher."""
    focal, l1 = SigmoidFocalLoss(**NONE), nn.L1Loss(**NONE)
    return full(lambda classes: DetectionLoss(focal, l1, matcher(), "none"))


def custom(classes: int) -> DetectionLoss:
    """Return a criterion all of whose modules are somebody's own."""
    rule = Hungarian(cls_match_module=CrossEntropy(), loc_match_module=Corners())
    return DetectionLoss(CrossEntropy(), Corners(), rule, "none")


COST = {"loc_match_module": nn.L1Loss(**NONE)}
COMPARED = {
    "ssd": full(recipes.ssd300),
    "ssd, by image": lambda workload, problem: loop(workload, problem).stages["full"],
    "retinanet": full(recipes.retinanet),
    "retinanet, by image": lambda workload, problem: loop(workload, problem).stages["full"],
}
BOUNDED = {
    "TaskAligned": Case(CROWD, matched_by(match.TaskAligned), scores=8),
    "SimOTA": Case(CROWD, matched_by(match.SimOTA), pairs=1, scores=8),
    "Hungarian": Case(CROWD, matched_by(lambda: Hungarian(**COST)), pairs=4, scores=8),
    # its plan is dense, and reaches the loss as it is
    "UnbalancedSinkhorn": Case(CROWD, matched_by(lambda: match.UnbalancedSinkhorn(**COST)), pairs=10, scores=8),
    "IoUThreshold": Case(CROWDED_ANCHORS, matched_by(lambda: match.IoUThreshold(is_anchor_based=True)), scores=8),
    "ATSS": Case(CROWDED_ANCHORS, matched_by(match.ATSS), scores=8),
    "FCOS": Case(CROWD, matched_by(match.FCOS), scores=8),
    "GridCell": Case(CROWD, matched_by(match.GridCell), scores=8),
    "Uniform": Case(CROWD, matched_by(lambda: match.Uniform(**COST)), scores=8),
    "modules of one's own": Case(CUSTOM, full(custom), pairs=6, scores=8),
}


def main() -> None:
    """Answer each name from a copy of this process, which has imported everything and computed nothing."""
    torch.set_num_threads(1)
    for line in sys.stdin:
        child = os.fork()
        if not child:
            status = 1
            try:
                measure(line.strip())
                status = 0
            finally:
                os._exit(status)
        if os.waitpid(child, 0)[1]:
            print("failed", flush=True)


def measure(name: str) -> None:
    """Print P and the growth of one case."""
    workload, step = (
        BOUNDED[name][:2] if name in BOUNDED else (SSD if name.startswith("ssd") else RETINA, COMPARED[name])
    )
    small = replace(workload, images=1, targets=(1, 1))
    step(small, make_problem(small))()  # what is loaded when it is first used is not the step's
    problem = make_problem(workload)
    print(problem.logits.shape[2], resident_growth(step(workload, problem)), flush=True)


if __name__ == "__main__":
    main()
