"""All recipes: parts that replace, what is missing, no targets, copies, and no state."""

import copy
import inspect
import pickle

import pytest
import torch
from torch import Tensor, nn

from tests.support.problems import Problem, random_problem
from uotod import recipes
from uotod.cost.adapters import parts_of
from uotod.loss import DetectionLoss, MultipleObjectiveLoss
from uotod.recipes import ALL_RECIPES

CLASSES = 3
BACKGROUND = ("detr", "ssd300", "uot_detr", "uot_ssd")  # a class of the logits is the background
BINS = {"d_fine": 33, "deim": 33, "gfl": 17, "yolov8": 16}
SUMS = ("d_fine", "deformable_detr", "deim", "detr", "dino", "group_detr", "h_detr", "rt_detr")
SUMS += ("uot_deformable_detr", "uot_detr")  # their loss of boxes is a sum, replaced as a whole


def problem_for(name: str, classes: int = CLASSES, preds: int = 26, targets: int = 3) -> Problem:
    """Return a problem with every key that the recipe reads."""
    first = int(name in ("ssd300", "uot_ssd"))
    problem = random_problem(
        2, preds, targets, classes + (name in BACKGROUND), low=first, high=first + classes, full=True
    )
    problem.input["pred_objectness"] = torch.randn(2, preds, dtype=torch.float64).requires_grad_()
    if name in BINS:
        problem.input["pred_dist"] = torch.randn(2, preds, 4, BINS[name], dtype=torch.float64).requires_grad_()
    return problem


def main_of(criterion: nn.Module) -> DetectionLoss:
    main = getattr(criterion, "main", criterion)
    assert isinstance(main, DetectionLoss)
    return main


def value_of(criterion: nn.Module, problem: Problem) -> Tensor:
    loss: Tensor = criterion(problem.input, problem.target, problem.anchors)
    return loss


@pytest.mark.parametrize("name", ALL_RECIPES)
def test_the_published_part_in_place_of_itself_changes_nothing(name) -> None:
    build, problem = ALL_RECIPES[name], problem_for(name)
    published = build(CLASSES)
    main = main_of(published)
    parts = {"matcher": main.matching_method, "normalizer": main.normalizer}
    parts["cls_loss"] = parts_of(main.cls_loss_module)[0].module
    boxes = parts_of(main.loc_loss_module)[0].module
    parts["loc_loss"] = main.loc_loss_module if name in SUMS else boxes
    if "dfl_loss" in inspect.signature(build).parameters:
        parts["dfl_loss"] = parts_of(main.loc_loss_module)[1].module
    if "obj_loss" in inspect.signature(build).parameters and main.obj_loss_module is not None:
        parts["obj_loss"] = parts_of(main.obj_loss_module)[0].module
    expected = value_of(published, problem)
    for key, part in parts.items():
        torch.testing.assert_close(value_of(build(CLASSES, **{key: part}), problem), expected)


def test_the_parts_of_a_sum_keep_their_names_under_the_weight() -> None:
    parts = {"bce": nn.BCEWithLogitsLoss(reduction="none"), "mse": nn.MSELoss(reduction="none")}
    problem = problem_for("deformable_detr")
    criterion = recipes.deformable_detr(CLASSES, cls_loss=MultipleObjectiveLoss(parts, [3.0, 0.5]))
    terms = criterion.terms(problem.input, problem.target)
    for name, weight in (("bce", 6.0), ("mse", 1.0)):
        alone = recipes.deformable_detr(CLASSES, cls_loss=parts[name], loss_weights=(weight, 5.0, 2.0))
        expected = alone.terms(problem.input, problem.target)["loss_cls"]
        torch.testing.assert_close(terms[f"loss_cls_{name}"], expected)


@pytest.mark.parametrize("name", ALL_RECIPES)
def test_it_has_no_state_and_copies_are_equal(name) -> None:
    criterion, problem = ALL_RECIPES[name](CLASSES), problem_for(name)
    assert not criterion.state_dict()
    expected = value_of(criterion, problem)
    for other in (copy.deepcopy(criterion), pickle.loads(pickle.dumps(criterion))):
        assert repr(other) == repr(criterion)
        assert torch.equal(value_of(other, problem), expected)


@pytest.mark.parametrize("targets", [0, 2])
@pytest.mark.parametrize("name", ALL_RECIPES)
def test_a_batch_without_targets_has_a_finite_loss_and_gradient(name, targets) -> None:
    problem = problem_for(name, 1, targets=targets)
    problem.target["mask"] = torch.zeros_like(problem.target["mask"])
    loss = value_of(ALL_RECIPES[name](1), problem)
    gradients = torch.autograd.grad(loss, list(problem.input.values()), materialize_grads=True)
    assert loss.isfinite()
    assert all(gradient.isfinite().all() for gradient in gradients)


@pytest.mark.parametrize("name", ALL_RECIPES)
def test_the_number_of_classes_is_checked(name) -> None:
    with pytest.raises(ValueError, match="num_classes must be at least 1, got 0"):
        ALL_RECIPES[name](0)


@pytest.mark.parametrize("name", SUMS)
def test_a_set_needs_three_weights(name) -> None:
    for key in ("cost_weights", "loss_weights"):
        with pytest.raises(ValueError, match="weights must hold three numbers"):
            ALL_RECIPES[name](CLASSES, **{key: (1.0, 5.0)})


@pytest.mark.parametrize("name", ["fcos", "ota", "yolo", "yolox", "atss", *BINS])
def test_what_is_missing_is_named(name) -> None:
    criterion, key = ALL_RECIPES[name](CLASSES), "pred_dist" if name in BINS else "pred_objectness"
    problem = problem_for(name)
    with pytest.raises(ValueError, match="anchors must"):
        criterion(problem.input, problem.target)
    del problem.input[key]
    with pytest.raises(ValueError, match=f"input must have the key '{key}'"):
        criterion(problem.input, problem.target, problem.anchors)


@pytest.mark.parametrize("name", ALL_RECIPES)
def test_a_bad_argument_is_named(name) -> None:
    """Weights, exponents and flags of an impossible value raise, with the name of the argument."""
    for key, parameter in inspect.signature(ALL_RECIPES[name]).parameters.items():
        if key.endswith("_weight") or key in ("beta", "gamma", "sum_groups", "union"):
            for value in ("bad", -1.0, float("nan")):
                with pytest.raises((TypeError, ValueError), match=r"weight must|beta must|gamma must|_\w+ must"):
                    ALL_RECIPES[name](CLASSES, **{key: value})
        elif key.endswith("_loss") and parameter.default is None:
            with pytest.raises(TypeError, match=f"{key}\\w* must|losses.* must"):
                ALL_RECIPES[name](CLASSES, **{key: "bad"})
