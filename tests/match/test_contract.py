"""The contract of every matcher; a new matcher enters it by one line of `matcher_cases.CASES`."""

import copy
import math
import pickle
from pathlib import Path

import pytest
import torch
from torch import nn

from tests.support.matcher_cases import CASES
from tests.support.problems import matched, permuted, random_problem
from uotod import match
from uotod.loss import NegativeProbLoss, SigmoidFocalCost
from uotod.match import Matcher

UNIT_ROWS = [name for name, case in CASES.items() if case.unit_rows]


def test_every_matcher_is_in_the_contract() -> None:
    assert {case.split("-")[0] for case in CASES} == set(match.ALL_MATCHERS)
    assert all(vars(match)[name] is rule for name, rule in match.ALL_MATCHERS.items())


def test_every_matcher_has_a_page() -> None:
    pages = (Path(__file__).parents[2] / "docs" / "matchers.rst").read_text().split()
    assert set(match.ALL_MATCHERS) <= set(pages)


@pytest.mark.parametrize(
    ("images", "preds", "targets"),
    [(2, 12, 4), (1, 1, 1), (3, 5, 0), (0, 5, 3), (2, 3, 6), (2, 4, 4), (1, 1, 4), (2, 2, 1)],
)
def test_a_plan_is_a_plan(matcher: Matcher, images: int, preds: int, targets: int, device: torch.device) -> None:
    problem = random_problem(images, preds, targets).to(device)
    plan = matcher(problem.input, problem.target, problem.anchors)
    assert plan.shape == (images, preds, targets + 1)
    assert plan.dtype == torch.float64
    assert plan.device == device
    assert not plan.requires_grad
    assert plan.isfinite().all()
    assert (plan >= 0).all()
    padding = ~problem.target["mask"][:, None, :].expand(-1, preds, -1)
    assert (plan[..., :-1][padding] == 0).all()


@pytest.mark.parametrize("name", UNIT_ROWS)
def test_rows_sum_to_one_or_are_ignored(matcher: Matcher) -> None:
    problem = random_problem(4, 20, 5)
    rows = matched(matcher(problem.input, problem.target, problem.anchors)).sum(-1)
    assert (((rows - 1).abs() < 1e-5) | (rows == 0)).all()


def test_an_image_without_targets_is_all_background(name: str, matcher: Matcher) -> None:
    problem = random_problem(2, 6, 3)
    problem.target["mask"][:] = False
    plan = matcher(problem.input, problem.target, problem.anchors)
    assert (plan[..., :-1] == 0).all()
    assert (plan[..., -1] > 0).all()
    if CASES[name].unit_rows:
        assert ((plan[..., -1] - 1).abs() <= (1e-12 if CASES[name].soft else 0)).all()


def test_a_plan_does_not_depend_on_its_batch(matcher: Matcher) -> None:
    problem = random_problem(5, 12, 4)
    scale = torch.tensor([1, 50, 1e-2, 1, 7])[:, None, None]
    problem.input["pred_boxes"] = problem.input["pred_boxes"].detach() * scale
    problem.target["boxes"] = problem.target["boxes"] * scale
    together = matched(matcher(problem.input, problem.target, problem.anchors))
    for b in range(5):
        one = {k: v[b : b + 1] for k, v in problem.input.items()}, {k: v[b : b + 1] for k, v in problem.target.items()}
        torch.testing.assert_close(matcher(*one, problem.anchors)[0], together[b], rtol=0, atol=1e-7)


def test_a_plan_does_not_depend_on_padding(matcher: Matcher) -> None:
    problem = random_problem(1, 12, 5)
    mask = problem.target["mask"][0]
    assert 0 < mask.sum() < 5
    padded = matched(matcher(problem.input, problem.target, problem.anchors))[0]
    bare = matcher(problem.input, {k: v[:, mask] for k, v in problem.target.items()}, problem.anchors)[0]
    columns = torch.cat((mask, torch.tensor([True])))
    torch.testing.assert_close(padded[:, columns], bare, rtol=0, atol=1e-7)


def test_a_plan_follows_the_order_of_predictions_and_targets(matcher: Matcher) -> None:
    problem = random_problem(3, 60, 5)  # enough for every target to overlap some: an IoU of 0 would tie
    preds, targets = torch.randperm(60), torch.randperm(5)
    plan = matched(matcher(problem.input, problem.target, problem.anchors))
    shuffled = permuted(problem, preds, targets)
    expected = plan[:, preds][:, :, torch.cat((targets, torch.tensor([5])))]
    torch.testing.assert_close(matcher(shuffled.input, shuffled.target, shuffled.anchors), expected, rtol=0, atol=1e-7)


def test_the_lowest_index_wins_ties(name: str, matcher: Matcher) -> None:
    if CASES[name].soft:
        pytest.skip("a soft plan shares ties")
    cost = torch.full((1, 4, 3), 0.25)
    plan = matcher.compute_matching(cost, torch.ones(1, 2, dtype=torch.bool))[0]
    assert plan[0, 0] == 1


def test_compute_matching_is_what_forward_does_with_the_cost(name: str, matcher: Matcher) -> None:
    if CASES[name].geometric:
        pytest.skip("it reads more than the cost")
    problem = random_problem(3, 12, 4)
    cost = matcher.compute_cost_matrix(problem.input, problem.target, problem.anchors)
    assert cost.shape == (3, 12, 5)
    assert not cost.requires_grad
    plan = matched(matcher.compute_matching(cost, problem.target["mask"]))
    torch.testing.assert_close(plan, matcher(problem.input, problem.target, problem.anchors), rtol=0, atol=1e-9)


def test_a_cost_under_the_mask_is_never_read(matcher: Matcher) -> None:
    cost, mask = torch.rand(2, 6, 4), torch.tensor([[True, False, True], [False, True, True]])
    poisoned = cost.clone()
    poisoned[..., :3][~mask[:, None, :].expand(-1, 6, -1)] = math.nan
    assert torch.equal(matcher.compute_matching(poisoned, mask), matched(matcher.compute_matching(cost, mask)))


@pytest.mark.parametrize("value", [math.nan, -math.inf])
def test_a_cost_without_meaning_raises(matcher: Matcher, value: float) -> None:
    cost = torch.rand(2, 6, 4)
    cost[1, 2, 0] = value
    with pytest.raises(
        ValueError, match=rf"cost_matrix must not hold NaN or -inf, got {value} in image 1, prediction 2"
    ):
        matcher.compute_matching(cost, torch.ones(2, 3, dtype=torch.bool))


def test_a_forbidden_pair_carries_no_mass(matcher: Matcher) -> None:
    cost = torch.rand(2, 6, 4)
    forbidden = torch.rand(2, 6, 3) < 0.2
    cost[..., :3][forbidden] = math.inf
    plan = matched(matcher.compute_matching(cost, torch.ones(2, 3, dtype=torch.bool)))
    assert plan.isfinite().all()
    assert (plan[..., :3][forbidden] == 0).all()


def test_a_matcher_without_background_has_no_background_column(name: str) -> None:
    matcher = CASES[name].build(background=False)
    problem = random_problem(2, 6, 3)
    plan = matcher(problem.input, problem.target, problem.anchors)
    assert plan.shape == (2, 6, 3)
    assert plan.isfinite().all()
    assert (plan > 1e-3).any()
    assert matcher.compute_cost_matrix(problem.input, problem.target, problem.anchors).shape == (2, 6, 3)
    empty = random_problem(2, 6, 0)
    assert matcher(empty.input, empty.target, empty.anchors).shape == (2, 6, 0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_half_precision_is_solved_in_float32_and_the_rest_in_its_own(matcher: Matcher, dtype: torch.dtype) -> None:
    problem = random_problem(2, 8, 3)
    low = {k: v.to(dtype) for k, v in problem.input.items()}
    plan = matched(matcher(low, problem.target, problem.anchors))
    expected = torch.float64 if dtype == torch.float64 else torch.float32
    assert plan.dtype == expected
    same = {k: v.to(expected) for k, v in low.items()}
    torch.testing.assert_close(plan, matcher(same, problem.target, problem.anchors), rtol=0, atol=0)
    assert (
        matcher.compute_matching(torch.rand(1, 3, 3, dtype=dtype), torch.ones(1, 2, dtype=torch.bool)).dtype == expected
    )


def test_autocast_does_not_change_a_plan(matcher: Matcher) -> None:
    problem = random_problem(2, 8, 3, dtype=torch.float32)
    plan = matched(matcher(problem.input, problem.target, problem.anchors))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(matcher(problem.input, problem.target, problem.anchors), plan)


def test_strided_input_is_as_good_as_contiguous(matcher: Matcher) -> None:
    problem = random_problem(2, 8, 3)
    strided = {k: v.detach().transpose(0, 1).contiguous().transpose(0, 1) for k, v in problem.input.items()}
    plan = matched(matcher(problem.input, problem.target, problem.anchors))
    assert torch.equal(matcher(strided, problem.target, problem.anchors), plan)


def test_a_matcher_writes_nothing(matcher: Matcher) -> None:
    problem = random_problem(2, 8, 3)
    before = pickle.dumps(matcher)
    inputs = {k: v.detach().clone() for k, v in (problem.input | problem.target).items()}
    first = matched(matcher(problem.input, problem.target, problem.anchors))
    assert pickle.dumps(matcher) == before
    for key, value in (problem.input | problem.target).items():
        torch.testing.assert_close(value.detach(), inputs[key], rtol=0, atol=0, equal_nan=True)
    for twin in (matcher, pickle.loads(before), copy.deepcopy(matcher)):
        assert torch.equal(twin(problem.input, problem.target, problem.anchors), first)
    assert matcher.state_dict() == {}


def test_repr_names_the_matcher(name: str, matcher: Matcher) -> None:
    assert repr(matcher).startswith(name.split("-")[0])


def test_a_misspelt_argument_raises(name: str) -> None:
    with pytest.raises(TypeError, match="unexpected keyword argument"):
        match.ALL_MATCHERS[name.split("-")[0]](
            *([[match.Hungarian()]] if name == "WeightedSum" else []), bakground=True
        )


def test_a_matcher_without_modules_says_so(name: str) -> None:
    if CASES[name].own_cost:
        pytest.skip("it brings a cost of its own")
    problem = random_problem(1, 3, 2)
    with pytest.raises(ValueError, match="needs cls_match_module or loc_match_module to compute a cost, got neither"):
        match.ALL_MATCHERS[name.split("-")[0]]()(problem.input, problem.target)


@pytest.mark.parametrize("field", ["pred_logits", "pred_boxes"])
def test_predictions_that_are_not_finite_raise_by_default(matcher: Matcher, field: str) -> None:
    problem = random_problem(3, 8, 3)
    with torch.no_grad():
        problem.input[field][1, 2, 0] = math.nan
    with pytest.raises(ValueError, match=rf"input\['{field}'\] must be finite, got 1 non-finite values in image 1"):
        matcher(problem.input, problem.target, problem.anchors)


def test_propagated_predictions_are_matched_only_if_nothing_finite_is_left(name: str) -> None:
    matcher = CASES[name].build(nonfinite="propagate")
    problem = random_problem(3, 8, 3, full=True)
    finite = matched(matcher(problem.input, problem.target, problem.anchors))
    with torch.no_grad():
        problem.input["pred_boxes"][1, 2, 0] = math.nan
        problem.input["pred_logits"][1, 5] = math.inf
    plan = matcher(problem.input, problem.target, problem.anchors)
    assert plan.isfinite().all()
    assert (plan[1, [2, 5], :3] < 1e-3).all()  # an entropic plan is never exactly zero
    assert torch.equal(plan[[0, 2]], finite[[0, 2]])


def test_one_hot_labels_equal_integer_labels() -> None:
    problem = random_problem(3, 8, 4, 5)
    labels = problem.target["labels"].clamp(min=0)
    one_hot = problem.target | {"labels": nn.functional.one_hot(labels, 5).double()}
    for cost in (
        NegativeProbLoss(reduction="none"),
        SigmoidFocalCost(reduction="none"),
        nn.BCEWithLogitsLoss(reduction="none"),
    ):
        matcher = match.SoftMin(cls_match_module=cost)
        torch.testing.assert_close(
            matcher(problem.input, one_hot), matcher(problem.input, problem.target, problem.anchors)
        )


@pytest.mark.parametrize("rule", [match.ClosestTarget, match.Hungarian, match.SoftMin, match.UnbalancedSinkhorn])
def test_a_propagated_prediction_costs_more_than_the_background_whatever_the_padding(rule: type[Matcher]) -> None:
    problem = random_problem(1, 6, 1, full=True)
    with torch.no_grad():
        problem.input["pred_boxes"][0, 2] = math.nan
    options = {"source": "prediction", "reg": 0.1} if rule is match.SoftMin else {}
    matcher = rule(loc_match_module=nn.L1Loss(reduction="none"), nonfinite="propagate", **options)
    plan = matcher(problem.input, problem.target, problem.anchors)[0]
    assert plan[2, 0] < 1e-3
    padding = {"boxes": torch.zeros(1, 9, 4), "labels": torch.zeros(1, 9).long(), "mask": torch.zeros(1, 9).bool()}
    padded = {k: torch.cat((v, padding[k].to(v.dtype)), dim=1) for k, v in problem.target.items()}
    torch.testing.assert_close(matcher(problem.input, padded)[0][:, [0, -1]], plan, rtol=0, atol=1e-9)
