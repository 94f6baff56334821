"""The criteria of detectors on points equal slow loops of their published formulas."""

import pytest

from tests.dense_scenes import check_terms, dense_scene
from tests.oracles import recipes as slow
from uotod import recipes


@pytest.mark.parametrize("seed", range(40))
def test_yolov8_is_its_slow_loop(seed: int) -> None:
    problem = dense_scene(seed, dist=True)
    expected = slow.yolov8(problem.images(), least_side=16.0)
    names = {"loss_cls": "cls", "loss_loc_box": "box", "loss_loc_dfl": "dfl"}
    check_terms(recipes.yolov8(3), problem, {k: expected[v] for k, v in names.items()})


@pytest.mark.parametrize("seed", range(40))
def test_tood_is_its_slow_loop(seed: int) -> None:
    problem = dense_scene(seed)
    expected = slow.tood(problem.images())
    check_terms(recipes.tood(3), problem, {"loss_cls": expected["cls"], "loss_loc": expected["box"]})
