"""The contract of every matcher for predictions that are padding: the plan is that of the others alone."""

import math

import pytest
import torch
from torch import Tensor

from tests.support.guards import NoSynchronisation, take_gpu_path
from tests.support.matcher_cases import CASES
from tests.support.problems import Problem, matched, random_problem
from uotod.match import Matcher
from uotod.plan import Plan
from uotod.scene.scene import parse_scene
from uotod.utils import Anchors


def of_image(problem: Problem, image: int, kept: Tensor) -> Problem:
    """Return one image with some of its predictions."""
    anchors = problem.anchors
    return Problem(
        {key: x[image : image + 1, kept] for key, x in problem.input.items() if key != "pred_valid"},
        {key: x[image : image + 1] for key, x in problem.target.items()},
        Anchors(anchors.boxes[kept], anchors.stride[kept], anchors.level[kept], anchors.num_levels),
    )


def padded(images: int = 3, preds: int = 14, targets: int = 3, alike: bool = False) -> Problem:
    problem = random_problem(images, preds, targets)
    valid = torch.rand(images, preds) < 0.7
    problem.input["pred_valid"] = valid[:1].expand(images, -1) if alike else valid
    return problem


@pytest.mark.parametrize("alike", [False, True])
def test_the_plan_is_that_of_the_problem_without_the_padding(matcher: Matcher, alike: bool) -> None:
    problem = padded(alike=alike)
    plan = matched(matcher(problem.input, problem.target, problem.anchors))
    for image, valid in enumerate(problem.input["pred_valid"]):
        kept = valid.nonzero().squeeze(1)
        alone = of_image(problem, image, kept)
        expected = matcher(alone.input, alone.target, alone.anchors)[0]
        torch.testing.assert_close(plan[image, kept], expected, rtol=0, atol=1e-9)
        assert (plan[image, ~valid] == 0).all()


def test_what_is_padding_is_never_read(matcher: Matcher) -> None:
    problem = padded()
    expected = matcher(problem.input, problem.target, problem.anchors)
    padding = ~problem.input["pred_valid"]
    poisoned = {
        key: x if key == "pred_valid" else x.detach().masked_fill(padding.unsqueeze(-1), math.nan)
        for key, x in problem.input.items()
    }
    assert torch.equal(matcher(poisoned, problem.target, problem.anchors), expected)


def test_without_padding_nothing_changes(matcher: Matcher) -> None:
    problem = random_problem(2, 9, 3)
    expected = matched(matcher(problem.input, problem.target, problem.anchors))
    whole = problem.input | {"pred_valid": torch.ones(2, 9, dtype=torch.bool)}
    assert torch.equal(matcher(whole, problem.target, problem.anchors), expected)


@pytest.mark.parametrize(("preds", "targets"), [(5, 0), (1, 2), (0, 2), (5, 3)])
def test_an_image_may_be_all_padding(matcher: Matcher, preds: int, targets: int) -> None:
    problem = random_problem(2, preds, targets)
    valid = torch.ones(2, preds, dtype=torch.bool)
    valid[1] = False
    plan = matcher(problem.input | {"pred_valid": valid}, problem.target, problem.anchors)
    assert plan.shape == (2, preds, targets + 1)
    assert plan.isfinite().all()
    assert (plan[1] == 0).all()
    alone = of_image(problem, 0, torch.arange(preds))
    torch.testing.assert_close(plan[:1], matcher(alone.input, alone.target, alone.anchors), rtol=0, atol=1e-9)


def test_each_decoder_layer_has_the_padding_of_the_final_one_or_its_own(matcher: Matcher, name: str) -> None:
    if name.startswith(("SharedLayers", "UnionVote")):
        pytest.skip("it matches all layers together")
    problem, earlier, own = padded(2), random_problem(2, 14, 3).input, padded(2).input
    stacked = problem.input | {"aux_outputs": [earlier, own]}
    scene = parse_scene(stacked, problem.target, problem.anchors, auxiliary=True)
    with torch.no_grad():
        plan = matcher.scene_plan(scene).to_dense()
    for index, layer in enumerate((earlier | {"pred_valid": problem.input["pred_valid"]}, own, problem.input)):
        alone = matcher(layer, problem.target, problem.anchors)
        torch.testing.assert_close(plan[2 * index : 2 * index + 2], alone, rtol=0, atol=1e-9)


@pytest.mark.parametrize("name", ["SharedLayers", "UnionVote"])
def test_no_layer_matches_its_own_padding(matcher: Matcher) -> None:
    problem, earlier = padded(2), padded(2).input
    scene = parse_scene(problem.input | {"aux_outputs": [earlier]}, problem.target, None, auxiliary=True)
    with torch.no_grad():
        plan = matcher.scene_plan(scene).to_dense()
    valid = torch.cat((earlier["pred_valid"], problem.input["pred_valid"]))
    assert (plan[~valid] == 0).all()


def test_the_cost_of_padding_forbids_it(matcher: Matcher) -> None:
    problem = padded()
    cost = matcher.compute_cost_matrix(problem.input, problem.target, problem.anchors)
    valid = problem.input["pred_valid"]
    assert (cost[~valid] == math.inf).all()
    whole = {key: x for key, x in problem.input.items() if key != "pred_valid"}
    expected = matcher.compute_cost_matrix(whole, problem.target, problem.anchors)
    torch.testing.assert_close(cost[valid], expected[valid])


@pytest.mark.parametrize(
    "name", ["ClosestTarget", "ClosestPrediction", "Min", "Min-prediction", "SoftMin", "SoftMin-prediction"]
)
def test_a_rule_that_reads_the_cost_alone_reads_no_value(matcher: Matcher, monkeypatch: pytest.MonkeyPatch) -> None:
    problem = padded()
    expected = matcher(problem.input, problem.target, problem.anchors)
    take_gpu_path(monkeypatch)
    with NoSynchronisation():
        plan = matcher(problem.input, problem.target, problem.anchors)
    assert torch.equal(plan, expected)


@pytest.mark.parametrize(
    ("valid", "error", "message"),
    [
        (torch.ones(3, 14), TypeError, r"input\['pred_valid'\] must have dtype torch.bool, False for padding"),
        (torch.ones(3, 13).bool(), ValueError, r"input\['pred_valid'\] must have shape \(3, 14\) to fit its logits"),
        (torch.ones(3, 14, 1).bool(), ValueError, r"input\['pred_valid'\] must have shape \(3, 14\)"),
    ],
)
def test_a_mask_of_another_kind_raises(valid: Tensor, error: type[Exception], message: str) -> None:
    problem = padded()
    with pytest.raises(error, match=message):
        CASES["Hungarian"].build()(problem.input | {"pred_valid": valid}, problem.target)


def test_a_plan_may_be_dense_in_one_image_and_not_in_another() -> None:
    class Fickle(Matcher):
        def match(self, cost, mask):
            index = torch.zeros(len(cost), cost.shape[2], dtype=torch.long)
            plan = Plan.from_index(index, mask.shape[1], True, cost.dtype)
            return plan if cost.shape[2] % 2 else Plan.from_columns(plan.to_dense().transpose(1, 2), mask.shape[1])

        def own_pair_cost(self, scene):
            return scene.logits.new_zeros(*scene.mask.shape, scene.logits.shape[1])

    problem = random_problem(2, 4, 2, full=True)
    valid = torch.tensor([[True, True, True, False], [True, False, True, False]])
    plan = Fickle()(problem.input | {"pred_valid": valid}, problem.target)
    assert torch.equal(plan[..., 0], valid.to(plan.dtype))
