"""The matchers of DETR and its successors in transformers find the pairs that `Hungarian` finds."""

from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from tests.support.problems import random_boxes
from uotod.loss import GIoULoss, MultipleObjectiveLoss, NegativeProbLoss, SigmoidFocalCost
from uotod.match import Hungarian
from uotod.utils import box_xyxy_to_cxcywh

pytest.importorskip("transformers")

SIZES = [(12, 4), (20, 7), (12, 1), (6, 0), (4, 6), (1, 3), (1, 1)]  # predictions, targets
IMAGES = 3
ROUNDS = 8  # problems of three images for each size and matcher


class CenterL1(nn.Module):
    """Sum of the absolute differences of centre, width and height of xyxy boxes."""

    reduction = "none"

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        return (box_xyxy_to_cxcywh(input) - box_xyxy_to_cxcywh(target)).abs().sum(-1)


def ours(kind: str, weights, **options) -> Hungarian:
    cls, l1, giou = weights
    cost = NegativeProbLoss(reduction="none") if kind == "softmax" else SigmoidFocalCost(reduction="none")
    return Hungarian(
        cls_match_module=MultipleObjectiveLoss([cost], [cls]),
        loc_match_module=MultipleObjectiveLoss([CenterL1(), GIoULoss(reduction="none")], [l1, giou]),
        **options,
    )


def rt_detr(weights):
    from transformers.loss.loss_rt_detr import RTDetrHungarianMatcher

    names = ("matcher_class_cost", "matcher_bbox_cost", "matcher_giou_cost")
    config = dict(zip(names, weights, strict=True)) | {"matcher_alpha": 0.25, "matcher_gamma": 2.0}
    return RTDetrHungarianMatcher(SimpleNamespace(use_focal_loss=True, **config))


def reference(name: str, weights):
    from transformers.loss import loss_d_fine, loss_deformable_detr, loss_for_object_detection, loss_lw_detr

    if name == "RT-DETR":
        return rt_detr(weights)
    if name == "D-FINE":  # it takes the matcher of RT-DETR
        assert loss_d_fine.RTDetrHungarianMatcher is type(rt_detr(weights))
        return rt_detr(weights)
    return {
        "DETR": loss_for_object_detection.HungarianMatcher,
        "Deformable DETR": loss_deformable_detr.DeformableDetrHungarianMatcher,
        "LW-DETR": loss_lw_detr.LwDetrHungarianMatcher,
    }[name](*weights)


KINDS = {"DETR": "softmax", "Deformable DETR": "focal", "RT-DETR": "focal", "D-FINE": "focal", "LW-DETR": "focal"}


def problem(preds: int, targets: int, *, ties: bool = False) -> tuple[dict[str, Tensor], list[dict[str, Tensor]]]:
    """Return predictions, and targets of which each image has another number; with ties, predictions are repeated."""
    logits, boxes = 2 * torch.randn(IMAGES, preds, 5, dtype=torch.float64), random_boxes(IMAGES, preds)
    if ties:
        logits[:, preds // 2 :], boxes[:, preds // 2 :] = (
            logits[:, : preds - preds // 2],
            boxes[:, : preds - preds // 2],
        )
    counts = [targets, *torch.randint(0, targets + 1, (IMAGES - 1,)).tolist()]
    images = [{"labels": torch.randint(0, 5, (n,)), "boxes": random_boxes(n)} for n in counts]
    return {"pred_logits": logits, "pred_boxes": boxes}, images


def reference_pairs(matcher, input, target, **options) -> list[set[tuple[int, int]]]:
    outputs = {"logits": input["pred_logits"], "pred_boxes": box_xyxy_to_cxcywh(input["pred_boxes"])}
    targets = [{"class_labels": x["labels"], "boxes": box_xyxy_to_cxcywh(x["boxes"])} for x in target]
    found = matcher(outputs, targets, **options)
    return [set(zip(pred.tolist(), index.tolist(), strict=True)) for pred, index in found]


def our_pairs(matcher, input, target) -> list[set[tuple[int, int]]]:
    return [{tuple(pair) for pair in plan[:, :-1].nonzero().tolist()} for plan in matcher(input, target)]


def assert_same_pairs(matcher, kind, input, target, found, *, same: bool) -> None:
    """Compare pairs; their total cost agrees up to the epsilon that the focal references add to probabilities."""
    expected, cost = our_pairs(matcher, input, target), matcher.compute_cost_matrix(input, target)
    for b in range(len(target)):
        assert len(found[b]) == len(expected[b])
        totals = [sum(float(cost[b, i, j]) for i, j in pairs) for pairs in (found[b], expected[b])]
        assert totals[0] == pytest.approx(totals[1], abs=1e-9 if kind == "softmax" else 1e-5)
        if same:
            assert found[b] == expected[b]


@pytest.mark.parametrize("weights", [(1.0, 1.0, 1.0), (2.0, 5.0, 2.0), (1.0, 5.0, 2.0)])
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", KINDS)
def test_hungarian_finds_the_pairs_of_the_reference(name, size, weights) -> None:
    kind = KINDS[name]
    options = {"group_detr": 1} if name == "LW-DETR" else {}
    for _ in range(ROUNDS):
        input, target = problem(*size)
        found = reference_pairs(reference(name, weights), input, target, **options)
        assert_same_pairs(ours(kind, weights), kind, input, target, found, same=True)


@pytest.mark.parametrize("name", KINDS)
def test_the_total_cost_agrees_where_predictions_tie(name) -> None:
    kind, weights = KINDS[name], (2.0, 5.0, 2.0)
    options = {"group_detr": 1} if name == "LW-DETR" else {}
    for _ in range(40):
        input, target = problem(10, 4, ties=True)
        found = reference_pairs(reference(name, weights), input, target, **options)
        assert_same_pairs(ours(kind, weights), kind, input, target, found, same=False)


@pytest.mark.parametrize("size", [(12, 3), (12, 1), (6, 0), (24, 7), (12, 6)])
@pytest.mark.parametrize("groups", [1, 2, 3])
def test_groups_find_the_pairs_of_the_group_matcher(size, groups) -> None:
    weights = (2.0, 5.0, 2.0)
    for _ in range(ROUNDS):
        input, target = problem(*size)
        found = reference_pairs(reference("LW-DETR", weights), input, target, group_detr=groups)
        assert_same_pairs(ours("focal", weights, groups=groups), "focal", input, target, found, same=True)
