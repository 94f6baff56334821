"""Boxes that state their own format, as those of torchvision's tv_tensors do: read, or refused where it contradicts."""

import re
import subprocess
import sys
from enum import Enum

import pytest
import torch
from torch import Tensor, nn

from tests.support.peers import peer
from tests.support.problems import random_problem
from uotod.loss import Branch, Branches, DetectionLoss, GIoULoss
from uotod.match import Hungarian, IoUThreshold
from uotod.utils import Anchors, box_xyxy_to_cxcywh, box_xyxy_to_xywh, pad_targets

N = "none"
B, P, T, C = 2, 8, 3, 4
L1 = nn.L1Loss(reduction=N)


class Format(Enum):
    XYXY = "XYXY"
    XYWH = "XYWH"
    CXCYWH = "CXCYWH"
    CXCYWHR = "CXCYWHR"


class Boxes(Tensor):
    """Boxes with a format of their own."""

    format: Format

    @classmethod
    def of(cls, boxes: Tensor, name: str) -> "Boxes":
        """Return boxes, xyxy, in a format."""
        found = CONVERT[name](boxes).as_subclass(cls)
        found.format = Format[name]
        return found


CONVERT = {"XYXY": lambda x: x, "XYWH": box_xyxy_to_xywh, "CXCYWH": box_xyxy_to_cxcywh}


def ours(boxes: Tensor, name: str) -> Tensor:
    return Boxes.of(boxes, name)


def theirs(boxes: Tensor, name: str) -> Tensor:
    tv = peer("torchvision.tv_tensors")
    return tv.BoundingBoxes(CONVERT[name](boxes), format=name, canvas_size=(480, 640))


def stated(target: dict, state, name: str, layout: str) -> dict | list:
    """Return a target whose boxes state a format; those of torchvision are of one image."""
    if layout == "padded" and state is ours:
        return target | {"boxes": ours(target["boxes"], name)}
    return [{"labels": target["labels"][b], "boxes": state(target["boxes"][b], name)} for b in range(B)]


def detector(box_format: str | None = None, **options) -> DetectionLoss:
    matcher = Hungarian(loc_match_module=L1, box_format=box_format)
    cls = nn.CrossEntropyLoss(reduction=N)
    return DetectionLoss(cls, GIoULoss(reduction=N), matcher, box_format=box_format, **options)


def problem():
    return random_problem(B, P, T, C, full=True)


@pytest.fixture(params=[ours, theirs], ids=["ours", "torchvision"])
def state(request: pytest.FixtureRequest):
    if request.param is theirs:
        peer("torchvision.tv_tensors")
    return request.param


@pytest.mark.parametrize("layout", ["padded", "list"])
@pytest.mark.parametrize("name", CONVERT)
def test_targets_are_read_in_their_own_format(state, name: str, layout: str) -> None:
    scene = problem()
    expected = detector()(scene.input, scene.target)
    target = stated(scene.target, state, name, layout)
    if layout == "list":
        torch.testing.assert_close(pad_targets(target)["boxes"], scene.target["boxes"])
    torch.testing.assert_close(detector()(scene.input, target), expected)
    plan = Hungarian(loc_match_module=L1)(scene.input, target)
    assert type(plan) is Tensor
    assert torch.equal(plan, Hungarian(loc_match_module=L1)(scene.input, scene.target))


def test_each_image_has_its_own_format(state) -> None:
    scene = problem()
    names = ("CXCYWH", "XYWH")
    target = [
        {"labels": scene.target["labels"][b], "boxes": state(scene.target["boxes"][b], names[b])} for b in range(B)
    ]
    torch.testing.assert_close(detector()(scene.input, target), detector()(scene.input, scene.target))


@pytest.mark.parametrize("name", CONVERT)
def test_predictions_are_read_in_their_own_format_and_have_their_gradient(name: str) -> None:
    scene = problem()
    leaf = scene.input["pred_boxes"].detach().clone().requires_grad_()
    loss = detector()(scene.input | {"pred_boxes": ours(leaf, name)}, scene.target)
    expected = detector()(scene.input, scene.target)
    torch.testing.assert_close(loss, expected)
    assert type(loss) is Tensor
    loss.backward()
    expected.backward()
    torch.testing.assert_close(leaf.grad, scene.input["pred_boxes"].grad)


@pytest.mark.parametrize(("name", "declared"), [("CXCYWH", "cxcywh"), ("XYWH", "xywh")])
def test_what_is_said_twice_may_agree(state, name: str, declared: str) -> None:
    scene = problem()
    expected = detector()(scene.input, scene.target)
    target = stated(scene.target, state, name, "padded")
    pred = CONVERT[name](scene.input["pred_boxes"])
    torch.testing.assert_close(detector(declared)(scene.input | {"pred_boxes": pred}, target), expected)


@pytest.mark.parametrize("layout", ["padded", "list"])
@pytest.mark.parametrize("name", CONVERT)
@pytest.mark.parametrize("option", ["box_format", "target_format"])
def test_what_disagrees_with_what_the_caller_says_raises(state, name: str, option: str, layout: str) -> None:
    scene = problem()
    declared = "xywh" if name == "CXCYWH" else "cxcywh"
    loss = detector(declared) if option == "box_format" else detector(target_format=declared)
    target = stated(scene.target, state, name, layout)
    where = "target[0]" if isinstance(target, list) else "target"
    message = f"{where}['boxes'] state that they are {name.lower()}, but {option}={declared!r}"
    with pytest.raises(ValueError, match=re.escape(message)):
        loss(scene.input, target)


def test_predictions_that_disagree_raise_and_name_the_layer() -> None:
    scene = problem()
    layer = scene.input | {"pred_boxes": ours(scene.input["pred_boxes"], "XYWH")}
    message = "input['aux_outputs'][0]['pred_boxes'] state that they are xywh, but box_format='cxcywh'"
    with pytest.raises(ValueError, match=re.escape(message)):
        detector("cxcywh")(scene.input | {"aux_outputs": [layer]}, scene.target)


def test_a_format_that_is_not_known_raises() -> None:
    scene, boxes = problem(), problem().target["boxes"].as_subclass(Boxes)
    boxes.format = Format.CXCYWHR
    with pytest.raises(
        ValueError, match=r"target\['boxes'\] must be of the format xyxy, cxcywh or xywh, got .* cxcywhr"
    ):
        detector()(scene.input, scene.target | {"boxes": boxes})


@pytest.mark.parametrize("wrap", [lambda x: x, lambda x: Anchors(x)])
def test_anchors_are_corners_or_refused(state, wrap) -> None:
    scene = problem()
    places = scene.anchors.boxes
    matcher = IoUThreshold(is_anchor_based=True)
    expected = matcher(scene.input, scene.target, places)
    assert torch.equal(matcher(scene.input, scene.target, wrap(state(places, "XYXY"))), expected)
    with pytest.raises(ValueError, match=r"anchors\S* must be xyxy, got boxes that state that they are cxcywh"):
        matcher(scene.input, scene.target, wrap(state(places, "CXCYWH")))


def test_an_image_without_targets_has_a_format_too(state) -> None:
    scene = problem()
    empty = {"labels": torch.tensor([]), "boxes": state(torch.zeros(0, 4), "XYWH")}
    some = {"labels": scene.target["labels"][0], "boxes": state(scene.target["boxes"][0], "XYWH")}
    plain = {"labels": torch.tensor([]), "boxes": torch.tensor([])}
    expected = detector()(scene.input, [some, plain])
    torch.testing.assert_close(detector()(scene.input, [some, empty]), expected)


def test_the_boxes_of_a_branch_are_read_as_well() -> None:
    scene = problem()
    both = Branches(detector(), other_outputs=Branch(detector()))
    other = scene.input | {"pred_boxes": ours(scene.input["pred_boxes"], "CXCYWH")}
    terms = both.terms(scene.input | {"other_outputs": other}, scene.target)
    torch.testing.assert_close(terms["loss_other"], detector()(scene.input, scene.target))


def test_the_package_imports_no_torchvision() -> None:
    code = "import sys, uotod, uotod.loss, uotod.match, uotod.recipes; sys.exit('torchvision' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
