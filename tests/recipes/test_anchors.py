"""SSD, RetinaNet and unbalanced SSD: loss and gradient equal loops over the published formulas."""

import math

import pytest
import torch
from torch import Tensor, nn

from tests.oracles import anchor_recipes as oracle, loss as loss_oracle
from tests.support.problems import random_boxes
from uotod.loss import DetectionLoss, GIoULoss, IoULoss, PositiveNormalizer, SoftmaxFocalLoss
from uotod.match import ClosestTarget
from uotod.recipes import ALL_RECIPES, retinanet, ssd300, uot_ssd
from uotod.utils import DeltaCoder, pad_targets

SSD_WEIGHTS, ONES = (10.0, 10.0, 5.0, 5.0), (1.0, 1.0, 1.0, 1.0)
IMAGES, PREDS, CLASSES = 3, 40, 4


def problem(seed: int, first_label: int) -> tuple[Tensor, Tensor, Tensor, list[list[oracle.Target]]]:
    """Return logits, deltas, anchors and the targets of three images, of which one or all may have none."""
    torch.manual_seed(seed)
    anchors = 64 * random_boxes(PREDS)
    logits = 2 * torch.randn(IMAGES, PREDS, CLASSES + first_label, dtype=torch.float64)
    deltas = torch.randn(IMAGES, PREDS, 4, dtype=torch.float64)
    batch = []
    for count in ((seed % 6, 0, 3), (1, 5, seed % 3), (0, 0, 0))[seed % 3 if seed % 7 else 2]:
        boxes = 64 * random_boxes(count)
        if seed % 5 == 0 and count:
            boxes[0] = anchors[seed % PREDS]  # an IoU of 1
        batch.append([(box, int(torch.randint(CLASSES, ()) + first_label)) for box in boxes])
    return logits.requires_grad_(), deltas.requires_grad_(), anchors, batch


def padded(batch: list[list[oracle.Target]]) -> dict[str, Tensor]:
    return pad_targets(
        [
            {
                "boxes": torch.stack([box for box, _ in targets]) if targets else torch.zeros(0, 4).double(),
                "labels": torch.tensor([label for _, label in targets]).long(),
            }
            for targets in batch
        ]
    )


def compare(criterion: nn.Module, weights: tuple[float, ...], leaves, anchors, batch, expected, rtol=1e-9) -> None:
    assert isinstance(criterion, DetectionLoss)
    logits, deltas = leaves
    input = {"pred_logits": logits, "pred_boxes": DeltaCoder(weights).decode(deltas, anchors)}
    terms = criterion.terms(input, padded(batch), anchors)
    for name, value in zip(("loss_cls", "loss_loc"), expected, strict=True):
        torch.testing.assert_close(terms[name], value, rtol=rtol, atol=1e-9)
    ours, theirs = (torch.autograd.grad(x, leaves) for x in (terms["loss"], expected[0] + expected[1]))
    for a, e in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, e, rtol=10 * rtol, atol=1e-9)


@pytest.mark.parametrize("beta", [1.0, 0.5])
def test_ssd_equals_a_loop_where_no_targets_share_their_best_anchor(beta: float) -> None:
    compared = 0
    for seed in range(60):
        *leaves, anchors, batch = problem(seed, first_label=1)
        if any(oracle.share_a_best_anchor(anchors, targets) for targets in batch):
            continue
        expected = oracle.ssd(*leaves, anchors, batch, beta=beta)
        compare(ssd300(CLASSES, beta=beta), SSD_WEIGHTS, leaves, anchors, batch, expected)
        compared += 1
    assert compared >= 30


def test_ssd_gives_targets_that_share_their_best_anchor_one_each() -> None:
    anchors = torch.tensor([[0.0, 0.0, 4.0, 4.0], [8.0, 8.0, 12.0, 12.0], [8.0, 8.0, 12.0, 13.0]])
    target = {"boxes": torch.tensor([[[0.0, 0.0, 4.0, 3.0], [0.0, 0.0, 3.0, 3.0]]]), "labels": torch.tensor([[1, 2]])}
    input = {"pred_logits": torch.zeros(1, 3, 3), "pred_boxes": anchors[None]}
    plan = ssd300(2).matching_method(input, target, anchors)[0]
    assert plan[:, 0].tolist() == [1, 0, 0]
    assert plan[:, 1].sum() == 1
    both = [(box, label) for box, label in zip(target["boxes"][0], (1, 2), strict=True)]
    assert oracle.match_ssd(anchors, both).count(0) == 0  # written over


@pytest.mark.parametrize("style", ["torchvision", "detectron2"])
def test_retinanet_equals_a_loop(style: str) -> None:
    for seed in range(40):
        *leaves, anchors, batch = problem(seed, first_label=0)
        options = {"torchvision": {}, "detectron2": {"beta": 0.1, "average": 100.0}}[style]
        expected = oracle.retinanet(*leaves, anchors, batch, **options)
        compare(retinanet(CLASSES, style=style), ONES, leaves, anchors, batch, expected)


def test_the_moving_average_of_retinanet_is_that_of_detectron2() -> None:
    criterion, average = retinanet(CLASSES, style="detectron2"), 100.0
    for seed in range(1, 6):
        *leaves, anchors, batch = problem(seed, first_label=0)
        expected = oracle.retinanet(*leaves, anchors, batch, beta=0.1, average=average)
        compare(criterion, ONES, leaves, anchors, batch, expected, rtol=1e-6)  # its buffer is float32
        input = {"pred_logits": leaves[0], "pred_boxes": DeltaCoder(ONES).decode(leaves[1], anchors)}
        criterion.normalizer.update(criterion.terms(input, padded(batch), anchors)["num_pos"])
        positives = sum(sum(j >= 0 for j in oracle.match_retinanet(anchors, targets)) for targets in batch)
        average = 0.9 * average + 0.1 * max(positives, 1)
        assert math.isclose(float(criterion.normalizer.average), average, rel_tol=1e-6)


def test_unbalanced_ssd_equals_a_loop_over_its_plan() -> None:
    for seed in range(24):
        *leaves, anchors, batch = problem(seed, first_label=1)
        criterion, target = uot_ssd(CLASSES), padded(batch)
        input = {"pred_logits": leaves[0], "pred_boxes": DeltaCoder(SSD_WEIGHTS).decode(leaves[1], anchors)}
        plan = criterion.matching_method(input, target, anchors)

        # the formula's box loss is of one pair: that of SSD, whose anchor is found by its prediction
        def loc(box: Tensor, other: Tensor, boxes: Tensor = input["pred_boxes"], anchors: Tensor = anchors) -> Tensor:
            at = (boxes == box).all(-1).nonzero()[0, 1]
            ours, theirs = (oracle.encode(x, anchors[at], SSD_WEIGHTS) for x in (box, other))
            return oracle.smooth_l1(ours - theirs, 1.0)

        expected = loss_oracle.detection_loss(
            *input.values(),
            *(target[key] for key in ("labels", "boxes", "mask")),
            plan,
            cls=loss_oracle.cross_entropy,
            loc=loc,
            ratio=3.0,
        )
        compare(criterion, SSD_WEIGHTS, leaves, anchors, batch, (expected["loss_cls"], expected["loss_loc"]))


def test_the_cost_of_unbalanced_ssd_is_one_minus_the_iou_of_the_anchors() -> None:
    logits, deltas, anchors, batch = problem(1, first_label=1)
    input = {"pred_logits": logits, "pred_boxes": DeltaCoder(SSD_WEIGHTS).decode(deltas, anchors)}
    cost = uot_ssd(CLASSES).matching_method.compute_cost_matrix(input, padded(batch), anchors)
    for image, targets in zip(cost, batch, strict=True):
        expected = 1 - torch.tensor(oracle.overlaps(anchors, targets), dtype=torch.float64).view(PREDS, -1)
        torch.testing.assert_close(image[:, : len(targets)], expected)
        assert (image[:, -1] == 0.5).all()


def test_without_penalties_on_targets_unbalanced_ssd_is_ssd_without_forced_matches() -> None:
    *_, anchors, batch = problem(1, first_label=1)
    input = {"pred_logits": torch.zeros(IMAGES, PREDS, CLASSES + 1), "pred_boxes": anchors.expand(IMAGES, -1, -1)}
    limit = uot_ssd(CLASSES, reg_pred=math.inf, reg_target=0.0, reg_dimless=1e-3).matching_method
    rule = ClosestTarget(loc_match_module=IoULoss(reduction="none"), background_cost=0.5, is_anchor_based=True)
    plans = [matcher(input, padded(batch), anchors) for matcher in (limit, rule)]
    torch.testing.assert_close(plans[0], plans[1], rtol=0, atol=1e-4, check_dtype=False)


@pytest.mark.parametrize("name", ["retinanet", "ssd300", "uot_ssd"])
def test_any_part_can_be_exchanged(name: str) -> None:
    parts: dict[str, nn.Module] = {
        "matcher": ClosestTarget(loc_match_module=IoULoss(reduction="none"), is_anchor_based=True),
        "cls": SoftmaxFocalLoss(reduction="none"),
        "loc": GIoULoss(reduction="none"),
        "normalizer": PositiveNormalizer(),
    }
    attributes = {"matcher": "matching_method", "cls": "cls_loss_module", "loc": "loc_loss_module"}
    attributes["normalizer"], published = "normalizer", ALL_RECIPES[name](3)
    for part, value in parts.items():
        given = {"losses": {part: value}} if part in ("cls", "loc") else {part: value}
        criterion = ALL_RECIPES[name](3, **given)
        for other, attribute in attributes.items():
            found = getattr(criterion, attribute)
            if other == part:
                assert found is value
            else:
                assert repr(found) == repr(getattr(published, attribute))


@pytest.mark.parametrize("name", ["retinanet", "ssd300", "uot_ssd"])
def test_bad_arguments_raise(name: str) -> None:
    with pytest.raises(ValueError, match="num_classes must be at least 1, got 0"):
        ALL_RECIPES[name](0)
    with pytest.raises(TypeError, match="matching_method must be a Matcher"):
        ALL_RECIPES[name](3, matcher=nn.Identity())
    with pytest.raises(ValueError, match=r"style must be one of \['torchvision', 'detectron2'\], got 'keras'"):
        retinanet(3, style="keras")
