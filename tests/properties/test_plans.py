"""Properties of every matcher's plan: on what it depends, and on what it does not."""

import pytest
import torch
from hypothesis import given, strategies as st
from torch import Tensor

from tests.support.problems import Problem, permuted
from tests.support.strategies import (
    FREE_OF_TIES,
    NAMES,
    in_dtype,
    in_units,
    matched_problems,
    nudged,
    orders,
    plan_of,
    some_images,
)
from uotod.match import Matcher, SimOTA
from uotod.scene.scene import parse_scene

JOINT = ("SharedLayers", "UnionVote")  # match all layers together
# A prediction that is the best of two targets has the score 0 for both, whatever the numbers: the lower index wins.
TIED_BY_RULE = ("OTA",)
# POT's loops stop at their number of iterations where a problem is hard, and say so: the same way in every layout.
pytestmark = pytest.mark.filterwarnings("ignore:.*POT reached a residual")
each_matcher = pytest.mark.parametrize("name", NAMES)


def sensitivity(matcher: Matcher, problem: Problem, plan: Tensor, step: float) -> Tensor:
    """Return (B, 1, 1) by how much a plan changes where its numbers do by about `step`: 1 where a pair nearly ties."""
    changes = [
        (plan_of(matcher, nudged(problem, step, seed)) - plan).abs().flatten(1).amax(1)[:, None, None]
        for seed in range(2)
    ]
    return torch.maximum(*changes)


def assert_equal_where_well_posed(actual: Tensor, expected: Tensor, sensitive: Tensor, atol: float) -> None:
    """Assert that plans are equal up to `atol` and ten times their sensitivity, which few of the images have."""
    error = (actual - expected).abs()
    assert (error <= atol + 10 * sensitive).all(), f"they differ by up to {float(error.max())}"


@each_matcher
@given(data=st.data())
def test_it_follows_the_order_of_predictions_and_targets(name: str, data: st.DataObject) -> None:
    matcher, problem = data.draw(matched_problems(name, FREE_OF_TIES))
    preds, targets = problem.input["pred_boxes"].shape[1], problem.target["mask"].shape[1]
    order = data.draw(orders(preds))
    columns = torch.arange(targets) if name in TIED_BY_RULE else data.draw(orders(targets))
    expected = plan_of(matcher, problem)
    found = plan_of(matcher, permuted(problem, order, columns))
    expected = expected[:, order][:, :, torch.cat((columns, torch.tensor([targets])))]
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)


@each_matcher
@given(data=st.data())
def test_it_does_not_depend_on_the_other_images(name: str, data: st.DataObject) -> None:
    matcher, problem = data.draw(matched_problems(name))
    expected = plan_of(matcher, problem)
    order = data.draw(orders(len(expected)))
    cut = data.draw(st.integers(0, len(expected)))
    for images in (order[:cut], order[cut:]):
        found = plan_of(matcher, some_images(problem, images))
        torch.testing.assert_close(found, expected[images], rtol=0, atol=1e-6)


@each_matcher
@given(data=st.data())
def test_it_does_not_depend_on_padding(name: str, data: st.DataObject) -> None:
    matcher, problem = data.draw(matched_problems(name))
    images, targets = problem.target["mask"].shape
    wider = targets + data.draw(st.integers(1, 3))
    kept = data.draw(st.permutations(range(wider)).map(lambda x: sorted(x[:targets])))
    padded = {
        "labels": torch.full((images, wider), -100),
        "boxes": torch.full((images, wider, 4), torch.nan, dtype=torch.float64),
        "mask": torch.zeros(images, wider, dtype=torch.bool),
    }
    for key, value in padded.items():
        value[:, kept] = problem.target[key]
    expected = plan_of(matcher, problem)
    found = matcher(problem.input, padded, problem.anchors)
    torch.testing.assert_close(found[:, :, [*kept, wider]], expected, rtol=0, atol=1e-6)
    assert (found.sum(1)[:, :-1][~padded["mask"]] == 0).all()


@pytest.mark.parametrize("name", [name for name in NAMES if name not in JOINT])
@given(data=st.data())
def test_that_of_a_decoder_layer_is_that_of_the_layer_alone(name: str, data: st.DataObject) -> None:
    matcher, problem = data.draw(matched_problems(name))
    other = nudged(problem, 0.25, data.draw(st.integers(0, 1000))).input
    other["pred_boxes"] = torch.cat(torch.stack(other["pred_boxes"].split(2, -1)).sort(0).values.unbind(), -1)
    stacked = problem.input | {"aux_outputs": [other]}
    scene = parse_scene(stacked, problem.target, problem.anchors, matcher.needs, auxiliary=True)
    earlier, final = matcher.scene_plan(scene).to_dense().chunk(2)
    torch.testing.assert_close(final, plan_of(matcher, problem), rtol=0, atol=1e-6)
    torch.testing.assert_close(earlier, matcher(other, problem.target, problem.anchors), rtol=0, atol=1e-6)


@each_matcher
@given(data=st.data())
def test_it_knows_no_unit_of_length(name: str, data: st.DataObject) -> None:
    matcher, problem = data.draw(matched_problems(name, scale_free=True))
    unit = 2.0 ** data.draw(st.integers(-10, 10))  # exact, so that ties stay ties
    torch.testing.assert_close(plan_of(matcher, in_units(problem, unit)), plan_of(matcher, problem), rtol=0, atol=1e-6)


@each_matcher
@given(data=st.data())
def test_it_is_that_of_float64_in_float32(name: str, data: st.DataObject) -> None:
    matcher, problem = data.draw(matched_problems(name, FREE_OF_TIES))
    if isinstance(matcher, SimOTA):
        matcher.penalty = 100.0  # at 1e6, its default, float32 has steps of 0.06 for pairs outside of the region
    expected = plan_of(matcher, problem)
    found = plan_of(matcher, in_dtype(problem, torch.float32))
    assert found.dtype == torch.float32
    sensitive = sensitivity(matcher, problem, expected, 1e-5)
    assert (sensitive < 1e-2).double().mean() >= 0.5
    assert_equal_where_well_posed(found.double(), expected, sensitive, atol=1e-4)


@each_matcher
@given(data=st.data())
def test_it_does_not_depend_on_how_tensors_lie_in_memory(name: str, data: st.DataObject) -> None:
    matcher, problem = data.draw(matched_problems(name))
    kinds = data.draw(st.lists(st.sampled_from(sorted(LAYOUTS)), min_size=5, max_size=5))
    values = problem.input | problem.target
    laid = {key: LAYOUTS[kind](value) for (key, value), kind in zip(values.items(), kinds, strict=True)}
    for key, value in values.items():
        torch.testing.assert_close(laid[key], value, rtol=0, atol=0, equal_nan=True)
    found = matcher({k: laid[k] for k in problem.input}, {k: laid[k] for k in problem.target}, problem.anchors)
    assert torch.equal(found, plan_of(matcher, problem))


LAYOUTS = {
    "contiguous": lambda x: x,
    "transposed": lambda x: x.transpose(0, 1).contiguous().transpose(0, 1),
    "every other": lambda x: x.repeat_interleave(2, dim=1)[:, ::2],
    "part of more": lambda x: torch.cat((x, x, x), dim=0)[len(x) : 2 * len(x)],
    "reversed": lambda x: x.flip(-1).contiguous().flip(-1),
}
