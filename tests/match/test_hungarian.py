"""Set prediction with several predictions a target: repeated targets, groups and rounds, against slow loops."""

import math
import re
from functools import partial

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tests.oracles import sets as oracle
from tests.support.matcher_cases import COSTS
from tests.support.problems import random_problem
from uotod.loss import DetectionLoss, GIoULoss
from uotod.match import Hungarian

SIZES = [(12, 4), (9, 4), (5, 4), (3, 6), (1, 1), (1, 4), (6, 1), (4, 0)]  # predictions, targets


def pairs_of(matcher: Hungarian, cost: np.ndarray | Tensor) -> list[tuple[int, int]]:
    """Return the matched (prediction, target) pairs of one image's (P, T) cost."""
    cost = torch.as_tensor(cost, dtype=torch.float64)
    full = torch.cat((cost, torch.full_like(cost[:, :1] if cost.shape[1] else cost.new_zeros(len(cost), 1), 9.0)), 1)
    plan = matcher.compute_matching(full[None], torch.ones(1, cost.shape[1], dtype=torch.bool))[0]
    assert (plan.sum(1) == 1).all()
    return [tuple(pair) for pair in plan[:, :-1].nonzero().tolist()]


def total(cost: np.ndarray, pairs: list[tuple[int, int]]) -> float:
    return sum(float(cost[pair]) for pair in pairs)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("copies", [1, 2, 3])
def test_copies_are_the_best_of_all_ways_to_give_each_target_so_many(size, copies) -> None:
    preds, targets = min(size[0], 9), size[1]
    for _ in range(6):
        cost = torch.rand(preds, targets, dtype=torch.float64).numpy()
        pairs = pairs_of(Hungarian(copies=copies), cost)
        capacity = oracle.copies_per_target(preds, targets, copies)
        count, least = oracle.best_with_capacity(cost.tolist(), capacity)
        assert len(pairs) == count == min(preds, capacity * targets)
        assert total(cost, pairs) == pytest.approx(least, abs=1e-12)


@pytest.mark.parametrize("size", [size for size in SIZES if size[1]])
@pytest.mark.parametrize("copies", [1, 2, 3, 6])
def test_copies_are_the_assignment_of_the_repeated_cost(size, copies) -> None:
    for _ in range(10):
        cost = torch.rand(*size, dtype=torch.float64).numpy()
        assert pairs_of(Hungarian(copies=copies), cost) == oracle.repeated(cost, copies)


def test_copies_with_ties_cost_what_the_repeated_cost_does() -> None:
    for _ in range(100):
        cost = torch.randint(0, 3, (10, 3)).double().numpy()
        pairs = pairs_of(Hungarian(copies=2), cost)
        assert len(pairs) == 6
        assert total(cost, pairs) == total(cost, oracle.repeated(cost, 2))


def test_copies_match_as_many_as_forbidden_pairs_allow() -> None:
    for _ in range(60):
        cost = torch.rand(7, 3, dtype=torch.float64).masked_fill(torch.rand(7, 3) < 0.6, math.inf).numpy()
        pairs = pairs_of(Hungarian(copies=2), cost)
        count, least = oracle.best_with_capacity(cost.tolist(), 2)
        assert len(pairs) == count
        assert total(cost, pairs) == pytest.approx(least, abs=1e-12)


@pytest.mark.parametrize("size", [size for size in SIZES if size[1]])
@pytest.mark.parametrize("rounds", [1, 2, 3, 6])
def test_rounds_are_assignments_in_turn(size, rounds) -> None:
    for _ in range(10):
        cost = torch.rand(*size, dtype=torch.float64).numpy()
        pairs = pairs_of(Hungarian(rounds=rounds), cost)
        assert pairs == oracle.in_rounds(cost, rounds)
        assert len(pairs) == min(size[0], rounds * size[1])


def test_later_rounds_keep_the_pairs_of_earlier_ones() -> None:
    """Also for predictions whose index is that of a matched target, which must not be masked for that."""
    for _ in range(30):
        cost = torch.rand(12, 4, dtype=torch.float64).numpy()
        found = [set(pairs_of(Hungarian(rounds=k), cost)) for k in (1, 2, 3)]
        assert found[0] < found[1] < found[2]
    cost = torch.tensor([[0.3], [0.0], [0.9]])  # prediction 0 has the index of the target
    assert pairs_of(Hungarian(rounds=2), cost) == [(0, 0), (1, 0)]


@pytest.mark.parametrize("groups", [1, 2, 3])
@pytest.mark.parametrize("options", [{}, {"copies": 2}, {"rounds": 2}])
@pytest.mark.parametrize("targets", [0, 1, 3, 5])
def test_each_group_is_matched_on_its_own(groups, options, targets) -> None:
    if "copies" in options:
        rule = partial(oracle.repeated, copies=2)
    else:
        rule = partial(oracle.in_rounds, rounds=options.get("rounds", 1))
    for _ in range(10):
        cost = torch.rand(12, targets, dtype=torch.float64).numpy()
        expected = oracle.in_groups(cost, groups, rule) if targets else []
        assert pairs_of(Hungarian(groups=groups, **options), cost) == expected


def test_groups_are_for_training_only() -> None:
    problem = random_problem(3, 12, 3)
    matcher = Hungarian(**COSTS, groups=4)
    criterion = DetectionLoss(nn.CrossEntropyLoss(reduction="none"), GIoULoss(reduction="none"), matcher)
    plan = matcher(problem.input, problem.target)
    count = problem.target["mask"].sum()
    assert plan[..., :-1].sum() == 4 * count
    assert criterion.terms(problem.input, problem.target)["num_pos"] == 4 * count
    criterion.eval()
    assert torch.equal(matcher(problem.input, problem.target), Hungarian(**COSTS)(problem.input, problem.target))
    uneven = random_problem(2, 5, 3)  # the queries of one group are left in inference
    matcher(uneven.input, uneven.target)
    criterion.train()
    with pytest.raises(ValueError, match="groups must divide the number of predictions P, got groups=4 and P=5"):
        matcher(uneven.input, uneven.target)


@pytest.mark.parametrize("options", [{"copies": 3}, {"rounds": 3}, {"groups": 3}, {"groups": 3, "copies": 2}])
def test_a_crowded_image_does_not_lower_the_matches_of_another(options) -> None:
    problem = random_problem(3, 12, 9)
    problem.target["mask"][:] = torch.arange(9) < torch.tensor([9, 2, 3])[:, None]
    problem.target["boxes"] = problem.target["boxes"].nan_to_num(0.5)
    problem.target["labels"] = problem.target["labels"].clamp(min=1)
    matcher = Hungarian(**COSTS, **options)
    plan = matcher(problem.input, problem.target)
    for b in range(3):
        one = {k: v[b : b + 1] for k, v in problem.input.items()}, {k: v[b : b + 1] for k, v in problem.target.items()}
        assert torch.equal(matcher(*one)[0], plan[b])
    assert (
        plan[1, :, :2].sum(0) == options.get("copies", 1) * options.get("rounds", 1) * options.get("groups", 1)
    ).all()


def test_a_batch_crosses_to_the_host_once(monkeypatch) -> None:
    crossings = []
    to_host = Tensor.cpu
    monkeypatch.setattr(Tensor, "cpu", lambda self: crossings.append(self.shape) or to_host(self))
    problem = random_problem(4, 12, 3)
    for options in ({"copies": 2, "groups": 3}, {"rounds": 2, "groups": 3}):
        crossings.clear()
        Hungarian(**COSTS, **options)(problem.input, problem.target)
        assert crossings == [(4, 3, 12)]


@pytest.mark.parametrize(
    ("options", "message", "error"),
    [
        ({"copies": 0}, "copies must be at least 1, got 0", ValueError),
        ({"groups": 0}, "groups must be at least 1, got 0", ValueError),
        ({"rounds": -1}, "rounds must be at least 1, got -1", ValueError),
        ({"copies": 2.0}, "copies must be an integer, got 2.0 of type float", TypeError),
        (
            {"copies": 2, "rounds": 3},
            "at most one of copies and rounds may exceed 1, got copies=2 and rounds=3",
            ValueError,
        ),
    ],
)
def test_bad_arguments_raise(options, message, error) -> None:
    with pytest.raises(error, match=re.escape(message)):
        Hungarian(**options)
