"""Criteria and matchers under the transforms of `torch.func`: what autograd and plain loops say."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, grad_and_value, hessian, jacrev, jvp, vmap

from tests.support.matcher_cases import CASES as MATCHERS, COSTS
from tests.support.problems import random_problem
from tests.support.recipe_cases import CASES as RECIPES, CLASSES, layered
from uotod import recipes
from uotod.loss import CIoULoss, DetectionLoss, GIoULoss, NegativeProbLoss, SigmoidFocalLoss
from uotod.match import Hungarian

TIGHT = {"rtol": 1e-12, "atol": 1e-12}
Fields = dict[str, Tensor]


def of_fields(criterion: nn.Module, problem: Any) -> tuple[Fields, Callable[[Fields], Tensor]]:
    """Return the floating predictions of all layers, and the loss as a function of them."""
    aux = problem.input.get("aux_outputs", [])
    layers = [*aux, {k: x for k, x in problem.input.items() if k != "aux_outputs"}]
    fields = {f"{i} {key}": x.detach() for i, layer in enumerate(layers) for key, x in layer.items()}

    def loss(values: Fields) -> Tensor:
        given = [{key: values[f"{i} {key}"] for key in layer} for i, layer in enumerate(layers)]
        input = given[-1] | ({"aux_outputs": given[:-1]} if aux else {})
        return criterion(input, problem.target, problem.anchors)

    return fields, loss


def by_autograd(loss: Callable[[Fields], Tensor], fields: Fields) -> tuple[Fields, Tensor]:
    leaves = {key: x.detach().requires_grad_() for key, x in fields.items()}
    value = loss(leaves)
    slopes = torch.autograd.grad(value, list(leaves.values()), allow_unused=True)
    return {
        key: torch.zeros_like(x) if slope is None else slope
        for (key, x), slope in zip(leaves.items(), slopes, strict=True)
    }, value.detach()


def plain(matcher: Any, **options: Any) -> DetectionLoss:
    losses = SigmoidFocalLoss(reduction="none"), GIoULoss(reduction="none")
    return DetectionLoss(*losses, matcher, bg_class_position="none", **options)


@pytest.mark.parametrize("name", sorted(RECIPES))
def test_a_recipe_has_the_gradient_of_autograd(name: str) -> None:
    criterion = getattr(recipes, name)(CLASSES)
    fields, loss = of_fields(criterion, layered(name))
    slopes, value = by_autograd(loss, fields)
    found, also = grad_and_value(loss)(fields)
    torch.testing.assert_close(found, slopes, **TIGHT)
    torch.testing.assert_close(also, value, **TIGHT)
    torch.testing.assert_close(grad(loss)(fields), slopes, **TIGHT)


@pytest.mark.parametrize("name", sorted(RECIPES))
def test_a_recipe_has_the_directional_derivative_of_autograd(name: str) -> None:
    criterion = getattr(recipes, name)(CLASSES)
    fields, loss = of_fields(criterion, layered(name))
    slopes, value = by_autograd(loss, fields)
    along = {key: torch.randn_like(x) for key, x in fields.items()}
    also, found = jvp(loss, (fields,), (along,))
    expected = torch.stack([(slopes[key] * along[key]).sum() for key in fields]).sum()
    torch.testing.assert_close(found, expected, rtol=1e-11, atol=1e-11)
    torch.testing.assert_close(also, value, **TIGHT)


@pytest.mark.parametrize("name", MATCHERS)
def test_every_matcher_works_under_grad_and_jvp(name: str) -> None:
    problem = random_problem(preds=20)
    fields, loss = of_fields(plain(MATCHERS[name].build()), problem)
    slopes, _ = by_autograd(loss, fields)
    torch.testing.assert_close(grad(loss)(fields), slopes, **TIGHT)
    along = {key: torch.randn_like(x) for key, x in fields.items()}
    expected = torch.stack([(slopes[key] * along[key]).sum() for key in fields]).sum()
    torch.testing.assert_close(jvp(loss, (fields,), (along,))[1], expected, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("name", MATCHERS)
def test_the_plans_of_an_ensemble_are_those_of_a_loop(name: str) -> None:
    matcher, problem = MATCHERS[name].build(), random_problem(preds=20)
    members = [random_problem(preds=20).input for _ in range(3)]
    stacked = {key: torch.stack([x[key].detach() for x in members]) for key in problem.input}

    def plan(input: Fields) -> Tensor:
        return matcher(input, problem.target, problem.anchors)

    expected = torch.stack([plan({key: x[i] for key, x in stacked.items()}) for i in range(3)])
    torch.testing.assert_close(vmap(plan)(stacked), expected, **TIGHT)


@pytest.mark.parametrize("name", MATCHERS)
def test_the_plans_of_stacked_costs_are_those_of_a_loop(name: str) -> None:
    matcher = MATCHERS[name].build()
    cost, mask = torch.rand(3, 2, 15, 5, dtype=torch.float64), torch.rand(2, 4) < 0.8
    try:
        expected = torch.stack([matcher.compute_matching(x, mask) for x in cost])
    except NotImplementedError:
        pytest.skip("a rule of several others has no rule of a cost")
    torch.testing.assert_close(vmap(matcher.compute_matching, in_dims=(0, None))(cost, mask), expected, **TIGHT)
    nested = vmap(vmap(matcher.compute_matching, in_dims=(0, None)), in_dims=(0, None))
    torch.testing.assert_close(nested(cost[:, None], mask).squeeze(1), expected, **TIGHT)


@pytest.mark.parametrize("name", MATCHERS)
def test_the_losses_of_an_ensemble_are_those_of_a_loop(name: str) -> None:
    problem = random_problem(preds=20)
    _, loss = of_fields(plain(MATCHERS[name].build()), problem)
    members = [of_fields(nn.Identity(), random_problem(preds=20))[0] for _ in range(3)]
    stacked = {key: torch.stack([x[key] for x in members]) for key in members[0]}
    torch.testing.assert_close(vmap(loss)(stacked), torch.stack([loss(x) for x in members]), **TIGHT)
    only_logits = vmap(loss, in_dims=({"0 pred_logits": 0, "0 pred_boxes": None},))
    mixed = members[0] | {"0 pred_logits": stacked["0 pred_logits"]}
    expected = torch.stack([loss(members[0] | {"0 pred_logits": x}) for x in stacked["0 pred_logits"]])
    torch.testing.assert_close(only_logits(mixed), expected, **TIGHT)


@pytest.mark.parametrize("name", sorted(RECIPES))
def test_the_losses_of_an_ensemble_of_layers_are_those_of_a_loop(name: str) -> None:
    criterion, problem = getattr(recipes, name)(CLASSES), layered(name)
    _, loss = of_fields(criterion, problem)
    members = [of_fields(criterion, layered(name))[0] for _ in range(2)]
    stacked = {key: torch.stack([x[key] for x in members]) for key in members[0]}
    torch.testing.assert_close(vmap(loss)(stacked), torch.stack([loss(x) for x in members]), **TIGHT)
    slopes = [grad(loss)(x) for x in members]
    expected = {key: torch.stack([x[key] for x in slopes]) for key in members[0]}
    torch.testing.assert_close(vmap(grad(loss))(stacked), expected, **TIGHT)


@pytest.mark.parametrize("options", [{}, {"use_hard_negative_mining": True, "neg_to_pos_ratio": 2.0}])
@pytest.mark.parametrize("name", ["Hungarian", "BalancedSinkhorn", "IoUThreshold", "SimOTA", "TaskAligned"])
def test_gradients_of_each_image_are_those_of_a_loop(name: str, options: dict[str, Any]) -> None:
    """Of the parameters of a head, as `vmap(grad(...))` makes them for each example of a batch."""
    criterion = plain(MATCHERS[name].build(), **options)
    problem = random_problem(4, 20, full=True)
    head = nn.Linear(5, 5).double()
    parameters = {key: x.detach() for key, x in head.named_parameters()}

    def loss(parameters: Fields, features: Tensor, boxes: Tensor, labels: Tensor, places: Tensor) -> Tensor:
        input = {"pred_logits": functional_call(head, parameters, (features,))[None], "pred_boxes": boxes[None]}
        return criterion(input, {"labels": labels[None], "boxes": places[None]}, problem.anchors)

    rows = *(x.detach() for x in problem.input.values()), problem.target["labels"], problem.target["boxes"]
    found = vmap(grad(loss), in_dims=(None, 0, 0, 0, 0))(parameters, *rows)
    one_by_one = [grad(loss)(parameters, *(x[i] for x in rows)) for i in range(4)]
    torch.testing.assert_close(found, {k: torch.stack([x[k] for x in one_by_one]) for k in parameters}, **TIGHT)


def test_jacobian_and_hessian_are_those_of_autograd() -> None:
    matcher = Hungarian(**COSTS)
    criterion = DetectionLoss(nn.CrossEntropyLoss(reduction="none"), CIoULoss(reduction="none"), matcher, "first")
    problem = random_problem(preds=6, targets=2)
    boxes = problem.input["pred_boxes"].detach()

    def terms(logits: Tensor) -> Tensor:
        found = criterion.terms({"pred_logits": logits, "pred_boxes": boxes}, problem.target)
        return torch.stack([found["loss"], found["loss_cls"], found["loss_loc"]])

    logits = problem.input["pred_logits"].detach()
    expected = torch.autograd.functional.jacobian(terms, logits)
    torch.testing.assert_close(jacrev(terms)(logits), expected, **TIGHT)
    twice = torch.autograd.functional.hessian(lambda x: terms(x)[0], logits)
    torch.testing.assert_close(hessian(lambda x: terms(x)[0])(logits), twice, **TIGHT)


def test_a_criterion_is_called_with_other_buffers() -> None:
    weight = torch.tensor([1.0, 2.0, 0.5, 1.0, 3.0])
    loss = lambda x: nn.CrossEntropyLoss(weight=x, reduction="none")  # noqa: E731
    matcher = Hungarian(cls_match_module=NegativeProbLoss(reduction="none"))
    criterion = DetectionLoss(loss(torch.ones(5)), GIoULoss(reduction="none"), matcher)
    expected = DetectionLoss(loss(weight), GIoULoss(reduction="none"), matcher)
    problem = random_problem()
    (name,) = dict(criterion.named_buffers())
    found = functional_call(criterion, {name: weight}, (problem.input, problem.target))
    torch.testing.assert_close(found, expected(problem.input, problem.target), **TIGHT)


def test_values_are_checked_under_grad_where_they_are_known() -> None:
    problem = random_problem(full=True)
    fields, loss = of_fields(plain(Hungarian(**COSTS)), problem)
    fields["0 pred_logits"][0, 0, 0] = torch.nan
    with pytest.raises(ValueError, match=r"input\['pred_logits'\] must be finite, got 1 non-finite values in image 0"):
        grad(loss)(fields)
    problem.target["labels"][0, 0] = 7
    with pytest.raises(ValueError, match=r"target\['labels'\] must lie in \[0, 5\)"):
        vmap(loss)({key: x[None].nan_to_num() for key, x in fields.items()})
