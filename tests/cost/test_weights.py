"""Class weights of a matcher: what they make of the cost, where they live, and their errors."""

import copy
import math
import pickle
import re

import pytest
import torch
from torch import nn

from tests.oracles import sets as oracle
from tests.support.matcher_cases import CASES, COSTS
from tests.support.problems import random_problem
from uotod import match
from uotod.loss import DetectionLoss
from uotod.match import Hungarian, IoUThreshold

WEIGHTS = [0.5, 2.0, 1.0, 3.0, 0.25]


def assert_weighted(matcher, target, problem, weighted) -> None:
    """Compare the costs of the weighted and the plain matcher with a loop over the pairs."""
    found = weighted.compute_cost_matrix(problem.input, target)
    plain = matcher.compute_cost_matrix(problem.input, target)
    assert torch.equal(found[..., -1], plain[..., -1])
    for b in range(len(found)):
        real = [j for j in range(found.shape[2] - 1) if target["mask"][b, j]]
        labels = [target["labels"][b, j].tolist() for j in real]
        expected = oracle.class_weighted(plain[b, :, real].tolist(), labels, WEIGHTS)
        torch.testing.assert_close(found[b, :, real], torch.tensor(expected, dtype=found.dtype).view(6, len(real)))


@pytest.mark.parametrize("targets", [0, 1, 4])
def test_the_weight_of_a_class_multiplies_the_cost_of_its_targets(targets) -> None:
    for given in (WEIGHTS, torch.tensor(WEIGHTS), torch.tensor(WEIGHTS).double()):
        for _ in range(40):
            problem = random_problem(2, 6, targets)
            assert_weighted(Hungarian(**COSTS), problem.target, problem, Hungarian(**COSTS, class_weight=given))


def test_the_weights_of_one_hot_targets_are_mixed() -> None:
    for _ in range(40):
        problem = random_problem(2, 6, 3)
        labels = torch.rand(2, 3, 5, dtype=torch.float64) * (torch.rand(2, 3, 5) < 0.4)
        target = problem.target | {"labels": labels}
        assert_weighted(Hungarian(**COSTS), target, problem, Hungarian(**COSTS, class_weight=WEIGHTS))
    hard = problem.target | {"labels": nn.functional.one_hot(problem.target["labels"].clamp(min=0), 5)}
    matcher = match.SoftMin(**COSTS, class_weight=WEIGHTS)
    torch.testing.assert_close(matcher(problem.input, hard), matcher(problem.input, problem.target))


@pytest.mark.parametrize("name", [name for name in CASES if name != "WeightedSum"])
def test_every_matcher_takes_class_weights_like_weights_of_its_targets(name) -> None:
    problem = random_problem(3, 30, 4)
    own = torch.tensor(WEIGHTS).double()[problem.target["labels"].clamp(min=0)]
    also = 0.5 + torch.rand(3, 4, dtype=torch.float64)
    by_class, plain = CASES[name].build(class_weight=WEIGHTS), CASES[name].build()
    for first, second in ((None, own), (also, own * also)):
        given = problem.target | ({} if first is None else {"cost_weight": first})
        plan = by_class(problem.input, given, problem.anchors)
        torch.testing.assert_close(
            plan, plain(problem.input, problem.target | {"cost_weight": second}, problem.anchors)
        )
    ones = CASES[name].build(class_weight=[1.0] * 5)
    torch.testing.assert_close(
        ones(problem.input, problem.target, problem.anchors), plain(problem.input, problem.target, problem.anchors)
    )


def test_a_weight_is_heeded_where_no_module_makes_the_cost() -> None:
    box = torch.tensor([[[0.0, 0, 1, 1]]])
    input = {"pred_logits": torch.zeros(1, 1, 2), "pred_boxes": torch.tensor([[[0.0, 0, 1, 0.6]]])}
    target = {"labels": torch.tensor([[1]]), "boxes": box}
    for weight, matched in ((1.0, True), (2.0, False)):  # the cost is 0.4 times the weight
        matcher = IoUThreshold(force_match=None, class_weight=[1.0, weight])
        assert bool(matcher(input, target)[0, 0, 0]) == matched


def test_the_weights_move_with_the_module_and_stay_out_of_its_state(device) -> None:
    problem = random_problem(2, 6, 3).to(device)
    matcher = Hungarian(**COSTS, class_weight=WEIGHTS)
    criterion = DetectionLoss(nn.CrossEntropyLoss(reduction="none"), nn.L1Loss(reduction="none"), matcher).to(device)
    assert matcher.class_weight.device.type == device.type
    assert criterion.state_dict() == {}
    expected = matcher(problem.input, problem.target)
    for twin in (pickle.loads(pickle.dumps(matcher)), copy.deepcopy(matcher)):
        assert torch.equal(twin(problem.input, problem.target), expected)
    with pytest.raises(ValueError, match=re.escape(f"class_weight must be on {device} like the rest, got meta")):
        matcher.to("meta")(problem.input, problem.target)


@pytest.mark.parametrize("change", [nn.Module.half, nn.Module.double, lambda m: m.to(torch.bfloat16), nn.Module.float])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_a_cast_of_the_module_leaves_the_weights_in_full_precision(change, dtype) -> None:
    large = [0.5, 2.0, 1.0, 3.0, 1e-9 if dtype != torch.float16 else 0.25]
    large[0] = 1e6 if dtype != torch.float16 else 0.5
    problem = random_problem(2, 6, 3)
    matcher = Hungarian(**COSTS, class_weight=torch.tensor(large, dtype=dtype))
    expected = matcher.compute_cost_matrix(problem.input, problem.target)
    criterion = DetectionLoss(nn.CrossEntropyLoss(reduction="none"), nn.L1Loss(reduction="none"), matcher)
    change(criterion)
    assert matcher.class_weight.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert criterion.state_dict() == {}
    for twin in (matcher, pickle.loads(pickle.dumps(matcher)), copy.deepcopy(matcher)):
        assert torch.equal(twin.compute_cost_matrix(problem.input, problem.target), expected)


def test_the_given_tensor_is_not_kept() -> None:
    given = torch.tensor(WEIGHTS, requires_grad=True)
    matcher = Hungarian(class_weight=given)
    with torch.no_grad():
        given.zero_()
    assert matcher.class_weight.tolist() == WEIGHTS
    assert not matcher.class_weight.requires_grad


@pytest.mark.parametrize(
    ("value", "message", "error"),
    [
        (2.0, "class_weight must be a sequence of numbers or a tensor, got float", TypeError),
        ("ab", "class_weight[0] must be a real number, got 'a' of type str", TypeError),
        ([1.0, "a"], "class_weight[1] must be a real number, got 'a' of type str", TypeError),
        ([1.0, 0.0], "class_weight[1] must lie in (0.0, inf), got 0.0", ValueError),
        (torch.ones(2).long(), "class_weight must have a floating dtype, got torch.int64", TypeError),
        (torch.ones(2, 1), "class_weight must have shape (C,), got (2, 1)", ValueError),
        (torch.tensor([1.0, math.inf]), "class_weight must hold finite numbers above 0, got [1.0, inf]", ValueError),
    ],
)
def test_bad_weights_raise(value, message, error) -> None:
    with pytest.raises(error, match=re.escape(message)):
        Hungarian(class_weight=value)


def test_their_number_is_that_of_the_classes() -> None:
    problem = random_problem(2, 6, 3)
    with pytest.raises(ValueError, match="class_weight must hold C = 5 numbers, one a class, got 4"):
        Hungarian(**COSTS, class_weight=[1.0] * 4)(problem.input, problem.target)
