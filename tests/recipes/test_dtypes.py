"""Dtypes mix in every recipe: the loss is that of the same numbers in the widest of them."""

import pytest
import torch
from torch import Tensor

from tests.support.problems import Problem, mapped
from tests.support.recipe_cases import CASES, layered, problem_for, value_of
from uotod import recipes
from uotod.loss import DetectionLoss
from uotod.utils import Anchors

KEYS = ("pred_logits", "pred_boxes", "pred_objectness", "pred_dist", "image_size")
HALF = torch.float16


def build(name: str):
    return getattr(recipes, name)(3)


def rounded(problem: Problem, dtype: torch.dtype = torch.float32) -> Problem:
    """Return the problem with numbers that a narrower dtype holds, still in float64."""
    return mapped(problem, lambda x: x.detach().to(dtype).double())


def cast(values: dict, dtypes: dict[str, torch.dtype]) -> dict:
    found = {}
    for key, x in values.items():
        if key == "aux_outputs":
            found[key] = [cast(layer, dtypes) for layer in x]
        else:
            found[key] = x.to(dtypes[key]).requires_grad_() if key in dtypes else x
    return found


MIXES = {
    "float32 logits": {"pred_logits": torch.float32},
    "float32 boxes": {"pred_boxes": torch.float32},
    "float32 distributions and objectness": {"pred_objectness": torch.float32, "pred_dist": torch.float32},
    "float64 boxes only": dict.fromkeys(("pred_logits", "pred_objectness", "pred_dist"), torch.float32),
}


@pytest.mark.parametrize("mix", MIXES)
@pytest.mark.parametrize("make", [problem_for, layered])
@pytest.mark.parametrize("name", CASES)
def test_predictions_of_several_dtypes_are_as_good_as_those_of_the_widest(name, make, mix) -> None:
    problem = rounded(make(name))
    expected = value_of(build(name), problem)
    mixed = Problem(cast(problem.input, MIXES[mix]), problem.target, problem.anchors)
    loss = value_of(build(name), mixed)
    assert loss.dtype == torch.float64
    torch.testing.assert_close(loss, expected)
    if any(key in mixed.input for key in MIXES[mix]) and "logits" in mix:
        loss.backward()
        assert mixed.input["pred_logits"].grad.dtype == torch.float32


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", CASES)
def test_half_precision_beside_single_is_computed_in_single(name, dtype) -> None:
    problem = rounded(problem_for(name), dtype)
    single = cast(problem.input, dict.fromkeys(KEYS, torch.float32))
    mixed = cast(problem.input, {"pred_logits": dtype, "pred_boxes": torch.float32} | dict.fromkeys(KEYS[2:], dtype))
    expected = build(name)(single, problem.target, problem.anchors)
    loss = build(name)(mixed, problem.target, problem.anchors)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, expected)
    loss.backward()
    assert mixed["pred_logits"].grad.dtype == dtype


@pytest.mark.parametrize("labels", [torch.int32, torch.int16, torch.uint8])
@pytest.mark.parametrize("boxes", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", CASES)
def test_targets_and_anchors_of_another_dtype_change_nothing(name, boxes, labels) -> None:
    problem = rounded(problem_for(name))
    single = cast(problem.input, dict.fromkeys(KEYS, torch.float32))
    places = problem.anchors
    other = Anchors(places.boxes.to(boxes), places.stride, places.level, places.num_levels)
    plain = Anchors(places.boxes.float(), places.stride, places.level, places.num_levels)
    target = problem.target | {
        "boxes": problem.target["boxes"].to(boxes),
        "labels": problem.target["labels"].to(labels),
    }
    expected = build(name)(single, problem.target | {"boxes": problem.target["boxes"].float()}, plain)
    loss = build(name)(single, target, other)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, expected)


EMPTY = [
    {"labels": torch.tensor([]), "boxes": torch.tensor([])},
    {"labels": torch.tensor([]).int(), "boxes": torch.zeros(0, 4, dtype=torch.float16)},
    {"labels": torch.tensor([], dtype=torch.bool), "boxes": torch.zeros(0, 4, dtype=torch.long)},
    {"labels": torch.zeros(0, dtype=torch.long), "boxes": torch.zeros(0, dtype=torch.int16)},
]


@pytest.mark.parametrize("empty", EMPTY)
@pytest.mark.parametrize("name", CASES)
def test_an_empty_image_has_no_dtype_to_object_to(name, empty) -> None:
    problem = problem_for(name)
    whole = [{key: x[b] for key, x in problem.target.items()} for b in range(2)]
    none = [whole[0], {key: x[:0] for key, x in whole[1].items()}]
    expected = build(name)(problem.input, none, problem.anchors)
    for mask in ({}, {"mask": torch.tensor([]), "ignore": torch.tensor([])}):
        torch.testing.assert_close(build(name)(problem.input, [whole[0], empty | mask], problem.anchors), expected)
    batch = {"labels": empty["labels"], "boxes": empty["boxes"]}  # padded, but of nothing
    torch.testing.assert_close(
        build(name)(problem.input, batch, problem.anchors), build(name)(problem.input, [none[1]] * 2, problem.anchors)
    )
    both = build(name)(problem.input, [empty, empty], problem.anchors)
    torch.testing.assert_close(both, build(name)(problem.input, [none[1], none[1]], problem.anchors))


@pytest.mark.parametrize("name", CASES)
def test_images_of_a_list_may_have_dtypes_of_their_own(name) -> None:
    problem = rounded(problem_for(name))
    images = [{key: x[b] for key, x in problem.target.items()} for b in range(2)]
    images[0] = images[0] | {"labels": images[0]["labels"].int(), "boxes": images[0]["boxes"].float()}
    found = build(name)(problem.input, images, problem.anchors)
    torch.testing.assert_close(found, value_of(build(name), problem))


@pytest.mark.parametrize("name", CASES)
def test_boxes_of_whole_pixels_may_be_integers(name) -> None:
    problem = problem_for(name)
    boxes = (100 * problem.target["boxes"]).round()
    pixels: dict[str, Tensor] = problem.input | {"pred_boxes": 100 * problem.input["pred_boxes"].detach()}
    places = problem.anchors
    anchors = Anchors(100 * places.boxes, 100 * places.stride, places.level, places.num_levels)
    criterion = build(name)
    for module in criterion.modules():
        if isinstance(module, DetectionLoss):
            module.unit_boxes = False
    expected = criterion(pixels, problem.target | {"boxes": boxes}, anchors)
    for dtype in (torch.long, torch.int32, torch.int16):
        torch.testing.assert_close(criterion(pixels, problem.target | {"boxes": boxes.to(dtype)}, anchors), expected)
