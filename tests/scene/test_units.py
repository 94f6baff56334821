"""Boxes of different units are an error where it is plain, and nothing is where it is not."""

import math

import pytest
import torch
from torch import Tensor, nn

from tests.support.guards import take_gpu_path
from tests.support.recipe_cases import CASES, CLASSES, SUMS, main_of, problem_for, value_of
from uotod.loss import Branch, Branches, DetectionLoss, SigmoidFocalLoss
from uotod.match import Hungarian
from uotod.recipes import ALL_RECIPES, detr, ssd300, yolo
from uotod.scene.scene import parse_scene
from uotod.scene.units import check_units
from uotod.utils import Points, box_xyxy_to_cxcywh

L1 = nn.L1Loss(reduction="none")
SIZES = [(64, 64), (300, 300), (640, 480), (800, 1333)]


def objects(width: int, height: int, count: int) -> Tensor:
    """Return boxes in pixels as of COCO: sides from a pixel to the image, log-uniform, some cut by its border."""
    size = torch.tensor([width, height], dtype=torch.float64)
    sides = size ** torch.rand(count, 2, dtype=torch.float64)
    centers = torch.rand(count, 2, dtype=torch.float64) * size
    boxes = torch.cat((centers - sides / 2, centers + sides / 2), dim=-1)
    return torch.minimum(boxes.clamp(min=0), size.repeat(2))


def places(width: int, height: int, kind: str) -> Tensor | Points:
    """Return anchors or points in pixels, of strides 8 and 32."""
    shapes = [(math.ceil(height / s), math.ceil(width / s)) for s in (8, 32)]
    points = Points.from_levels(shapes, [8.0, 32.0], dtype=torch.float64)
    if kind == "points":
        return points
    sides = torch.tensor([[1.25, 1.6], [4.0, 4.0], [8.0, 4.0]], dtype=torch.float64) * torch.as_tensor(
        points.stride
    ).view(-1, 1, 1)
    centers = points.centers[:, None]
    return torch.cat((centers - sides / 2, centers + sides / 2), dim=-1).flatten(0, 1)


def unit(value: Tensor | Points, width: int, height: int) -> Tensor | Points:
    if isinstance(value, Points):
        return Points(value.centers / max(width, height), torch.as_tensor(value.stride) / max(width, height))
    return value / torch.tensor([width, height, width, height])


def scene(boxes: Tensor, anchors: Tensor | Points | None):
    count = 1 if anchors is None else len(anchors) if isinstance(anchors, Tensor) else len(anchors.centers)
    input = {"pred_logits": torch.zeros(1, count, 2, dtype=torch.float64)}
    return parse_scene(input, {"labels": torch.zeros(1, len(boxes)).long(), "boxes": boxes[None]}, anchors)


@pytest.mark.parametrize("kind", ["anchors", "points"])
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("seed", range(30))
def test_scenes_of_one_unit_pass_and_those_of_two_raise(kind, size, seed) -> None:
    torch.manual_seed(seed)
    boxes, anchors = objects(*size, count=1 + seed % 7), places(*size, kind)
    boxes = torch.cat((boxes, objects(*size, 1).clamp(min=20)))  # one that is no speck in a corner
    check_units(scene(boxes, anchors), unit_boxes=False)
    check_units(scene(unit(boxes, *size), unit(anchors, *size)), unit_boxes=True)
    with pytest.raises(ValueError, match=r"target\['boxes'\] must have the unit of the anchors.*anchors pixels"):
        check_units(scene(unit(boxes, *size), anchors), unit_boxes=False)
    with pytest.raises(ValueError, match=r"target\['boxes'\] must have the unit of the anchors.*targets pixels"):
        check_units(scene(boxes, unit(anchors, *size)), unit_boxes=False)
    with pytest.raises(ValueError, match=r"must be fractions of the image.*in image 0: pixels\?"):
        check_units(scene(boxes, None), unit_boxes=True)


@pytest.mark.parametrize("seed", range(30))
def test_a_single_object_of_a_few_pixels_is_no_reason(seed) -> None:
    torch.manual_seed(seed)
    for size in SIZES:
        boxes = objects(*size, 1)
        if boxes.max() > 2:
            check_units(scene(boxes, places(*size, "anchors")), unit_boxes=False)


def test_boxes_a_little_outside_of_the_image_pass() -> None:
    boxes = torch.tensor([[-0.9, -0.3, 1.9, 1.2]], dtype=torch.float64)  # a crop that does not clip
    check_units(scene(boxes, None), unit_boxes=True)


@pytest.mark.parametrize("targets", [0, 2])
def test_without_targets_there_is_nothing_to_tell(targets) -> None:
    boxes, anchors = torch.zeros(targets, 4, dtype=torch.float64), places(300, 300, "anchors")
    check_units(scene(boxes, anchors), unit_boxes=True)
    check_units(scene(boxes, None), unit_boxes=True)


@pytest.mark.parametrize("name", CASES)
def test_recipes_of_the_unit_square_refuse_pixels(name) -> None:
    problem, criterion = problem_for(name), ALL_RECIPES[name](CLASSES)
    assert main_of(criterion).unit_boxes == (name in SUMS)
    assert value_of(criterion, problem).isfinite()
    if isinstance(criterion, Branches):
        assert all(x.loss.unit_boxes == (name in SUMS) for x in criterion.branches.values() if isinstance(x, Branch))
    problem.target["boxes"] = problem.target["boxes"] * 640
    if name in SUMS:
        with pytest.raises(ValueError, match=r"pixels\?"):
            value_of(criterion, problem)


def test_the_first_yolo_has_fractions_and_the_third_has_not() -> None:
    assert yolo(3, style="v1").unit_boxes
    assert not yolo(3).unit_boxes


def test_pixels_of_any_format_are_found_and_named() -> None:
    boxes = torch.tensor([[[10.0, 20.0, 100.0, 80.0]]])
    input = {"pred_logits": torch.zeros(1, 1, 3), "pred_boxes": torch.full((1, 1, 4), 0.5)}
    for box_format, given in ((None, boxes), ("cxcywh", box_xyxy_to_cxcywh(boxes))):
        with pytest.raises(ValueError, match=r"got \[10.0, 20.0, 100.0, 80.0\] in image 0: pixels\?"):
            detr(2, box_format=box_format)(input, {"labels": torch.zeros(1, 1).long(), "boxes": given})


def test_what_lies_under_the_mask_is_not_read() -> None:
    problem = problem_for("detr")
    problem.target["boxes"][0, 0] = 500.0
    problem.target["mask"][0, 0] = False
    assert value_of(detr(CLASSES), problem).isfinite()


def test_a_loss_of_ones_own_may_ask_for_it() -> None:
    problem = problem_for("dino")
    problem.target["boxes"] = problem.target["boxes"] * 640

    def build(**options) -> DetectionLoss:
        return DetectionLoss(SigmoidFocalLoss(reduction="none"), L1, Hungarian(loc_match_module=L1), "none", **options)

    assert build()(problem.input, problem.target).isfinite()
    with pytest.raises(ValueError, match=r"pixels\?"):
        build(unit_boxes=True)(problem.input, problem.target)
    with pytest.raises(TypeError, match="unit_boxes must be a bool"):
        build(unit_boxes=1)


def test_on_a_gpu_values_are_looked_at_on_request(monkeypatch) -> None:
    take_gpu_path(monkeypatch)
    problem = problem_for("detr")
    problem.target["boxes"] = problem.target["boxes"] * 640
    assert value_of(detr(CLASSES), problem).isfinite()
    with pytest.raises(ValueError, match=r"pixels\?"):
        value_of(detr(CLASSES, validate=True), problem)


def test_default_boxes_in_pixels_and_targets_in_fractions_raise_in_ssd() -> None:
    anchors = places(300, 300, "anchors")
    assert isinstance(anchors, Tensor)
    input = {"pred_logits": torch.zeros(1, len(anchors), 3).double(), "pred_boxes": anchors[None] / 300}
    target = {"labels": torch.ones(1, 2).long(), "boxes": torch.tensor([[[0.1, 0.1, 0.4, 0.5], [0.5, 0.5, 0.9, 0.6]]])}
    with pytest.raises(
        ValueError, match=r"got \[0.5, 0.5, 0.9, 0.6\] in image 0 beside anchors of sides from 10 to 256"
    ):
        ssd300(2)(input, target, anchors)
    assert ssd300(2)(input, target, anchors / 300).isfinite()
