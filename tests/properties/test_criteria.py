"""Properties of the criterion with every matcher: its loss is a sum over images, however they are given to it."""

import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch import Tensor

from tests.support.problems import Problem
from tests.support.strategies import NAMES, criteria, orders, some_images
from uotod.loss import DetectionLoss, Masses

pytestmark = pytest.mark.filterwarnings("ignore:.*POT reached a residual")
# They concern the criterion, whoever matches: a fifth of the examples with each of the 24 matchers.
some = settings(max_examples=max(settings().max_examples // 2, 1))
each_matcher = pytest.mark.parametrize("name", NAMES)


def loss_of(criterion: DetectionLoss, problem: Problem, **options: Masses | None) -> Tensor:
    return criterion(problem.input, problem.target, problem.anchors, **options)


def assert_same(actual: Tensor, expected: Tensor, problem: Problem) -> None:
    """Assert that losses and their gradients are equal."""
    torch.testing.assert_close(actual, expected, rtol=1e-6, atol=1e-6)
    fields = list(problem.input.values())
    ours, theirs = (torch.autograd.grad(x, fields, materialize_grads=True) for x in (actual, expected))
    for a, e in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, e, rtol=1e-5, atol=1e-6)


def micro_batches(data: st.DataObject, problem: Problem) -> list[Problem]:
    """Return the images in another order, in one to four parts, of which some may be empty."""
    order = data.draw(orders(len(problem.target["mask"])))
    cuts = sorted(data.draw(st.lists(st.integers(0, len(order)), max_size=3)))
    return [some_images(problem, part) for part in torch.tensor_split(order, cuts)]


@each_matcher
@some
@given(data=st.data())
def test_loss_and_gradient_are_finite_whatever_the_boxes(name: str, data: st.DataObject) -> None:
    criterion, problem = data.draw(criteria(name))
    loss = loss_of(criterion, problem)
    assert loss.isfinite()
    assert all(x.isfinite().all() for x in torch.autograd.grad(loss, [*problem.input.values()], materialize_grads=True))


@each_matcher
@some
@given(data=st.data())
def test_the_sum_of_a_batch_is_the_sum_of_its_parts(name: str, data: st.DataObject) -> None:
    criterion, problem = data.draw(criteria(name, "sum"))
    parts = [loss_of(criterion, part) for part in micro_batches(data, problem)]
    assert_same(torch.stack(parts).sum(), loss_of(criterion, problem), problem)


@each_matcher
@some
@given(data=st.data())
def test_micro_batches_with_the_masses_of_the_batch_have_its_gradient(name: str, data: st.DataObject) -> None:
    criterion, problem = data.draw(criteria(name))
    parts = micro_batches(data, problem)
    masses = [criterion.masses(part.input, part.target, part.anchors) for part in parts]
    total = masses[0].total()
    for other in masses[1:]:
        total = total + other
    found = torch.stack([loss_of(criterion, part, masses=total) for part in parts]).sum()
    assert_same(found, loss_of(criterion, problem), problem)


@each_matcher
@some
@given(data=st.data())
def test_a_list_of_targets_is_a_padded_dict(name: str, data: st.DataObject) -> None:
    criterion, problem = data.draw(criteria(name))
    mask = problem.target["mask"]
    images = [{key: problem.target[key][b][row] for key in ("labels", "boxes")} for b, row in enumerate(mask)]
    found = criterion(problem.input, images, problem.anchors)
    assert_same(found, loss_of(criterion, problem), problem)


@each_matcher
@some
@given(data=st.data())
def test_a_plan_that_is_given_is_the_matchers_own(name: str, data: st.DataObject) -> None:
    criterion, problem = data.draw(criteria(name))
    plan = criterion.matching_method(problem.input, problem.target, problem.anchors)
    found = criterion(problem.input, problem.target, problem.anchors, plan=plan)
    assert_same(found, loss_of(criterion, problem), problem)
