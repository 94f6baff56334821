"""Predictions that are padding: the loss and its gradient are those of the problem without them."""

import math

import pytest
import torch
from torch import Tensor

from tests.support.matcher_cases import CASES as MATCHERS
from tests.support.problems import Problem, random_problem
from tests.support.recipe_cases import CASES, layered, main_of, problem_for
from uotod import recipes
from uotod.loss import (
    Branch,
    Branches,
    Classification,
    DetectionLoss,
    GHMCLoss,
    GIoULoss,
    Localization,
    SigmoidFocalLoss,
    detection_errors,
)
from uotod.match import Hungarian
from uotod.utils import Anchors

N = "none"


def cut(problem: Problem, kept: Tensor) -> Problem:
    """Return the problem with some of the predictions, the same in all images and decoder layers."""

    def of(values: dict) -> dict:
        found = {}
        for key, x in values.items():
            if key == "aux_outputs":
                found[key] = [of(layer) for layer in x]
            elif key != "pred_valid":
                found[key] = x if key.startswith("image_") else x.detach()[:, kept].requires_grad_()
        return found

    places = problem.anchors
    anchors = Anchors(places.boxes[kept], places.stride[kept], places.level[kept], places.num_levels)
    return Problem(of(problem.input), problem.target, anchors)


def leaves(values: dict) -> list[tuple[str, Tensor]]:
    found = [(key, x) for key, x in values.items() if key.startswith("pred_") and x.requires_grad]
    return found + [leaf for layer in values.get("aux_outputs", ()) for leaf in leaves(layer)]


def compare(criterion, problem: Problem, valid: Tensor) -> None:
    """Compare loss, terms and gradient with those of the problem without the padding."""
    kept = valid.nonzero().squeeze(1)
    problem.input["pred_valid"] = valid.expand(len(problem.input["pred_logits"]), -1)
    with torch.no_grad():
        for _, leaf in leaves(problem.input):
            leaf[:, ~valid] = math.nan
    terms = criterion.terms(problem.input, problem.target, problem.anchors)
    alone = cut(problem, kept)
    expected = criterion.terms(alone.input, alone.target, alone.anchors)
    assert terms.keys() == expected.keys()
    for key, value in expected.items():
        torch.testing.assert_close(terms[key], value, msg=key)
    terms["loss"].backward()
    expected["loss"].backward()
    for (name, leaf), (_, other) in zip(leaves(problem.input), leaves(alone.input), strict=True):
        if other.grad is None:
            continue
        torch.testing.assert_close(leaf.grad[:, kept], other.grad, msg=name)
        assert (leaf.grad[:, ~valid] == 0).all(), name


def some(preds: int, count: int) -> Tensor:
    valid = torch.ones(preds, dtype=torch.bool)
    valid[torch.randperm(preds)[:count]] = False
    return valid


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("make", [problem_for, layered])
def test_the_loss_of_every_recipe_is_that_without_the_padding(name, make) -> None:
    groups = {"group_detr": 13}.get(name, 1)
    valid = some(26, 6)
    if groups > 1:
        valid = torch.arange(26) < 13  # so that as many are left in each group
    compare(getattr(recipes, name)(3), make(name), valid)


@pytest.mark.parametrize("name", MATCHERS)
def test_the_loss_of_every_matcher_is_that_without_the_padding(name) -> None:
    criterion = DetectionLoss(SigmoidFocalLoss(reduction=N), GIoULoss(reduction=N), MATCHERS[name].build(), N)
    compare(criterion, random_problem(2, 13, 3, full=True), some(13, 4))


@pytest.mark.parametrize("term", ["union", "harmonised"])
def test_a_term_that_reads_more_than_its_pairs_does_not_see_them(term) -> None:
    matcher = MATCHERS["Hungarian"].build()
    cls = GHMCLoss(reduction=N) if term == "harmonised" else SigmoidFocalLoss(reduction=N)
    loc = Localization(GIoULoss(reduction=N), union=term == "union")
    problem, earlier = random_problem(2, 13, 3), random_problem(2, 13, 3)
    problem.input["aux_outputs"] = [earlier.input]
    compare(DetectionLoss(cls, loc, matcher, N), problem, some(13, 4))


def test_a_union_of_layers_matches_no_layer_s_own_padding() -> None:
    problem, earlier = random_problem(2, 9, 3, full=True), random_problem(2, 9, 3).input
    earlier["pred_valid"], problem.input["pred_valid"] = torch.rand(2, 2, 9) < 0.5
    with torch.no_grad():
        for layer in (earlier, problem.input):
            layer["pred_boxes"][~layer["pred_valid"]] = math.nan
    loc = Localization(GIoULoss(reduction=N), union=True)
    criterion = DetectionLoss(SigmoidFocalLoss(reduction=N), loc, MATCHERS["Hungarian"].build(), N)
    loss = criterion(problem.input | {"aux_outputs": [earlier]}, problem.target)
    loss.backward()
    for layer in (earlier, problem.input):
        assert (layer["pred_boxes"].grad[~layer["pred_valid"]] == 0).all()
    assert loss.isfinite()


@pytest.mark.parametrize("kind", ["dense", "index"])
def test_a_given_plan_leaves_them_out_and_may_not_match_them(kind) -> None:
    problem, valid = random_problem(2, 7, 2, full=True), torch.arange(7).expand(2, 7) < 5
    criterion = DetectionLoss(SigmoidFocalLoss(reduction=N), GIoULoss(reduction=N), MATCHERS["Hungarian"].build(), N)
    index = torch.tensor([[0, 2, 1, 2, 2, 2, 2]]).expand(2, -1)  # the padding is background
    input = problem.input | {"pred_valid": valid}
    plan = torch.nn.functional.one_hot(index, 3).double() if kind == "dense" else index
    alone = {key: x[:, :5] for key, x in problem.input.items()}
    terms = criterion.terms(input, problem.target, plan=plan)
    expected = criterion.terms(alone, problem.target, plan=plan[:, :5])
    for key, value in expected.items():
        torch.testing.assert_close(terms[key], value, msg=key)
    wrong = index.clone()
    wrong[1, 6] = 0
    plan = torch.nn.functional.one_hot(wrong, 3).double() if kind == "dense" else wrong
    with pytest.raises(ValueError, match=r"input\['pred_valid'\] is False, got prediction 6 in image 1"):
        criterion(input, problem.target, plan=plan)


def test_they_are_no_objects_in_the_cardinality_error() -> None:
    problem, valid = random_problem(2, 7, 2, full=True), torch.arange(7).expand(2, 7) < 5
    criterion = DetectionLoss(Classification(SigmoidFocalLoss(reduction=N)), None, Hungarian(**_costs()), N)
    with torch.no_grad():
        problem.input["pred_logits"][:, 5:] = 9.0
    found = detection_errors(problem.input | {"pred_valid": valid}, problem.target, criterion)
    alone = detection_errors({key: x[:, :5] for key, x in problem.input.items()}, problem.target, criterion)
    torch.testing.assert_close(found, alone)


def _costs() -> dict:
    return {"loc_match_module": torch.nn.L1Loss(reduction=N)}


def test_the_padding_of_a_branch_is_its_own() -> None:
    problem = random_problem(2, 7, 2)
    other = random_problem(2, 5, 2).input | {"pred_valid": torch.arange(5).expand(2, 5) < 3}
    main = DetectionLoss(SigmoidFocalLoss(reduction=N), GIoULoss(reduction=N), Hungarian(**_costs()), N)
    terms = Branches(main, enc_outputs=Branch(main)).terms(problem.input | {"enc_outputs": other}, problem.target)
    torch.testing.assert_close(terms["loss_enc"], main(other, problem.target))
    assert main_of(main) is main
