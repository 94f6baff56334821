"""The example of figure 1 of De Plaen et al., CVPR 2023: five predictions, the targets A and B, and the background.

Predictions count from 0 here and from 1 in the paper. All tests go through the public matchers, at their default
`num_iter` and `tol`; `normalize_cost_matrix=False`, because the settings of the figure are in units of its costs.
"""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.oracles import transport as oracle
from uotod.match import (
    BalancedPOT,
    BalancedSinkhorn,
    ClosestPrediction,
    ClosestTarget,
    Hungarian,
    Matcher,
    Min,
    SoftMin,
    UnbalancedPOT,
    UnbalancedSinkhorn,
)

COST = [[0.61, 0.96, 0.8], [1.34, 0.88, 0.8], [0.88, 0.89, 0.8], [0.4, 0.65, 0.8], [1.11, 0.73, 0.8]]
A, B, BACKGROUND = 0, 1, 2
HUNGARIAN = [BACKGROUND, BACKGROUND, BACKGROUND, A, B]
CLOSEST_TARGET = [A, BACKGROUND, BACKGROUND, A, B]
CLOSEST_PREDICTION = [3, 3]  # of A and of B
REG = 0.05
PENALTIES = [(math.inf, math.inf), (100.0, 0.01), (0.01, 100.0)]
DTYPES = [torch.float32, torch.float64]


def plan_of(matcher: Matcher, dtype: torch.dtype = torch.float64) -> Tensor:
    """Return the plan (5, 3)."""
    return matcher.compute_matching(torch.tensor([COST], dtype=dtype), torch.ones(1, 2, dtype=torch.bool))[0]


def total(plan: Tensor) -> float:
    """Return the cost of the targets' pairs."""
    return float((plan.double() * torch.tensor(COST, dtype=torch.float64))[:, :BACKGROUND].sum())


def sinkhorn(reg: float, reg_pred: float, reg_target: float) -> Matcher:
    return UnbalancedSinkhorn(reg=reg, reg_pred=reg_pred, reg_target=reg_target, normalize_cost_matrix=False)


@pytest.mark.parametrize("dtype", DTYPES)
def test_hungarian_matches_4_to_a_and_5_to_b(dtype: torch.dtype) -> None:
    plan = plan_of(Hungarian(), dtype)
    assert torch.equal(plan, torch.eye(3, dtype=dtype)[HUNGARIAN])
    assert total(plan) == pytest.approx(1.13, abs=1e-6)


@pytest.mark.parametrize("matcher", [ClosestTarget(), Min(source="prediction")])
def test_the_best_target_of_each_prediction(matcher: Matcher) -> None:
    assert torch.equal(plan_of(matcher), torch.eye(3, dtype=torch.float64)[CLOSEST_TARGET])


@pytest.mark.parametrize("matcher", [ClosestPrediction(), Min(source="target")])
def test_prediction_4_is_the_best_of_both_targets(matcher: Matcher) -> None:
    plan = plan_of(matcher)
    assert plan[:, :2].T.tolist() == [[float(i == best) for i in range(5)] for best in CLOSEST_PREDICTION]
    assert plan[:, BACKGROUND].tolist() == [1, 1, 1, 0, 1]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("penalties", PENALTIES)
def test_the_plans_of_the_figure_are_the_oracles(penalties: tuple[float, float], dtype: torch.dtype) -> None:
    expected = oracle.unbalanced_plan(COST, *oracle.marginals(5, 2), REG, *penalties)
    np.testing.assert_allclose(plan_of(sinkhorn(REG, *penalties), dtype).double(), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("penalties", PENALTIES)
def test_pot_finds_the_plans_of_the_figure(penalties: tuple[float, float]) -> None:
    options = {"reg": REG, "normalize_cost_matrix": False, "num_iter": 100_000, "tol": 1e-9}
    matcher: Matcher = UnbalancedPOT(reg_pred=penalties[0], reg_target=penalties[1], **options)
    expected = oracle.unbalanced_plan(COST, *oracle.marginals(5, 2), REG, *penalties)
    np.testing.assert_allclose(plan_of(matcher), expected, rtol=0, atol=1e-6)
    if penalties == (math.inf, math.inf):
        np.testing.assert_allclose(plan_of(BalancedPOT(**options)), expected, rtol=0, atol=1e-6)


def test_the_plans_of_the_figure_lean_to_the_rules_that_they_relax() -> None:
    balanced, to_target, to_prediction = (plan_of(sinkhorn(REG, *penalties)) for penalties in PENALTIES)
    torch.testing.assert_close(balanced.sum(0), torch.tensor([1.0, 1.0, 3.0]).double(), rtol=0, atol=1e-5)
    torch.testing.assert_close(balanced.sum(1), torch.ones(5).double(), rtol=0, atol=1e-5)
    assert balanced[:, :2].argmax(0).tolist() == [3, 4]
    assert to_target.argmax(1).tolist() == CLOSEST_TARGET
    assert to_prediction[:, :2].argmax(0).tolist() == CLOSEST_PREDICTION


@pytest.mark.parametrize("dtype", DTYPES)
class TestLimits:
    """Propositions 1 and 2: what remains of the plans as reg vanishes."""

    def test_balanced_transport_tends_to_hungarian(self, dtype: torch.dtype) -> None:
        for matcher in (
            BalancedSinkhorn(reg=1e-3, normalize_cost_matrix=False),
            BalancedSinkhorn(reg=1e-3),
            sinkhorn(1e-3, math.inf, math.inf),
        ):
            plan = plan_of(matcher, dtype)
            torch.testing.assert_close(plan, torch.eye(3, dtype=dtype)[HUNGARIAN], rtol=0, atol=1e-5)
            assert total(plan) == pytest.approx(1.13, abs=1e-5)

    def test_without_target_penalty_it_tends_to_the_closest_target(self, dtype: torch.dtype) -> None:
        expected = plan_of(ClosestTarget(), dtype)
        torch.testing.assert_close(plan_of(sinkhorn(1e-3, math.inf, 0.0), dtype), expected, rtol=0, atol=1e-5)
        soft = plan_of(SoftMin(source="prediction", reg=REG), dtype)
        torch.testing.assert_close(plan_of(sinkhorn(REG, math.inf, 0.0), dtype), soft, rtol=0, atol=1e-5)

    def test_without_prediction_penalty_it_tends_to_the_closest_prediction(self, dtype: torch.dtype) -> None:
        expected = plan_of(ClosestPrediction(uniform_background=True), dtype)
        torch.testing.assert_close(plan_of(sinkhorn(1e-3, 0.0, math.inf), dtype), expected, rtol=0, atol=1e-5)
        soft = plan_of(SoftMin(reg=REG, uniform_background=True), dtype)
        torch.testing.assert_close(plan_of(sinkhorn(REG, 0.0, math.inf), dtype), soft, rtol=0, atol=1e-5)
