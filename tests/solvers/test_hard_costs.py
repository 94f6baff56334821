"""Costs that once stalled the transport solver, by structure: all converge, soon, or are called infeasible."""

import math

import pytest
import torch
from torch import Tensor

from benchmarks.hard_costs import PATTERNS, batches, is_feasible
from benchmarks.sweep import solve_all, summary
from tests.oracles import transport as oracle
from uotod.match import EMD, BalancedSinkhorn, PartialOT, UnbalancedSinkhorn
from uotod.solvers.feasible import largest_flow

INF = math.inf
DTYPES = [torch.float32, torch.float64]
MOST_STEPS = 150  # of the sample; 20 times the median of most sizes


def masks(cost: Tensor, *, background: bool = True) -> Tensor:
    return torch.ones(len(cost), cost.shape[2] - background, dtype=torch.bool)


def test_a_sample_of_the_sweep_converges_and_no_problem_takes_many_steps() -> None:
    found = list(solve_all(batches(1200, seed=5)))
    assert [x for x in found if x.fault] == []
    assert max(x.steps for x in found) <= MOST_STEPS
    assert 20 < sum(x.steps < 0 for x in found) < 400  # some are infeasible, and refused


def test_the_sweep_sees_a_crippled_solver() -> None:
    assert summary(list(solve_all(batches(300, seed=5), num_iter=3)))["unconverged"] > 10


@pytest.mark.parametrize("penalties", [(INF, INF), (1.0, 1.0), (1e5, 1e5), (INF, 1e-3)])
def test_plans_of_hard_costs_agree_with_the_oracle(penalties: tuple[float, float]) -> None:
    """Of structures without forbidden pairs, for which the oracle has no trouble."""
    checked = 0
    for batch in batches(4000, seed=11, images=1):
        preds, columns = batch.cost.shape[1:]
        plain = bool(batch.cost.isfinite().all() & batch.mask.all()) and 2 < preds <= 20 and not batch.partial
        if not plain or batch.structure == "huge range" or batch.reg_dimless < 0.1 or checked == 12:
            continue
        cost = (batch.cost / batch.cost.abs().max().clamp(min=1e-30)).double()
        targets, reg = columns - batch.background, 0.12 / (math.log(2 * preds) + 1)
        options = {"reg": reg, "normalize_cost_matrix": False, "background": batch.background, "tol": 1e-9}
        matcher = UnbalancedSinkhorn(reg_pred=penalties[0], reg_target=penalties[1], **options)
        plan = matcher.compute_matching(cost, batch.mask)[0]
        marginals = oracle.marginals(preds, targets, background=batch.background)
        expected = torch.as_tensor(oracle.unbalanced_plan(cost[0].numpy(), *marginals, reg, *penalties))
        torch.testing.assert_close(plan, expected, rtol=1e-5, atol=1e-5, msg=batch.says())
        checked += 1
    assert checked == 12


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_shift_of_all_potentials_does_not_crowd_out_a_step(dtype: torch.dtype) -> None:
    cost = (torch.arange(60)[:, None] != torch.arange(201)).to(dtype)[None]
    result = BalancedSinkhorn().solve(cost, masks(cost))
    assert result.residual.item() <= 1e-6
    assert result.iterations.item() <= 10


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("penalty", [1e3, 1e5, 1e6, 1e8])
@pytest.mark.parametrize("side", [1, 2])
def test_a_prediction_or_column_without_a_partner_costs_no_steps_however_large_the_penalties(
    side: int, penalty: float, dtype: torch.dtype
) -> None:
    cost = torch.rand(1, 30, 11, dtype=dtype)
    cost.select(side, 3).fill_(INF)
    result = UnbalancedSinkhorn(reg_pred=penalty, reg_target=penalty).solve(cost, masks(cost))
    assert result.residual.item() <= 1e-6
    assert result.iterations.item() <= 20


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_column_that_starves_by_more_than_the_dtype_holds_recovers(dtype: torch.dtype) -> None:
    """The cheap pair of three targets is one prediction, their others are 3000 `reg` dearer."""
    cost = torch.rand(1, 6, 4, dtype=torch.float64)
    cost[0, 1:, :3] += 50.0
    cost[0, 0, :3] = torch.tensor([0.0, 1e-3, 2e-3])
    for penalties in [(INF, INF), (1e3, 1e3), (1e6, 1e6)]:
        rule = UnbalancedSinkhorn(reg_pred=penalties[0], reg_target=penalties[1], reg_dimless=0.001)
        result = rule.solve(cost.to(dtype), masks(cost))
        assert result.residual.item() <= 1e-6
        assert result.iterations.item() <= 60


class TestInfeasible:
    def test_a_maximum_flow_agrees_with_linear_programming(self) -> None:
        random = torch.Generator().manual_seed(0)
        verdicts = []
        for preds, targets in [(1, 1), (1, 4), (3, 1), (5, 5), (8, 3), (4, 12)]:
            for draw in PATTERNS.values():
                for allowed in draw(random, 3, preds, targets + 1):
                    each = 1.0 if preds >= targets else preds / targets
                    mass = torch.tensor([each] * targets + [max(preds - targets, 0.0)], dtype=torch.float64)
                    flow = largest_flow((allowed & (mass > 0)).T.numpy(), mass.numpy())
                    verdicts.append(not flow.pred.any())
                    assert verdicts[-1] == is_feasible(allowed, mass, (INF, INF))
        assert 20 < sum(verdicts) < len(verdicts) - 20

    def test_a_prediction_whose_only_column_takes_no_mass_has_no_partner(self) -> None:
        cost = torch.tensor([[[0.5, 0.5]], [[INF, 0.5]]])  # with as many targets as predictions no background is left
        with pytest.raises(ValueError, match=r"reg_pred=inf, got only inf in image 1, prediction 0, .* infeasible"):
            UnbalancedSinkhorn(reg_pred=INF, reg_target=1.0).solve(cost, masks(cost))

    def test_a_column_that_takes_no_mass_needs_no_partner(self) -> None:
        cost = torch.tensor([[[0.5, INF]]])
        assert BalancedSinkhorn().compute_matching(cost, masks(cost)).tolist() == [[[1.0, 0.0]]]

    def test_a_set_of_predictions_with_too_few_partners_is_named(self) -> None:
        cost = torch.rand(3, 6, 6)
        cost[1, 1:5, 1:] = INF
        message = r"image 1 is infeasible, for 4 predictions, of which the first is 1, may go only to 1 columns, .* 1$"
        for rule in (BalancedSinkhorn(background=False), BalancedSinkhorn(background=False, solver="pot")):
            with pytest.raises(ValueError, match=message):
                rule.solve(cost, masks(cost, background=False))
        with pytest.raises(ValueError, match="infeasible"):
            EMD(background=False).compute_matching(cost, masks(cost, background=False))

    @pytest.mark.parametrize("solver", ["torch", "exact"])
    def test_less_than_the_mass_to_transport_is_named(self, solver: str) -> None:
        cost = torch.rand(2, 5, 4)
        cost[1, 1:, :3] = INF  # one prediction for three targets
        with pytest.raises(ValueError, match=r"carry a mass of 3, .* image 1 is infeasible, for they carry 1"):
            PartialOT(solver=solver).compute_matching(cost, masks(cost))
        PartialOT(mass=1 / 3, solver=solver).compute_matching(cost, masks(cost))
