"""Any matcher in any recipe: a plan of any kind reaches every loss, and every loss has a finite gradient."""

import math

import pytest
import torch

from tests.support.matcher_cases import CASES as MATCHERS, COSTS
from tests.support.recipe_cases import CASES, CLASSES, layered, main_of
from uotod.match import Hungarian, Matcher, UnbalancedSinkhorn, UnionVote
from uotod.recipes import ALL_RECIPES

SOME = [
    "ATSS",
    "BalancedSinkhorn",
    "ClosestPrediction",
    "Hungarian",
    "Hungarian-copies",
    "IoUThreshold",
    "OTA",
    "PartialOT-part",
    "SharedLayers",
    "SimOTA",
    "SoftMin",
    "TaskAligned",
    "UnbalancedSinkhorn",
    "UnionVote",
    "WeightedSum",
]


@pytest.mark.parametrize("matcher", [*SOME, "UnionVote-soft"])
@pytest.mark.parametrize("name", CASES)
def test_its_loss_and_gradients_are_finite(name, matcher) -> None:
    problem = layered(name)
    rule = UnionVote(UnbalancedSinkhorn(**COSTS)) if matcher == "UnionVote-soft" else MATCHERS[matcher].build()
    criterion = ALL_RECIPES[name](CLASSES, matcher=rule)
    assert main_of(criterion).matching_method is rule
    terms = criterion.terms(problem.input, problem.target, problem.anchors)
    assert all(value.isfinite() for value in terms.values())
    assert terms["num_pos"] > 0
    plan = rule(problem.input, problem.target, problem.anchors)
    if not isinstance(rule, UnionVote):  # which votes with the other layer
        torch.testing.assert_close(terms["num_pos"], plan[..., :-1].sum())
    read = [x for x in problem.input.values() if isinstance(x, torch.Tensor)]
    gradients = torch.autograd.grad(terms["loss"], read, materialize_grads=True)
    assert all(gradient.isfinite().all() for gradient in gradients)
    assert gradients[0].abs().sum() > 0  # of the logits


@pytest.mark.parametrize("name", ["d_fine", "deim"])
def test_the_union_of_soft_plans_tends_to_that_of_the_assignment(name) -> None:
    """As the entropy vanishes balanced transport is the Hungarian assignment, and so are the votes."""
    problem = layered(name)
    costs = COSTS | {"background_cost": 0.0}
    transport = {"reg_pred": math.inf, "reg_target": math.inf, "num_iter": 100_000} | costs

    def losses(matcher: Matcher) -> torch.Tensor:
        terms = ALL_RECIPES[name](CLASSES, matcher=matcher).terms(problem.input, problem.target, problem.anchors)
        return torch.stack([terms[key].detach() for key in ("loss_cls", "loss_cls_0", "loss_loc", "loss_loc_0")])

    expected, gaps = losses(Hungarian(**costs)), []
    for reg in (1e-2, 1e-4):
        gaps.append(float(((losses(UnbalancedSinkhorn(reg=reg, **transport)) - expected) / expected).abs().max()))
    assert gaps[1] < 1e-3 < gaps[0]
