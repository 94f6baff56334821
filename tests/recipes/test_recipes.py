"""All recipes: parts that replace, what is missing, no targets, copies, and no state; the dialect is tested beside."""

import copy
import inspect
import pickle

import pytest
import torch
from torch import nn

from tests.support.recipe_cases import BINS, CLASSES, PUBLISHED, SUMS, main_of, problem_for, published_losses, value_of
from uotod import recipes
from uotod.loss import MultipleObjectiveLoss
from uotod.recipes import ALL_RECIPES


@pytest.mark.parametrize("name", ALL_RECIPES)
def test_the_published_part_in_place_of_itself_changes_nothing(name) -> None:
    build, problem = ALL_RECIPES[name], problem_for(name)
    published = build(CLASSES)
    main = main_of(published)
    expected = value_of(published, problem)
    for key, part in {"matcher": main.matching_method, "normalizer": main.normalizer}.items():
        torch.testing.assert_close(value_of(build(CLASSES, **{key: part}), problem), expected)
    losses = published_losses(name, main)
    assert set(losses) == {*PUBLISHED[name], "loc"} - {"noobj"} - ({"l1"} if name == "yolox" else set())
    for key, loss in losses.items():
        torch.testing.assert_close(value_of(build(CLASSES, losses={key: loss}), problem), expected)


def test_the_parts_of_a_sum_keep_their_names_under_the_weight() -> None:
    parts = {"bce": nn.BCEWithLogitsLoss(reduction="none"), "mse": nn.MSELoss(reduction="none")}
    problem = problem_for("deformable_detr")
    criterion = recipes.deformable_detr(CLASSES, losses={"cls": MultipleObjectiveLoss(parts, [3.0, 0.5])})
    terms = criterion.terms(problem.input, problem.target)
    for name, weight in (("bce", 6.0), ("mse", 1.0)):
        alone = recipes.deformable_detr(CLASSES, losses={"cls": parts[name]}, weights={"cls": weight})
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
    with pytest.raises(TypeError, match="num_classes must be an integer, got None"):
        ALL_RECIPES[name](None)


@pytest.mark.parametrize("name", SUMS)
def test_the_weights_of_a_set_go_by_name(name) -> None:
    for key in ("cost_weights", "weights"):
        with pytest.raises(TypeError, match=rf"{key} must be a dict by the names of terms, got \(1.0, 5.0\)"):
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
    for key in inspect.signature(ALL_RECIPES[name]).parameters:
        if key.endswith("_weight") or key in ("beta", "gamma", "sum_groups", "union"):
            for value in ("bad", -1.0, float("nan")):
                with pytest.raises(
                    (TypeError, ValueError), match=r"weight must|beta must|gamma must|union must|_\w+ must"
                ):
                    ALL_RECIPES[name](CLASSES, **{key: value})
    for key in PUBLISHED[name]:
        for value in ("bad", -1.0, float("nan")):
            with pytest.raises((TypeError, ValueError), match=rf"weights\['{key}'\] must"):
                ALL_RECIPES[name](CLASSES, weights={key: value})
        if key != "noobj":
            with pytest.raises(TypeError, match=rf"losses\['{key}'\] must be a loss"):
                ALL_RECIPES[name](CLASSES, losses={key: "bad"})
