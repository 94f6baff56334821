"""Denoising: the plan of queries that know their targets, as models return it."""

import re
from itertools import product

import pytest
import torch
from torch import Tensor, nn

from tests.support.problems import random_boxes, random_problem
from uotod.loss import (
    Branch,
    Branches,
    DetectionLoss,
    PairedTargetNormalizer,
    PositiveNormalizer,
    SigmoidFocalLoss,
    denoising_plan,
)
from uotod.match import Hungarian
from uotod.plan import Plan

N = "none"
P, C = 6, 4
L1 = nn.L1Loss(reduction=N)


def positions(counts: list[int], groups: int, *, negatives: bool = True) -> tuple[list[Tensor], int]:
    """Return where the positive queries of images are, and how many queries there are.

    A group has a place for each of the most targets of an image, and as many for negatives behind them.
    """
    most = max(counts, default=0)
    size = most * (2 if negatives else 1)
    found = [torch.cat([group * size + torch.arange(count) for group in range(groups)]) for count in counts]
    return found, groups * size


def detector(**options) -> DetectionLoss:
    return DetectionLoss(SigmoidFocalLoss(reduction=N), L1, Hungarian(loc_match_module=L1), N, **options)


def output(images: int, queries: int) -> dict[str, Tensor]:
    logits = torch.randn(images, queries, C, dtype=torch.float64)
    return {"pred_logits": logits.requires_grad_(), "pred_boxes": random_boxes(images, queries).requires_grad_()}


def problem(counts: list[int]) -> dict[str, Tensor]:
    scene = random_problem(len(counts), P, max(counts), C, low=0, full=True)
    return scene.target | {"mask": torch.arange(max(counts)) < torch.tensor(counts).unsqueeze(1)}


COUNTS = [[2, 1], [3, 0, 2], [1], [0, 0]]


@pytest.mark.parametrize("negatives", [True, False])
@pytest.mark.parametrize("groups", [1, 3])
@pytest.mark.parametrize("counts", COUNTS, ids=str)
def test_each_query_has_the_target_that_it_was_made_from(counts, groups, negatives) -> None:
    found, queries = positions(counts, groups, negatives=negatives)
    targets = max(counts)
    plan = denoising_plan(found, groups, queries, targets)
    assert plan.shape == (len(counts), queries)
    assert plan.dtype == torch.int64
    size = targets * (2 if negatives else 1)
    for b, q in product(range(len(counts)), range(queries)):
        place = q % size
        assert int(plan[b, q]) == (place if place < counts[b] else targets)
    for b, count in enumerate(counts):
        for target in range(count):
            assert int((plan[b] == target).sum()) == groups


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
def test_positions_may_be_any_integers_and_any_sequence(dtype) -> None:
    found, queries = positions([2, 1], 2)
    expected = denoising_plan(found, 2, queries, 2)
    assert torch.equal(denoising_plan(tuple(x.to(dtype) for x in found), 2, queries, 2), expected)


def test_more_queries_and_targets_than_positions_are_background() -> None:
    plan = denoising_plan([torch.tensor([0, 2]), torch.tensor([], dtype=torch.long)], 1, 5, 4)
    assert plan.tolist() == [[0, 4, 1, 4, 4], [4] * 5]


@pytest.mark.parametrize("groups", [1, 4])
@pytest.mark.parametrize("counts", COUNTS, ids=str)
def test_the_loss_of_a_branch_is_a_loop_over_groups_and_targets(counts, groups) -> None:
    target = problem(counts)
    found, queries = positions(counts, groups)
    plan = denoising_plan(found, groups, queries, max(counts))
    denoising = output(len(counts), queries)
    criterion = Branches(detector(), dn_outputs=Branch(detector(normalizer=PositiveNormalizer()), 0.5, plan="given"))
    main = output(len(counts), P)
    terms = criterion.terms(main | {"dn_outputs": denoising | {"plan": plan}}, target)
    boxes, classes, focal = denoising["pred_boxes"], denoising["pred_logits"], SigmoidFocalLoss(reduction=N)
    loc = cls = torch.zeros((), dtype=torch.float64)
    for b, q in product(range(len(counts)), range(queries)):
        one_hot = torch.zeros(1, C, dtype=torch.float64)
        if int(plan[b, q]) < max(counts):
            j = int(plan[b, q])
            one_hot[0, int(target["labels"][b, j])] = 1
            loc = loc + (boxes[b, q] - target["boxes"][b, j]).abs().sum()
        cls = cls + focal(classes[b, q : q + 1], one_hot).sum()
    divisor = max(groups * sum(counts), 1)
    torch.testing.assert_close(terms["loss_loc_dn"], 0.5 * loc / divisor)
    torch.testing.assert_close(terms["loss_cls_dn"], 0.5 * cls / divisor)
    assert terms["num_pos_dn"] == groups * sum(counts)
    assert terms["num_neg_dn"] == len(counts) * queries - groups * sum(counts)
    paired = Branch(detector(normalizer=PairedTargetNormalizer()), 0.5, plan="given")
    other = Branches(detector(), dn_outputs=paired).terms(main | {"dn_outputs": denoising | {"plan": plan}}, target)
    torch.testing.assert_close(other["loss_dn"], terms["loss_dn"])


def test_all_layers_of_a_branch_have_its_plan() -> None:
    target = problem([2, 1])
    found, queries = positions([2, 1], 3)
    plan = denoising_plan(found, 3, queries, 2)
    earlier, final = output(2, queries), output(2, queries)
    criterion = Branches(detector(), dn_outputs=Branch(detector(), plan="given"))
    branch = final | {"aux_outputs": [earlier], "plan": plan}
    terms = criterion.terms(output(2, P) | {"dn_outputs": branch}, target)
    for suffix, layer in (("_0", earlier), ("", final)):
        expected = detector().terms(layer, target, plan=plan)
        for key in ("loss_cls", "loss_loc"):
            torch.testing.assert_close(terms[f"{key}{suffix}_dn"], expected[key])


def test_a_plan_may_be_given_in_every_form() -> None:
    target = problem([2, 1])
    found, queries = positions([2, 1], 2)
    index = denoising_plan(found, 2, queries, 2)
    masses = nn.functional.one_hot(index, 3).double()
    main, denoising = output(2, P), output(2, queries)
    criterion = Branches(detector(), dn_outputs=Branch(detector(), plan="given"))
    losses = [
        criterion(main | {"dn_outputs": denoising | {"plan": plan}}, target)
        for plan in (index, index.int(), masses, masses.float(), Plan.from_index(index, 2, True, torch.float64))
    ]
    for loss in losses[1:]:
        torch.testing.assert_close(loss, losses[0], rtol=1e-12, atol=1e-12)


def test_a_branch_that_demands_a_plan_raises_without_one() -> None:
    target = problem([2, 1])
    criterion = Branches(detector(), dn_outputs=Branch(detector(), plan="given"))
    main = output(2, P)
    for bare in (output(2, 8), output(2, 8) | {"plan": None}):
        message = "input['dn_outputs'] must have the key 'plan': which target each query stands for is known"
        with pytest.raises(ValueError, match=re.escape(message)):
            criterion(main | {"dn_outputs": bare}, target)
    for absent in (main, main | {"dn_outputs": None}):
        assert torch.equal(criterion(absent, target), detector()(main, target))


def test_a_branch_that_may_match_takes_a_plan_and_does_without() -> None:
    target = problem([2, 1])
    main, further = output(2, P), output(2, 8)
    criterion = Branches(detector(), more_outputs=Branch(detector()))
    matched = criterion.terms(main | {"more_outputs": further}, target)
    torch.testing.assert_close(matched["loss_more"], detector()(further, target))
    plan = Hungarian(loc_match_module=L1)(further, target)
    given = criterion.terms(main | {"more_outputs": further | {"plan": plan}}, target)
    torch.testing.assert_close(given["loss_more"], matched["loss_more"])


def test_what_a_plan_may_be_is_written_where_it_is_chosen() -> None:
    with pytest.raises(ValueError, match=re.escape("plan must be one of ['match', 'given'], got 'known'")):
        Branch(detector(), plan="known")
    assert "plan='given'" in repr(Branch(detector(), plan="given"))


@pytest.mark.parametrize(
    ("found", "groups", "queries", "targets", "message", "error"),
    [
        ([[0, 1, 4]], 2, 8, 2, "positions[0] must hold groups=2 times at most 2 targets, got 3", ValueError),
        ([[0, 1], [0, 1, 2]], 1, 8, 2, "positions[1] must hold groups=1 times at most 2 targets, got 3", ValueError),
        ([[0, 8]], 1, 8, 2, "positions[0] must lie in [0, 8), got 8", ValueError),
        ([[0, -1]], 1, 8, 2, "positions[0] must lie in [0, 8), got -1", ValueError),
        ([[0, 0]], 1, 8, 2, "positions[0] must hold each position once, got 0 2 times", ValueError),
        ([[0]], 0, 8, 2, "groups must be at least 1, got 0", ValueError),
        ([[0]], 1.0, 8, 2, "groups must be an integer, got 1.0", TypeError),
    ],
)
def test_positions_that_cannot_be_raise(found, groups, queries, targets, message, error) -> None:
    with pytest.raises(error, match=re.escape(message)):
        denoising_plan([torch.tensor(x) for x in found], groups, queries, targets)


def test_a_batch_without_images_has_a_plan_without_rows() -> None:
    assert denoising_plan([], 2, 8, 3).shape == (0, 8)
    criterion = Branches(detector(), dn_outputs=Branch(detector(), plan="given"))
    target = {"labels": torch.zeros(0, 3, dtype=torch.long), "boxes": torch.zeros(0, 3, 4)}
    branch = output(0, 8) | {"plan": denoising_plan([], 2, 8, 3)}
    assert criterion(output(0, P) | {"dn_outputs": branch}, target) == 0
