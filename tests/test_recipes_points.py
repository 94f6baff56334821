"""The criteria of detectors on points equal slow loops of their published formulas."""

from typing import Any

import pytest
from torch import nn

from tests.dense_scenes import DenseScene, check_terms, dense_scene
from tests.oracles import recipes as slow
from uotod import recipes

SEEDS = range(40)
BOX = {"loss_cls": "cls", "loss_loc": "box"}
SPLIT = {"loss_cls": "cls", "loss_loc_box": "box", "loss_loc_dfl": "dfl"}
OBJECT = {**BOX, "loss_obj": "obj"}


def check(criterion: nn.Module, problem: DenseScene, terms: slow.Terms, names: dict[str, str], **kwargs: Any) -> None:
    check_terms(criterion, problem, {ours: terms[loop] for ours, loop in names.items()}, **kwargs)


@pytest.mark.parametrize("seed", SEEDS)
def test_yolov8_is_its_slow_loop(seed: int) -> None:
    problem = dense_scene(seed, dist=True)
    check(recipes.yolov8(3), problem, slow.yolov8(problem.images(), least_side=16.0), SPLIT)


@pytest.mark.parametrize("seed", SEEDS)
def test_tood_is_its_slow_loop(seed: int) -> None:
    problem = dense_scene(seed)
    check(recipes.tood(3), problem, slow.tood(problem.images()), BOX)


@pytest.mark.parametrize("seed", SEEDS)
def test_rtmdet_is_its_slow_loop(seed: int) -> None:
    problem = dense_scene(seed)
    check(recipes.rtmdet(3), problem, slow.rtmdet(problem.images()), BOX)


@pytest.mark.parametrize("seed", SEEDS)
def test_ota_is_its_slow_loop(seed: int) -> None:
    problem = dense_scene(seed, size=32)
    check(recipes.ota(3), problem, slow.ota(problem.images()), OBJECT)


@pytest.mark.parametrize("l1_weight", [0.0, 1.0])
@pytest.mark.parametrize("seed", SEEDS)
def test_yolox_is_its_slow_loop(seed: int, l1_weight: float) -> None:
    problem = dense_scene(seed)
    names = {"loss_cls": "cls", "loss_loc_box": "box", "loss_obj": "obj"} | ({"loss_loc_l1": "l1"} if l1_weight else {})
    expected = slow.yolox(problem.images(), l1_weight=l1_weight)
    check(recipes.yolox(3, l1_weight=l1_weight), problem, expected, names)


@pytest.mark.parametrize("style", ["torchvision", "mmdetection"])
@pytest.mark.parametrize("seed", SEEDS)
def test_fcos_is_its_slow_loop(seed: int, style: str) -> None:
    problem = dense_scene(seed)
    expected = slow.fcos(problem.images(), levels(problem), weigh=style == "mmdetection")
    check(recipes.fcos(3, style=style), problem, expected, OBJECT)


@pytest.mark.parametrize("seed", SEEDS)
def test_atss_is_its_slow_loop(seed: int) -> None:
    problem = dense_scene(seed)
    anchors = problem.anchors()
    expected = slow.atss(problem.images(), anchors.boxes.tolist(), levels(problem))
    check(recipes.atss(3), problem, expected, OBJECT, anchors=anchors)


@pytest.mark.parametrize("seed", SEEDS)
def test_gfl_is_its_slow_loop(seed: int) -> None:
    problem = dense_scene(seed, dist=True)
    anchors = problem.anchors()
    expected = slow.gfl(problem.images(), anchors.boxes.tolist(), levels(problem))
    check(recipes.gfl(3), problem, expected, SPLIT, anchors=anchors)


def levels(problem: DenseScene) -> list[int]:
    assert problem.points.level is not None
    return problem.points.level.tolist()
