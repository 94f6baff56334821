"""The detection loss equals a triple loop written from its formula, and depends on nothing that it should not."""

from functools import partial

import pytest
import torch
from torch import Tensor, nn

from tests.oracles import loss as oracle
from tests.support.matcher_cases import CASES
from tests.support.problems import permuted, random_problem
from uotod.loss import (
    CIoULoss,
    DetectionLoss,
    DIoULoss,
    GIoULoss,
    IoULoss,
    MultipleObjectiveLoss,
    NegativeProbLoss,
    SigmoidFocalLoss,
)

N = "none"
WEIGHT = torch.tensor([0.1, 1.0, 2.0, 0.5, 0.3], dtype=torch.float64)
# module, loop, class weight of the divisor; the first four need no background class
CLASS_LOSSES = {
    "bce": (nn.BCEWithLogitsLoss(reduction=N), oracle.binary_cross_entropy, None),
    "focal": (SigmoidFocalLoss(alpha=0.25, reduction=N), partial(oracle.sigmoid_focal, alpha=0.25), None),
    "focal-plain": (SigmoidFocalLoss(gamma=1.5, reduction=N), partial(oracle.sigmoid_focal, gamma=1.5), None),
    "ce": (nn.CrossEntropyLoss(reduction=N), oracle.cross_entropy, None),
    "ce-weight": (nn.CrossEntropyLoss(WEIGHT, reduction=N), partial(oracle.cross_entropy, weight=WEIGHT), WEIGHT),
    "ce-smooth": (
        nn.CrossEntropyLoss(WEIGHT, label_smoothing=0.1, reduction=N),
        partial(oracle.cross_entropy, weight=WEIGHT, smoothing=0.1),
        WEIGHT,
    ),
    "prob": (NegativeProbLoss(reduction=N), oracle.negative_probability, None),
}
BOX_LOSSES = {
    "l1": (nn.L1Loss(reduction=N), oracle.l1),
    "smooth_l1": (nn.SmoothL1Loss(beta=0.2, reduction=N), partial(oracle.smooth_l1, beta=0.2)),
    "mse": (nn.MSELoss(reduction=N), oracle.mse),
    "iou": (IoULoss(reduction=N), oracle.iou_loss),
    "iou-log": (IoULoss(mode="log", reduction=N), partial(oracle.iou_loss, kind="log")),
    "iou-square": (IoULoss(mode="square", reduction=N), partial(oracle.iou_loss, kind="square")),
    "giou": (GIoULoss(reduction=N), oracle.giou_loss),
    "diou": (DIoULoss(reduction=N), oracle.diou_loss),
    "ciou": (CIoULoss(reduction=N), oracle.ciou_loss),
    "detr": (
        MultipleObjectiveLoss([nn.L1Loss(reduction=N), GIoULoss(reduction=N)], [5.0, 2.0]),
        lambda box, target: 5 * oracle.l1(box, target) + 2 * oracle.giou_loss(box, target),
    ),
}
POSITIONS = {
    "first": ["focal", "ce", "ce-weight", "ce-smooth", "prob"],
    "last": ["bce", "ce-smooth"],
    "none": ["bce", "focal"],
}
CLASS_CASES = [(position, cls) for position, names in POSITIONS.items() for cls in names]


def problem_for(position: str, images: int = 2, preds: int = 7, targets: int = 4):
    return random_problem(images, preds, targets, 5, low=int(position == "first"), high=5 - (position == "last"))


def build(cls: str, loc: str, matcher: str, position: str, mining: float | None, reduction: str) -> DetectionLoss:
    return DetectionLoss(
        CLASS_LOSSES[cls][0],
        BOX_LOSSES[loc][0],
        CASES[matcher].build(),
        position,
        use_hard_negative_mining=mining is not None,
        neg_to_pos_ratio=mining,
        reduction=reduction,
    )


def check(cls: str, loc: str, matcher: str, position: str, mining: float | None, reduction: str) -> None:
    problem = problem_for(position)
    criterion = build(cls, loc, matcher, position, mining, reduction)
    terms = criterion.terms(problem.input, problem.target, problem.anchors)
    _, loop, weight = CLASS_LOSSES[cls]
    expected = oracle.detection_loss(
        problem.input["pred_logits"],
        problem.input["pred_boxes"],
        problem.target["labels"],
        problem.target["boxes"],
        problem.target["mask"],
        criterion.matching_method(problem.input, problem.target, problem.anchors),
        cls=loop,
        loc=BOX_LOSSES[loc][1],
        class_weight=weight,
        bg_class_position=position,
        ratio=mining,
        reduction=reduction,
    )
    for name in ("loss", "loss_cls", "loss_loc"):
        torch.testing.assert_close(terms[name], expected[name], rtol=1e-6, atol=1e-6)
    inputs = list(problem.input.values())
    actual = torch.autograd.grad(terms["loss"], inputs)
    for a, e in zip(actual, torch.autograd.grad(expected["loss"], inputs, allow_unused=True), strict=True):
        torch.testing.assert_close(a, torch.zeros_like(a) if e is None else e, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("matcher", ["Hungarian", "IoUThreshold-band", "ClosestPrediction", "UnbalancedSinkhorn"])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("mining", [None, 1.5])
@pytest.mark.parametrize(("position", "cls"), CLASS_CASES)
def test_the_loss_equals_a_triple_loop(matcher, reduction, mining, position, cls) -> None:
    check(cls, "detr", matcher, position, mining, reduction)


@pytest.mark.parametrize("matcher", CASES)
@pytest.mark.parametrize(("position", "cls", "mining"), [("first", "ce-weight", None), ("none", "focal", 1.5)])
def test_the_loss_of_every_matcher_equals_a_triple_loop(matcher, position, cls, mining) -> None:
    check(cls, "detr", matcher, position, mining, "mean")


@pytest.mark.parametrize("loc", BOX_LOSSES)
@pytest.mark.parametrize("matcher", ["Hungarian", "SoftMin-prediction"])
def test_every_box_loss_equals_its_loop(loc, matcher) -> None:
    check("focal", loc, matcher, "none", None, "mean")


def gradient(criterion: DetectionLoss, input: dict[str, Tensor], target, anchors) -> list[Tensor]:
    leaves = {k: v.detach().requires_grad_() for k, v in input.items()}
    loss = criterion(leaves, target, anchors)
    return [loss.detach(), *torch.autograd.grad(loss, list(leaves.values()))]


@pytest.mark.parametrize("matcher", CASES)
@pytest.mark.parametrize("mining", [None, 1.5])
def test_padding_changes_nothing(matcher, mining) -> None:
    """An interior mask, NaN boxes and impossible labels under the padding give what the bare targets give."""
    problem = problem_for("first", images=1, preds=30, targets=6)
    mask = problem.target["mask"][0]
    assert 0 < mask.sum() < 6
    assert not mask.sort(descending=True).values.equal(mask)  # not a prefix
    criterion = build("ce-smooth", "detr", matcher, "first", mining, "mean")
    padded = gradient(criterion, problem.input, problem.target, problem.anchors)
    bare = gradient(criterion, problem.input, {k: v[:, mask] for k, v in problem.target.items()}, problem.anchors)
    for a, e in zip(padded, bare, strict=True):
        torch.testing.assert_close(a, e, rtol=0, atol=1e-7)


@pytest.mark.parametrize("matcher", CASES)
@pytest.mark.parametrize("mining", [None, 1.5])
def test_the_order_of_predictions_and_targets_changes_nothing(matcher, mining) -> None:
    problem = problem_for("first", images=2, preds=60, targets=4)
    preds, targets = torch.randperm(60), torch.randperm(4)
    criterion = build("ce-smooth", "detr", matcher, "first", mining, "mean")
    loss, *gradients = gradient(criterion, problem.input, problem.target, problem.anchors)
    other = permuted(problem, preds, targets)
    shuffled_loss, *shuffled = gradient(criterion, other.input, other.target, other.anchors)
    torch.testing.assert_close(shuffled_loss, loss, rtol=0, atol=1e-7)
    for a, e in zip(shuffled, gradients, strict=True):
        torch.testing.assert_close(a, e[:, preds], rtol=0, atol=1e-7)


@pytest.mark.parametrize("matcher", CASES)
@pytest.mark.parametrize("mining", [None, 1.5])
def test_the_sum_over_a_batch_is_the_sum_over_its_images(matcher, mining) -> None:
    problem = problem_for("first", images=4, preds=12, targets=4)
    criterion = build("ce-weight", "detr", matcher, "first", mining, "sum")
    loss, *gradients = gradient(criterion, problem.input, problem.target, problem.anchors)
    total = torch.zeros_like(loss)
    for b in range(4):
        one = ({k: v[b : b + 1] for k, v in x.items()} for x in (problem.input, problem.target))
        image_loss, *image_gradients = gradient(criterion, *one, problem.anchors)
        total += image_loss
        for a, e in zip(image_gradients, gradients, strict=True):
            torch.testing.assert_close(a[0], e[b], rtol=0, atol=1e-7)
    torch.testing.assert_close(total, loss, rtol=0, atol=1e-7)
