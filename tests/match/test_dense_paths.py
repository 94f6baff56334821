"""The rules of anchors and points: one plan on any device, in blocks of any size, without all pairs in memory."""

import tracemalloc
from collections.abc import Callable

import pytest
import torch

from tests.support.aligned_scenes import scene
from tests.support.guards import LargestTensor, NoSynchronisation, take_gpu_path
from uotod.match import ATSS, DynamicSoftLabel, IoUThreshold, Matcher, SimOTA, TaskAligned

RULES: dict[str, Callable[..., Matcher]] = {
    "IoUThreshold": IoUThreshold,
    "IoUThreshold, low_quality": lambda **options: IoUThreshold(force_match="low_quality", **options),
    "IoUThreshold, all_best": lambda **options: IoUThreshold(negative=0.3, force_match="all_best", **options),
    "TaskAligned": TaskAligned,
    "TaskAligned, topk2": lambda **options: TaskAligned(topk=4, topk2=2, **options),
    "TOOD": lambda **options: TaskAligned(topk=13, alpha=1.0, overlap="iou", candidates="all", **options),
    "SimOTA": SimOTA,
    "SimOTA, takers": lambda **options: SimOTA(region="box_and_center", contested="takers", **options),
    "DynamicSoftLabel": DynamicSoftLabel,
    "ATSS": ATSS,
    "ATSS, alpha": lambda **options: ATSS(alpha=0.8, is_anchor_based=False, **options),
}
LIMITS = {
    "uotod.solvers.threshold": ("MAX_BLOCK_ELEMENTS", "MAX_GPU_BLOCK_ELEMENTS"),
    "uotod.solvers.aligned": ("MAX_MASK_ELEMENTS",),
    "uotod.solvers.task_aligned": ("MAX_BLOCK_ELEMENTS", "MAX_GPU_BLOCK_ELEMENTS"),
    "uotod.solvers.dynamic_k": ("MAX_BLOCK_ELEMENTS", "MAX_IMAGE_BLOCK_ELEMENTS", "MAX_GPU_BLOCK_ELEMENTS"),
    "uotod.solvers.atss": ("MAX_BLOCK_ELEMENTS", "MAX_GPU_BLOCK_ELEMENTS"),
}


def limit_blocks(monkeypatch: pytest.MonkeyPatch, elements: int) -> None:
    for module, names in LIMITS.items():
        for name in names:
            monkeypatch.setattr(f"{module}.{name}", elements)


@pytest.mark.parametrize("name", RULES)
@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("soft", [False, True])
def test_blocks_and_devices_change_nothing(name: str, seed: int, soft: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    input, target, points = scene(seed)
    if soft:
        target["labels"] = torch.nn.functional.one_hot(target["labels"], 3).double()
        target["cost_weight"] = 0.5 + torch.rand(target["mask"].shape)
    nonfinite = "propagate" if seed % 5 == 1 else "error"
    if nonfinite == "propagate":
        input["pred_logits"][0, ::7], input["pred_boxes"][1, 3::5] = torch.nan, torch.inf
    matcher = RULES[name](nonfinite=nonfinite)
    expected = matcher(input, target, points)
    limit_blocks(monkeypatch, 100)  # a target or two at a time
    torch.testing.assert_close(matcher(input, target, points), expected)
    batch = matcher.parse(input, target, points)
    take_gpu_path(monkeypatch)
    with NoSynchronisation():
        plan = matcher.scene_plan(batch)
    torch.testing.assert_close(plan.to_dense(), expected)


@pytest.mark.parametrize("name", RULES)
@pytest.mark.parametrize("on_host", [True, False])
def test_no_tensor_of_all_pairs_is_held(name: str, on_host: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    input, target, points = scene(5, images=1, targets=200, size=256, classes=3, dtype=torch.float32)
    target["mask"][:] = True
    pairs = 200 * len(points.centers)
    limit = pairs // 64
    matcher = RULES[name]()
    batch = matcher.parse(input, target, points)
    limit_blocks(monkeypatch, limit)
    if not on_host:
        take_gpu_path(monkeypatch)
    tracemalloc.start()
    with LargestTensor() as held:
        matcher.scene_plan(batch)
    peak = tracemalloc.get_traced_memory()[1]  # of what numpy holds
    tracemalloc.stop()
    assert held.elements < pairs / 4
    assert peak < 4 * pairs / 2  # bytes of a float32
