"""Task-aligned matching: its parameters, its plans in a loss, its errors."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.oracles import task_aligned as slow
from tests.support.aligned_scenes import assignment, scene
from tests.support.guards import take_gpu_path
from tests.support.problems import random_problem
from uotod.loss import CIoULoss, DetectionLoss, NegativeProbLoss
from uotod.match import Hungarian, TaskAligned, WeightedSum
from uotod.utils import Points


@pytest.mark.parametrize("seed", range(8))
def test_the_loss_is_the_criterion_of_yolov8(seed: int) -> None:
    input, target, points = scene(seed, targets=seed)
    matcher = TaskAligned()
    criterion = DetectionLoss(nn.BCEWithLogitsLoss(reduction="none"), CIoULoss(reduction="none"), matcher, "none")
    terms = criterion.terms(input, target, points)
    index, mass = assignment(matcher(input, target, points))
    label = target["labels"].gather(1, index.clamp(min=0)) if seed else index
    expected = slow.yolov8_class_loss(input["pred_logits"], label.masked_fill(index < 0, -1).tolist(), mass.tolist())
    assert terms["loss_cls"].item() == pytest.approx(expected, rel=1e-9)
    located = 0.0
    for b, i in (index >= 0).nonzero().tolist():
        pair = input["pred_boxes"][b, i].tolist(), target["boxes"][b, int(index[b, i])].tolist()
        located += float(mass[b, i]) * (1 - slow.overlap(*pair, "ciou"))
    assert terms["loss_loc"].item() == pytest.approx(located / max(float(mass.sum()), 1.0), rel=1e-5)
    assert terms["num_pos"].item() == pytest.approx(float(mass.sum()))


@pytest.mark.parametrize("mining", [None, 2.0])
@pytest.mark.parametrize(
    ("cls", "position"),
    [
        (nn.BCEWithLogitsLoss(reduction="none"), "none"),
        (nn.CrossEntropyLoss(reduction="none", weight=torch.tensor([0.3, 1.0, 2.0]).double()), "first"),
        (NegativeProbLoss(reduction="none"), "last"),
        (nn.MultiMarginLoss(reduction="none"), "first"),  # a module of rows
    ],
)
def test_an_assigned_plan_with_background_shares_is_worth_its_dense_form(cls, position, mining) -> None:
    input, target, points = scene(5)
    target["labels"] = target["labels"].clamp(1, 1)
    matcher = TaskAligned()
    values = [
        DetectionLoss(cls, CIoULoss(reduction="none"), rule, position, mining is not None, mining).terms(
            input, target, points
        )
        for rule in (matcher, WeightedSum([matcher]))
    ]
    assert values[0].keys() == values[1].keys()
    assert values[0]["num_pos"] > 0
    for key, value in values[0].items():
        torch.testing.assert_close(value, values[1][key])


def test_a_matched_prediction_in_a_crowd_keeps_its_background_share() -> None:
    input, target, points = scene(5, images=1, targets=4)
    target["mask"][:] = True
    plan = TaskAligned()(input, target | {"mask": torch.tensor([[True, True, True, False]])}, points)
    target["boxes"][0, 3] = torch.tensor([-100.0, -100, 200, 200])
    crowded = TaskAligned()(input, target | {"ignore": torch.tensor([[False, False, False, True]])}, points)
    matched = plan[0, :, :-1].sum(-1) > 0
    assert matched.any()
    assert torch.equal(crowded[0, matched], plan[0, matched])
    assert (crowded[0, ~matched] == 0).all()


def test_scores_none_gives_every_match_a_mass_of_one() -> None:
    input, target, points = scene(5)
    soft, hard = (TaskAligned(scores=s)(input, target, points) for s in ("normalized", None))
    assert torch.equal(hard[..., :-1], (soft[..., :-1] > 0).double())
    assert set(hard.flatten().tolist()) == {0.0, 1.0}


def test_a_target_keeps_at_most_topk2_predictions() -> None:
    input, target, points = scene(13)
    loose, tight = (TaskAligned(topk=7, topk2=n)(input, target, points)[..., :-1] > 0 for n in (None, 1))
    assert loose.sum(1).max() > 1
    assert torch.equal(tight.sum(1), loose.any(1).long())


def test_a_small_target_finds_points_only_once_it_is_grown() -> None:
    points = Points.from_levels([(8, 8), (4, 4)], [8, 16])
    box = torch.tensor([[[30.0, 30.0, 33.0, 33.0]]])
    input = {"pred_logits": torch.zeros(1, 80, 1), "pred_boxes": box.expand(-1, 80, -1).clone()}
    target = {"labels": torch.zeros(1, 1).long(), "boxes": box}
    counts = {
        size: int((TaskAligned(topk=80, min_size=size)(input, target, points)[0, :, 0] > 0).sum())
        for size in (None, 3.0, 8.0, 16.0, "stride")
    }
    assert counts == {None: 0, 3.0: 0, 8.0: 1, 16.0: 5, "stride": 5}
    coarse = Points(points.centers[:64], 8.0)  # a single level is its own second
    assert int((TaskAligned(min_size="stride")(narrow(input, 64), target, coarse)[0, :, 0] > 0).sum()) == 1


def narrow(input: dict[str, Tensor], preds: int) -> dict[str, Tensor]:
    return {k: v[:, :preds] for k, v in input.items()}


def test_a_conflict_goes_to_the_largest_overlap_of_the_targets_of_the_form() -> None:
    # point 0 lies in all three targets; targets 0 and 1 take it, target 2 overlaps it most but prefers point 1
    boxes = torch.tensor([[[0.0, 0, 10, 10], [0, 0, 10, 9], [0, 0, 10, 8]]])
    input = {
        "pred_logits": torch.tensor([[[0.0, 0.0, -9.0], [-20.0, -20.0, 9.0]]]),
        "pred_boxes": torch.tensor([[[0.0, 0, 10, 8.4], [0, 0, 10, 8.0]]]),
    }
    target = {"labels": torch.tensor([[0, 1, 2]]), "boxes": boxes}
    points = Points(torch.tensor([[5.0, 4.0], [5.0, 4.0]]), 1.0)
    options: dict[str, Any] = {"topk": 1, "overlap": "iou", "min_size": None}
    inside, everywhere = (TaskAligned(candidates=c, **options)(input, target, points)[0] for c in ("inside", "all"))
    assert [int(x) for x in inside[..., :-1].argmax(-1)] == [2, 2]
    assert [int(x) for x in everywhere[..., :-1].argmax(-1)] == [1, 2]


def test_one_hot_labels_equal_integer_labels() -> None:
    input, target, points = scene(5)
    one_hot = target | {"labels": nn.functional.one_hot(target["labels"], 3).double()}
    torch.testing.assert_close(TaskAligned()(input, one_hot, points), TaskAligned()(input, target, points))


def test_the_weight_of_a_target_is_an_exponent_of_its_metric() -> None:
    input, target, points = scene(5)
    weighted = target | {"cost_weight": torch.full(target["mask"].shape, 2.0)}
    squared = TaskAligned(alpha=1.0, beta=12.0, eps=0.0)(input, target, points)
    torch.testing.assert_close(TaskAligned(eps=0.0)(input, weighted, points), squared)


def test_the_cost_is_minus_the_logarithm_of_the_metric_and_forbids_points_outside() -> None:
    input, target, points = scene(5, images=1)
    cost = TaskAligned(overlap="iou").compute_cost_matrix(input, target, points)[0]
    seen = set()
    for j in range(5):
        for i in range(len(points.centers)):
            box = target["boxes"][0, j].tolist()
            inside = bool(target["mask"][0, j]) and slow.contains(box, points.centers[i].tolist(), 16.0)
            u = slow.overlap(input["pred_boxes"][0, i].tolist(), box, "iou")
            s = input["pred_logits"][0, i, target["labels"][0, j]].sigmoid()
            expected = (-0.5 * s.log() - 6 * torch.tensor(u).log()).item() if inside and u else float("inf")
            assert cost[i, j].item() == pytest.approx(expected, rel=1e-5)
            seen.add(inside)
    assert seen == {True, False}


def test_match_modules_take_the_place_of_the_metric() -> None:
    class MinusLogScore(nn.Module):
        takes_one_hot = True

        def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
            return -(logits.sigmoid() * labels).sum(-1).log()

    input, target, points = scene(5)
    with_module = TaskAligned(cls_match_module=MinusLogScore())(input, target, points)
    torch.testing.assert_close(with_module, TaskAligned(alpha=1.0, beta=0.0)(input, target, points))


def test_a_bare_cost_ranks_and_weighs_by_itself() -> None:
    cost = torch.tensor([[[50.0, 9.0], [50.0 + 0.6931472, 9.0], [60.0, 9.0]]])
    plan = TaskAligned(topk=2).compute_matching(cost, torch.ones(1, 1, dtype=torch.bool))[0]
    torch.testing.assert_close(plan, torch.tensor([[1.0, 0.0], [0.5, 0.5], [0.0, 1.0]]), rtol=0, atol=1e-5)


def test_a_warm_up_is_a_change_of_matcher() -> None:
    problem = random_problem(2, 20, 4)
    args = problem.input, problem.target, problem.anchors
    bce, ciou = nn.BCEWithLogitsLoss(reduction="none"), CIoULoss(reduction="none")
    initial = Hungarian(loc_match_module=nn.L1Loss(reduction="none"))
    criterion = DetectionLoss(bce, ciou, initial, "none")
    criterion(*args)
    criterion.matching_method = TaskAligned()
    assert torch.equal(criterion(*args), DetectionLoss(bce, ciou, TaskAligned(), "none")(*args))


@pytest.mark.parametrize("candidates", ["inside", "all"])
@pytest.mark.parametrize("offset", [-300.0, 300.0, 5000.0])
def test_a_constant_added_to_the_cost_of_modules_changes_nothing(offset: float, candidates: str) -> None:
    class Shifted(nn.Module):
        def __init__(self, offset: float) -> None:
            super().__init__()
            self.reduction, self.offset = "none", offset

        def forward(self, boxes: Tensor, target: Tensor) -> Tensor:
            return (boxes - target).abs().sum(-1).round() / 8 + self.offset  # exact in float32

    input, target, points = scene(5, dtype=torch.float32)
    plain, shifted = (
        TaskAligned(loc_match_module=Shifted(x), candidates=candidates)(input, target, points) for x in (0.0, offset)
    )
    assert (plain[..., :-1] > 0).sum() > 10
    torch.testing.assert_close(shifted, plain)


@pytest.mark.parametrize("seed", range(40))
def test_listed_pairs_and_all_pairs_give_one_plan(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    input, target, points = scene(seed)
    matcher = TaskAligned(topk=1 + seed % 9, topk2=(None, 2)[seed % 2])
    listed = matcher(input, target, points)
    take_gpu_path(monkeypatch)
    torch.testing.assert_close(matcher(input, target, points), listed)


def test_heavy_targets_keep_their_matches() -> None:
    input, target, points = scene(5, dtype=torch.float32)
    heavy = target | {"cost_weight": torch.full(target["mask"].shape, 40.0)}
    hard = TaskAligned(scores=None)
    assert torch.equal(hard(input, heavy, points), hard(input, target, points))
    plain, soft = TaskAligned()(input, target, points)[..., :-1], TaskAligned()(input, heavy, points)[..., :-1]
    best = plain.amax(1) > 0
    assert best.sum() > 3
    torch.testing.assert_close(soft.amax(1)[best], plain.amax(1)[best], rtol=1e-3, atol=1e-4)


def test_missing_places_say_so() -> None:
    input, target, points = scene(5)
    with pytest.raises(ValueError, match=r"anchors must be given to TaskAligned: .* got None"):
        TaskAligned()(input, target)
    boxes = torch.cat((points.centers - 4, points.centers + 4), -1)
    with pytest.raises(ValueError, match="anchors must have a stride with min_size='stride', got none"):
        TaskAligned()(input, target, boxes)
    without = TaskAligned(min_size=None)(input, target, boxes)
    assert torch.equal(without, TaskAligned(min_size=None)(input, target, points))


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"topk": 0}, ValueError, "topk must be at least 1, got 0"),
        ({"topk2": 1.5}, TypeError, "topk2 must be an integer"),
        ({"alpha": -1.0}, ValueError, "alpha must lie in"),
        ({"beta": "6"}, TypeError, "beta must be a real number"),
        ({"overlap": "giou"}, ValueError, "overlap must be one of"),
        ({"candidates": "none"}, ValueError, "candidates must be one of"),
        ({"scores": "hard"}, ValueError, "scores must be one of"),
        ({"min_size": "level"}, ValueError, "min_size must be one of"),
        ({"min_size": -1.0}, ValueError, "min_size must lie in"),
        ({"eps": -1.0}, ValueError, "eps must lie in"),
    ],
)
def test_bad_arguments_raise(options: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        TaskAligned(**options)
