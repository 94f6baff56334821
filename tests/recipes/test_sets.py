"""Recipes of detectors of sets: every part can be replaced, and those without a package equal plain loops."""

import inspect
import math

import pytest
import torch
from torch import Tensor, nn

from tests.oracles import loss as loops, set_recipes as oracle
from tests.oracles.transport import marginals, unbalanced_plan
from tests.support.problems import random_problem
from uotod import recipes
from uotod.loss import GIoULoss, Term, TotalMassNormalizer
from uotod.match import ClosestTarget

CLASSES = 4
SETS = [
    "d_fine",
    "deformable_detr",
    "deim",
    "detr",
    "dino",
    "group_detr",
    "h_detr",
    "rt_detr",
    "uot_deformable_detr",
    "uot_detr",
]


def problem_for(name: str, images: int = 2, preds: int = 7, targets: int = 3):
    """Return a problem with labels in [0, CLASSES) and the logits that the recipe expects."""
    classes = CLASSES + (name in ("detr", "uot_detr"))
    problem = random_problem(images, preds, targets, classes, low=0, high=CLASSES)
    problem.target["labels"] = problem.target["labels"].clamp(min=0)
    if name in ("d_fine", "deim"):
        problem.input["pred_dist"] = torch.randn(images, preds, 4, 33, dtype=torch.float64)
    return problem


def main_of(criterion: nn.Module) -> nn.Module:
    return getattr(criterion, "main", criterion)


@pytest.mark.parametrize("name", SETS)
def test_a_recipe_names_its_parts_and_takes_no_others(name) -> None:
    parameters = inspect.signature(recipes.ALL_RECIPES[name]).parameters
    assert list(parameters)[:6] == ["num_classes", "matcher", "losses", "weights", "cost_weights", "normalizer"]
    assert all(parameters[x].default is None for x in list(parameters)[1:6])
    assert all(x.kind is inspect.Parameter.KEYWORD_ONLY for x in list(parameters.values())[1:])


@pytest.mark.parametrize("name", SETS)
def test_each_part_can_be_replaced(name) -> None:
    parts = {
        "matcher": ClosestTarget(loc_match_module=nn.L1Loss(reduction="none")),
        "cls": nn.CrossEntropyLoss(reduction="none"),
        "loc": GIoULoss(reduction="none"),
        "normalizer": TotalMassNormalizer(),
    }
    names = {"matcher": "matching_method", "cls": "cls_loss_module", "loc": "loc_loss_module"}
    build = recipes.ALL_RECIPES[name]
    for key, part in parts.items():
        if key == "cls" and name not in ("detr", "uot_detr"):
            part = nn.BCEWithLogitsLoss(reduction="none")
        criterion = main_of(build(CLASSES, **({"losses": {key: part}} if key in ("cls", "loc") else {key: part})))
        published = main_of(build(CLASSES))
        found = getattr(criterion, names.get(key, key))
        found = found.module if isinstance(found, Term) else found
        if found is not part:  # in a sum, under the published weight
            assert key == "cls"
            assert list(found.losses) == [part]
            loss = published.cls_loss_module
            assert found.weights == (loss.module if isinstance(loss, Term) else loss).weights
        for other in set(parts) - {key}:
            attribute = names.get(other, other)
            assert type(getattr(criterion, attribute)) is type(getattr(published, attribute))
        problem = problem_for(name, preds=13)
        assert criterion(problem.input, problem.target, problem.anchors).isfinite()


def plan_loop(problem, weights, activation: str, **transport: float) -> Tensor:
    logits, boxes = (problem.input[x].detach() for x in ("pred_logits", "pred_boxes"))
    target, preds = problem.target, boxes.shape[1]
    plan = torch.zeros(len(boxes), preds, target["mask"].shape[1] + 1, dtype=torch.float64)
    reg = 0.12 / (math.log(2 * preds) + 1)
    for b in range(len(boxes)):
        valid = [j for j in range(target["mask"].shape[1]) if target["mask"][b, j]]
        labels = [int(target["labels"][b, j]) for j in valid]
        cost = oracle.transport_cost(logits[b], boxes[b], labels, target["boxes"][b, valid], weights, activation)
        options = {"reg_pred": math.inf, "reg_target": math.inf} | transport
        solved = unbalanced_plan(cost, *marginals(preds, len(valid)), reg, **options)
        plan[b][:, [*valid, -1]] = torch.from_numpy(solved)
    return plan


PENALTIES = [{}, {"reg_pred": 100.0, "reg_target": 0.01}, {"reg_pred": 0.5, "reg_target": 2.0}]


@pytest.mark.parametrize("size", [(7, 3), (5, 1), (6, 0), (9, 6)])
@pytest.mark.parametrize("penalties", PENALTIES)
@pytest.mark.parametrize("name", ["uot_detr", "uot_deformable_detr"])
def test_optimal_transport_equals_its_formula(name, penalties, size) -> None:
    """The plan is that of the paper's cost, and the loss is the plan's mass times the losses of DETR."""
    softmax = name == "uot_detr"
    weight = torch.ones(CLASSES + 1)
    weight[-1] = 0.1
    criterion = main_of(recipes.ALL_RECIPES[name](CLASSES, **penalties))
    for _ in range(3):
        problem = problem_for(name, 2, *size)
        costs = ((2, 5, 2), "softmax") if softmax else ((5, 5, 2), "sigmoid")
        plan = plan_loop(problem, *costs, **penalties)
        found = criterion.matching_method(problem.input, problem.target)
        torch.testing.assert_close(found, plan, rtol=0, atol=1e-5)
        # the plan that was found: its error is that of the solver, not of the loss
        expected = loops.detection_loss(
            problem.input["pred_logits"],
            problem.input["pred_boxes"],
            problem.target["labels"],
            problem.target["boxes"],
            problem.target["mask"],
            found,
            cls=(lambda x, y: 2 * loops.cross_entropy(x, y, weight))
            if softmax
            else (lambda x, y: 2 * loops.sigmoid_focal(x, y, alpha=0.25)),
            loc=oracle.box_loss,
            class_weight=weight if softmax else None,
            bg_class_position="last" if softmax else "none",
        )["loss"]
        actual = criterion(problem.input, problem.target)
        torch.testing.assert_close(actual, expected, rtol=1e-6, atol=1e-9)
        leaves = list(problem.input.values())
        ours, theirs = (torch.autograd.grad(x, leaves, materialize_grads=True) for x in (actual, expected))
        for a, e in zip(ours, theirs, strict=True):
            torch.testing.assert_close(a, e, rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize("name", ["detr", "uot_detr"])
def test_the_weight_of_the_background_is_checked(name) -> None:
    with pytest.raises(ValueError, match="background_weight must lie in"):
        recipes.ALL_RECIPES[name](CLASSES, background_weight=-0.1)


@pytest.mark.parametrize("name", ["detr", "uot_detr"])
def test_logits_of_another_number_of_classes_are_named(name) -> None:
    problem = problem_for(name)
    expected = rf"\['pred_logits'\] must have 7 logits for num_classes=6 and one for the background, got {CLASSES + 1}"
    with pytest.raises(ValueError, match=expected):
        recipes.ALL_RECIPES[name](6)(problem.input, problem.target)
