"""Parsing: what is wrong raises an error that names the argument, its value and what was expected."""

import copy
import re

import pytest
import torch
from torch import nn

from tests.support.problems import random_boxes, random_problem
from uotod.loss import DetectionLoss
from uotod.match import ClosestTarget, Hungarian

B, P, T, C = 2, 12, 4, 5


def criterion(**options) -> DetectionLoss:
    matcher = Hungarian(loc_match_module=nn.L1Loss(reduction="none"), **options.pop("matcher", {}))
    losses = nn.CrossEntropyLoss(reduction="none"), nn.L1Loss(reduction="none")
    return DetectionLoss(*losses, matcher, **options)


def valid():
    problem = random_problem(B, P, T, C)
    problem.target["mask"][:] = True
    problem.target["boxes"], problem.target["labels"] = random_boxes(B, T), torch.randint(1, C, (B, T))
    return problem


def changed(part: str, key: str, value):
    problem = valid()
    getattr(problem, part)[key] = value(getattr(problem, part)[key]) if callable(value) else value
    return problem


def with_entry(value, *index):
    def change(tensor):
        tensor = tensor.detach().clone()
        tensor[index] = value
        return tensor

    return change


BAD = [
    (
        "input",
        "pred_logits",
        lambda x: x[0],
        "input['pred_logits'] must have shape (B, P, C) with C >= 1, got (12, 5)",
        ValueError,
    ),
    ("input", "pred_logits", lambda x: x.long(), "input['pred_logits'] must have a floating dtype, got", TypeError),
    ("input", "pred_logits", [1], "input['pred_logits'] must be a tensor, got list", TypeError),
    (
        "input",
        "pred_boxes",
        lambda x: x[:, :-1],
        "input['pred_boxes'] must have shape (2, 12, 4) to fit its logits, got (2, 11, 4)",
        ValueError,
    ),
    (
        "input",
        "pred_logits",
        with_entry(float("nan"), 1, 3),
        "input['pred_logits'] must be finite, got 5 non-finite values in image 1",
        ValueError,
    ),
    (
        "input",
        "pred_boxes",
        with_entry(float("inf"), 0, 3, 1),
        "input['pred_boxes'] must be finite, got 1 non-finite values in image 0",
        ValueError,
    ),
    ("input", "aux_outputs", 3, "input['aux_outputs'] must be a list of dicts, got int", TypeError),
    (
        "input",
        "aux_outputs",
        [{}],
        "input['aux_outputs'][0] must have the key 'pred_logits', got the keys []",
        ValueError,
    ),
    (
        "target",
        "boxes",
        lambda x: x[..., :3],
        "target['boxes'] must have shape (2, 4, 4) to be compared, got (2, 4, 3)",
        ValueError,
    ),
    ("target", "boxes", lambda x: x[:1], "target['boxes'] must have shape (2, T, 4), got (1, 4, 4)", ValueError),
    ("target", "boxes", lambda x: x > 0, "target['boxes'] must have a real dtype, got torch.bool", TypeError),
    (
        "target",
        "boxes",
        with_entry(torch.tensor([0.5, 0.5, 0.25, 1.0]).double(), 1, 2),
        "target['boxes'] must have x1 <= x2 and y1 <= y2 (xyxy), got [0.5, 0.5, 0.25, 1.0] at index (1, 2)",
        ValueError,
    ),
    ("target", "boxes", with_entry(float("nan"), 1, 2), "target['boxes'] must be finite, got 4 non-finite", ValueError),
    ("target", "mask", lambda x: x.long(), "target['mask'] must have dtype torch.bool, got torch.int64", TypeError),
    ("target", "mask", lambda x: x[:, :2], "target['mask'] must have shape (2, 4), got (2, 2)", ValueError),
    (
        "target",
        "labels",
        lambda x: x[:, :2],
        "target['labels'] must have shape (2, 4) or (2, 4, 5), got (2, 2)",
        ValueError,
    ),
    ("target", "labels", lambda x: x.float(), "target['labels'] of shape (B, T) must have an integer dtype", TypeError),
    (
        "target",
        "labels",
        with_entry(5, 0, 1),
        "target['labels'] must lie in [0, 5) where the mask is True, got 5",
        ValueError,
    ),
    (
        "target",
        "labels",
        with_entry(-1, 0, 1),
        "target['labels'] must lie in [0, 5) where the mask is True, got -1",
        ValueError,
    ),
    (
        "target",
        "labels",
        with_entry(0, 0, 1),
        "target['labels'] must not hold the background class 0 (bg_class_position='first'), got it for 1 targets",
        ValueError,
    ),
    (
        "target",
        "labels",
        lambda x: nn.functional.one_hot(x, C),
        "target['labels'] must be integers with bg_class_position='first', got one-hot labels",
        ValueError,
    ),
]


@pytest.mark.parametrize(
    ("part", "key", "value", "message", "error"), BAD, ids=[f"{x[1]}-{i}" for i, x in enumerate(BAD)]
)
def test_bad_input_raises_an_error_that_names_it(part, key, value, message, error) -> None:
    problem = changed(part, key, value)
    with pytest.raises(error, match=re.escape(message)):
        criterion()(problem.input, problem.target)


@pytest.mark.parametrize("key", ["pred_logits", "pred_boxes"])
def test_a_missing_prediction_raises(key) -> None:
    problem = valid()
    del problem.input[key]
    with pytest.raises(ValueError, match=rf"input must have the key '{key}', got the keys \["):
        criterion()(problem.input, problem.target)


@pytest.mark.parametrize("key", ["labels", "boxes"])
def test_a_missing_target_raises(key) -> None:
    problem = valid()
    del problem.target[key]
    with pytest.raises(ValueError, match=rf"target must have the key '{key}', got the keys \["):
        criterion()(problem.input, problem.target)


@pytest.mark.parametrize(
    ("anchors", "message", "error"),
    [
        (torch.zeros(3, 4), "anchors must have shape (12, 4) or (2, 12, 4), got (3, 4)", ValueError),
        (torch.zeros(12, 4, dtype=torch.long), "anchors must have a floating dtype, got torch.int64", TypeError),
        (torch.full((12, 4), float("nan")), "anchors must be finite, got 48 non-finite values", ValueError),
        (torch.tensor([1.0, 0, 0, 1]).expand(12, 4), "anchors must have x1 <= x2 and y1 <= y2 (xyxy), got", ValueError),
        ([1], "anchors must be a tensor, Anchors or Points, got list", TypeError),
        (None, "anchors must be given with is_anchor_based=True, got None", ValueError),
    ],
)
def test_bad_anchors_raise(anchors, message, error) -> None:
    problem = valid()
    with pytest.raises(error, match=re.escape(message)):
        criterion(matcher={"is_anchor_based": True})(problem.input, problem.target, anchors)


def test_input_and_target_must_be_containers() -> None:
    problem = valid()
    with pytest.raises(TypeError, match="input must be a dict of tensors, got list"):
        criterion()([1], problem.target)
    with pytest.raises(TypeError, match="targets must be a list of dicts, one an image, got Tensor"):
        criterion()(problem.input, torch.zeros(2, 4))
    with pytest.raises(TypeError, match=r"target\[0\] must be a dict of tensors, got Tensor"):
        criterion()(problem.input, [torch.zeros(2, 4)])


def test_another_device_raises() -> None:
    problem = changed("target", "boxes", lambda x: x.to("meta"))
    with pytest.raises(ValueError, match=r"target\['boxes'\] must be on cpu like the rest, got meta"):
        criterion()(problem.input, problem.target)


def test_another_shape_of_an_auxiliary_layer_raises() -> None:
    problem = valid()
    problem.input["aux_outputs"] = [{k: v[:, :-1] for k, v in problem.input.items()}]
    with pytest.raises(
        ValueError, match=r"\['aux_outputs'\]\[0\]\['pred_logits'\] must have shape \(2, 12, 5\) like the"
    ):
        criterion()(problem.input, problem.target)


def test_what_lies_under_the_mask_is_never_read() -> None:
    problem = random_problem(3, P, 6, C)
    poisoned = criterion()(problem.input, problem.target)
    target = copy.deepcopy(problem.target)
    target["boxes"] = torch.where(target["mask"][..., None], target["boxes"], 0.5)
    target["labels"] = torch.where(target["mask"], target["labels"], 1)
    assert torch.equal(poisoned, criterion()(problem.input, target))


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64, torch.float16, torch.float32])
def test_target_boxes_may_have_any_real_dtype(dtype) -> None:
    problem = valid()
    boxes = (problem.target["boxes"] * 8).round()
    problem.target["boxes"] = boxes.to(dtype)
    expected = criterion()(problem.input, problem.target | {"boxes": boxes})
    torch.testing.assert_close(criterion()(problem.input, problem.target), expected)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int32])
def test_labels_may_have_any_integer_dtype(dtype) -> None:
    problem = valid()
    expected = criterion()(problem.input, problem.target)
    assert torch.equal(
        expected, criterion()(problem.input, problem.target | {"labels": problem.target["labels"].to(dtype)})
    )


def test_a_list_of_images_equals_padded_targets() -> None:
    problem = random_problem(3, P, 5, C)
    mask = problem.target["mask"]
    images = [{k: problem.target[k][b][mask[b]] for k in ("boxes", "labels")} for b in range(3)]
    matcher = ClosestTarget(loc_match_module=nn.L1Loss(reduction="none"), background_cost=0.3)
    loss = DetectionLoss(nn.CrossEntropyLoss(reduction="none"), nn.L1Loss(reduction="none"), matcher)
    torch.testing.assert_close(loss(problem.input, images), loss(problem.input, problem.target), rtol=0, atol=1e-12)


def test_validation_leaves_input_and_target_as_they_were() -> None:
    problem = random_problem()
    before = {k: v.clone() for k, v in (problem.input | problem.target).items()}
    criterion()(problem.input, problem.target, problem.anchors)
    for key, value in (problem.input | problem.target).items():
        torch.testing.assert_close(value, before[key], rtol=0, atol=0, equal_nan=True)
