"""How deep the flow is: the greatest number of our functions that are inside of each other in one forward pass."""

import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import Tensor, nn

import uotod
from tests.support.problems import random_boxes
from uotod import recipes
from uotod.loss import DetectionLoss
from uotod.match import IoUThreshold

ROOT = str(Path(uotod.__file__).parent)
INSIDE = ("<listcomp>", "<dictcomp>", "<setcomp>", "<genexpr>", "<lambda>")  # parts of a function


def depth(call: Callable[[], object]) -> int:
    """Return the greatest number of nested frames of the package; the second call counts, when all is warm."""
    call()
    now = deepest = 0

    def profile(frame: FrameType, event: str, argument: Any) -> None:
        nonlocal now, deepest
        code = frame.f_code
        if code.co_filename.startswith(ROOT) and code.co_name not in INSIDE:
            now += (event == "call") - (event == "return")
            deepest = max(deepest, now)

    before = sys.getprofile()
    sys.setprofile(profile)
    try:
        call()
    finally:
        sys.setprofile(before)
    return deepest


def random_scene() -> tuple[dict[str, Tensor], list[dict[str, Tensor]]]:
    boxes = [random_boxes(count, dtype=torch.float32) for count in (3, 1)]
    target = [{"labels": torch.arange(len(x)), "boxes": x} for x in boxes]
    pred_boxes = random_boxes(2, 30, dtype=torch.float32).requires_grad_()
    return {"pred_logits": torch.randn(2, 30, 6, requires_grad=True), "pred_boxes": pred_boxes}, target


def test_depth_counts_nested_functions_of_the_package() -> None:
    giou = uotod.loss.GIoULoss()
    boxes = random_boxes(2)
    assert depth(lambda: None) == 0
    assert 1 < depth(lambda: giou(boxes, boxes)) < 10


def test_detr_with_one_layer_is_16_deep_at_most() -> None:
    criterion, scene = recipes.detr(5), random_scene()
    assert depth(lambda: criterion(*scene)) <= 16


def test_a_threshold_on_anchors_is_13_deep_at_most() -> None:
    matcher = IoUThreshold(is_anchor_based=True)
    cls, loc = nn.CrossEntropyLoss(reduction="none"), nn.SmoothL1Loss(reduction="none")
    criterion, anchors = DetectionLoss(cls, loc, matcher, "last"), random_boxes(30, dtype=torch.float32)
    scenes = [random_scene() for _ in range(20)]
    found = [depth(lambda scene=scene: criterion(*scene, anchors)) for scene in scenes]  # type: ignore[misc]
    assert max(found) <= 13
