"""The scene: crowds, weights, formats, classes and dtypes of what users pass."""

import re
from itertools import product

import pytest
import torch
from torch import Tensor, nn

from tests.support.problems import random_boxes, random_problem
from uotod.loss import (
    Branch,
    Branches,
    Classification,
    DetectionLoss,
    GIoULoss,
    MultipleObjectiveLoss,
    SigmoidFocalLoss,
)
from uotod.match import BalancedSinkhorn, ClosestTarget, Hungarian, IoUThreshold, SimOTA, TaskAligned
from uotod.utils import box_xyxy_to_cxcywh

N = "none"
B, P, T, C = 2, 9, 4, 5
L1 = nn.L1Loss(reduction=N)
BOXES = MultipleObjectiveLoss([L1, GIoULoss(reduction=N)], [5.0, 2.0])


def to_xywh(boxes: Tensor) -> Tensor:
    return torch.cat((boxes[..., :2], boxes[..., 2:] - boxes[..., :2]), dim=-1)


CONVERT = {"cxcywh": box_xyxy_to_cxcywh, "xywh": to_xywh, "xyxy": lambda boxes: boxes}


def problem(low: int = 1, full: bool = False):
    return random_problem(B, P, T, C, low=low, full=full)


def detector(box_format: str | None = None, matcher=Hungarian, **options) -> DetectionLoss:
    own = {"box_format": box_format}
    rule = {"loc_match_module": BOXES} if matcher in (Hungarian, ClosestTarget, BalancedSinkhorn) else {}
    return DetectionLoss(nn.CrossEntropyLoss(reduction=N), BOXES, matcher(**rule, **own), **own, **options)


def per_image(target: dict) -> list[dict]:
    return [{key: value[b][target["mask"][b]] for key, value in target.items()} for b in range(len(target["mask"]))]


# --- crowds and weights


@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.int32, torch.int64])
@pytest.mark.parametrize("layout", ["padded", "list"])
def test_a_crowd_is_ignored(layout, dtype) -> None:
    scene = problem(full=True)
    crowd = torch.tensor([[0, 1, 0, 0], [1, 0, 0, 1]])
    plain, crowded = (scene.target | {key: value} for key, value in (("ignore", crowd.bool()), ("iscrowd", crowd)))
    crowded["iscrowd"] = crowded["iscrowd"].to(dtype)
    if layout == "list":
        plain, crowded = per_image(plain), per_image(crowded)
    expected = detector().terms(scene.input, plain)
    terms = detector().terms(scene.input, crowded)
    assert all(torch.equal(terms[key], value) for key, value in expected.items())
    assert terms["num_pos"] == B * T - 3
    matcher = IoUThreshold(positive=0.3)
    assert torch.equal(matcher(scene.input, crowded), matcher(scene.input, plain))


@pytest.mark.parametrize("layout", ["padded", "list"])
def test_both_names_of_a_crowd_may_be_given_if_they_agree(layout) -> None:
    scene = problem(full=True)
    crowd = torch.tensor([[0, 1, 0, 0], [1, 0, 0, 1]])
    both = scene.target | {"ignore": crowd.bool(), "iscrowd": crowd}
    other = scene.target | {"ignore": crowd.bool(), "iscrowd": 1 - crowd}
    name = "target"
    if layout == "list":
        both, other, name = per_image(both), per_image(other), "target[0]"
    assert detector().terms(scene.input, both)["num_pos"] == B * T - 3
    message = f"{name}['ignore'] and {name}['iscrowd'] must be the same, got two that differ"
    for reader in (detector(), Hungarian(loc_match_module=L1)):
        with pytest.raises(ValueError, match=re.escape(message)):
            reader(scene.input, other)


@pytest.mark.parametrize("layout", ["padded", "list"])
def test_a_crowd_of_real_numbers_raises(layout) -> None:
    scene = problem(full=True)
    target = scene.target | {"iscrowd": torch.zeros(B, T)}
    target, name = (per_image(target), "target[0]") if layout == "list" else (target, "target")
    message = f"{name}['iscrowd'] must have an integer dtype or torch.bool, got torch.float32"
    with pytest.raises(TypeError, match=re.escape(message)):
        detector()(scene.input, target)


@pytest.mark.parametrize("dtype", [torch.float32, torch.int64, torch.bool])
@pytest.mark.parametrize("key", ["iscrowd", "ignore", "mask", "cost_weight", "loss_weight"])
def test_an_entry_of_no_targets_has_no_dtype_to_object_to(key, dtype) -> None:
    scene = problem(full=True)
    nothing = {"labels": torch.tensor([]), "boxes": torch.tensor([]), key: torch.tensor([], dtype=dtype)}
    some = {name: scene.target[name][0] for name in ("labels", "boxes")}
    value = torch.tensor([0, 1, 0, 0])
    some[key] = value + 1.0 if key.endswith("weight") else value if key == "iscrowd" else value.bool()
    count = {"iscrowd": T - 1, "ignore": T - 1, "mask": 1}.get(key, T)
    assert detector().terms(scene.input, [some, nothing])["num_pos"] == count
    assert detector().terms(scene.input, [nothing, nothing])["num_pos"] == 0
    padded = {"labels": torch.zeros(B, 0), "boxes": torch.zeros(B, 0, 4), key: torch.zeros(B, 0, dtype=dtype)}
    assert detector().terms(scene.input, padded)["num_pos"] == 0


@pytest.mark.parametrize("layout", ["padded", "list"])
def test_a_weight_without_a_meaning_raises_and_names_those_that_have_one(layout) -> None:
    scene = problem(full=True)
    target = scene.target | {"weight": torch.ones(B, T)}
    for reader in (detector(), Hungarian(loc_match_module=L1)):
        with pytest.raises(ValueError, match=r"\['weight'\].*'cost_weight'.*'loss_weight'"):
            reader(scene.input, per_image(target) if layout == "list" else target)


# --- formats of boxes


@pytest.mark.parametrize(
    "matcher", [Hungarian, ClosestTarget, BalancedSinkhorn, IoUThreshold], ids=lambda x: x.__name__
)
@pytest.mark.parametrize("layout", ["padded", "list"])
@pytest.mark.parametrize("box_format", ["cxcywh", "xywh"])
def test_another_format_is_that_of_converted_boxes(box_format, layout, matcher) -> None:
    scene = problem()
    change = CONVERT[box_format]
    layer = {"pred_logits": torch.randn(B, P, C).double(), "pred_boxes": random_boxes(B, P)}
    input = scene.input | {"aux_outputs": [layer]}
    boxes = scene.input["pred_boxes"].detach().requires_grad_()
    changed = change(boxes.detach()).requires_grad_()
    other = {
        "pred_logits": input["pred_logits"],
        "pred_boxes": changed,
        "aux_outputs": [layer | {"pred_boxes": change(layer["pred_boxes"])}],
    }
    target = scene.target, scene.target | {"boxes": change(scene.target["boxes"])}
    if layout == "list":
        target = tuple(per_image(x) for x in target)
    expected = detector(matcher=matcher).terms(input | {"pred_boxes": boxes}, target[0])
    terms = detector(box_format, matcher).terms(other, target[1])
    assert terms.keys() == expected.keys()
    for key, value in expected.items():
        torch.testing.assert_close(terms[key], value, rtol=1e-12, atol=1e-12)
    if expected["loss_loc"] > 0:
        (gradient,) = torch.autograd.grad(terms["loss_loc"], changed)
        (wanted,) = torch.autograd.grad(expected["loss_loc"], boxes)
        (chained,) = torch.autograd.grad(change(boxes), boxes, gradient)
        torch.testing.assert_close(chained, wanted, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("box_format", ["cxcywh", "xywh"])
def test_another_format_of_a_matcher_alone_is_that_of_converted_boxes(box_format) -> None:
    scene = problem()
    change = CONVERT[box_format]
    input = scene.input | {"pred_boxes": change(scene.input["pred_boxes"])}
    target = scene.target | {"boxes": change(scene.target["boxes"])}
    for options in ({}, {"is_anchor_based": True}):  # anchors are xyxy whatever the boxes are
        matcher, other = (Hungarian(loc_match_module=BOXES, box_format=x, **options) for x in (None, box_format))
        torch.testing.assert_close(
            other.compute_cost_matrix(input, target, scene.anchors),
            matcher.compute_cost_matrix(scene.input, scene.target, scene.anchors),
            rtol=1e-12,
            atol=1e-12,
        )
        assert torch.equal(other(input, target, scene.anchors), matcher(scene.input, scene.target, scene.anchors))
    for rule in (IoUThreshold, SimOTA, TaskAligned):
        plan = rule(box_format=box_format)(input, target, scene.anchors)
        torch.testing.assert_close(plan, rule()(scene.input, scene.target, scene.anchors), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("own", "theirs"), [x for x in product(CONVERT, CONVERT) if x[0] != x[1]])
def test_targets_may_have_another_format_than_predictions(own, theirs) -> None:
    scene = problem()
    box_format = None if own == "xyxy" else own
    input = scene.input | {"pred_boxes": CONVERT[own](scene.input["pred_boxes"])}
    target = scene.target | {"boxes": CONVERT[theirs](scene.target["boxes"])}
    criterion = detector(box_format, target_format=theirs)
    expected = detector().terms(scene.input, scene.target)
    for key, value in criterion.terms(input, target).items():
        torch.testing.assert_close(value, expected[key], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("box_format", ["cxcywh", "xywh"])
def test_branches_have_formats_too(box_format) -> None:
    scene = problem(low=0)
    change = CONVERT[box_format]
    focal = SigmoidFocalLoss(reduction=N)

    def build(name: str | None) -> Branches:
        loss = DetectionLoss(focal, BOXES, Hungarian(loc_match_module=BOXES, box_format=name), N, box_format=name)
        return Branches(loss, enc_outputs=Branch(loss, class_agnostic=True), dn_outputs=Branch(loss, plan="given"))

    def layer(classes: int) -> dict:
        return {"pred_logits": torch.randn(B, P, classes).double(), "pred_boxes": random_boxes(B, P)}

    plan = torch.where(torch.rand(B, P) < 0.5, -1, T)
    input = scene.input | {"enc_outputs": layer(1), "dn_outputs": layer(C) | {"aux_outputs": [layer(C)], "plan": plan}}

    def changed(value):
        if not isinstance(value, dict):
            return [changed(x) for x in value] if isinstance(value, list) else value
        return {k: change(x) if k == "pred_boxes" else changed(x) for k, x in value.items()}

    target = scene.target | {"boxes": change(scene.target["boxes"])}
    expected = build(None).terms(input, scene.target)
    for key, value in build(box_format).terms(changed(input), target).items():
        torch.testing.assert_close(value, expected[key], rtol=1e-12, atol=1e-12)


def test_a_criterion_and_a_matcher_of_different_formats_raise() -> None:
    for own, theirs in ((None, "cxcywh"), ("cxcywh", None), ("xywh", "cxcywh")):
        matcher = Hungarian(loc_match_module=L1, box_format=theirs)
        message = f"matching_method must have box_format={own!r} like the loss, got {theirs!r}"
        with pytest.raises(ValueError, match=re.escape(message)):
            DetectionLoss(None, L1, matcher, N, box_format=own)
    for build in (
        lambda: Hungarian(loc_match_module=L1, box_format="xyxyx"),
        lambda: detector(target_format="yxyx"),
    ):
        with pytest.raises(ValueError, match=r"(box|target)_format must be one of \[None, 'cxcywh', 'xywh'"):
            build()


def test_boxes_of_another_format_are_checked_after_they_are_converted() -> None:
    scene = problem(full=True)
    target = scene.target | {"boxes": scene.target["boxes"].index_fill(-1, torch.tensor([2]), -0.1)}
    with pytest.raises(ValueError, match=r"target\['boxes'\] must have x1 <= x2 and y1 <= y2"):
        detector("cxcywh")(scene.input, target)


# --- classes


@pytest.mark.parametrize(("position", "logits"), [("first", 5), ("last", 5), ("none", 4)])
def test_the_number_of_classes_is_that_of_the_head(position, logits) -> None:
    def build(count: int | None) -> DetectionLoss:
        cls = SigmoidFocalLoss(reduction=N) if position == "none" else nn.CrossEntropyLoss(reduction=N)
        return DetectionLoss(cls, L1, Hungarian(loc_match_module=L1), position, num_classes=count)

    scene = random_problem(B, P, T, logits, low=1, high=4)
    expected = build(None)(scene.input, scene.target)
    assert torch.equal(build(4)(scene.input, scene.target), expected)
    for count in (3, 5):
        wanted = count + (position != "none")
        with pytest.raises(ValueError, match=rf"must have {wanted} logits for num_classes={count} .*, got {logits}"):
            build(count)(scene.input, scene.target)
    few = scene.input | {"pred_logits": scene.input["pred_logits"][..., :2]}  # told before labels that lie beyond
    with pytest.raises(ValueError, match=r"logits for num_classes=4 .*, got 2"):
        build(4)(few, scene.target)
    for wrong, error in ((0, ValueError), (2.5, TypeError), (True, TypeError)):
        with pytest.raises(error, match="num_classes must be"):
            build(wrong)


def test_a_branch_without_classes_has_one() -> None:
    scene = random_problem(B, P, T, 4, low=0)
    focal, matcher = SigmoidFocalLoss(reduction=N), Hungarian(loc_match_module=L1)
    one = DetectionLoss(focal, L1, matcher, N, num_classes=1)
    main = DetectionLoss(focal, L1, matcher, N, num_classes=4)
    proposals = {"pred_logits": torch.randn(B, P, 1), "pred_boxes": random_boxes(B, P)}
    criterion = Branches(main, enc_outputs=Branch(one, class_agnostic=True))
    assert criterion(scene.input | {"enc_outputs": proposals}, scene.target).isfinite()
    with pytest.raises(ValueError, match=r"input\['enc_outputs'\]: .*must have 1 logits for num_classes=1"):
        criterion(scene.input | {"enc_outputs": dict(scene.input)}, scene.target)


# --- dtypes

REAL = [torch.float16, torch.bfloat16, torch.float32, torch.float64]


@pytest.mark.parametrize(("logits", "boxes", "target"), list(product(REAL, REAL, REAL)))
def test_real_dtypes_mix(logits, boxes, target) -> None:
    scene = problem(full=True)
    rounded = [
        scene.input["pred_logits"].detach().to(logits),
        scene.input["pred_boxes"].detach().to(boxes),
        scene.target["boxes"].to(target),
    ]
    cls, box = rounded[0].requires_grad_(), rounded[1].requires_grad_()
    criterion = DetectionLoss(
        Classification(nn.CrossEntropyLoss(reduction=N), quality="iou"), BOXES, Hungarian(loc_match_module=BOXES)
    )
    loss = criterion({"pred_logits": cls, "pred_boxes": box}, scene.target | {"boxes": rounded[2]})
    widest = torch.float64 if torch.float64 in (logits, boxes) else torch.float32
    assert loss.dtype == widest
    loss.backward()
    assert (cls.grad.dtype, box.grad.dtype) == (logits, boxes)
    exact = {"pred_logits": cls.detach().double(), "pred_boxes": box.detach().double()}
    expected = criterion(exact, scene.target | {"boxes": rounded[2].double()})
    torch.testing.assert_close(loss.double(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "rule", [Hungarian, ClosestTarget, BalancedSinkhorn, IoUThreshold, SimOTA], ids=lambda x: x.__name__
)
def test_plans_of_double_boxes_and_float_logits(rule) -> None:
    scene = problem()
    input = scene.input | {"pred_logits": scene.input["pred_logits"].float()}
    options = {} if rule in (IoUThreshold, SimOTA) else {"cls_match_module": nn.CrossEntropyLoss(reduction=N)}
    matcher = rule(loc_match_module=L1, **options)
    plan = matcher(input, scene.target, scene.anchors)
    exact = matcher(input | {"pred_logits": input["pred_logits"].double()}, scene.target, scene.anchors)
    assert plan.dtype == torch.float64
    torch.testing.assert_close(plan, exact, rtol=1e-6, atol=1e-6)


def test_layers_of_different_dtypes_mix() -> None:
    scene = problem()
    single = {key: value.detach().float() for key, value in scene.input.items()}
    for input in (single | {"aux_outputs": [scene.input]}, scene.input | {"aux_outputs": [single]}):
        terms = detector().terms(input, scene.target)
        assert terms["loss"].isfinite()
        torch.testing.assert_close(terms["loss_cls"].double(), terms["loss_cls_0"].double(), rtol=1e-5, atol=1e-6)


# --- nothing


@pytest.mark.parametrize("layout", ["padded", "list", "empty list of images", "no dtype"])
@pytest.mark.parametrize("position", ["first", "none"])
def test_no_targets_are_ordinary(layout, position) -> None:
    images = 0 if layout == "empty list of images" else B
    input = {
        "pred_logits": torch.randn(images, P, C).requires_grad_(),
        "pred_boxes": random_boxes(images, P).float().requires_grad_(),
    }
    nothing = torch.tensor([])
    target = {
        "padded": {"labels": torch.zeros(B, 0, dtype=torch.long), "boxes": torch.zeros(B, 0, 4)},
        "no dtype": {"labels": torch.zeros(B, 0), "boxes": torch.zeros(B, 0, 4)},
        "list": [{"labels": nothing, "boxes": nothing}] * B,
        "empty list of images": [],
    }[layout]
    cls = SigmoidFocalLoss(reduction=N) if position == "none" else nn.CrossEntropyLoss(reduction=N)
    terms = DetectionLoss(cls, BOXES, Hungarian(loc_match_module=BOXES), position).terms(input, target)
    assert terms["num_pos"] == terms["loss_loc"] == 0
    assert terms["num_neg"] == images * P
    terms["loss"].backward()
    assert all(x.grad.isfinite().all() for x in input.values())
    assert Hungarian(loc_match_module=BOXES)(input, target).shape == (images, P, 1)


def test_images_without_targets_mix_with_others() -> None:
    scene = problem(full=True)
    some = {key: scene.target[key][0] for key in ("labels", "boxes")}
    nothing = {"labels": torch.tensor([]), "boxes": torch.tensor([])}
    padded = {
        "labels": torch.stack((some["labels"], torch.zeros(T, dtype=torch.long))),
        "boxes": torch.stack((some["boxes"], torch.zeros(T, 4, dtype=torch.float64))),
        "mask": torch.tensor([[True] * T, [False] * T]),
    }
    expected = detector().terms(scene.input, padded)
    for key, value in detector().terms(scene.input, [some, nothing]).items():
        assert torch.equal(value, expected[key])
