"""The oracles' own tests: closed forms, limits, hand-worked values and other people's solvers."""

from __future__ import annotations

import itertools
import math
from functools import partial

import numpy as np
import ot
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from tests.oracles import loss as L, transport as tr

INF = math.inf
PENALTIES = (0.0, 1e-3, 0.01, 0.1, 1.0, 100.0, 1e3, INF)
FIGURE_1 = np.array([[0.61, 0.96, 0.8], [1.34, 0.88, 0.8], [0.88, 0.89, 0.8], [0.4, 0.65, 0.8], [1.11, 0.73, 0.8]])


def random_cost(P: int, T: int, seed: int = 0) -> NDArray[np.float64]:
    return np.random.default_rng(seed).random((P, T + 1))


# ---------------------------------------------------------------------------------------------------- transport


@pytest.mark.parametrize(("P", "T"), [(1, 0), (1, 1), (4, 2), (3, 3), (2, 5), (40, 8)])
@pytest.mark.parametrize("background", [True, False])
def test_marginals_both_sum_to_one(P, T, background):
    a, b = tr.marginals(P, T, background)
    assert a.shape == (P,)
    assert b.shape == (T + background,)
    assert a.sum() == pytest.approx(1)
    if background or T > 0:
        assert b.sum() == pytest.approx(1)
    if background:
        assert b[-1] == pytest.approx(max(P - T, 0) / P)


@pytest.mark.parametrize(("P", "T"), [(1, 1), (5, 2), (3, 5), (20, 6)])
@pytest.mark.parametrize("reg", [1e-3, 0.1])
def test_every_penalty_has_a_verified_plan(P, T, reg):
    cost = random_cost(P, T)
    a, b = tr.marginals(P, T)
    for reg_pred, reg_target in itertools.product(PENALTIES, PENALTIES):
        plan = tr.unbalanced_plan(cost, a, b, reg, reg_pred, reg_target)
        assert tr.optimality_residual(plan, cost, a, b, reg, reg_pred, reg_target) < 1e-11
        if reg_pred == INF:
            np.testing.assert_allclose(plan.sum(axis=1), 1, atol=1e-11)
        if reg_target == INF:
            np.testing.assert_allclose(plan.sum(axis=0), P * b, atol=1e-10)


@pytest.mark.parametrize("reg", [1e-3, 0.05, 1.0])
@pytest.mark.parametrize("penalties", [(INF, INF), (INF, 0.01), (0.01, INF), (1.0, 0.1), (100.0, 1e3), (0.0, 1.0)])
def test_transposing_the_problem_transposes_the_plan(reg, penalties):
    cost = random_cost(9, 4)
    cost[2, 1] = cost[5, 0] = INF
    a, b = tr.marginals(9, 4)
    plan = tr.unbalanced_plan(cost, a, b, reg, *penalties)
    transposed = tr.unbalanced_plan(cost.T, b, a, reg, *penalties[::-1])
    np.testing.assert_allclose(transposed.T * 9 / 5, plan, rtol=0, atol=1e-9)


@pytest.mark.parametrize("penalties", [(0.3, 0.7), (1.0, 100.0), (0.01, 0.1)])
def test_no_nearby_plan_has_a_lower_objective(penalties):
    cost, (a, b), reg = random_cost(6, 3), tr.marginals(6, 3), 0.1

    def objective(plan):
        pi = plan / 6
        r, c = pi.sum(axis=1), pi.sum(axis=0)
        kl = [float((x * np.log(x / y) - x + y).sum()) for x, y in ((r, a), (c, b))]
        entropy = float((pi * (np.log(pi) - 1)).sum())
        return float((pi * cost).sum()) + reg * entropy + penalties[0] * kl[0] + penalties[1] * kl[1]

    plan = tr.unbalanced_plan(cost, a, b, reg, *penalties)
    rng = np.random.default_rng(1)
    for size in (1e-3, 1e-2, 0.3):
        for _ in range(50):
            assert objective(plan * np.exp(size * rng.standard_normal(plan.shape))) > objective(plan)


@pytest.mark.filterwarnings("ignore:If reg_type = entropy")  # POT says so whenever it is used
@pytest.mark.parametrize("reg", [0.05, 0.3])
@pytest.mark.parametrize("penalties", [(1.0, 1.0), (0.1, 1.0), (1.0, 0.01), (0.05, 0.05)])
def test_unbalanced_plan_agrees_with_pot(reg, penalties):
    cost = random_cost(7, 3)
    a, b = tr.marginals(7, 3)
    theirs = ot.unbalanced.sinkhorn_unbalanced(
        a, b, cost, reg, penalties, reg_type="entropy", numItermax=100_000, stopThr=1e-15
    )
    np.testing.assert_allclose(tr.unbalanced_plan(cost, a, b, reg, *penalties), 7 * theirs, atol=1e-10)


@pytest.mark.parametrize(("P", "T", "background"), [(7, 3, True), (4, 4, False), (3, 5, False)])
def test_balanced_plan_agrees_with_pot(P, T, background):
    cost = random_cost(P, T)[:, : T + background]
    a, b = tr.marginals(P, T, background)
    theirs = ot.sinkhorn(a, b, cost, 0.05, method="sinkhorn_log", numItermax=10_000, stopThr=1e-13)
    np.testing.assert_allclose(tr.unbalanced_plan(cost, a, b, 0.05, INF, INF), P * theirs, atol=1e-10)


def test_plans_at_the_limits_of_the_penalties_have_closed_forms():
    cost = random_cost(6, 3)
    a, b = tr.marginals(6, 3)
    kernel = np.exp(-cost / 0.1)
    by_row, by_column = kernel / kernel.sum(axis=1, keepdims=True), 6 * b * kernel / kernel.sum(axis=0)
    np.testing.assert_allclose(tr.unbalanced_plan(cost, a, b, 0.1, 0, 0), 6 * kernel, atol=1e-12)
    np.testing.assert_allclose(tr.unbalanced_plan(cost, a, b, 0.1, INF, 0), by_row, atol=1e-12)
    np.testing.assert_allclose(tr.unbalanced_plan(cost, a, b, 0.1, 0, INF), by_column, atol=1e-12)


def test_figure_1_of_the_paper_has_the_three_known_limits():
    a, b = tr.marginals(5, 2)
    best_target = [[1, 0, 0], [0, 0, 1], [0, 0, 1], [1, 0, 0], [0, 1, 0]]
    matched = [[0, 0, 1], [0, 0, 1], [0, 0, 1], [1, 0, 0], [0, 1, 0]]
    best_prediction = [[0, 0, 0.6], [0, 0, 0.6], [0, 0, 0.6], [1, 1, 0.6], [0, 0, 0.6]]
    for known, direct, penalties in (
        (best_target, tr.closest_target(FIGURE_1), (INF, 0)),
        (best_prediction, tr.closest_prediction(FIGURE_1), (0, INF)),
        (matched, tr.hungarian(FIGURE_1), (INF, INF)),
    ):
        np.testing.assert_array_equal(direct, known)
        np.testing.assert_allclose(tr.unbalanced_plan(FIGURE_1, a, b, 1e-3, *penalties), known, atol=1e-9)
    np.testing.assert_allclose(tr.exact_plan(FIGURE_1, a, b), matched, atol=1e-9)
    assert (FIGURE_1 * np.array(matched))[:, :2].sum() == pytest.approx(1.13)


def test_forbidden_pairs_and_zero_marginals_carry_nothing():
    cost = random_cost(3, 5)
    cost[:, 0] = [INF, 0.2, INF]
    a, b = tr.marginals(3, 5)
    assert b[-1] == 0
    for penalties in ((INF, 0.1), (0.1, 1.0), (1.0, INF), (INF, INF)):
        plan = tr.unbalanced_plan(cost, a, b, 0.01, *penalties)
        assert (plan[[0, 2], 0] == 0).all()
        assert (plan[:, -1] == 0).all()
    assert (tr.unbalanced_plan(cost, a, b, 0.01, 1.0, 0)[:, -1] > 0).all()  # a free column has no marginal


def test_pairs_that_equalities_force_out_are_zero():
    cost = random_cost(4, 2)
    cost[1:, 0] = INF  # target 0 can only take all of prediction 0
    a, b = tr.marginals(4, 2)
    plan = tr.unbalanced_plan(cost, a, b, 0.1, INF, INF)
    np.testing.assert_array_equal(plan[0] > 0, [True, False, False])
    np.testing.assert_allclose(plan.sum(axis=0), [1, 1, 2], atol=1e-12)


@pytest.mark.parametrize("penalties", [(INF, INF), (1.0, INF)])
def test_unattainable_equalities_are_an_error(penalties):
    cost = random_cost(4, 2)
    cost[:, 0] = INF
    with pytest.raises(ValueError, match="no plan has these marginals"):
        tr.unbalanced_plan(cost, *tr.marginals(4, 2), 0.1, *penalties)


def test_two_targets_with_one_allowed_prediction_are_unattainable():
    cost = random_cost(4, 2)
    cost[1:, :2] = INF
    with pytest.raises(ValueError, match="no plan has these marginals"):
        tr.unbalanced_plan(cost, *tr.marginals(4, 2), 0.1, INF, INF)
    with pytest.raises(ValueError, match="no plan has these marginals"):
        tr.exact_plan(cost, *tr.marginals(4, 2))


@pytest.mark.parametrize("penalties", [(INF, INF), (INF, 0.0), (0.0, 1.0), (1.0, 1.0), (1e3, 0.01)])
@pytest.mark.parametrize("reg", [1e-3, 0.1])
def test_residual_sees_every_kind_of_wrong_plan(reg, penalties):
    cost = random_cost(6, 3)
    a, b = tr.marginals(6, 3)
    plan = tr.unbalanced_plan(cost, a, b, reg, *penalties)
    residual = partial(
        tr.optimality_residual, cost=cost, a=a, b=b, reg=reg, reg_pred=penalties[0], reg_target=penalties[1]
    )
    wrong = plan.copy()
    wrong[np.unravel_index(plan.argmax(), plan.shape)] *= 1 + 1e-4
    assert residual(plan) < 1e-11
    assert residual(wrong) > 1e-7
    assert residual(np.zeros_like(plan)) > 1e-3 or plan.max() < 1e-3
    assert residual(plan[::-1]) > 1e-3
    assert residual(plan * math.nan) == INF
    noise = 1e-12 * np.random.default_rng(2).random(plan.shape)
    assert residual(plan + noise) < 1e-10
    assert residual(plan.astype(np.float32)) < 1e-6
    if reg == 0.1:
        assert tr.optimality_residual(plan, cost, a, b, 0.11, *penalties) > 1e-4


@pytest.mark.parametrize(("P", "T"), [(0, 0), (0, 2), (1, 0), (1, 1), (6, 3), (4, 4), (3, 5), (7, 2)])
@pytest.mark.parametrize("forbidden", [0.0, 0.4])
def test_hungarian_is_the_best_of_all_permutations(P, T, forbidden):
    cost = random_cost(P, T, seed=P + 10 * T)
    cost[:, :-1][np.random.default_rng(3).random((P, T)) < forbidden] = INF
    plan = tr.hungarian(cost)
    np.testing.assert_array_equal(plan.sum(axis=1), 1)
    assert plan[:, :-1].sum(axis=0).max(initial=0) <= 1
    np.testing.assert_array_equal(tr.hungarian(cost[:, :-1], background=False), plan[:, :-1])

    def value(pairs):
        finite = [float(cost[i, j]) for i, j in pairs if np.isfinite(cost[i, j])]
        return -len(finite), sum(finite)

    if P >= T:
        choices = [list(zip(rows, range(T), strict=True)) for rows in itertools.permutations(range(P), T)]
    else:
        choices = [list(zip(range(P), cols, strict=True)) for cols in itertools.permutations(range(T), P)]
    best, ours = min(map(value, choices)), value(np.argwhere(plan[:, :-1] > 0))
    assert ours[0] == best[0]
    assert ours[1] == pytest.approx(best[1])


def test_balanced_limit_is_hungarian():
    cost = random_cost(12, 5, seed=1)
    cost[:, -1] = 0.5
    a, b = tr.marginals(12, 5)
    np.testing.assert_allclose(tr.exact_plan(cost, a, b), tr.hungarian(cost), atol=1e-9)
    np.testing.assert_allclose(tr.unbalanced_plan(cost, a, b, 5e-4, INF, INF), tr.hungarian(cost), atol=1e-3)


def test_closest_prediction_gives_the_lowest_index_and_leaves_the_rest_to_the_background():
    cost = np.array([[0.5, 0.2, 1.0], [0.1, 0.2, 1.0], [0.1, INF, 1.0]])
    np.testing.assert_array_equal(tr.closest_prediction(cost, False), [[0, 1, 0], [1, 0, 0], [0, 0, 1]])
    np.testing.assert_allclose(tr.closest_prediction(cost), [[0, 1, 1 / 3], [1, 0, 1 / 3], [0, 0, 1 / 3]])
    np.testing.assert_allclose(tr.closest_prediction(cost, True, 0.15), [[0, 0, 2 / 3], [1, 0, 2 / 3], [0, 0, 2 / 3]])
    assert tr.closest_prediction(np.zeros((0, 3))).shape == (0, 3)


# --------------------------------------------------------------------------------------------------------- loss


def random_batch(B: int, P: int, T: int, C: int = 4) -> dict[str, Tensor]:
    g = torch.Generator().manual_seed(B + 10 * P + 100 * T)
    corners = [torch.rand(B, n, 2, 2, generator=g, dtype=torch.float64).sort(dim=2).values.flatten(2) for n in (P, T)]
    return {
        "logits": torch.randn(B, P, C, generator=g, dtype=torch.float64),
        "boxes": corners[0],
        "labels": torch.randint(1, C - 1, (B, T), generator=g),
        "target_boxes": corners[1],
        "mask": torch.ones(B, T, dtype=torch.bool),
        "plan": torch.rand(B, P, T + 1, generator=g, dtype=torch.float64),
    }


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_cross_entropy_is_torchs(smoothing):
    x, w = torch.randn(5, dtype=torch.float64), torch.rand(5, dtype=torch.float64)
    for y in range(5):
        theirs = F.cross_entropy(x[None], torch.tensor([y]), w, label_smoothing=smoothing, reduction="sum")
        torch.testing.assert_close(L.cross_entropy(x, y, w, smoothing), theirs)


@pytest.mark.parametrize("target", [None, 0, 2])
def test_binary_losses_are_torchs_and_focal_contains_them(target):
    x = torch.tensor([-30.0, 0.5, 40.0], dtype=torch.float64)
    onehot = torch.tensor([float(c == target) for c in range(3)], dtype=torch.float64)
    theirs = F.binary_cross_entropy_with_logits(x, onehot, reduction="none")
    torch.testing.assert_close(L.binary_cross_entropy(x, target), theirs.sum())
    torch.testing.assert_close(L.sigmoid_focal(x, target, alpha=-1, gamma=0), theirs.sum())
    p_t = torch.sigmoid(x) * onehot + (1 - torch.sigmoid(x)) * (1 - onehot)
    focal = (0.25 * onehot + 0.75 * (1 - onehot)) * (1 - p_t) ** 2 * theirs
    torch.testing.assert_close(L.sigmoid_focal(x, target, 0.25, 2), focal.sum())


def test_negative_probability_is_minus_softmax():
    x = torch.tensor([1.0, 2.0, 4.0], dtype=torch.float64)
    torch.testing.assert_close(L.negative_probability(x, 1), -torch.softmax(x, 0)[1])
    with pytest.raises(ValueError, match="no class"):
        L.negative_probability(x, None)


def test_coordinate_losses_are_torchs():
    box, target = torch.tensor([[0.0, 1.0, 5.0, 9.0], [0.2, 3.0, 5.5, 7.5]], dtype=torch.float64)
    torch.testing.assert_close(L.l1(box, target), F.l1_loss(box, target, reduction="sum"))
    torch.testing.assert_close(L.mse(box, target), F.mse_loss(box, target, reduction="sum"))
    for beta in (0.3, 1.0):
        theirs = F.smooth_l1_loss(box, target, beta=beta, reduction="sum")
        torch.testing.assert_close(L.smooth_l1(box, target, beta), theirs)


def test_box_losses_have_their_hand_worked_values():
    a, b, far = (torch.tensor(x, dtype=torch.float64) for x in ([0.0, 0, 2, 2], [1.0, 0, 3, 4], [4.0, 0, 6, 2]))
    u, hull = 2 / 10, 3 * 4  # inter 1 × 2, union 4 + 8 − 2
    diou = 1 - u + (1 + 1) / (9 + 16)
    v = 4 / math.pi**2 * (math.atan(0.5) - math.atan(1.0)) ** 2
    known = {
        L.iou_loss: 1 - u,
        partial(L.iou_loss, kind="log"): -math.log(u),
        partial(L.iou_loss, kind="square"): 1 - u * u,
        L.giou_loss: 1 - u + (hull - 10) / hull,
        L.diou_loss: diou,
        L.ciou_loss: diou + v * v / (1 - u + v),
    }
    for function, value in known.items():
        assert float(function(a, b)) == pytest.approx(value, abs=1e-6)
        assert float(function(a, a)) == pytest.approx(0, abs=1e-6)
    assert L.iou(a, b) == pytest.approx(u)
    assert L.iou(a, far) == 0
    assert float(L.giou_loss(a, far)) == pytest.approx(1 + 4 / 12)
    assert float(L.diou_loss(a, far)) == pytest.approx(1 + 16 / 40)
    for degenerate in ([1.0, 1, 1, 1], [2.0, 2, 0, 0], [0.0, 1, 2, 1]):
        box = torch.tensor(degenerate, dtype=torch.float64)
        for function, other in itertools.product(known, (a, box)):
            assert function(box, other).isfinite()


@pytest.mark.parametrize("position", ["first", "last"])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_detection_loss_of_a_hard_plan_is_torchs_weighted_mean(position, smoothing):
    batch = random_batch(2, 6, 3)
    w = torch.rand(4, dtype=torch.float64) + 1
    rows = torch.tensor([[0, 3, 1, 3, 2, 3], [3, 3, 2, 3, 3, 1]])  # 3: background
    batch["plan"] = F.one_hot(rows, 4)
    cls = partial(L.cross_entropy, weight=w, smoothing=smoothing)
    loss = L.detection_loss(**batch, cls=cls, loc=L.l1, class_weight=w, bg_class_position=position)
    background = torch.full((2, 1), 0 if position == "first" else 3)
    classes = torch.cat([batch["labels"], background], 1).gather(1, rows).flatten()
    theirs = F.cross_entropy(batch["logits"].flatten(0, 1), classes, w, label_smoothing=smoothing)
    torch.testing.assert_close(loss["loss_cls"], theirs)
    b, i = (rows < 3).nonzero(as_tuple=True)
    pairs = batch["boxes"][b, i], batch["target_boxes"][b, rows[b, i]]
    torch.testing.assert_close(loss["loss_loc"], F.l1_loss(*pairs, reduction="sum") / 5)
    torch.testing.assert_close(loss["loss"], loss["loss_cls"] + loss["loss_loc"])


def test_detection_loss_without_background_class_divides_by_the_positives():
    batch = random_batch(2, 4, 3)
    loss = L.detection_loss(**batch, cls=L.sigmoid_focal, loc=L.mse, bg_class_position="none")
    total = L.detection_loss(**batch, cls=L.sigmoid_focal, loc=L.mse, bg_class_position="none", reduction="sum")
    n_pos = batch["plan"][..., :-1].sum()
    assert n_pos > 1
    for name in loss:
        torch.testing.assert_close(loss[name] * n_pos, total[name])


def test_detection_loss_is_linear_in_the_plan_and_reads_nothing_without_mass():
    batch = random_batch(2, 4, 3)
    total = partial(L.detection_loss, cls=L.cross_entropy, loc=L.giou_loss, reduction="sum")
    double = total(**{**batch, "plan": 2 * batch["plan"].numpy()})
    torch.testing.assert_close(double["loss"], 2 * total(**batch)["loss"])
    batch["mask"][0, 2] = False
    batch["plan"][0, :, 2] = 0
    before = total(**batch)["loss"]
    batch["target_boxes"][0, 2], batch["labels"][0, 2] = math.nan, -100
    torch.testing.assert_close(total(**batch)["loss"], before)


@pytest.mark.parametrize(("B", "P", "T"), [(0, 0, 0), (1, 0, 2), (2, 3, 0), (1, 1, 1)])
def test_detection_loss_of_empty_input_is_finite_and_differentiable(B, P, T):
    batch = random_batch(B, P, T)
    for ratio in (None, 3.0):
        batch["logits"], batch["boxes"] = (batch[k].detach().requires_grad_() for k in ("logits", "boxes"))
        loss = L.detection_loss(**batch, cls=L.cross_entropy, loc=L.giou_loss, ratio=ratio)["loss"]
        loss.backward()
        assert loss.isfinite()
        assert ratio is None or T > 0 or loss == 0


def test_mined_background_follows_ssds_rule():
    batch = random_batch(1, 8, 1)
    batch["plan"] = F.one_hot(torch.tensor([[1, 1, 0, 1, 1, 1, 1, 1]]), 2)
    loss = L.detection_loss(**batch, cls=L.cross_entropy, loc=L.l1, ratio=3.0)
    rows = batch["logits"][0].log_softmax(1).neg()
    negatives = rows[[0, 1, 3, 4, 5, 6, 7], 0].topk(3).values.sum()
    torch.testing.assert_close(loss["loss_cls"], rows[2, batch["labels"][0, 0]] + negatives)  # ÷ N_pos = 1


def test_hard_negatives_reach_their_budget_exactly():
    mass, hardness = torch.tensor([0.5, 1.0, 0.8, 1.0]), torch.tensor([1.0, 3.0, 3.0, 2.0])
    torch.testing.assert_close(L.hard_negative_mass(mass, hardness, 1.0, 2.0), torch.tensor([0, 1.0, 0.8, 0.2]))
    torch.testing.assert_close(L.hard_negative_mass(mass, hardness, 9.0, 2.0), mass)
    assert L.hard_negative_mass(mass, hardness, 0.0, 2.0).sum() == 0
    assert L.hard_negative_mass(torch.ones(2), torch.ones(2), 1.0, 1.0).tolist() == [1, 0]


def test_nms_keeps_the_best_of_each_cluster():
    boxes = torch.tensor([[0.0, 0, 2, 2], [0.0, 0, 2, 1.9], [5.0, 5, 6, 6], [0.0, 0, 2, 1]])
    assert L.nms(boxes, torch.tensor([0.5, 0.9, 0.1, 0.9]), 0.6) == [1, 3, 2]
    assert L.nms(boxes, torch.tensor([0.5, 0.9, 0.1, 0.9]), 0.5) == [1, 2]
    assert L.nms(boxes[:0], torch.zeros(0), 0.5) == []
    assert L.nms(boxes[[0, 3]], torch.tensor([1.0, 0.5]), 0.5) == [0, 1]  # IoU = threshold is kept


def test_threshold_assignment_agrees_with_detectron2s_test_vector():
    overlap = np.array([[0.15, 0.45, 0.2, 0.6], [0.3, 0.65, 0.05, 0.1], [0.05, 0.4, 0.25, 0.4]]).T
    plan = L.iou_threshold_assignment(overlap, 0.7, 0.3, "low_quality")  # matches 1, 1, 2, 0; labels −1, 1, 0, 1
    np.testing.assert_array_equal(plan, [[0, 0, 0, 0], [0, 1, 0, 0], [0, 0, 0, 1], [1, 0, 0, 0]])
    plan = L.iou_threshold_assignment(overlap, 0.7, 0.3, None)
    np.testing.assert_array_equal(plan, [[0, 0, 0, 0], [0, 0, 0, 0], [0, 0, 0, 1], [0, 0, 0, 0]])
    plan = L.iou_threshold_assignment(overlap, 0.7, 0.3, "best")  # 1–1 (.65), then 3–0 (.6), then 2–2 (.25)
    np.testing.assert_array_equal(plan, [[0, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [1, 0, 0, 0]])


def test_threshold_assignment_gives_targets_that_share_their_best_anchor_distinct_ones():
    overlap = torch.tensor([[0.6, 0.6], [0.6, 0.1], [0.0, 0.0]])
    np.testing.assert_array_equal(L.iou_threshold_assignment(overlap), [[1, 0, 0], [0, 1, 0], [0, 0, 1]])
    np.testing.assert_array_equal(L.iou_threshold_assignment(overlap[:, :0]), [[1], [1], [1]])
    assert L.iou_threshold_assignment(overlap[:0]).shape == (0, 3)
    zeros = L.iou_threshold_assignment(torch.zeros(2, 1), 0.5, None, "low_quality")
    np.testing.assert_array_equal(zeros, [[0, 1], [0, 1]])
