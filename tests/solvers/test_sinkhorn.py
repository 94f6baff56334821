"""The transport solvers: optimality, limits, invariances, and agreement of both with each other and with the oracle."""

import math
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor

from tests.oracles import transport as oracle
from uotod.solvers import chunks as _chunks, sinkhorn
from uotod.solvers.assignment import assign_predictions
from uotod.solvers.pot import solve_pot
from uotod.solvers.sinkhorn import Transport, solve_sinkhorn

INF = math.inf
PENALTIES = [(1, 1), (0.1, 0.1), (1e3, 1e-3), (0.01, 100), (100, 100), (INF, 1), (1, INF), (INF, 0), (0, INF), (0, 0)]
PENALTIES += [(INF, INF)]
SHAPES = [(1, 0), (1, 3), (2, 1), (5, 3), (12, 12), (8, 20), (40, 8)]  # predictions, targets


def problem(
    preds: int, targets: int, images: int = 2, *, full: bool = False, dtype: torch.dtype = torch.float64
) -> tuple[Tensor, Tensor, Tensor]:
    """Return costs with a background, masses, and a mask that is not a prefix; NaN stands under it."""
    cost = torch.rand(images, targets + 1, preds, dtype=torch.float64)
    cost[:, -1] = 0.5
    active = torch.ones(images, targets + 1, dtype=torch.bool)
    if not full:
        active[:, :-1] = torch.rand(images, targets) < 0.8
    count = active[:, :-1].sum(1, keepdim=True)
    share = torch.where(count <= preds, 1.0, preds / count.clamp(min=1).double())
    mass = torch.cat((active[:, :-1] * share, (preds - count).clamp(min=0)), dim=1)
    return cost.masked_fill(~active.unsqueeze(2), math.nan).to(dtype), mass.to(dtype), active


def gapped_problem(
    preds: int, columns: int, seed: int, images: int = 50, *, dtype: torch.dtype = torch.float64
) -> tuple[Tensor, Tensor, Tensor]:
    """Return costs for reg 0.1 in tiers that are 1 to 1e3 apart, and masses that balance inside blocks or do not.

    A column is cheap within a radius; in half of the images the last one is a background, cheap for all.
    """
    random = torch.Generator().manual_seed(seed)
    rand = lambda *shape: torch.rand(*shape, generator=random, dtype=torch.float64)  # noqa: E731
    spread, wide, narrow = (10 ** (low + span * rand(images, 1, 1)) for low, span in [(-1, 2.5), (0, 3), (0, 3)])
    distance = (rand(images, columns, 1) - rand(images, 1, preds)).abs()
    radius = rand(images, columns, 1) / 4
    cost = (
        spread * rand(images, columns, preds)
        + wide * (distance > radius)
        + narrow.minimum(wide) * (distance > radius / 2)
    )
    anywhere, background = torch.arange(images) % 2 == 0, torch.arange(images) % 4 >= 2
    cost[background, -1] = (0.3 * spread * rand(images, 1, preds))[background, 0]
    near = torch.where(anywhere[:, None, None], 1.0, (distance <= radius) + 1e-3)
    drawn = (near * rand(images, columns, preds)).argmax(1)  # (B, P): each prediction adds 1 to a column
    mass = torch.zeros(images, columns, dtype=torch.float64).scatter_add_(1, drawn, torch.ones_like(distance[:, 0]))
    few = mass.clamp(max=3.0)
    few[:, -1] = preds - few[:, :-1].sum(1)
    mass = torch.where(background.unsqueeze(1), few, mass)
    return cost.to(dtype), mass.to(dtype), mass > 0


def solve(given: tuple[Tensor, Tensor, Tensor], reg: float | Tensor, *penalties: float, **options: float) -> Transport:
    return solve_sinkhorn(*given, reg, *penalties, **{"num_iter": 1000, "tol": 1e-10, **options})


def violation(transport: Transport, given: tuple[Tensor, Tensor, Tensor], reg: float, *penalties: float) -> float:
    """Return the largest violation of the optimality conditions, relative for masses above 1."""
    cost, mass, active = given
    preds = cost.shape[2]
    used = active & ((mass > 0) | (penalties[1] == 0))
    plan, f, g = transport.plan, transport.pred_potential.unsqueeze(1), transport.target_potential.unsqueeze(2)
    gibbs = torch.where(used.unsqueeze(2), preds * ((f + g - cost) / reg).exp(), 0.0)
    rows, columns = plan.sum(1), plan.sum(2)
    row_target = torch.ones_like(rows) if penalties[0] == INF else (-f.squeeze(1) / max(penalties[0], 1e-300)).exp()
    column_target = mass if penalties[1] == INF else mass * (-g.squeeze(2) / max(penalties[1], 1e-300)).exp()
    parts = [(plan, gibbs)]
    parts += [(rows, row_target)] if penalties[0] > 0 else [(f, torch.zeros_like(f))]
    parts += [(columns, column_target * used)] if penalties[1] > 0 else [(g, torch.zeros_like(g))]
    return max(float(((x - y).abs() / y.abs().clamp(min=1)).max()) for x, y in parts)


def assert_plans_close(actual: Tensor, expected: Tensor, atol: float) -> None:
    torch.testing.assert_close(actual, expected, rtol=atol, atol=atol)


@contextmanager
def no_synchronisation(device: torch.device) -> Iterator[None]:
    if device.type == "cuda":
        torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        if device.type == "cuda":
            torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("reg", [1.0, 0.1, 0.02, 0.002])
@pytest.mark.parametrize("penalties", PENALTIES)
def test_plan_and_potentials_meet_the_optimality_conditions(penalties: tuple[float, float], reg: float) -> None:
    for shape in SHAPES:
        given = problem(*shape)
        transport = solve(given, reg, *penalties)
        assert transport.residual.max() <= 1e-10
        assert violation(transport, given, reg, *penalties) <= 1e-8, shape


@pytest.mark.parametrize("reg", [0.5, 0.05, 0.005])
@pytest.mark.parametrize("penalties", PENALTIES)
def test_plan_agrees_with_the_oracle(penalties: tuple[float, float], reg: float) -> None:
    for shape in SHAPES:
        cost, mass, active = given = problem(*shape, images=1)
        columns = active[0].nonzero().squeeze(1)
        preds = cost.shape[2]
        plan = solve(given, reg, *penalties, tol=1e-8).plan[0, columns].T
        expected = oracle.unbalanced_plan(
            cost[0, columns].T.numpy(), [1 / preds] * preds, (mass[0, columns] / preds).numpy(), reg, *penalties
        )
        assert_plans_close(plan, torch.as_tensor(expected), 1e-6)


@pytest.mark.parametrize("reg", [0.1, 0.016, 1e-3])
@pytest.mark.parametrize("penalties", PENALTIES)
def test_float32_at_the_defaults_agrees_with_float64(penalties: tuple[float, float], reg: float) -> None:
    for shape in [*SHAPES, (300, 20)]:
        given = problem(*shape, dtype=torch.float32)
        rough = solve_sinkhorn(*given, reg, *penalties)
        exact = solve((given[0].double(), given[1].double(), given[2]), reg, *penalties)
        assert {x.dtype for x in rough} == {torch.float32, torch.int64}
        assert rough.residual.max() <= 1e-6
        assert_plans_close(rough.plan.double(), exact.plan, 2e-5)


def test_columns_of_thousands_do_not_blur_the_targets_in_float32() -> None:
    given = problem(8732, 10, 1, dtype=torch.float32)
    for penalties in [(INF, INF), (1e3, 1e3), (1e3, 1e-3)]:
        exact = solve((given[0].double(), given[1].double(), given[2]), 0.011, *penalties)
        assert_plans_close(solve_sinkhorn(*given, 0.011, *penalties).plan.double(), exact.plan, 2e-6)


def test_without_target_penalty_a_row_is_a_softmax_over_columns() -> None:
    cost, mass, active = problem(7, 4)
    plan = solve_sinkhorn(cost, mass, active, 0.1, INF, 0.0).plan
    score = (-cost / 0.1).masked_fill(~active.unsqueeze(2), -INF)  # the background counts even if its mass is 0
    assert_plans_close(plan, score.softmax(1), 1e-12)


def test_without_prediction_penalty_a_column_is_a_softmax_over_predictions() -> None:
    cost, mass, active = problem(7, 4)
    plan = solve_sinkhorn(cost, mass, active, 0.1, 0.0, INF).plan
    assert_plans_close(plan, (mass.unsqueeze(2) * (-cost / 0.1).softmax(2)).nan_to_num(0.0), 1e-12)


def test_without_penalties_the_plan_is_the_gibbs_kernel() -> None:
    cost, mass, active = problem(7, 4)
    plan = solve_sinkhorn(cost, mass, active, 0.1, 0.0, 0.0).plan
    assert_plans_close(plan, (7 * (-cost / 0.1).exp()).nan_to_num(0.0), 1e-12)


@pytest.mark.parametrize("shape", [(6, 3), (5, 5), (30, 8)])
def test_balanced_plan_tends_to_the_assignment_as_reg_vanishes(shape: tuple[int, int]) -> None:
    cost, mass, active = given = problem(*shape, full=True)
    plan = solve(given, 2e-4, INF, INF, tol=1e-6).plan
    index = assign_predictions(cost[:, :-1], active[:, :-1]).unsqueeze(1)  # the last column takes what is unmatched
    match = torch.zeros_like(cost).scatter(1, index, 1.0)[:, :-1]
    linear = lambda plan: (plan * cost[:, :-1]).sum((1, 2))  # noqa: E731
    assert (linear(plan[:, :-1]) - linear(match)).abs().max() <= 2e-3
    assert_plans_close(plan.sum(2), mass, 1e-5)


@pytest.mark.parametrize("penalties", PENALTIES)
def test_a_plan_depends_on_nothing_but_its_image(penalties: tuple[float, float]) -> None:
    cost, mass, active = given = problem(20, 9, 5)
    cost[0] *= 3  # images of different difficulty
    for dtype, atol in [(torch.float64, 1e-9), (torch.float32, 2e-6)]:
        whole = solve((cost.to(dtype), mass.to(dtype), active), 0.02, *penalties, tol=1e-6).plan.double()
        for image in range(len(cost)):
            columns = active[image].nonzero().squeeze(1)
            alone = (cost[image : image + 1, columns].to(dtype), mass[image : image + 1, columns].to(dtype))
            plan = solve((*alone, active[image : image + 1, columns]), 0.02, *penalties, tol=1e-6).plan.double()
            assert_plans_close(plan[0], whole[image, columns], atol)
            assert (whole[image][~active[image]] == 0).all()
    assert torch.equal(given[0].isnan(), ~active.unsqueeze(2).expand_as(cost))


@pytest.mark.parametrize("penalties", PENALTIES)
def test_the_order_of_predictions_and_columns_does_not_matter(penalties: tuple[float, float]) -> None:
    cost, mass, active = given = problem(20, 9)
    pred, column = torch.randperm(20), torch.randperm(10)
    plan = solve((cost[:, column][:, :, pred].contiguous(), mass[:, column], active[:, column]), 0.02, *penalties).plan
    assert_plans_close(plan, solve(given, 0.02, *penalties).plan[:, column][:, :, pred], 1e-9)


@pytest.mark.parametrize("reg", [0.2, 0.02, 2e-3])
@pytest.mark.parametrize("penalties", PENALTIES)
def test_a_number_of_steps_that_no_value_decides_suffices(
    penalties: tuple[float, float], reg: float, device: torch.device
) -> None:
    for shape in SHAPES:
        given = tuple(x.to(device) for x in problem(*shape))
        with no_synchronisation(device):
            free = solve_sinkhorn(*given, reg, *penalties, sync_free=True)
        assert free.residual.max() <= 1e-6
        assert_plans_close(free.plan, solve(given, reg, *penalties, sync_free=False).plan, 2e-5)


@pytest.mark.parametrize("penalties", [(1, 1), (INF, INF), (1e3, 1e-3), (INF, 0)])
def test_the_path_without_synchronisation_reads_no_value(
    penalties: tuple[float, float], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sinkhorn, "is_traced", lambda _: False)  # else all of it is one operator, which reads nothing
    given = tuple(x.to("meta") for x in problem(20, 9))  # tensors without values: reading one raises
    for reg in (0.02, torch.empty(2, device="meta")):
        assert solve_sinkhorn(*given, reg, *penalties, sync_free=True, num_iter=3).plan.is_meta
    with pytest.raises(RuntimeError):
        solve_sinkhorn(*given, 0.02, *penalties, sync_free=False, num_iter=3)


def test_images_may_differ_in_reg() -> None:
    cost, mass, active = given = problem(20, 9, 3)
    regs = torch.tensor([0.3, 0.03, 0.003], dtype=torch.float64)
    for sync_free in (False, True):
        plan = solve_sinkhorn(*given, regs, 1.0, 1.0, sync_free=sync_free, tol=1e-9).plan
        for image, reg in enumerate(regs.tolist()):
            one = slice(image, image + 1)
            assert_plans_close(plan[one], solve((cost[one], mass[one], active[one]), reg, 1.0, 1.0).plan, 1e-7)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("penalties", PENALTIES)
def test_forbidden_pairs_carry_exactly_nothing(penalties: tuple[float, float], dtype: torch.dtype) -> None:
    cost, mass, active = problem(12, 5, dtype=dtype)
    cost[:, :-1] = cost[:, :-1].masked_fill(torch.rand(2, 5, 12) < 0.3, INF)
    if INF not in penalties:
        cost[0, :, 3] = INF  # a prediction without a partner
        cost[1, 2] = INF  # a target without one
    transport = solve((cost, mass, active), 0.02, *penalties, tol=1e-6)
    assert transport.residual.max() <= 1e-6
    assert all(x.isfinite().all() for x in transport)
    assert (transport.plan[cost.isinf()] == 0).all()


@pytest.mark.parametrize("penalties", PENALTIES)
def test_a_column_without_mass_is_empty_unless_its_mass_is_free(penalties: tuple[float, float]) -> None:
    cost, mass, active = problem(4, 8, full=True)
    plan = solve((cost, mass, active), 0.05, *penalties).plan
    assert (mass[:, -1] == 0).all()
    assert (plan[:, -1] > 0).all() if penalties[1] == 0 else (plan[:, -1] == 0).all()


def test_costs_far_apart_leave_no_column_starving() -> None:
    cost, mass, active = problem(20, 4, full=True, dtype=torch.float32)
    cost[:, 0] += 500  # exp(-500 / reg) is no float32
    plan = solve((cost, mass, active), 0.05, INF, INF, tol=1e-6).plan
    assert_plans_close(plan.sum(2), mass, 1e-5)


@pytest.mark.parametrize("tol", [1e-2, 1e-4, 1e-6])
@pytest.mark.parametrize("penalties", PENALTIES)
def test_tolerance_bounds_the_error_of_the_plan(penalties: tuple[float, float], tol: float) -> None:
    given = problem(40, 8, 4)
    error = solve(given, 0.03, *penalties, tol=tol).plan - solve(given, 0.03, *penalties, tol=1e-12).plan
    assert error.abs().max() <= given[0].shape[1] * tol


def test_a_few_steps_suffice_at_the_size_of_detr() -> None:
    given = problem(300, 40, 4, dtype=torch.float32)
    for penalties in [(1, 1), (100, 100), (INF, INF), (INF, 1)]:  # sweeps contract by 0.97 or hardly at all
        assert solve_sinkhorn(*given, 0.016, *penalties).iterations.max() <= 12


@pytest.mark.parametrize("penalties", [(1, 1), (INF, INF), (0.02, 0.02)])
def test_too_few_steps_show_in_the_residual(penalties: tuple[float, float]) -> None:
    transport = solve_sinkhorn(*problem(40, 8), 0.01, *penalties, num_iter=2)
    assert (transport.residual > 1e-6).all()
    assert (transport.iterations == 2).all()
    assert transport.plan.isfinite().all()


@pytest.mark.parametrize("sync_free", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_nothing_is_ever_nan(dtype: torch.dtype, sync_free: bool) -> None:
    cost, mass, active = problem(6, 4)
    cost[1] = cost[1].masked_fill(torch.rand(5, 6) < 0.5, INF)
    for scale in (0.0, 1.0, -1.0, 1e6, -50.0, 1e-30):  # at -50 the masses themselves leave the range of float32
        given = ((cost * scale).nan_to_num(INF, INF, INF).to(dtype), mass.to(dtype), active)
        for reg in (1e3, 0.016, 1e-6):
            for penalties in [*PENALTIES, (1e-6, 1e-6), (1e9, 1e9), (1e12, 1e-12)]:
                transport = solve_sinkhorn(*given, reg, *penalties, num_iter=10, sync_free=sync_free)
                assert all(x.isfinite().all() for x in transport[:4]), (scale, reg, penalties)
                assert (transport.plan >= 0).all()
                assert not transport.residual.isnan().any()


def test_masses_too_large_for_the_dtype_show_in_the_residual() -> None:
    cost, mass, active = problem(4, 2, full=True, dtype=torch.float32)
    for penalties in [(0, 0), (0.01, 0.01)]:
        assert solve_sinkhorn(cost - 5, mass, active, 0.05, *penalties).residual.tolist() == [INF, INF]


@pytest.mark.parametrize("shape", [(0, 3, 4), (2, 0, 4), (2, 3, 0)])
@pytest.mark.parametrize("solver", [solve_sinkhorn, solve_pot])
def test_empty_problems_have_empty_plans(solver: object, shape: tuple[int, int, int]) -> None:
    assert callable(solver)
    transport = solver(torch.rand(shape), torch.ones(shape[:2]), torch.ones(shape[:2], dtype=torch.bool), 0.1, 1.0, 1.0)
    assert transport.plan.shape == shape
    assert transport.pred_potential.shape == (shape[0], shape[2])
    assert transport.target_potential.shape == shape[:2]
    assert transport.residual.tolist() == [0.0] * shape[0]


@pytest.mark.parametrize("backend", ["numpy", "torch"])
@pytest.mark.parametrize("penalties", [*sorted({*PENALTIES} - {(100, 100)}), (5, 5), (1, 0), (0, 1)])
def test_pot_agrees_wherever_it_converges(penalties: tuple[float, float], backend: str) -> None:
    for shape in SHAPES:
        given = problem(*shape, images=1)
        pot = solve_pot(*given, 0.05, *penalties, num_iter=50_000, tol=1e-9, backend=backend)
        assert pot.residual.max() <= 1e-6
        ours = solve(given, 0.05, *penalties)
        assert_plans_close(pot.plan, ours.plan, 1e-6)
        if INF not in penalties:  # with equalities, a constant may pass from one side's potentials to the other's
            assert_plans_close(pot.pred_potential, ours.pred_potential, 1e-6)
            assert_plans_close(pot.target_potential, ours.target_potential, 1e-6)


def test_pot_keeps_the_dtype_of_the_cost_and_computes_in_float64() -> None:
    given = problem(10, 3, dtype=torch.float32)
    pot = solve_pot(*given, 0.05, 1.0, 1.0, tol=1e-9)
    assert pot.plan.dtype == torch.float32
    exact = solve((given[0].double(), given[1].double(), given[2]), 0.05, 1.0, 1.0)
    assert_plans_close(pot.plan.double(), exact.plan, 1e-6)


@pytest.mark.parametrize("method", ["sinkhorn", "sinkhorn_stabilized"])
@pytest.mark.parametrize("penalties", [(1.0, 1.0), (INF, INF)])
def test_pot_that_underflows_raises_and_names_the_way_out(penalties: tuple[float, float], method: str) -> None:
    cost, mass, active = problem(6, 3)
    with pytest.raises(RuntimeError, match=r"reg=0\.0001, .* raise reg or use solver='torch'"):
        solve_pot(cost + 1, mass, active, 1e-4, *penalties, method=method)


@pytest.mark.parametrize("penalties", [(1.0, 1.0), (INF, INF)])
def test_pot_that_stops_early_shows_in_the_residual(penalties: tuple[float, float]) -> None:
    assert solve_pot(*problem(20, 8), 0.02, *penalties, num_iter=3).residual.min() > 1e-6


def test_pot_refuses_what_it_does_not_know() -> None:
    with pytest.raises(ValueError, match=r"backend must be one of .* got 'jax'"):
        solve_pot(*problem(3, 2), 0.1, 1.0, 1.0, backend="jax")
    with pytest.raises(ValueError, match=r"method must be one of .* got 'sinkhorn_translation_invariant'"):
        solve_pot(*problem(3, 2), 0.1, 1.0, 1.0, method="sinkhorn_translation_invariant")


@pytest.mark.parametrize("sync_free", [False, True])
@pytest.mark.parametrize("penalties", [(100, 100), (INF, 100), (100, INF), (1e4, 1e4), (INF, INF)])
def test_float32_converges_at_a_reg_of_a_ten_thousandth(penalties: tuple[float, float], sync_free: bool) -> None:
    for shape in [(5, 3), (12, 12), (20, 5), (40, 40)]:
        cost, mass, active = problem(*shape, images=5, full=True, dtype=torch.float32)
        for hard in (cost, (cost * 10).round() / 10, 1 - cost**4):  # ties, and few good pairs among many bad ones
            transport = solve_sinkhorn(hard, mass, active, 1e-4, *penalties, sync_free=sync_free)
            assert transport.residual.max() <= 1e-6
            assert transport.iterations.max() <= 212


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_step_to_the_next_level_starves_no_column(dtype: torch.dtype) -> None:
    """In float32, Newton's step from reg 4e-4 once emptied two columns for good, which no step could mend."""
    ties = [[9, 9, 7, 9, 7], [4, 2, 8, 1, 6], [4, 6, 0, 2, 3], [5, 5, 5, 5, 5]]
    cost = torch.tensor([ties], dtype=dtype) / 10
    active, mass = torch.ones(1, 4, dtype=torch.bool), torch.tensor([[1.0, 1.0, 1.0, 2.0]], dtype=dtype)
    for sync_free in (False, True):
        transport = solve_sinkhorn(cost, mass, active, 1e-4, INF, 100, sync_free=sync_free)
        assert transport.residual.max() <= 1e-6
        assert_plans_close(transport.plan.sum(1), torch.ones(1, 5, dtype=dtype), 1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    "penalties", [(INF, INF), (1e3, 1e-3), *(pytest.param(x, marks=pytest.mark.long) for x in [(100, 100), (1, 1)])]
)
def test_costs_with_gaps_are_solved_at_the_defaults(penalties: tuple[float, float], dtype: torch.dtype) -> None:
    """Five of these six seeds hold an image whose balanced problem once stalled, in one dtype or in both."""
    for preds, columns, seed in [(6, 3, 0), (12, 5, 0), (12, 5, 79), (40, 8, 64), (84, 10, 12), (84, 10, 108)]:
        given = gapped_problem(preds, columns, seed, dtype=dtype)
        # a number would be taken for that of costs up to 1
        reg = torch.full((len(given[0]),), 0.1, dtype=torch.float64)
        for sync_free in (False, True) if preds <= 12 else (False,):  # blind steps take long: on the small ones
            transport = solve_sinkhorn(
                *given, reg, *penalties, sync_free=sync_free, num_iter=400 if sync_free else 1000
            )
            assert transport.residual.max() <= 1e-6, (preds, seed)


@pytest.mark.parametrize(
    "penalties", [(INF, INF), (1e3, 1e-3), *(pytest.param(x, marks=pytest.mark.long) for x in [(100, 100), (1, 1)])]
)
def test_plans_of_costs_with_gaps_agree_with_the_oracle(penalties: tuple[float, float]) -> None:
    for preds, columns, seed in [(6, 3, 0), (6, 3, 1), (12, 5, 0), (12, 5, 79)]:
        cost, mass, active = given = gapped_problem(preds, columns, seed)
        plans = solve(given, 0.1, *penalties, tol=1e-8).plan
        share = [1 / preds] * preds
        for image, plan in enumerate(plans):
            used = active[image]
            wanted = (mass[image, used] / preds).numpy()
            expected = oracle.unbalanced_plan(cost[image, used].T.numpy(), share, wanted, 0.1, *penalties)
            assert_plans_close(plan[used].T, torch.as_tensor(expected), 1e-6)


@pytest.mark.parametrize("penalties", [(1, 1), (1e3, 1e-3), (INF, INF)])
def test_how_the_work_is_divided_does_not_change_a_plan(
    penalties: tuple[float, float], monkeypatch: pytest.MonkeyPatch
) -> None:
    given = problem(80, 9, 12)
    whole = solve(given, 0.02, *penalties)
    for name, values in [
        ("chunks.MAX_CHUNK_BYTES", (1, 1 << 14)),  # an image a chunk, and a few
        ("scaling.MAX_BLOCK_ELEMENTS", (1,)),  # 64 predictions a block
        ("newton.WORTH_LEAVING", (1, 1 << 30)),  # finished images leave at once, or with the last
    ]:
        for value in values:
            with monkeypatch.context() as patch:
                patch.setattr(f"uotod.solvers.{name}", value)
                divided = solve(given, 0.02, *penalties)
            assert torch.equal(divided.iterations, whole.iterations)
            assert_plans_close(divided.plan, whole.plan, 1e-9)


@pytest.mark.parametrize("sync_free", [False, True])
def test_a_unit_is_what_the_cost_is_divided_by(sync_free: bool) -> None:
    cost, mass, active = given = problem(20, 6, 3)
    unit = torch.tensor([0.5, 2.0, 7.0], dtype=torch.float64)
    expected = solve((cost / unit[:, None, None], mass, active), 0.05, 1.0, 1.0, sync_free=sync_free)
    for part, whole in zip(solve(given, 0.05, 1.0, 1.0, sync_free=sync_free, unit=unit), expected, strict=True):
        torch.testing.assert_close(part, whole)


@pytest.mark.parametrize("images", [1, 7, 30])
def test_chunks_hold_every_used_column_once_and_fit_the_cache(images: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_chunks, "MAX_CHUNK_BYTES", 3 * 8 * 100 * 4)
    used = torch.rand(images, 8) < 0.5
    used[images // 2] = False
    parts = list(_chunks.chunks(used, 100, 4))
    assert torch.cat([part.image for part in parts]).sort().values.tolist() == list(range(images))
    seen = torch.cat([torch.cat((part.row.flatten(), part.left_out)) for part in parts])
    assert seen.sort().values.tolist() == list(range(images * 8))
    assert not any(used.flatten()[part.left_out].any() for part in parts)
    assert all(part.row.numel() * 100 * 4 <= _chunks.MAX_CHUNK_BYTES for part in parts)
    marked = torch.zeros(images, 8, 2, dtype=torch.float64)
    for part in parts:
        taken = part.rows(used.unsqueeze(2).expand(-1, -1, 2).contiguous())
        assert taken.shape == (*part.row.shape, 2)
        part.write(marked, torch.arange(len(part.image)), taken)
    assert torch.equal(marked[:, :, 1].bool(), used)
