"""Targets that are ignored (crowds) and weighted: what matchers and the loss make of them."""

import math
import re

import pytest
import torch
from torch import nn

from tests.support.matcher_cases import CASES, COSTS
from tests.support.problems import random_boxes, random_problem
from uotod.loss import DetectionLoss
from uotod.match import Hungarian, SoftMin
from uotod.utils import Anchors, pad_targets


def ignoring(problem, *, share: float):
    """Return a copy of the target in which about `share` of the real targets are ignored."""
    return problem.target | {"ignore": torch.rand(problem.target["mask"].shape) < share}


@pytest.mark.parametrize("background", [True, False])
@pytest.mark.parametrize("name", CASES)
def test_no_prediction_matches_an_ignored_target(name, background) -> None:
    problem = random_problem(3, 20, 6)
    target = ignoring(problem, share=0.5)
    gone = target["mask"] & target["ignore"]
    assert gone.any()
    matcher = CASES[name].build(ignore_threshold=1.0, background=background)
    plan = matcher(problem.input, target, problem.anchors)
    assert plan.shape == (3, 20, 6 + background)
    without = problem.target | {"mask": target["mask"] & ~target["ignore"]}
    assert torch.equal(plan, matcher(problem.input, without, problem.anchors))


@pytest.mark.parametrize("name", CASES)
def test_background_predictions_inside_an_ignored_target_are_ignored(name) -> None:
    problem = random_problem(3, 20, 6)
    target = ignoring(problem, share=0.5)
    matcher = CASES[name].build()
    plan = matcher(problem.input, target, problem.anchors)
    expected = CASES[name].build(ignore_threshold=1.0)(problem.input, target, problem.anchors)
    dropped = 0
    for b in range(3):
        for i in range(20):
            boxes = (
                problem.anchors.boxes if getattr(matcher, "is_anchor_based", False) else problem.input["pred_boxes"][b]
            )
            x1, y1, x2, y2 = boxes[i].tolist()
            shares = [0.0]
            for j in range(6):
                if target["mask"][b, j] and target["ignore"][b, j]:
                    a1, b1, a2, b2 = target["boxes"][b, j].tolist()
                    inside = max(min(x2, a2) - max(x1, a1), 0) * max(min(y2, b2) - max(y1, b1), 0)
                    shares.append(inside / ((x2 - x1) * (y2 - y1)))
            if max(shares) > 0.5:
                dropped += 1
                if CASES[name].soft or (expected[b, i, :-1] == 0).all():
                    expected[b, i, -1] = 0
    assert dropped > 3
    assert torch.equal(plan, expected)


@pytest.mark.parametrize("name", CASES)
def test_a_plan_without_background_has_none_to_ignore(name) -> None:
    problem = random_problem(3, 20, 6)
    target = ignoring(problem, share=0.5)
    plan = CASES[name].build(background=False)(problem.input, target, problem.anchors)
    assert plan.shape == (3, 20, 6)
    expected = CASES[name].build(background=False, ignore_threshold=1.0)(problem.input, target, problem.anchors)
    assert torch.equal(plan, expected)


def test_the_anchors_are_compared_where_the_matcher_is_based_on_them() -> None:
    input = {"pred_logits": torch.zeros(1, 2, 2), "pred_boxes": torch.zeros(1, 2, 4)}
    target = {
        "boxes": torch.tensor([[[0.0, 0, 4, 4]]]),
        "labels": torch.ones(1, 1).long(),
        "ignore": torch.ones(1, 1, dtype=torch.bool),
    }
    anchors = Anchors(torch.tensor([[1.0, 1, 2, 2], [5, 5, 6, 6]]))
    for is_anchor_based, expected in ((True, [0, 1]), (False, [1, 1])):
        matcher = Hungarian(loc_match_module=nn.L1Loss(reduction="none"), is_anchor_based=is_anchor_based)
        assert matcher(input, target, anchors)[0, :, -1].tolist() == expected


def test_an_ignored_region_carries_no_classification_loss() -> None:
    problem = random_problem(2, 10, 4)
    target = ignoring(problem, share=1.0)
    target["boxes"] = torch.tensor([0.0, 0, 1, 1]).expand(2, 4, 4).clone()
    target["mask"] = torch.tensor([[True, False, False, False], [False] * 4])
    criterion = DetectionLoss(
        nn.CrossEntropyLoss(reduction="none"), nn.L1Loss(reduction="none"), Hungarian(**COSTS), "first"
    )
    criterion(problem.input, target).backward()
    gradient = problem.input["pred_logits"].grad
    assert (gradient[0] == 0).all()
    assert (gradient[1] != 0).any()


def test_the_ignored_targets_of_a_list_are_padded() -> None:
    images = [
        {"boxes": random_boxes(2), "labels": torch.ones(2).long(), "ignore": torch.tensor([True, False])},
        {"boxes": random_boxes(3), "labels": torch.ones(3).long(), "cost_weight": torch.tensor([1.0, 2.0, 3.0])},
    ]
    padded = pad_targets(images)
    assert padded["ignore"].tolist() == [[True, False, False], [False] * 3]
    assert padded["cost_weight"].tolist() == [[1, 1, 0], [1, 2, 3]]
    problem = random_problem(2, 5, 3)
    matcher = Hungarian(**COSTS)
    assert torch.equal(matcher(problem.input, images), matcher(problem.input, padded))


def test_the_weight_of_a_target_multiplies_its_cost() -> None:
    problem = random_problem(2, 6, 3)
    weight = 0.5 + torch.rand(2, 3)
    matcher = SoftMin(**COSTS)
    cost = matcher.compute_cost_matrix(problem.input, problem.target | {"cost_weight": weight})
    plain = matcher.compute_cost_matrix(problem.input, problem.target)
    mask = problem.target["mask"][:, None, :].expand(-1, 6, -1)
    torch.testing.assert_close(cost[..., :3][mask], (plain[..., :3] * weight[:, None, :])[mask])
    assert torch.equal(cost[..., 3], plain[..., 3])


@pytest.mark.parametrize(
    ("key", "value", "message", "error"),
    [
        ("ignore", torch.zeros(2, 3), "target['ignore'] must have dtype torch.bool, got torch.float32", TypeError),
        ("ignore", torch.zeros(2, 1).bool(), "target['ignore'] must have shape (2, 3), got (2, 1)", ValueError),
        (
            "cost_weight",
            torch.ones(2, 3).long(),
            "target['cost_weight'] must have a floating dtype, got torch.int64",
            TypeError,
        ),
        ("cost_weight", torch.ones(3), "target['cost_weight'] must have shape (2, 3), got (3,)", ValueError),
        ("cost_weight", torch.zeros(2, 3), "target['cost_weight'] must be finite and above 0", ValueError),
        ("cost_weight", torch.full((2, 3), math.nan), "target['cost_weight'] must be finite and above 0", ValueError),
    ],
)
def test_bad_values_raise(key, value, message, error) -> None:
    problem = random_problem(2, 5, 3, full=True)
    with pytest.raises(error, match=re.escape(message)):
        Hungarian(**COSTS)(problem.input, problem.target | {key: value})
