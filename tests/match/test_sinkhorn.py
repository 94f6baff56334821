"""The options of the Sinkhorn matchers: schedules of numbers, POT's methods, and what is made of POT's failures."""

import copy
import math
import pickle
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.oracles import transport as oracle
from tests.support.matcher_cases import COSTS
from tests.support.problems import random_problem
from uotod.match import (
    OTA,
    BalancedPOT,
    BalancedSinkhorn,
    ClosestTarget,
    Matcher,
    PartialOT,
    SinkhornResult,
    SoftMin,
    UnbalancedPOT,
    UnbalancedSinkhorn,
    WeightedSum,
)
from uotod.solvers import pot, sinkhorn
from uotod.solvers.marginals import typical_entry
from uotod.solvers.pot import BALANCED_METHODS, UNBALANCED_METHODS

MASK = torch.ones(1, 3, dtype=torch.bool)


def decay(step: int) -> float:
    return 0.5 / (1 + step)


def grow(step: int) -> float:
    return 0.5 * step if step < 4 else math.inf


def random_cost(preds: int = 12, targets: int = 3) -> Tensor:
    cost = torch.rand(1, preds, targets + 1, dtype=torch.float64)
    cost[..., -1] = 0.5
    return cost


class TestSchedule:
    @pytest.mark.parametrize("rule", [BalancedSinkhorn, UnbalancedSinkhorn, UnbalancedPOT])
    @pytest.mark.parametrize("name", ["reg", "reg_dimless"])
    def test_a_schedule_is_read_at_the_step_that_was_set(self, rule: type[UnbalancedSinkhorn], name: str) -> None:
        cost = random_cost()
        matcher = rule(**{name: decay})
        for step in (0, 3, 1):
            matcher.set_step(step)
            expected = rule(**{name: decay(step)}).compute_matching(cost, MASK)
            assert torch.equal(matcher.compute_matching(cost, MASK), expected)

    @pytest.mark.parametrize("rule", [UnbalancedSinkhorn, UnbalancedPOT])
    @pytest.mark.parametrize("name", ["reg_pred", "reg_target"])
    def test_a_penalty_may_grow_from_none_to_a_marginal_that_is_given(
        self, rule: type[UnbalancedSinkhorn], name: str
    ) -> None:
        cost = random_cost()
        matcher = rule(reg=0.1, num_iter=10_000, **{name: grow})
        for step in (0, 4, 1):
            matcher.set_step(step)
            fixed = rule(reg=0.1, num_iter=10_000, **{name: grow(step)})
            assert torch.equal(matcher.compute_matching(cost, MASK), fixed.compute_matching(cost, MASK))
            assert getattr(matcher, name) == grow(step)
            assert f"{name}=grow" in repr(matcher)

    @pytest.mark.parametrize(
        "build", [lambda reg: SoftMin(reg=reg), lambda reg: OTA(reg=reg), lambda reg: PartialOT(reg=reg)]
    )
    def test_every_entropy_may_be_a_schedule(self, build: Callable[..., Matcher]) -> None:
        cost, matcher = random_cost(), build(decay)
        matcher.set_step(3)
        assert torch.equal(matcher.compute_matching(cost, MASK), build(decay(3)).compute_matching(cost, MASK))

    def test_the_cost_of_the_background_may_be_a_schedule(self) -> None:
        problem, matcher = random_problem(2, 8, 3), ClosestTarget(**COSTS | {"background_cost": grow})
        for step in (0, 3):
            matcher.set_step(step)
            fixed = ClosestTarget(**COSTS | {"background_cost": grow(step)})
            for call in ("compute_cost_matrix", "forward"):
                expected = getattr(fixed, call)(problem.input, problem.target)
                assert torch.equal(getattr(matcher, call)(problem.input, problem.target), expected)
        with pytest.raises(ValueError, match=r"background_cost\(4\) must lie in \(-inf, inf\), got inf"):
            matcher.set_step(4)

    def test_a_bad_number_of_one_schedule_changes_none(self) -> None:
        matchers = [UnbalancedSinkhorn(reg=decay), ClosestTarget(background_cost=grow)]
        mixed = WeightedSum(matchers)
        mixed.set_step(1)
        with pytest.raises(ValueError, match=r"background_cost\(4\) must"):
            mixed.set_step(4)
        assert [mixed.step, matchers[0].step, matchers[0].reg, matchers[1].background_cost] == [1, 1, 0.25, 0.5]

    @pytest.mark.parametrize(("name", "value"), [("reg_pred", -1.0), ("reg_target", math.nan)])
    def test_a_penalty_that_becomes_negative_raises(self, name: str, value: float) -> None:
        matcher = UnbalancedSinkhorn(**{name: lambda step: value if step else 1.0})
        with pytest.raises(ValueError, match=rf"{name}\(1\) must lie in \[0.0, inf\], got {value}"):
            matcher.set_step(1)

    def test_a_schedule_starts_at_step_0_and_forward_does_not_advance_it(self) -> None:
        cost, matcher = random_cost(), BalancedSinkhorn(reg=decay)
        before = pickle.dumps(matcher)
        first = matcher.compute_matching(cost, MASK)
        assert torch.equal(first, BalancedSinkhorn(reg=0.5).compute_matching(cost, MASK))
        assert torch.equal(matcher.compute_matching(cost, MASK), first)
        assert pickle.dumps(matcher) == before
        assert matcher.state_dict() == {}

    def test_a_copy_keeps_the_step_and_goes_its_own_way(self) -> None:
        cost, matcher = random_cost(), BalancedSinkhorn(reg=decay)
        matcher.set_step(4)
        for twin in (pickle.loads(pickle.dumps(matcher)), copy.deepcopy(matcher)):
            assert torch.equal(twin.compute_matching(cost, MASK), matcher.compute_matching(cost, MASK))
            twin.set_step(0)
            assert (twin.step, matcher.step) == (0, 4)

    def test_reg_overrides_reg_dimless(self) -> None:
        matcher = BalancedSinkhorn(reg=0.1, reg_dimless=0.3)
        cost = random_cost()
        assert torch.equal(matcher.compute_matching(cost, MASK), BalancedSinkhorn(reg=0.1).compute_matching(cost, MASK))

    @pytest.mark.parametrize("value", [0.0, -1.0, math.inf, math.nan])
    @pytest.mark.parametrize("name", ["reg", "reg_dimless"])
    def test_a_schedule_that_leaves_the_positive_numbers_raises(self, name: str, value: float) -> None:
        matcher = UnbalancedSinkhorn(**{name: lambda step: value if step == 2 else 0.1})
        matcher.set_step(1)
        with pytest.raises(ValueError, match=rf"{name}\(2\) must lie in \(0.0, inf\), got {value}"):
            matcher.set_step(2)
        assert matcher.step == 1
        with pytest.raises(ValueError, match=rf"{name}\(0\) must lie in"):
            UnbalancedSinkhorn(**{name: lambda step: value}).compute_matching(random_cost(), MASK)

    @pytest.mark.parametrize("value", [None, "0.1", True])
    def test_a_schedule_that_returns_no_number_raises(self, value: object) -> None:
        with pytest.raises(TypeError, match=r"reg\(0\) must be a real number, got"):
            BalancedSinkhorn(reg=lambda step: value).compute_matching(random_cost(), MASK)

    @pytest.mark.parametrize(("step", "error"), [(-1, ValueError), (1.5, TypeError), (True, TypeError)])
    def test_a_step_is_an_integer_from_0_on(self, step: object, error: type[Exception]) -> None:
        with pytest.raises(error, match="step must be"):
            BalancedSinkhorn().set_step(step)

    def test_repr_names_the_schedule(self) -> None:
        assert "reg=decay" in repr(BalancedSinkhorn(reg=decay))
        assert "reg_dimless=0.12" in repr(BalancedSinkhorn())


class TestPotMethods:
    @pytest.mark.parametrize("method", BALANCED_METHODS)
    @pytest.mark.parametrize("shape", [(12, 3), (3, 3), (2, 3), (1, 3)])
    def test_every_balanced_method_solves_the_problem(self, method: str, shape: tuple[int, int]) -> None:
        cost = random_cost(*shape)
        matcher = BalancedPOT(reg=0.1, pot_method=method, normalize_cost_matrix=False, num_iter=10_000, tol=1e-9)
        expected = oracle.unbalanced_plan(cost[0].numpy(), *oracle.marginals(*shape), 0.1, math.inf, math.inf)
        result = matcher.solve(cost, MASK)
        np.testing.assert_allclose(result.plan[0], expected, rtol=0, atol=1e-7)
        assert result.residual.max() <= 1e-7

    @pytest.mark.parametrize("method", UNBALANCED_METHODS)
    @pytest.mark.parametrize("penalties", [(1.0, 1.0), (1.0, 0.1), (0.1, 1.0), (math.inf, 1.0)])
    def test_every_unbalanced_method_solves_the_problem(self, method: str, penalties: tuple[float, float]) -> None:
        cost = random_cost()
        options = {"reg": 0.1, "reg_pred": penalties[0], "reg_target": penalties[1], "normalize_cost_matrix": False}
        matcher = UnbalancedPOT(pot_method=method, num_iter=10_000, tol=1e-9, **options)
        expected = oracle.unbalanced_plan(cost[0].numpy(), *oracle.marginals(12, 3), 0.1, *penalties)
        np.testing.assert_allclose(matcher.compute_matching(cost, MASK)[0], expected, rtol=0, atol=1e-7)

    def test_two_equalities_make_an_unbalanced_matcher_balanced(self) -> None:
        cost = random_cost()
        unbalanced = UnbalancedPOT(reg_pred=math.inf, reg_target=math.inf, reg=0.1, pot_method="greenkhorn")
        balanced = BalancedPOT(reg=0.1, pot_method="greenkhorn")
        assert torch.equal(unbalanced.compute_matching(cost, MASK), balanced.compute_matching(cost, MASK))

    @pytest.mark.parametrize(("rule", "twin"), [(BalancedPOT, BalancedSinkhorn), (UnbalancedPOT, UnbalancedSinkhorn)])
    def test_the_short_names_are_the_solver(self, rule, twin) -> None:
        cost = random_cost()
        expected = twin(solver="pot", reg=0.1).compute_matching(cost, MASK)
        assert torch.equal(rule(reg=0.1).compute_matching(cost, MASK), expected)
        with pytest.raises(TypeError, match="solver"):
            rule(solver="torch")

    def test_a_method_without_meaning_raises(self) -> None:
        with pytest.raises(ValueError, match=r"pot_method='sinkhorn' needs solver='pot', got solver='torch'"):
            BalancedSinkhorn(pot_method="sinkhorn")
        with pytest.raises(ValueError, match=r"pot_method must be one of \['sinkhorn', 'sinkhorn_stabilized', 'sink"):
            BalancedPOT(pot_method="newton")
        for method in ("greenkhorn", "sinkhorn_translation_invariant"):
            with pytest.raises(ValueError, match=r"pot_method must be one of \['sinkhorn', 'sinkhorn_stabilized'\]"):
                UnbalancedPOT(pot_method=method)


class TestPotIsChecked:
    @pytest.mark.parametrize("rule", [BalancedPOT, UnbalancedPOT])
    def test_a_plan_far_from_converged_is_reported(self, rule: Callable[..., BalancedSinkhorn]) -> None:
        options = {"reg": 0.02, "num_iter": 2}
        with pytest.warns(UserWarning, match=rf"{rule.__name__} reached a residual of .* after num_iter=2 steps"):
            rule(**options).compute_matching(random_cost(), MASK)
        with pytest.raises(RuntimeError, match="raise num_iter, tol or reg"):
            rule(on_unconverged="raise", **options).compute_matching(random_cost(), MASK)
        assert rule(on_unconverged="ignore", **options).compute_matching(random_cost(), MASK).isfinite().all()

    @pytest.mark.parametrize("rule", [BalancedPOT, UnbalancedPOT])
    def test_underflow_raises_and_names_reg(self, rule: Callable[..., BalancedSinkhorn]) -> None:
        with pytest.raises(
            RuntimeError, match=r"failed numerically at reg=0\.0001, .* raise reg or use solver='torch'"
        ):
            rule(reg=1e-4).compute_matching(random_cost() + 1, MASK)

    @pytest.mark.parametrize("broken", [math.nan, math.inf, 0.0])
    def test_masses_that_are_not_finite_or_all_zero_raise(self, broken: float, monkeypatch: pytest.MonkeyPatch) -> None:
        import ot

        found = {"logu": np.zeros(12), "logv": np.zeros(4), "err": [0.0]}
        monkeypatch.setattr(
            ot.unbalanced, "sinkhorn_unbalanced", lambda *args, **options: (np.full((12, 4), broken), found)
        )
        with pytest.raises(RuntimeError, match=r"failed numerically at reg=0\.1, "):
            UnbalancedPOT(reg=0.1).compute_matching(random_cost(), MASK)


def test_the_defaults_of_iterations_and_tolerance_are_those_of_the_solvers() -> None:
    for rule in (BalancedSinkhorn, UnbalancedSinkhorn, BalancedPOT, UnbalancedPOT):
        assert (rule().num_iter, rule().tol) == (sinkhorn.NUM_ITER, sinkhorn.TOL)
    for solve in (sinkhorn.solve_sinkhorn, pot.solve_pot):
        assert solve.__kwdefaults__["num_iter"] == sinkhorn.NUM_ITER
        assert solve.__kwdefaults__["tol"] == sinkhorn.TOL


def test_solve_returns_a_result_that_documents_its_fields() -> None:
    result = UnbalancedPOT(reg=0.1).solve(random_cost(), MASK)
    assert isinstance(result, SinkhornResult)
    assert all(f"{field}:" in SinkhornResult.__doc__ for field in result._fields)


@pytest.mark.parametrize("matcher", [BalancedSinkhorn, UnbalancedSinkhorn, PartialOT, BalancedPOT, UnbalancedPOT])
def test_a_prediction_that_is_not_finite_leaves_the_plan_of_the_others(matcher: type[BalancedSinkhorn]) -> None:
    problem = random_problem(1, 60, 20, full=True)
    solve = matcher(**COSTS, nonfinite="propagate", reg=0.05)
    finite = {k: v.detach()[:, :-1] for k, v in problem.input.items()}
    expected = solve(finite, problem.target)
    problem.input["pred_boxes"] = problem.input["pred_boxes"].detach()
    problem.input["pred_boxes"][0, -1] = math.nan
    plan = solve(problem.input, problem.target)
    assert plan[0, -1, :-1].sum() < 1e-6
    # the marginals of 59 and of 60 predictions differ a little
    assert (plan[:, :-1] - expected).abs().max() < 0.02


class TestScaleOfTheCost:
    @staticmethod
    def scene() -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        torch.manual_seed(0)
        boxes = torch.rand(1, 10, 4) / 2
        boxes[..., 2:] += boxes[..., :2]
        others = torch.rand(1, 40, 4) / 2
        others[..., 2:] += others[..., :2]
        pred = {"pred_logits": torch.zeros(1, 50, 2), "pred_boxes": torch.cat((boxes + 0.01, others), dim=1)}
        return pred, {"boxes": boxes, "labels": torch.zeros(1, 10, dtype=torch.long)}

    @pytest.mark.parametrize("rule", [UnbalancedSinkhorn, BalancedSinkhorn, PartialOT])
    def test_one_box_far_from_everything_does_not_flatten_the_plan(self, rule: Callable[..., Matcher]) -> None:
        def peak(cost_scale: str, far: float) -> float:
            input, target = self.scene()
            input["pred_boxes"][0, 30] *= far
            loss = torch.nn.L1Loss(reduction="none")
            plan = rule(loc_match_module=loss, background_cost=1.0, cost_scale=cost_scale)(input, target)
            return float(plan[0, :10, :10].diagonal().mean())  # mass of a target on the prediction beside it

        clean = peak("max", 1.0)
        assert peak("max", 1e3) < clean / 2
        assert peak("median", 1e3) >= 0.99 * clean
        assert peak("median", 1e9) == pytest.approx(peak("median", 1e3), abs=1e-5)

    def test_it_is_the_median_of_the_largest_entries_of_predictions_that_count(self) -> None:
        cost = torch.tensor([[[1.0, 2.0, 900.0, 3.0, math.inf], [-4.0, 1.0, 1.0, 1.0, math.inf]]])  # (B, K, P)
        active = torch.tensor([[True, True]])
        assert typical_entry(cost, active).tolist() == [3.0]  # the lower of 3 and 4
        assert typical_entry(cost, active & torch.tensor([True, False])).tolist() == [2.0]
        assert typical_entry(cost, active, torch.tensor([[True, False, True, False, True]])).tolist() == [4.0]
        assert typical_entry(torch.zeros(2, 1, 3), torch.tensor([[True], [False]])).tolist() == [1.0, 1.0]
        assert typical_entry(torch.zeros(2, 0, 3), torch.ones(2, 0).bool()).tolist() == [1.0, 1.0]

    def test_a_plan_does_not_depend_on_the_unit_of_its_cost(self) -> None:
        cost, mask = torch.rand(2, 9, 5), torch.ones(2, 4, dtype=torch.bool)
        matcher = UnbalancedSinkhorn(cost_scale="median")
        torch.testing.assert_close(matcher.compute_matching(cost * 64, mask), matcher.compute_matching(cost, mask))

    def test_a_scale_that_nothing_is_divided_by_raises(self) -> None:
        with pytest.raises(ValueError, match="cost_scale='median' needs normalize_cost_matrix=True, got False"):
            UnbalancedSinkhorn(cost_scale="median", normalize_cost_matrix=False)
        with pytest.raises(ValueError, match="cost_scale must be"):
            BalancedSinkhorn(cost_scale="mean")
