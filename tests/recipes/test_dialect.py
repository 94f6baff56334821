"""The dialect of recipes: names merged over the published ones, and options that act or raise."""

import inspect
import re
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.support.docs import DOCS
from tests.support.problems import Problem
from tests.support.recipe_cases import (
    CASES,
    CLASSES,
    COSTS,
    PUBLISHED,
    SUMS,
    layered,
    main_of,
    problem_for,
    value_of,
)
from uotod import recipes
from uotod.loss import Branch, Branches, DetectionLoss, GIoULoss, SigmoidFocalLoss, SoftmaxFocalLoss
from uotod.match import Hungarian, Min, SharedLayers, UnbalancedSinkhorn, WeightedSum
from uotod.recipes import ALL_RECIPES
from uotod.utils import box_xyxy_to_cxcywh, box_xyxy_to_xywh

L1 = nn.L1Loss(reduction="none")
WITH_MATCHER: dict[str, dict[str, Any]] = {  # what belongs to the published matcher, beside `nonfinite`
    "group_detr": {"groups": 2},
    "retinanet": {"positive": 0.6, "negative": 0.3},
    "ssd300": {"iou_threshold": 0.4},
    "uot_deformable_detr": {"reg_pred": 1.0, "reg_target": 1.0, "reg_dimless": 0.1},
    "uot_detr": {"reg_pred": 1.0, "reg_target": 1.0, "reg_dimless": 0.1},
    "uot_ssd": {"reg_pred": 1.0, "reg_target": 1.0, "reg_dimless": 0.1, "background_cost": 0.3},
}
WITH_LOSS = [  # what belongs to a published loss
    ("deim", "cls", {"gamma": 2.0}),
    ("detr", "cls", {"background_weight": 0.2}),
    ("retinanet", "cls", {"alpha": 0.5}),
    ("retinanet", "cls", {"gamma": 1.0}),
    ("retinanet", "loc", {"beta": 0.2}),
    ("ssd300", "loc", {"beta": 0.2}),
    ("uot_detr", "cls", {"background_weight": 0.2}),
    ("uot_ssd", "loc", {"beta": 0.2}),
]
BRANCHED = [name for name, recipe in ALL_RECIPES.items() if isinstance(recipe(CLASSES), Branches)]


def build(name: str, **options: Any) -> nn.Module:
    return ALL_RECIPES[name](CLASSES, **options)


def losses_of(criterion: nn.Module) -> Iterator[DetectionLoss]:
    yield main_of(criterion)
    if isinstance(criterion, Branches):
        yield from (branch.loss for branch in criterion.branches.values() if isinstance(branch, Branch))


def with_branches(name: str) -> Problem:
    """Return a problem with all branches of the recipe, denoising queries with their plan."""
    problem, criterion = problem_for(name), build(name)
    if isinstance(criterion, Branches):
        for key, branch in criterion.branches.items():
            output: dict[str, Any] = dict(problem_for(name).input)
            if branch.plan == "given":
                output["plan"] = torch.randint(0, 4, output["pred_logits"].shape[:2])
            problem.input[key] = output  # type: ignore[assignment]
    return problem


def leaves(problem: Problem) -> list[Tensor]:
    nested = [x for x in problem.input.values() if isinstance(x, dict)]
    return [
        x for group in (problem.input, *nested) for x in group.values() if isinstance(x, Tensor) and x.requires_grad
    ]


def assert_same(actual: Tensor, expected: Tensor, problem: Problem) -> None:
    torch.testing.assert_close(actual, expected, rtol=1e-7, atol=1e-9)
    ours, theirs = (torch.autograd.grad(x, leaves(problem), materialize_grads=True) for x in (actual, expected))
    for a, e in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, e, rtol=1e-6, atol=1e-8)


def test_every_recipe_is_in_the_contract() -> None:
    assert set(CASES) == set(ALL_RECIPES)


def test_every_recipe_is_documented() -> None:
    page = (DOCS / "recipes.rst").read_text()
    assert set(re.findall(r"^\.\. autofunction:: (\w+)$", page, flags=re.MULTILINE)) == set(ALL_RECIPES)


@pytest.mark.parametrize("name", ALL_RECIPES)
def test_every_recipe_speaks_it(name) -> None:
    parameters = inspect.signature(ALL_RECIPES[name]).parameters
    common = ["matcher", "losses", "weights", *(["cost_weights"] if name in SUMS else []), "normalizer"]
    assert list(parameters)[: len(common) + 1] == ["num_classes", *common]
    assert {"nonfinite", "box_format", "validate"} < set(parameters)
    assert ("layer_weights" in parameters) == (name in SUMS)
    assert ("min_negatives" in parameters) == (name in ("ssd300", "uot_ssd"))
    assert all(x.kind is inspect.Parameter.KEYWORD_ONLY for x in list(parameters.values())[1:])


@pytest.mark.parametrize("name", ALL_RECIPES)
def test_the_published_weights_in_place_of_themselves_change_nothing(name) -> None:
    problem = problem_for(name)
    expected = value_of(build(name), problem)
    costs = {"cost_weights": COSTS[name]} if name in SUMS else {}
    torch.testing.assert_close(value_of(build(name, weights=PUBLISHED[name], **costs), problem), expected)


@pytest.mark.parametrize("name", ALL_RECIPES)
def test_a_weight_is_merged_over_the_others(name) -> None:
    problem = problem_for(name)
    for key, weight in PUBLISHED[name].items():
        changed = {key: 2 * weight + 1}
        one, all_of_them = build(name, weights=changed), build(name, weights=PUBLISHED[name] | changed)
        torch.testing.assert_close(value_of(one, problem), value_of(all_of_them, problem))
        assert value_of(one, layered(name)) != value_of(build(name), layered(name))


@pytest.mark.parametrize("name", SUMS)
def test_a_weight_of_a_cost_is_merged_over_the_others(name) -> None:
    problem = problem_for(name)
    for key, weight in COSTS[name].items():
        one, all_of_them, published = (
            main_of(build(name, cost_weights=weights)).matching_method.compute_cost_matrix(
                problem.input, problem.target, problem.anchors
            )
            for weights in ({key: weight + 1}, COSTS[name] | {key: weight + 1}, None)
        )
        torch.testing.assert_close(one, all_of_them)
        assert not torch.equal(one, published)


@pytest.mark.parametrize("name", ALL_RECIPES)
def test_a_part_of_weight_0_is_left_out_but_never_the_first_of_its_term(name) -> None:
    problem = problem_for(name)
    published = build(name).terms(problem.input, problem.target, problem.anchors)
    for key in PUBLISHED[name]:
        terms = build(name, weights={key: 0.0}).terms(problem.input, problem.target, problem.anchors)
        gone = {"dist": {"loss_dist"}}.get(key, {f"loss_loc_{key}"} if key in ("l1", "giou", "fgl", "dfl") else set())
        gone &= set(published) - ({"loss_loc_l1"} if name in SUMS else set())  # the first of a set's boxes
        assert set(published) - set(terms) == gone


@pytest.mark.parametrize("name", ["d_fine", "deim", "gfl", "yolov8"])
def test_without_distributions_none_is_needed(name) -> None:
    problem = problem_for(name)
    del problem.input["pred_dist"]
    parts = ("fgl", "dist") if name in SUMS else ("dfl",)
    assert value_of(build(name, weights=dict.fromkeys(parts, 0.0)), problem).isfinite()
    for part in parts:
        with pytest.raises(ValueError, match="input must have the key 'pred_dist'"):
            value_of(build(name, weights=dict.fromkeys(set(parts) - {part}, 0.0)), problem)


@pytest.mark.parametrize("name", ALL_RECIPES)
def test_an_unknown_name_raises_with_the_known_ones(name) -> None:
    known = list(PUBLISHED[name])
    whole = [] if "loc" in known else ["loc"]
    for argument, names in (("losses", [*(x for x in known if x != "noobj"), *whole]), ("weights", known)):
        value = L1 if argument == "losses" else 1.0
        with pytest.raises(ValueError, match=f"{argument} must have names among .*, got 'bbox'") as error:
            build(name, **{argument: {"bbox": value}})
        assert str(names) in str(error.value)
    if name in SUMS:
        with pytest.raises(ValueError, match=r"cost_weights must have names among \['cls', 'l1', 'giou'\], got 'obj'"):
            build(name, cost_weights={"obj": 1.0})
    for argument in ("losses", "weights"):
        with pytest.raises(TypeError, match=f"{argument} must be a dict by the names of terms, got 'bad' of type str"):
            build(name, **{argument: "bad"})


@pytest.mark.parametrize("name", [name for name in ALL_RECIPES if "loc" not in PUBLISHED[name]])
def test_a_loss_replaces_the_whole_sum_and_has_a_weight_of_its_own(name) -> None:
    problem, loss = problem_for(name), GIoULoss(reduction="none")
    once, thrice = (
        build(name, losses={"loc": loss}, weights=weights).terms(problem.input, problem.target, problem.anchors)
        for weights in ({}, {"loc": 3.0})
    )
    assert not [key for key in once if key.startswith("loss_loc_")]
    torch.testing.assert_close(thrice["loss_loc"], 3 * once["loss_loc"])
    part = next(x for x in PUBLISHED[name] if x not in ("cls", "obj", "dist"))
    for options in ({"weights": {part: 1.0}}, {"losses": {"loc": loss, part: loss}}):
        with pytest.raises(ValueError, match=rf"must have names among .*'loc'.*, got '{part}'"):
            build(name, **({"losses": {"loc": loss}} | options))


def test_a_term_is_no_loss_of_a_recipe() -> None:
    term = main_of(recipes.rtmdet(CLASSES)).cls_loss_module
    with pytest.raises(TypeError, match=r"losses\['cls'\] must be a loss, a torch.nn.Module that is no Term"):
        recipes.rtmdet(CLASSES, losses={"cls": term})


@pytest.mark.parametrize("name", ALL_RECIPES)
def test_an_option_of_the_matcher_beside_a_matcher_raises_and_names_both(name) -> None:
    options = {"nonfinite": "propagate", **WITH_MATCHER.get(name, {})}
    options |= {"cost_weights": {"cls": 1.0}} if name in SUMS else {}
    for key, value in options.items():
        build(name, **{key: value})
        with pytest.raises(ValueError, match=f"{key} and matcher cannot be given together"):
            build(name, matcher=Hungarian(loc_match_module=L1), **{key: value})


@pytest.mark.parametrize(("name", "loss", "option"), WITH_LOSS)
def test_an_option_of_a_loss_beside_a_loss_raises_and_names_both(name, loss, option) -> None:
    build(name, **option)
    softmax = name in ("detr", "uot_detr")
    other = L1 if loss == "loc" else (SoftmaxFocalLoss if softmax else SigmoidFocalLoss)(reduction="none")
    with pytest.raises(ValueError, match=rf"{next(iter(option))} and losses\['{loss}'\] cannot be given together"):
        build(name, losses={loss: other}, **option)


def test_the_weight_of_yolos_background_is_that_of_its_own_loss() -> None:
    with pytest.raises(ValueError, match=r"weights must have names among \['cls', 'loc', 'obj'\], got 'noobj'"):
        recipes.yolo(CLASSES, losses={"obj": nn.BCEWithLogitsLoss(reduction="none")}, weights={"noobj": 0.5})


@pytest.mark.parametrize("name", ALL_RECIPES)
def test_an_option_of_the_matcher_arrives(name) -> None:
    for key, value in ({"nonfinite": "propagate"} | WITH_MATCHER.get(name, {})).items():
        attribute = {"iou_threshold": "positive"}.get(key, key)
        found = getattr(main_of(build(name, **{key: value})).matching_method, attribute)
        assert found == value


@pytest.mark.parametrize("name", ALL_RECIPES)
def test_the_classes_are_compared_with_the_logits(name) -> None:
    for extra in (-1, 1):
        problem = problem_for(name, extra=extra)
        problem.target["labels"] = problem.target["labels"].clamp(max=1)
        with pytest.raises(ValueError, match=rf"must have \d logits for num_classes={CLASSES} and (one|none) for the"):
            value_of(build(name), problem)


@pytest.mark.parametrize("name", BRANCHED)
def test_those_of_branches_are_too_unless_they_know_no_classes(name) -> None:
    criterion = build(name)
    assert isinstance(criterion, Branches)
    for key, branch in criterion.branches.items():
        for extra in (1, 1 - CLASSES):
            problem, other = with_branches(name), problem_for(name, extra=extra)
            problem.input[key] |= {"pred_logits": other.input["pred_logits"]}
            problem.target["labels"] = torch.zeros_like(problem.target["labels"])
            if branch.class_agnostic:
                assert value_of(criterion, problem).isfinite()
            else:
                with pytest.raises(ValueError, match=rf"input\['{key}'\]: .* logits for num_classes={CLASSES}"):
                    value_of(criterion, problem)


@pytest.mark.parametrize(("box_format", "convert"), [("cxcywh", box_xyxy_to_cxcywh), ("xywh", box_xyxy_to_xywh)])
@pytest.mark.parametrize("name", ALL_RECIPES)
def test_a_box_format_is_the_same_as_converted_boxes(name, box_format, convert) -> None:
    problem = with_branches(name)
    given = {
        key: {k: convert(x) if k == "pred_boxes" else x for k, x in value.items()} if isinstance(value, dict) else value
        for key, value in problem.input.items()
    }
    given["pred_boxes"] = convert(problem.input["pred_boxes"])
    target = problem.target | {"boxes": convert(problem.target["boxes"])}
    criterion = build(name, box_format=box_format)
    assert_same(criterion(given, target, problem.anchors), value_of(build(name), problem), problem)
    for loss in losses_of(criterion):
        assert loss.box_format == loss.matching_method.box_format == box_format


@pytest.mark.parametrize("name", ALL_RECIPES)
def test_a_matcher_of_another_box_format_raises(name) -> None:
    with pytest.raises(ValueError, match="matching_method must have box_format=None like the loss, got 'cxcywh'"):
        build(name, matcher=Hungarian(loc_match_module=L1, box_format="cxcywh"))


@pytest.mark.parametrize("name", ALL_RECIPES)
def test_every_recipe_takes_unbalanced_transport(name) -> None:
    problem = layered(name)
    matcher = UnbalancedSinkhorn(reg_pred=10.0, reg_target=0.1, loc_match_module=L1, background_cost=1.0)
    criterion = build(name, matcher=matcher)
    plan = main_of(criterion).matching_method(problem.input, problem.target, problem.anchors)
    assert ((plan > 0.01) & (plan < 0.99)).any()
    loss = value_of(criterion, problem)
    assert loss.isfinite()
    for gradient in torch.autograd.grad(loss, [problem.input[key] for key in ("pred_logits", "pred_boxes")]):
        assert gradient.isfinite().all()
        assert gradient.abs().sum() > 0


@pytest.mark.parametrize("name", [name for name in BRANCHED if name in SUMS])
def test_the_queries_of_an_encoder_have_no_weights_of_layers(name) -> None:
    problem = with_branches(name)
    weighted = build(name, layer_weights=[3.0]).terms(problem.input, problem.target, problem.anchors)
    terms = build(name).terms(problem.input, problem.target, problem.anchors)
    for key in (key for key in terms if key.startswith("loss_") and key.endswith(("_enc", "_interm"))):
        torch.testing.assert_close(weighted[key], terms[key])
    torch.testing.assert_close(weighted["loss_cls"], 3 * terms["loss_cls"])


@pytest.mark.parametrize("name", ALL_RECIPES)
def test_validation_arrives_in_all_losses(name) -> None:
    assert all(loss.validate for loss in losses_of(build(name, validate=True)))
    assert not any(loss.validate for loss in losses_of(build(name)))


def test_the_divisor_of_groups_follows_the_matcher() -> None:
    problem = problem_for("group_detr")
    costs = main_of(build("group_detr")).matching_method
    modules = {"cls_match_module": costs.cls_match_module, "loc_match_module": costs.loc_match_module}
    hungarian = Hungarian(groups=2, **modules)
    theirs = value_of(build("group_detr", groups=2), problem)
    for matcher in (hungarian, SharedLayers(hungarian), WeightedSum([hungarian, hungarian])):
        torch.testing.assert_close(value_of(build("group_detr", matcher=matcher), problem), theirs)
    for matcher in (Min(**modules), SharedLayers(Min(**modules))):
        assert build("group_detr", matcher=matcher).main.normalizer.groups == 1
