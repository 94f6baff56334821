"""Partial and exact transport: optimality, limits, and agreement with linear programs and with POT."""

import math
import warnings

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.oracles import transport as oracle
from tests.oracles.partial import exact_partial_cost, partial_residual
from uotod.match import EMD, BalancedSinkhorn, Hungarian, Matcher, PartialOT

SHAPES = [(12, 4), (4, 9), (6, 6), (1, 1), (1, 3), (30, 8)]  # predictions, targets


def random_cost(preds: int, targets: int, images: int = 1, background: bool = True) -> Tensor:
    cost = torch.rand(images, preds, targets + background, dtype=torch.float64)
    if background:
        cost[..., -1] = 0.5
    return cost


def plan_of(matcher: Matcher, cost: Tensor, mask: Tensor | None = None) -> Tensor:
    mask = torch.ones(len(cost), cost.shape[2] - matcher.background, dtype=torch.bool) if mask is None else mask
    return matcher.compute_matching(cost, mask)


class TestEMD:
    @pytest.mark.parametrize("background", [True, False])
    @pytest.mark.parametrize("shape", SHAPES)
    @pytest.mark.parametrize("varies", [True, False])
    def test_it_costs_what_the_linear_program_costs(self, shape: tuple[int, int], background: bool, varies) -> None:
        cost = random_cost(*shape, images=10, background=background)
        cost = torch.rand_like(cost) if varies else cost  # a background that costs each prediction something else
        cost[:3] = cost[:3].round(decimals=1)  # ties
        cost[3:5] -= 2
        marginals = oracle.marginals(*shape, background)
        for one, plan in zip(cost, plan_of(EMD(background=background), cost), strict=True):
            expected = (oracle.exact_plan(one.numpy(), *marginals) * one.numpy()).sum()
            assert (plan * one).sum() == pytest.approx(expected, abs=1e-8)
            np.testing.assert_allclose(plan.sum(1), 1, atol=1e-12)
            np.testing.assert_allclose(plan.sum(0), marginals[1] * shape[0], atol=1e-12)

    @pytest.mark.parametrize("shape", [(12, 4), (6, 6), (30, 8), (5, 0), (1, 1)])
    def test_with_a_constant_background_it_is_hungarian(self, shape: tuple[int, int]) -> None:
        cost = random_cost(*shape, images=20)
        mask = torch.rand(20, shape[1]) < 0.8
        assert torch.equal(plan_of(EMD(), cost, mask), plan_of(Hungarian(), cost, mask))

    def test_a_plan_of_whole_masses_is_of_0_and_1_even_where_costs_tie(self) -> None:
        plan = plan_of(EMD(), torch.full((1, 9, 5), 0.25))
        assert set(plan.flatten().tolist()) == {0.0, 1.0}

    def test_balanced_transport_tends_to_it(self) -> None:
        cost = torch.rand(3, 10, 4, dtype=torch.float64)
        soft, exact = (plan_of(matcher, cost) for matcher in (BalancedSinkhorn(reg=1e-4), EMD()))
        assert ((soft - exact) * cost).sum((1, 2)).abs().max() <= 10 * 1e-4 * math.log(4) + 1e-5

    def test_forbidden_pairs_are_avoided_at_any_price(self) -> None:
        cost = random_cost(6, 3, images=30)
        cost[..., :3][torch.rand(30, 6, 3) < 0.4] = math.inf
        cost[..., :3][:, torch.arange(3), torch.arange(3)] = 1e6  # there is always a way
        plan = plan_of(EMD(), cost)
        assert (plan[cost.isinf()] == 0).all()
        assert torch.equal(plan, plan_of(Hungarian(), cost))

    def test_marginals_that_cannot_be_met_raise(self) -> None:
        cost = random_cost(6, 3, images=2)
        cost[1, :, 2] = math.inf
        with pytest.raises(ValueError, match="leave a plan with the marginals, got too many inf in image 1"):
            plan_of(EMD(), cost)

    def test_it_is_the_same_in_every_run(self) -> None:
        cost = random_cost(20, 6, images=3).round(decimals=1)
        assert torch.equal(plan_of(EMD(), cost), plan_of(EMD(), cost))


class TestExactPartial:
    @pytest.mark.parametrize("shape", SHAPES)
    @pytest.mark.parametrize("mass", [0.2, 0.5, 0.9, 1.0])
    def test_it_costs_what_the_linear_program_costs(self, shape: tuple[int, int], mass: float) -> None:
        cost = random_cost(*shape, images=6)
        cost[4:, :, :-1] -= 2
        total = mass * min(shape)
        plan = plan_of(PartialOT(mass=mass, solver="exact"), cost)
        assert (plan >= 0).all()
        for one, found in zip(cost[..., :-1], plan[..., :-1], strict=True):
            assert (found * one).sum() == pytest.approx(exact_partial_cost(one.numpy(), total), abs=1e-8)
            assert found.sum() == pytest.approx(total)
            assert found.sum(1).max() <= 1 + 1e-12
            assert found.sum(0).max() <= 1 + 1e-12

    @pytest.mark.parametrize("shape", [(12, 4), (6, 6), (4, 9), (30, 8), (5, 0)])
    @pytest.mark.parametrize("background", [True, False])
    def test_with_all_mass_it_is_hungarian(self, shape: tuple[int, int], background: bool) -> None:
        cost = random_cost(*shape, images=20, background=background)
        mask = torch.rand(20, shape[1]) < 0.8
        hungarian = plan_of(Hungarian(background=background), cost, mask)
        assert torch.equal(plan_of(PartialOT(solver="exact", background=background), cost, mask), hungarian)

    def test_the_dearest_targets_go_without(self) -> None:
        cost = torch.tensor([[[0.1, 0.9, 0.5, 0.0], [0.9, 0.2, 0.6, 0.0], [0.8, 0.9, 0.7, 0.0]]])
        plan = plan_of(PartialOT(mass=2 / 3, solver="exact"), cost)
        torch.testing.assert_close(plan[0], torch.tensor([[1.0, 0, 0, 0], [0, 1, 0, 0], [0, 0, 0, 1]]))

    def test_more_mass_than_is_allowed_raises(self) -> None:
        cost = random_cost(6, 3, images=2)
        cost[1, :, 2] = math.inf
        with pytest.raises(ValueError, match="got too many inf: image 1 is infeasible, for they carry 2"):
            plan_of(PartialOT(solver="exact"), cost)
        assert plan_of(PartialOT(mass=0.6, solver="exact"), cost)[1, :, 2].sum() == 0


class TestEntropicPartial:
    @pytest.mark.parametrize("shape", SHAPES)
    @pytest.mark.parametrize("mass", [0.3, 0.5, 0.9, 1.0])
    @pytest.mark.parametrize("reg", [1.0, 0.1, 0.04])
    def test_it_meets_the_optimality_conditions(self, shape: tuple[int, int], mass: float, reg: float) -> None:
        cost = random_cost(*shape, images=5)
        matcher = PartialOT(mass=mass, reg=reg, tol=1e-9, normalize_cost_matrix=False)
        for one, plan in zip(cost[..., :-1].numpy(), plan_of(matcher, cost)[..., :-1].numpy(), strict=True):
            assert partial_residual(plan, one, mass * min(shape), reg) <= 1e-7

    @pytest.mark.parametrize("shape", [(12, 4), (4, 9), (6, 6)])
    @pytest.mark.parametrize("mass", [0.3, 0.9, 1.0])
    def test_pot_solves_the_same_problem(self, shape: tuple[int, int], mass: float) -> None:
        import ot

        cost = random_cost(*shape)
        matcher = PartialOT(mass=mass, reg=0.1, tol=1e-9, normalize_cost_matrix=False)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            expected = ot.partial.entropic_partial_wasserstein(
                np.ones(shape[0]),
                np.ones(shape[1]),
                cost[0, :, :-1].numpy(),
                0.1,
                m=mass * min(shape),
                numItermax=100_000,
                stopThr=1e-13,
            )
        np.testing.assert_allclose(plan_of(matcher, cost)[0, :, :-1], expected, atol=1e-7)

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    def test_it_converges_at_the_defaults(self, dtype: torch.dtype) -> None:
        for preds, targets in [*SHAPES, (100, 20), (300, 40), (300, 0)]:
            for mass in (0.3, 0.5, 0.9, 1.0):
                cost = random_cost(preds, targets, images=10).to(dtype)
                cost[5:8] = 1 - cost[5:8] ** 4
                mask = torch.rand(10, targets) < 0.8
                result = PartialOT(mass=mass).solve(cost, mask)  # a warning is an error
                assert result.residual.max() <= 1e-6
                assert result.plan.dtype == dtype
                total = mass * mask.sum(1).clamp(max=preds)
                torch.testing.assert_close(
                    result.plan[..., :-1].sum((1, 2)).double(), total.double(), atol=1e-4, rtol=0
                )
                torch.testing.assert_close(result.plan.sum(2), torch.ones(10, preds, dtype=dtype), atol=2e-6, rtol=0)

    def test_it_tends_to_the_exact_plan(self) -> None:
        cost = random_cost(12, 4, images=5)
        for mass in (0.5, 1.0):
            soft, exact = (
                plan_of(matcher, cost)
                for matcher in (
                    PartialOT(mass=mass, reg=0.005, num_iter=50_000, normalize_cost_matrix=False),
                    PartialOT(mass=mass, solver="exact"),
                )
            )
            gap = ((soft - exact) * cost)[..., :-1].sum((1, 2))
            assert gap.min() >= -1e-5
            assert gap.max() <= 4 * 0.005 * math.log(12 * 4)

    def test_the_column_of_the_background_is_not_read(self) -> None:
        cost = random_cost(8, 3)
        other = cost.clone()
        other[..., -1] = torch.rand(8) * 100
        for matcher in (PartialOT(mass=0.7), PartialOT(mass=0.7, solver="exact")):
            assert torch.equal(plan_of(matcher, cost), plan_of(matcher, other))

    def test_a_plan_does_not_depend_on_images_of_another_scale(self) -> None:
        cost = random_cost(12, 4, images=4)
        cost[1] *= 50
        matcher = PartialOT(mass=0.6, reg=0.1, normalize_cost_matrix=False, num_iter=20_000)
        together = plan_of(matcher, cost)
        for image in range(4):
            torch.testing.assert_close(plan_of(matcher, cost[image : image + 1])[0], together[image], atol=1e-9, rtol=0)

    def test_an_unconverged_plan_is_reported(self) -> None:
        cost = random_cost(12, 4)
        with pytest.warns(UserWarning, match=r"PartialOT reached a residual of .* raise num_iter, tol or reg$"):
            plan_of(PartialOT(mass=0.9, reg=1e-3, num_iter=1), cost)

    def test_a_schedule_of_reg_is_read(self) -> None:
        cost, matcher = random_cost(12, 4), PartialOT(reg=lambda step: 1.0 / (1 + step))
        matcher.set_step(4)
        assert torch.equal(plan_of(matcher, cost), plan_of(PartialOT(reg=0.2), cost))

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"mass": 0.0}, r"mass must lie in \(0.0, 1.0\], got 0.0"),
            ({"mass": 1.1}, r"mass must lie in \(0.0, 1.0\], got 1.1"),
            ({"solver": "pot"}, r"solver must be one of \['torch', 'exact'\], got 'pot'"),
            ({"solver": "exact", "reg": 0.1}, r"reg must be None with solver='exact'"),
        ],
    )
    def test_bad_arguments_raise(self, options: dict, message: str) -> None:
        with pytest.raises(ValueError, match=message):
            PartialOT(**options)
