"""The plans of the Sinkhorn matchers at their defaults, on 1000 stored problems that an independent solver answered."""

import itertools

import numpy as np
import pytest
import torch

from tests.oracles.make_unbalanced_plans import (
    NUMBER,
    PENALTIES,
    REGS,
    Problem,
    oracle_plan,
    random_problem,
    stored,
)
from uotod.match import BalancedSinkhorn, UnbalancedSinkhorn
from uotod.solvers.sinkhorn import TOL


@pytest.fixture(scope="module")
def answered() -> list[tuple[Problem, np.ndarray]]:
    return list(stored())


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-5), (torch.float32, 1e-4)])
@pytest.mark.parametrize("penalties", PENALTIES)
def test_a_plan_at_the_defaults_is_that_of_the_oracle(penalties, dtype, tolerance: float, answered) -> None:
    """Up to the tolerance, relative for masses above that of a prediction; a warning of no convergence is an error."""
    problems = [x for x in answered if (x[0].reg_pred, x[0].reg_target) == penalties]
    assert len(problems) > 100
    for problem, expected in problems:
        matcher = UnbalancedSinkhorn(
            reg_pred=penalties[0], reg_target=penalties[1], reg=problem.reg, background=problem.background
        )
        cost, mask = torch.as_tensor(problem.cost).to(dtype)[None], torch.as_tensor(problem.mask)[None]
        result = matcher.solve(cost, mask)
        assert result.residual.max() <= TOL, problem
        error = np.abs(result.plan[0].double().numpy() - expected) / np.maximum(expected, 1.0)
        assert error.max(initial=0.0) <= tolerance, problem
        if penalties == (np.inf, np.inf):
            balanced = BalancedSinkhorn(reg=problem.reg, background=problem.background)
            assert torch.equal(balanced.compute_matching(cost, mask), result.plan)


def test_the_stored_problems_cover_the_grid(answered) -> None:
    problems = [problem for problem, _ in answered]
    assert len(problems) == NUMBER == 1000
    settings = {(*problem[4:], problem.reg) for problem in problems}
    assert settings == {(*penalties, reg) for penalties, reg in itertools.product(PENALTIES, REGS)}
    assert all(problem.cost.dtype == np.float32 for problem in problems)
    counts = [(len(problem.cost), int(problem.mask.sum()), problem.background) for problem in problems]
    assert {preds for preds, _, _ in counts} == set(range(1, 41))
    assert {targets for _, targets, _ in counts} == set(range(11))
    for condition in (
        lambda preds, targets, background: preds < targets and background,
        lambda preds, targets, background: preds < targets and not background,
        lambda preds, targets, background: preds >= targets and not background,
        lambda preds, targets, background: targets == 0,
    ):
        assert sum(condition(*count) for count in counts) >= 20
    assert sum(not problem.mask.all() for problem in problems) >= 500


@pytest.mark.parametrize("start", range(5))
def test_the_stored_plans_are_what_the_oracle_answers(start: int, answered) -> None:
    for index in range(start * 7, NUMBER, 97):
        problem, plan = answered[index]
        drawn = random_problem(index)
        assert drawn[2:] == problem[2:]
        np.testing.assert_array_equal(drawn.mask, problem.mask)
        np.testing.assert_array_equal(drawn.cost, problem.cost)
        np.testing.assert_allclose(oracle_plan(problem), plan, rtol=1e-6, atol=1e-7)
