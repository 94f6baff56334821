"""The memory of a step is bounded: no more than image by image, and no tensor of predictions, targets and classes."""

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from benchmarks.workloads import Workload, make_problem
from tests.support.memory_cases import BOUNDED, Corners, CrossEntropy, custom
from uotod import match
from uotod.loss import DetectionLoss
from uotod.match import Hungarian, Matcher

NONE = {"reduction": "none"}
linux = pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="only Linux tells the peak of a step")


Growth = Callable[[str], tuple[int, float]]


@pytest.fixture(scope="module")
def growth() -> Iterator[Growth]:
    """Give P and the MiB by which a case of `memory_cases` raises the peak memory of a fresh process."""
    command = [sys.executable, "-m", "tests.support.memory_cases"]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen(command, text=True, bufsize=1, cwd=Path(__file__).parents[2], **pipes) as process:

        def ask(name: str) -> tuple[int, float]:
            process.stdin.write(f"{name}\n")
            preds, mib = process.stdout.readline().split()
            return int(preds), float(mib)

        yield ask


@linux
@pytest.mark.parametrize("name", ["ssd", pytest.param("retinanet", marks=pytest.mark.long)])
def test_a_batch_takes_no_more_memory_than_its_images_one_by_one(name: str, growth: Growth) -> None:
    assert growth(name)[1] <= growth(f"{name}, by image")[1]


@linux
@pytest.mark.parametrize("name", BOUNDED)
def test_memory_is_bounded_however_many_targets_an_image_has(name: str, growth: Growth) -> None:
    preds, mib = growth(name)
    assert mib <= BOUNDED[name].bound(preds)


def in_blocks_of(size: int, patch: pytest.MonkeyPatch) -> None:
    """Let the library compute in blocks of at most `size` elements, or bytes, wherever it has a limit of them."""
    for name, module in list(sys.modules.items()):
        if name.startswith("uotod"):
            for limit in [
                x for x in vars(module) if x.startswith("MAX_") and x.endswith(("ELEMENTS", "BYTES", "PAIRS"))
            ]:
                patch.setattr(module, limit, size)


def step(criterion: DetectionLoss) -> list[Tensor]:
    """Return plan, loss and gradients of two images with several targets."""
    problem = make_problem(Workload("grid", 2, 6, (5, 9), queries=20**2))
    input = {"pred_logits": problem.logits[0], "pred_boxes": problem.boxes[0]}
    plan = criterion.matching_method(input, problem.targets, problem.anchors)
    loss = criterion(input, problem.targets, problem.anchors)
    return [plan, loss, *torch.autograd.grad(loss, [problem.logits, problem.boxes])]


def known(matcher: Matcher) -> DetectionLoss:
    return DetectionLoss(nn.BCEWithLogitsLoss(**NONE), nn.L1Loss(**NONE), matcher, "none")


L1 = {"loc_match_module": nn.L1Loss(**NONE)}
CRITERIA: dict[str, Callable[[], DetectionLoss]] = {
    "Hungarian": lambda: known(Hungarian(**L1)),
    "UnbalancedSinkhorn": lambda: known(match.UnbalancedSinkhorn(**L1)),
    "ClosestTarget": lambda: known(match.ClosestTarget(**L1)),
    "IoUThreshold": lambda: known(match.IoUThreshold(is_anchor_based=True)),
    "ATSS": lambda: known(match.ATSS()),
    "SimOTA": lambda: known(match.SimOTA()),
    "TaskAligned": lambda: known(match.TaskAligned()),
    "modules of one's own": lambda: custom(6),
}


@pytest.mark.parametrize("name", CRITERIA)
def test_the_size_of_blocks_changes_no_result(name: str) -> None:
    results = []
    for size in (1 << 9, 1 << 40):
        with pytest.MonkeyPatch.context() as patch:
            in_blocks_of(size, patch)
            results.append(step(CRITERIA[name]()))
    for small, large in zip(*results, strict=True):
        torch.testing.assert_close(small, large, rtol=1e-5, atol=1e-6)


def test_modules_of_ones_own_give_what_the_known_ones_give() -> None:
    own = step(DetectionLoss(CrossEntropy(), Corners(), Hungarian(cls_match_module=CrossEntropy(), **L1), "none"))
    fast = nn.BCEWithLogitsLoss(**NONE)
    usual = step(DetectionLoss(fast, nn.L1Loss(**NONE), Hungarian(cls_match_module=fast, **L1), "none"))
    for mine, theirs in zip(own, usual, strict=True):
        torch.testing.assert_close(mine, theirs)
