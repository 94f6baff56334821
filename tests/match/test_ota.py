"""OTA against an exact transport plan and against the 50 sweeps of its implementation."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from tests.oracles import dynamic as oracle
from tests.oracles.transport import unbalanced_plan
from tests.support.grids import GridProblem, assigned, expected, grid_problem, images_of
from uotod.match import OTA

SIZES = [0, 1, 2, 4, 6]


def exact_rows(problem: GridProblem, penalty: float) -> torch.Tensor:
    rows, columns = [], []
    for image, own in images_of(problem):
        cost, mass = oracle.ota_problem(image, penalty=penalty)
        preds = cost.shape[1]
        share = np.full(preds, 1 / preds)
        plan = unbalanced_plan(cost.T, share, mass / preds, 0.1, math.inf, math.inf).T
        rows.append(oracle.ota_assignment(plan))
        columns.append(own)
    return expected(rows, columns, problem.target["mask"].shape[1])


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("targets", SIZES)
def test_it_reads_the_assignment_off_the_exact_plan(targets: int, seed: int) -> None:
    """At a penalty of 1e6 float64 leaves the oracle no ten digits; one of 1e4 forbids as much."""
    torch.manual_seed(10 * seed + targets)
    problem = grid_problem(6, targets, size=32)
    arguments = problem.input, problem.target, problem.anchors
    plan = OTA(penalty=1e4)(*arguments)
    assert torch.equal(assigned(plan), exact_rows(problem, 1e4))
    assert torch.equal(OTA()(*arguments), plan)


@pytest.mark.parametrize("targets", SIZES)
def test_fifty_sweeps_agree_on_nearly_every_prediction(targets: int) -> None:
    problem = grid_problem(20, targets)
    images = images_of(problem)
    rows = [oracle.ota_assignment(oracle.sinkhorn_loop(oracle.ota_problem(image))[0]) for image, _ in images]
    swept = expected(rows, [columns for _, columns in images], targets)
    index = assigned(OTA()(problem.input, problem.target, problem.anchors))
    assert (index == swept).double().mean() > (0.98 if targets else 0.999)


def test_the_cost_is_that_of_the_loop() -> None:
    problem = grid_problem(5, 5)
    cost = OTA().compute_cost_matrix(problem.input, problem.target, problem.anchors)
    for b, (image, columns) in enumerate(images_of(problem)):
        wanted = torch.tensor(oracle.ota_problem(image).cost.T)
        torch.testing.assert_close(cost[b][:, [*columns, -1]], wanted, rtol=0, atol=1e-8)


def test_more_supplies_than_predictions_are_scaled_down() -> None:
    index = assigned(OTA().compute_matching(torch.rand(3, 4, 10), torch.ones(3, 9, dtype=torch.bool)))
    assert (index < 9).all()  # nothing is left for the background


def test_a_bare_cost_gives_each_target_one_prediction() -> None:
    """With a small reg the plan is Hungarian's, and dividing by its largest masses changes nothing."""
    cost = torch.tensor([[[0.1, 0.2, 0.5], [0.1, 0.9, 0.5], [0.5, 0.5, 0.5]]])
    plan = OTA(reg=0.01).compute_matching(cost, torch.ones(1, 2, dtype=torch.bool))
    assert plan[0].tolist() == [[0, 1, 0], [1, 0, 0], [0, 0, 1]]


def test_targets_that_may_only_match_the_same_prediction_leave_the_rest_alone() -> None:
    """Two targets and one prediction that they may match: equality constraints without a solution."""
    cost = torch.full((1, 3, 3), math.inf)
    cost[..., 2] = 0.5
    cost[0, 1, :2] = 0.1
    index = assigned(OTA().compute_matching(cost, torch.ones(1, 2, dtype=torch.bool)))
    assert index.tolist() == [[2, 0, 2]]


def test_a_constant_background_changes_nothing() -> None:
    problem = grid_problem(4, 5)
    module = nn.BCEWithLogitsLoss(reduction="none")
    plans = [
        OTA(cls_match_module=module, background_cost=value)(problem.input, problem.target, problem.anchors)
        for value in (0.0, 10.0)
    ]
    assert torch.equal(*plans)


def test_float32_finds_what_float64_does() -> None:
    problem = grid_problem(10, 5, ties=False)
    low = {k: v.float() for k, v in problem.input.items()}
    plan = OTA()(problem.input, problem.target, problem.anchors)
    found = OTA()(low, problem.target, problem.anchors)
    assert found.dtype == torch.float32
    assert (found == plan).all(-1).double().mean() > 0.995


def test_points_with_strides_are_needed() -> None:
    problem = grid_problem(1, 2)
    with pytest.raises(ValueError, match="anchors must be given to OTA: boxes, Anchors or Points, got None"):
        OTA()(problem.input, problem.target)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"penalty": math.inf}, r"penalty must lie in \[0.0, inf\), got inf"),
        ({"reg": 0.0}, r"reg must lie in \(0.0, inf\), got 0.0"),
        ({"alpha": 1.5}, r"alpha must lie in \[0.0, 1.0\], got 1.5"),
        ({"num_iter": 0}, "num_iter must be at least 1, got 0"),
    ],
)
def test_bad_arguments_raise(arguments, message) -> None:
    with pytest.raises(ValueError, match=message):
        OTA(**arguments)
