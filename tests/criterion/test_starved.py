"""Targets that hardly get any mass: they are counted, a warning says so once, and its advice helps."""

import pickle
import subprocess
import sys
import warnings

import pytest
import torch
from torch import Tensor, nn

from tests.support.guards import NoSynchronisation, take_gpu_path
from tests.support.matcher_cases import CASES
from tests.support.problems import random_boxes, random_problem
from uotod import recipes
from uotod.loss import Branch, Branches, DetectionLoss, IoULoss, SigmoidFocalLoss, StarvedTargetsWarning
from uotod.match import Hungarian, IoUThreshold, SoftMin, UnbalancedSinkhorn
from uotod.plan import Plan

N = "none"
L1 = nn.L1Loss(reduction=N)


def build(matcher=None, **options) -> DetectionLoss:
    matcher = Hungarian(loc_match_module=L1) if matcher is None else matcher
    return DetectionLoss(SigmoidFocalLoss(reduction=N), L1, matcher, "none", **options)


def slow_count(plan: Tensor, mask: Tensor, images: int) -> int:
    """Count the targets of the last `images` images of a dense plan (S, P, T + 1) that have less than half a unit."""
    count = 0
    for rows, real in zip(plan[-images:], mask, strict=True):
        for target in range(len(real)):
            count += bool(real[target]) and float(rows[:, target].sum()) < 0.5
    return count


@pytest.mark.parametrize("name", CASES)
def test_it_is_the_number_of_real_targets_below_half_a_unit(name) -> None:
    problem = random_problem(3, 9, 6, 4, low=0)
    matcher = CASES[name].build()
    terms = build(matcher).terms(problem.input, problem.target, problem.anchors)
    plan = matcher(problem.input, problem.target, problem.anchors)
    assert terms["num_starved"] == slow_count(plan, problem.target["mask"], 3)
    assert not terms["num_starved"].requires_grad
    assert terms["num_starved"].shape == ()


@pytest.mark.parametrize("slots", [1, 2, 3])
def test_it_adds_up_the_slots_of_a_plan(slots) -> None:
    target = torch.tensor([[[0, 1], [1, 2], [2, 0]]])[:, :slots]
    plan = Plan(torch.full((1, slots, 2), 0.3, dtype=torch.float64), target, torch.zeros(1, 2).double(), 4)
    problem = random_problem(1, 2, 4, 3, low=0, full=True)
    found = build().terms(problem.input, problem.target, plan=plan)["num_starved"]
    assert found == slow_count(plan.to_dense(), problem.target["mask"], 1) == [4, 3, 1][slots - 1]


def test_ignored_and_padded_targets_do_not_count() -> None:
    problem = random_problem(2, 3, 5, 4, low=0, full=True)
    problem.target["ignore"] = torch.tensor([[True, False, False, False, False], [True, True, True, True, True]])
    problem.target["mask"][0, 1] = False
    terms = build(IoUThreshold(positive=1.0, force_match=None)).terms(problem.input, problem.target)
    assert terms["num_starved"] == 3


@pytest.mark.parametrize(("images", "targets"), [(0, 3), (2, 0)])
def test_nothing_starves_where_there_is_nothing(images, targets) -> None:
    problem = random_problem(images, 4, targets, 3, low=0)
    assert build().terms(problem.input, problem.target)["num_starved"] == 0


def test_fewer_predictions_than_targets_starve_the_rest() -> None:
    problem = random_problem(2, 3, 5, 4, low=0, full=True)
    assert build().terms(problem.input, problem.target)["num_starved"] == 4


def test_the_final_layer_counts() -> None:
    problem = random_problem(2, 8, 3, 4, low=0, full=True)
    alone = build(SoftMin(loc_match_module=L1)).terms(problem.input, problem.target)["num_starved"]
    far = {key: value + 100 if key == "pred_boxes" else value for key, value in problem.input.items()}
    layers = problem.input | {"aux_outputs": [far, far]}
    assert build(SoftMin(loc_match_module=L1)).terms(layers, problem.target)["num_starved"] == alone


def test_a_branch_has_its_own_under_its_suffix() -> None:
    problem = random_problem(2, 8, 5, 4, low=0, full=True)
    few = random_problem(2, 2, 5, 4, low=0, full=True).input
    terms = Branches(build(), enc_outputs=Branch(build())).terms(problem.input | {"enc_outputs": few}, problem.target)
    assert (terms["num_starved"], terms["num_starved_enc"]) == (0, 6)


def test_the_weight_of_a_targets_loss_starves_nobody() -> None:
    problem = random_problem(2, 8, 3, 4, low=0, full=True)
    problem.target["loss_weight"] = torch.full((2, 3), 0.01)
    assert build().terms(problem.input, problem.target)["num_starved"] == 0


STARVING = build(IoUThreshold(positive=1.0, force_match=None))


def starve(criterion=STARVING) -> None:
    problem = random_problem(2, 6, 3, 4, low=0, full=True)
    criterion(problem.input, problem.target)


def test_it_warns_and_says_what_helps() -> None:
    with pytest.warns(StarvedTargetsWarning, match=r"less than half a unit of mass.*num_starved.*reg_target") as found:
        starve()
    assert len(found) == 1


def test_nothing_warns_where_all_targets_have_some() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        starve(build())


def test_the_warning_may_be_an_error_or_be_ignored() -> None:
    assert issubclass(StarvedTargetsWarning, UserWarning)
    with warnings.catch_warnings():
        warnings.simplefilter("error", StarvedTargetsWarning)
        with pytest.raises(StarvedTargetsWarning):
            starve()
        warnings.simplefilter("ignore", StarvedTargetsWarning)
        starve()
    assert pickle.loads(pickle.dumps(StarvedTargetsWarning)) is StarvedTargetsWarning


def test_it_is_shown_once_a_process_by_pythons_own_filter() -> None:
    program = (
        "from tests.criterion.test_starved import *\n"
        "for _ in range(3):\n"
        "    starve()\n"
        "starve(Branches(STARVING, enc_outputs=Branch(build())))\n"
        "starve(build(IoUThreshold(positive=0.99, force_match=None)))"
    )
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert found.stderr.count("StarvedTargetsWarning: ") == 1


def test_on_a_gpu_it_counts_without_reading_and_never_warns(monkeypatch) -> None:
    take_gpu_path(monkeypatch)
    problem = random_problem(2, 6, 5, 4, low=0, full=True)
    criterion = build(SoftMin(loc_match_module=L1))
    with warnings.catch_warnings(), NoSynchronisation():
        warnings.simplefilter("error")
        terms = criterion.terms(problem.input, problem.target)
        build(SoftMin(loc_match_module=L1), validate=False)(problem.input, problem.target)
    assert terms["num_starved"].shape == ()


def small_objects(side: float) -> tuple:
    """Return an image of 300 x 300 with one small object between the anchors of a grid, 32 wide."""
    centers = torch.cartesian_prod(torch.arange(8.0, 300, 16), torch.arange(8.0, 300, 16))
    anchors = torch.cat((centers - 16, centers + 16), dim=1)
    input = {"pred_logits": torch.zeros(1, len(anchors), 3), "pred_boxes": anchors[None]}
    box = torch.tensor([[[148.0, 148.0, 148 + side, 148 + side]]])
    return input, {"labels": torch.tensor([[1]]), "boxes": box}, anchors


@pytest.mark.parametrize("side", [4.0, 8.0])
def test_small_objects_starve_under_the_published_transport_and_the_advice_helps(side) -> None:
    scene = small_objects(side)
    assert recipes.uot_ssd(2).terms(*scene)["num_starved"] == 1
    for helps in ({"reg_target": 10.0}, {"background_cost": 1.0}):
        assert recipes.uot_ssd(2, **helps).terms(*scene)["num_starved"] == 0
    threshold = {"positive": 0.5, "is_anchor_based": True}
    for force, count in ((None, 1), ("best", 0)):
        assert (
            recipes.ssd300(2, matcher=IoUThreshold(force_match=force, **threshold)).terms(*scene)["num_starved"]
            == count
        )


def test_more_mass_for_a_background_that_costs_more() -> None:
    boxes = random_boxes(1, 40)
    problem = random_problem(1, 40, 6, 3, full=True)
    input = {"pred_logits": torch.zeros(1, 40, 3).double(), "pred_boxes": boxes}
    counts = []
    for cost in (0.2, 0.5, 2.0):
        matcher = UnbalancedSinkhorn(
            loc_match_module=IoULoss(reduction=N), reg_pred=100.0, reg_target=0.01, background_cost=cost
        )
        counts.append(float(build(matcher).terms(input, problem.target)["num_starved"]))
    assert counts == sorted(counts, reverse=True)
    assert counts[0] > counts[-1]
