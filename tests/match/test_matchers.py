"""What each matcher promises beyond the contract: exactness, limits of the paper, options and their errors."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tests.oracles import transport as oracle
from tests.support.problems import random_problem
from uotod.match import (
    BalancedSinkhorn,
    ClosestPrediction,
    ClosestTarget,
    Hungarian,
    IoUThreshold,
    Matcher,
    Min,
    SoftMin,
    UnbalancedSinkhorn,
    WeightedSum,
)


def plan_of(matcher: Matcher, cost, mask=None) -> Tensor:
    """Return the plan (P, K) of one image's cost."""
    cost = torch.as_tensor(cost, dtype=torch.float64)
    mask = torch.ones(1, cost.shape[1] - matcher.background, dtype=torch.bool) if mask is None else mask
    return matcher.compute_matching(cost[None], mask)[0]


def random_cost(preds: int, targets: int, *, forbid: float = 0.0) -> np.ndarray:
    cost = torch.rand(preds, targets + 1, dtype=torch.float64)
    cost[:, -1] = 0.5
    cost[:, :-1][torch.rand(preds, targets) < forbid] = math.inf
    return cost.numpy()


class TestHungarian:
    @pytest.mark.parametrize("seed", range(20))
    @pytest.mark.parametrize("forbid", [0.0, 0.5])
    def test_it_equals_brute_force(self, seed: int, forbid: float) -> None:
        torch.manual_seed(seed)
        cost = random_cost(5, 4, forbid=forbid)
        np.testing.assert_array_equal(plan_of(Hungarian(), cost), oracle.hungarian(cost))

    @pytest.mark.parametrize(("preds", "targets"), [(3, 6), (1, 4), (4, 4), (6, 3)])
    def test_min_of_both_sides_is_matched(self, preds: int, targets: int) -> None:
        plan = plan_of(Hungarian(), random_cost(preds, targets))
        assert plan[:, :-1].sum() == min(preds, targets)
        assert (plan[:, :-1].sum(0) <= 1).all()
        assert (plan.sum(1) == 1).all()

    def test_a_constant_background_cost_changes_nothing(self) -> None:
        cost = random_cost(8, 3)
        dear, cheap = cost.copy(), cost.copy()
        dear[:, -1], cheap[:, -1] = 1e6, -1e6
        assert torch.equal(plan_of(Hungarian(), dear), plan_of(Hungarian(), cheap))


class TestClosest:
    def test_the_cheapest_column_takes_a_prediction(self) -> None:
        cost = random_cost(30, 4)
        np.testing.assert_array_equal(plan_of(ClosestTarget(), cost), oracle.closest_target(cost))

    @pytest.mark.parametrize("uniform", [False, True])
    @pytest.mark.parametrize("threshold", [None, 0.05, -1.0])
    def test_the_cheapest_prediction_takes_a_target(self, uniform: bool, threshold: float | None) -> None:
        cost = random_cost(10, 6)
        matcher = ClosestPrediction(threshold=threshold, uniform_background=uniform)
        np.testing.assert_allclose(
            plan_of(matcher, cost), oracle.closest_prediction(cost, uniform, threshold), atol=1e-12
        )

    def test_a_threshold_keeps_the_cheap_pairs(self) -> None:
        """Costs may be negative; the match is kept if it costs at most the threshold."""
        cost = [[-0.9, -0.2, 10.0], [-0.8, -0.1, 10.0]]
        assert plan_of(ClosestPrediction(threshold=-0.5), cost)[:, :2].tolist() == [[1, 0], [0, 0]]

    def test_a_prediction_closest_to_two_targets_carries_both(self) -> None:
        assert plan_of(ClosestPrediction(), [[0.1, 0.1, 0.5], [0.9, 0.9, 0.5]]).tolist() == [[1, 1, 0], [0, 0, 1]]

    def test_min_is_either(self) -> None:
        cost = random_cost(10, 4)
        assert torch.equal(plan_of(Min(source="target"), cost), plan_of(ClosestPrediction(), cost))
        assert torch.equal(plan_of(Min(source="prediction"), cost), plan_of(ClosestTarget(), cost))


class TestSoftMin:
    @pytest.mark.parametrize("reg", [1.0, 0.1])
    def test_it_is_a_softmax_over_one_side(self, reg: float) -> None:
        cost = torch.as_tensor(random_cost(10, 4))
        torch.testing.assert_close(plan_of(SoftMin(source="prediction", reg=reg), cost), (-cost / reg).softmax(1))
        torch.testing.assert_close(plan_of(SoftMin(reg=reg), cost)[:, :-1], (-cost[:, :-1] / reg).softmax(0))

    def test_it_tends_to_min(self) -> None:
        cost = random_cost(10, 4)
        for source in ("target", "prediction"):
            torch.testing.assert_close(
                plan_of(SoftMin(source=source, reg=1e-5), cost), plan_of(Min(source=source), cost)
            )

    def test_a_uniform_background_is_that_of_unbalanced_transport(self) -> None:
        cost = random_cost(10, 4)
        sinkhorn = UnbalancedSinkhorn(reg_pred=0.0, reg_target=math.inf, reg=0.1, normalize_cost_matrix=False)
        soft = SoftMin(reg=0.1, uniform_background=True)
        torch.testing.assert_close(plan_of(soft, cost), plan_of(sinkhorn, cost), rtol=0, atol=1e-9)
        sinkhorn = UnbalancedSinkhorn(reg_pred=math.inf, reg_target=0.0, reg=0.1, normalize_cost_matrix=False)
        soft = SoftMin(source="prediction", reg=0.1)
        torch.testing.assert_close(plan_of(soft, cost), plan_of(sinkhorn, cost), rtol=0, atol=1e-9)


class TestWeightedSum:
    def test_each_matcher_sees_its_own_cost(self) -> None:
        problem = random_problem(2, 8, 3)
        members = [Hungarian(loc_match_module=nn.L1Loss(reduction="none")), IoUThreshold(is_anchor_based=True)]
        mixed = WeightedSum(members, [0.25, 0.75])(problem.input, problem.target, problem.anchors)
        first, second = (m(problem.input, problem.target, problem.anchors) for m in members)
        torch.testing.assert_close(mixed, 0.25 * first + 0.75 * second)

    @pytest.mark.parametrize(
        ("arguments", "message", "error"),
        [
            (([],), "matchers must hold at least one matcher, got none", ValueError),
            (([1],), r"matchers\[0\] must be a Matcher, got 1 of type int", TypeError),
            ((Hungarian(),), "matchers must be a sequence of matchers, got Hungarian", TypeError),
            (([Hungarian()], 1.0), "weights must be a sequence of numbers or None, got float", TypeError),
            (([Hungarian()], [1, 1]), "weights must hold 1 numbers, one a matcher, got 2", ValueError),
            (([Hungarian()], [-1.0]), r"weights\[0\] must lie in \[0.0, inf\), got -1.0", ValueError),
            (([Hungarian()], [0.0]), r"weights must hold a positive number, got \[0.0\]", ValueError),
            (
                ([Hungarian(), Hungarian(background=False)],),
                r"matchers\[1\].background must be True like matchers\[0\], got False",
                ValueError,
            ),
        ],
    )
    def test_bad_arguments_raise(self, arguments, message, error) -> None:
        with pytest.raises(error, match=message):
            WeightedSum(*arguments)


class TestSinkhorn:
    def test_the_regularization_follows_the_number_of_predictions(self) -> None:
        cost = random_cost(40, 4)
        reg = 0.12 / (math.log(80) + 1)
        torch.testing.assert_close(plan_of(BalancedSinkhorn(), cost), plan_of(BalancedSinkhorn(reg=reg), cost))

    def test_a_normalized_cost_has_no_scale(self) -> None:
        cost = torch.as_tensor(random_cost(12, 4))
        for matcher in (BalancedSinkhorn(), UnbalancedSinkhorn()):
            torch.testing.assert_close(plan_of(matcher, 1000 * cost), plan_of(matcher, cost), rtol=0, atol=1e-9)
        raw = UnbalancedSinkhorn(reg=0.05, normalize_cost_matrix=False)
        scaled = UnbalancedSinkhorn(reg=0.05)
        torch.testing.assert_close(plan_of(raw, cost / cost.max()), plan_of(scaled, cost), rtol=0, atol=1e-9)

    @pytest.mark.parametrize("penalties", [(1.0, 1.0), (1e3, 1e-3), (math.inf, 0.5), (0.0, 1.0)])
    @pytest.mark.parametrize("reg", [0.1, 0.02])
    def test_pot_solves_the_same_problem(self, penalties, reg: float) -> None:
        cost = random_cost(12, 4)
        options = {"reg_pred": penalties[0], "reg_target": penalties[1], "reg": reg, "normalize_cost_matrix": False}
        ours = UnbalancedSinkhorn(tol=1e-9, **options)
        pot = UnbalancedSinkhorn(solver="pot", num_iter=100_000, tol=1e-12, **options)
        torch.testing.assert_close(plan_of(ours, cost), plan_of(pot, cost), rtol=0, atol=1e-6)

    @pytest.mark.parametrize("reg", [1.0, 0.1, 0.02, 0.005])
    @pytest.mark.parametrize(
        "penalties", [(1.0, 1.0), (1e3, 1e-3), (100.0, 0.01), (100.0, 100.0), (math.inf, math.inf)]
    )
    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    @pytest.mark.parametrize(("preds", "targets"), [(20, 5), (7, 7), (3, 5)])
    def test_plans_at_the_defaults_are_those_of_newton_on_the_dual(self, reg, penalties, dtype, preds, targets) -> None:
        cost = random_cost(preds, targets)
        cost /= cost.max()
        if penalties[0] == math.inf:
            matcher: Matcher = BalancedSinkhorn(reg=reg)
        else:
            matcher = UnbalancedSinkhorn(reg_pred=penalties[0], reg_target=penalties[1], reg=reg)
        mask = torch.ones(1, targets, dtype=torch.bool)
        plan = matcher.compute_matching(torch.as_tensor(cost, dtype=dtype)[None], mask)[0]
        expected = oracle.unbalanced_plan(cost, *oracle.marginals(preds, targets), reg, *penalties)
        np.testing.assert_allclose(plan.double(), expected, rtol=0, atol=1e-4)

    @pytest.mark.parametrize("seed", range(5))
    def test_a_balanced_plan_without_entropy_is_that_of_a_linear_program(self, seed: int) -> None:
        torch.manual_seed(seed)
        cost = random_cost(12, 4)
        exact = oracle.exact_plan(cost, *oracle.marginals(12, 4))
        plan = plan_of(BalancedSinkhorn(reg=1e-3), cost).numpy()
        # the entropy of a plan costs at most reg times the logarithm of its number of entries a prediction
        assert (exact * cost).sum() - 1e-6 <= (plan * cost).sum() <= (exact * cost).sum() + 12 * 1e-3 * math.log(5)
        if separated(cost, 0.02):
            np.testing.assert_allclose(plan, exact, atol=2e-3)

    def test_solve_tells_what_was_reached(self) -> None:
        cost, mask = torch.rand(3, 12, 5, dtype=torch.float64), torch.ones(3, 4, dtype=torch.bool)
        for matcher in (BalancedSinkhorn(), UnbalancedSinkhorn()):
            result = matcher.solve(cost, mask)
            assert torch.equal(result.plan, matcher.compute_matching(cost, mask))
            assert result.residual.shape == (3,)
            assert (result.residual <= matcher.tol).all()
            assert (result.iterations <= matcher.num_iter).all()
            assert result.pred_potential.shape == (3, 12)
            assert result.target_potential.shape == (3, 5)

    def test_an_unconverged_plan_is_reported(self) -> None:
        cost, mask = torch.rand(1, 30, 9), torch.ones(1, 8, dtype=torch.bool)
        options = {"reg": 0.01, "num_iter": 1, "reg_pred": 10.0, "reg_target": 10.0}
        with pytest.warns(UserWarning, match=r"reached a residual of .* after num_iter=1 steps, above tol=1.0e-06"):
            UnbalancedSinkhorn(**options).compute_matching(cost, mask)
        with pytest.raises(RuntimeError, match="raise num_iter, tol or reg"):
            UnbalancedSinkhorn(on_unconverged="raise", **options).compute_matching(cost, mask)
        assert UnbalancedSinkhorn(on_unconverged="ignore", **options).compute_matching(cost, mask).isfinite().all()

    @pytest.mark.parametrize("matcher", [BalancedSinkhorn(), UnbalancedSinkhorn(reg_pred=math.inf)])
    def test_a_prediction_that_must_but_may_not_be_matched_raises(self, matcher: Matcher) -> None:
        cost = torch.rand(2, 4, 3)
        cost[1, 2] = math.inf
        message = r"allow every prediction a partner with reg_pred=inf, got only inf in image 1, prediction 2"
        with pytest.raises(ValueError, match=message):
            matcher.compute_matching(cost, torch.ones(2, 2, dtype=torch.bool))

    def test_a_prediction_that_may_not_be_matched_carries_nothing(self) -> None:
        cost = torch.rand(1, 4, 3)
        cost[0, 2] = math.inf
        plan = UnbalancedSinkhorn().compute_matching(cost, torch.ones(1, 2, dtype=torch.bool))
        assert plan.isfinite().all()
        assert (plan[0, 2] == 0).all()

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"reg": 0.0}, r"reg must lie in \(0.0, inf\), got 0.0"),
            ({"reg": math.inf}, r"reg must lie in \(0.0, inf\), got inf"),
            ({"reg_dimless": -1.0}, r"reg_dimless must lie in \(0.0, inf\), got -1.0"),
            ({"reg_pred": -1.0}, r"reg_pred must lie in \[0.0, inf\], got -1.0"),
            ({"reg_target": math.nan}, r"reg_target must lie in \[0.0, inf\], got nan"),
            ({"num_iter": 0}, "num_iter must be at least 1, got 0"),
            ({"tol": 0.0}, r"tol must lie in \(0.0, inf\), got 0.0"),
            ({"solver": "gpu"}, r"solver must be one of \['torch', 'pot', 'triton'\], got 'gpu'"),
            ({"background_cost": math.nan}, r"background_cost must lie in \(-inf, inf\), got nan"),
        ],
    )
    def test_bad_arguments_raise(self, options, message: str) -> None:
        with pytest.raises(ValueError, match=message):
            UnbalancedSinkhorn(**options)


class TestLimitsOfThePaper:
    """Propositions 1 and 2 of De Plaen et al., CVPR 2023, at reg 1e-3 of the cost's scale."""

    @pytest.mark.parametrize("seed", range(10))
    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    def test_transport_tends_to_the_hard_rules(self, seed: int, dtype: torch.dtype) -> None:
        torch.manual_seed(seed)
        cost = random_cost(20, 5)
        mask = torch.ones(1, 5, dtype=torch.bool)
        cases = [
            (BalancedSinkhorn(reg=1e-3), oracle.hungarian(cost)),
            (UnbalancedSinkhorn(reg=1e-3, reg_pred=math.inf, reg_target=0.0), oracle.closest_target(cost)),
            (UnbalancedSinkhorn(reg=1e-3, reg_pred=0.0, reg_target=math.inf), oracle.closest_prediction(cost, True)),
        ]
        for matcher, limit in cases:
            if not separated(cost, 0.02):
                continue
            plan = matcher.compute_matching(torch.as_tensor(cost, dtype=dtype)[None], mask)[0]
            np.testing.assert_allclose(plan.double(), limit, atol=2e-3)


def separated(cost: np.ndarray, gap: float) -> bool:
    """Tell whether the hard optimum of a cost beats every other choice by more than `gap`, so that limits are sharp."""
    rows, columns = np.sort(cost, axis=1), np.sort(cost[:, :-1], axis=0)
    if (rows[:, 1] - rows[:, 0]).min() < gap or (columns[1] - columns[0]).min() < gap:
        return False
    best = oracle.hungarian(cost)
    optimum = (best * cost).sum()
    for i, j in zip(*best[:, :-1].nonzero(), strict=True):
        other = cost.copy()
        other[i, j] = 1e3
        if (oracle.hungarian(other) * cost).sum() - optimum < gap:
            return False
    return True


class TestIoUThreshold:
    @pytest.mark.parametrize("seed", range(10))
    @pytest.mark.parametrize("force", ["best", "low_quality", None])
    @pytest.mark.parametrize(("positive", "negative"), [(0.5, None), (0.5, 0.4), (0.2, 0.1)])
    def test_it_equals_a_loop(self, seed: int, force, positive: float, negative: float | None) -> None:
        from tests.oracles.loss import iou_threshold_assignment

        torch.manual_seed(seed)
        iou = (torch.rand(9, 4, dtype=torch.float64) * 10).round() / 10  # with ties
        expected = iou_threshold_assignment(iou, positive, positive if negative is None else negative, force)
        cost = torch.cat((1 - iou, torch.ones(9, 1)), dim=1)
        matcher = IoUThreshold(positive=positive - 1e-9, negative=negative, force_match=force)
        np.testing.assert_array_equal(plan_of(matcher, cost), expected)

    def test_the_test_vector_of_detectron2(self) -> None:
        iou = torch.tensor([[0.15, 0.45, 0.2, 0.6], [0.3, 0.65, 0.05, 0.1], [0.05, 0.4, 0.25, 0.4]]).T
        matcher = IoUThreshold(positive=0.7, negative=0.3, force_match="low_quality", background=False)
        plan = plan_of(matcher, 1 - iou)
        matches, labels = [1, 1, 2, 0], [-1, 1, 0, 1]
        for row, match, label in zip(plan, matches, labels, strict=True):
            assert row.tolist() == [float(label == 1 and j == match) for j in range(3)]

    @pytest.mark.parametrize("seed", range(20))
    def test_every_target_has_an_anchor_of_its_own(self, seed: int) -> None:
        """Also where all targets share their best anchor, which costs a target its match elsewhere."""
        torch.manual_seed(seed)
        iou = torch.rand(12, 6, dtype=torch.float64) * 0.3
        iou[4] = 0.9
        plan = plan_of(IoUThreshold(background=False), 1 - iou)
        assert (plan.sum(0) >= 1).all()
        assert (plan.sum(1) <= 1).all()

    def test_more_targets_than_anchors_leave_some_without(self) -> None:
        plan = plan_of(IoUThreshold(background=False), 1 - torch.rand(3, 6, dtype=torch.float64) * 0.4)
        assert (plan.sum(0) > 0).sum() == 3

    def test_a_target_that_overlaps_nothing_makes_no_anchor_positive_by_low_quality(self) -> None:
        iou = torch.tensor([[0.2, 0.0], [0.1, 0.0], [0.0, 0.0]])
        plan = plan_of(IoUThreshold(force_match="low_quality", background=False), 1 - iou)
        assert plan.tolist() == [[1, 0], [0, 0], [0, 0]]

    @pytest.mark.parametrize("iou", [0.5, 0.25, 0.75])
    def test_an_iou_equal_to_a_threshold_matches(self, iou: float) -> None:
        plan = plan_of(IoUThreshold(positive=iou, force_match=None), [[1 - iou, 1.0]])
        assert plan.tolist() == [[1, 0]]

    def test_without_modules_the_iou_of_the_anchors_decides(self) -> None:
        problem = random_problem(2, 40, 3)
        matcher = IoUThreshold(is_anchor_based=True)
        plan = matcher(problem.input, problem.target, problem.anchors)
        by_hand = matcher(
            problem.input | {"pred_boxes": problem.anchors.boxes.expand(2, -1, -1)}, problem.target, problem.anchors
        )
        assert torch.equal(plan, by_hand)
        assert not torch.equal(plan, IoUThreshold()(problem.input, problem.target, problem.anchors))

    def test_the_thresholds_must_be_in_order(self) -> None:
        with pytest.raises(ValueError, match=r"negative must lie in \(-inf, 0.5\], got 0.6"):
            IoUThreshold(positive=0.5, negative=0.6)
