"""The criteria of detectors on points equal slow loops of their published formulas."""

from typing import Any

import pytest
import torch
from torch import nn

from tests.oracles import recipes as slow
from tests.support.dense_scenes import DenseScene, check_terms, dense_scene
from uotod import recipes
from uotod.loss import (
    BalancedL1Loss,
    DIoULoss,
    DistributionFocalLoss,
    ObjectnessLoss,
    SigmoidFocalLoss,
    TargetNormalizer,
)
from uotod.match import IoUThreshold

SEEDS = range(24)
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
    check(recipes.yolox(3, weights={"l1": l1_weight}), problem, expected, names)


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


PARTS = {"matcher": IoUThreshold(), "normalizer": TargetNormalizer()}
LOSSES = {
    "cls": SigmoidFocalLoss(gamma=1.0, reduction="none"),
    "loc": DIoULoss(reduction="none"),
    "box": DIoULoss(reduction="none"),
    "obj": ObjectnessLoss(reduction="none"),
    "dfl": DistributionFocalLoss(bins=range(16), reduction="none"),
    "l1": BalancedL1Loss(reduction="none"),
}
# the published weights
PUBLISHED = {
    "atss": {"cls": 1.0, "loc": 2.0, "obj": 1.0},
    "fcos": {"cls": 1.0, "loc": 1.0, "obj": 1.0},
    "gfl": {"cls": 1.0, "box": 2.0, "dfl": 0.25},
    "ota": {"cls": 1.0, "loc": 2.0, "obj": 0.5},
    "rtmdet": {"cls": 1.0, "loc": 2.0},
    "tood": {"cls": 1.0, "loc": 2.0},
    "yolov8": {"cls": 0.5, "box": 7.5, "dfl": 1.5},
    "yolox": {"cls": 1.0, "box": 5.0, "l1": 0.0, "obj": 1.0},
}
NAMES = list(PUBLISHED)


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("name", NAMES)
def test_every_part_can_be_exchanged(name: str, part: str) -> None:
    recipe, problem = recipes.ALL_RECIPES[name], dense_scene(5, dist=True)
    criterion = recipe(3, **{part: PARTS[part]})
    assert any(module is PARTS[part] for module in criterion.modules())
    assert criterion(problem.input, problem.target, problem.anchors()).isfinite()


@pytest.mark.parametrize(("name", "loss"), [(name, loss) for name in NAMES for loss in {**PUBLISHED[name], "loc": 0}])
def test_every_loss_can_be_exchanged(name: str, loss: str) -> None:
    recipe, problem = recipes.ALL_RECIPES[name], dense_scene(5, dist=True)
    weights = {"l1": 1.0} if loss == "l1" else {}
    criterion = recipe(3, losses={loss: LOSSES[loss]}, weights=weights)
    assert any(module is LOSSES[loss] for module in criterion.modules())
    assert criterion(problem.input, problem.target, problem.anchors()).isfinite()


@pytest.mark.parametrize("name", NAMES)
def test_a_weight_scales_its_term(name: str) -> None:
    recipe, problem = recipes.ALL_RECIPES[name], dense_scene(5, dist=True)
    arguments = problem.input, problem.target, problem.anchors()
    for part, weight in PUBLISHED[name].items():
        term = f"loss_{part}" if part in ("cls", "loc", "obj") else f"loss_loc_{part}"
        once, thrice = (recipe(3, weights={part: k * (weight or 1.0)}).terms(*arguments)[term] for k in (1, 3))
        torch.testing.assert_close(thrice, 3 * once)
        if weight:
            torch.testing.assert_close(once, recipe(3).terms(*arguments)[term])


@pytest.mark.parametrize("name", ["gfl", "yolov8"])
def test_boxes_without_a_distribution_need_no_pred_dist(name: str) -> None:
    recipe, problem = recipes.ALL_RECIPES[name], dense_scene(5)
    arguments = problem.input, problem.target, problem.anchors()
    assert recipe(3, weights={"dfl": 0.0})(*arguments).isfinite()
    with pytest.raises(ValueError, match="input must have the key 'pred_dist'"):
        recipe(3)(*arguments)


@pytest.mark.parametrize("name", NAMES)
def test_there_is_at_least_one_class(name: str) -> None:
    with pytest.raises(ValueError, match="num_classes"):
        recipes.ALL_RECIPES[name](0)


def test_fcos_is_that_of_torchvision_or_mmdetection() -> None:
    with pytest.raises(ValueError, match="style must be one of"):
        recipes.fcos(3, style="detectron2")
