"""Classes that an image does not have: the loss, the plan and the gradient are those of the logits without them."""

import math

import pytest
import torch
from torch import Tensor, nn

from tests.support.matcher_cases import CASES as MATCHERS
from tests.support.problems import Problem, random_problem
from uotod import loss as losses
from uotod.loss import (
    Branch,
    Branches,
    Classification,
    DetectionLoss,
    GHMCLoss,
    GIoULoss,
    MultipleObjectiveLoss,
    NegativeProbLoss,
    PolyLoss,
    QualityFocalLoss,
    SigmoidFocalCost,
    SigmoidFocalLoss,
    SigmoidPolyLoss,
    SoftmaxFocalLoss,
    VarifocalLoss,
    detection_errors,
)
from uotod.match import ClosestTarget, Hungarian, Matcher, SoftMin, TaskAligned, UnbalancedSinkhorn

N = "none"
L1 = nn.L1Loss(reduction=N)
B, P, T, C = 3, 9, 3, 6


class Rows(nn.CrossEntropyLoss):
    """A cross-entropy of which nothing is known but that it takes rows."""

    def forward(self, input, target):
        return super().forward(input, target)


class OneHotRows(nn.BCEWithLogitsLoss):
    takes_one_hot = True

    def forward(self, input, target):
        return super().forward(input, target)


SOFTMAX = {
    "cross-entropy": nn.CrossEntropyLoss(reduction=N),
    "smoothed": nn.CrossEntropyLoss(reduction=N, label_smoothing=0.2),
    "focal": SoftmaxFocalLoss(reduction=N),
    "focal smoothed": SoftmaxFocalLoss(gamma=0.5, label_smoothing=0.2, reduction=N),
    "poly": PolyLoss(reduction=N),
    "sum": MultipleObjectiveLoss([nn.CrossEntropyLoss(reduction=N), PolyLoss(reduction=N)], [1.0, 0.5]),
    "rows": Rows(reduction=N),
}
SIGMOID = {
    "bce": nn.BCEWithLogitsLoss(reduction=N),
    "focal": SigmoidFocalLoss(alpha=0.25, reduction=N),
    "focal 0.5": SigmoidFocalLoss(gamma=0.5, reduction=N),
    "focal smoothed": SigmoidFocalLoss(label_smoothing=0.2, reduction=N),
    "poly": SigmoidPolyLoss(gamma=1.0, reduction=N),
    "quality": QualityFocalLoss(reduction=N),
    "quality 0.5": QualityFocalLoss(beta=0.5, reduction=N),
    "varifocal": VarifocalLoss(reduction=N),
    "rtdetr": VarifocalLoss(form="rtdetr", reduction=N),
    "matchability": losses.MatchabilityAwareLoss(reduction=N),
    "iou-aware": losses.IoUAwareBCELoss(reduction=N),
    "harmonised": GHMCLoss(reduction=N),
    "rows": OneHotRows(reduction=N),
}
PLANS = {
    "hard": lambda cls: Hungarian(cls_match_module=cls, loc_match_module=L1),
    "several": lambda cls: ClosestTarget(cls_match_module=cls, loc_match_module=L1),
    "dense": lambda cls: SoftMin(cls_match_module=cls, loc_match_module=L1),
    "transport": lambda cls: UnbalancedSinkhorn(cls_match_module=cls, loc_match_module=L1),
    "aligned": lambda cls: TaskAligned(),
}
PRESENT = torch.tensor([True, True, False, True, False, True])  # of six classes


def problem(background: bool, present: Tensor = PRESENT) -> Problem:
    """Return a problem whose targets have classes that are present, and whose absent logits are poison."""
    found = random_problem(B, P, T, C, low=1 if background else 0)
    present = present.expand(B, C)
    allowed = present.clone()
    allowed[:, 0] &= not background
    labels = torch.multinomial(allowed.double(), T, replacement=True)
    found.target["labels"] = torch.where(found.target["mask"], labels, -100)
    with torch.no_grad():
        found.input["pred_logits"].masked_fill_(~present.unsqueeze(1), -math.inf)
    found.input["image_class_mask"] = present.clone()
    return found


def without(found: Problem, present: Tensor, images: slice = slice(None)) -> Problem:
    """Return the problem of some images with the absent classes cut out."""
    place = (present.cumsum(0) - 1).clamp(min=0)
    input = {key: x.detach()[images] for key, x in found.input.items() if key != "image_class_mask"}
    input["pred_logits"] = input["pred_logits"][..., present].requires_grad_()
    target = {key: x[images] for key, x in found.target.items()}
    target["labels"] = torch.where(target["mask"], place[target["labels"].clamp(min=0)], -100)
    return Problem(input, target, found.anchors)


def criterion(cls: nn.Module, cost: nn.Module, matcher: str, position: str) -> DetectionLoss:
    return DetectionLoss(cls, GIoULoss(reduction=N), PLANS[matcher](cost), position, reduction="sum")


def cases() -> list:
    soft = [("first", x, cost) for x in SOFTMAX for cost in ("probability", "own")]
    return soft + [("none", x, cost) for x in SIGMOID for cost in ("focal", "own")]


def build(position: str, name: str, cost: str, matcher: str) -> DetectionLoss:
    cls = (SOFTMAX if position == "first" else SIGMOID)[name]
    soft = isinstance(cls, losses.MatchabilityAwareLoss | losses.IoUAwareBCELoss)
    costs = {"probability": NegativeProbLoss(reduction=N), "focal": SigmoidFocalCost(reduction=N)}
    own = SigmoidFocalLoss(reduction=N) if soft else cls
    return criterion(cls, costs.get(cost, own), matcher, position)


@pytest.mark.parametrize("matcher", PLANS)
@pytest.mark.parametrize(("position", "name", "cost"), cases())
def test_the_loss_is_that_of_the_logits_without_the_absent_classes(matcher, position, name, cost) -> None:
    loss, found = build(position, name, cost, matcher), problem(position == "first")
    value = loss(found.input, found.target, found.anchors)
    value.backward()
    cut = without(found, PRESENT)
    expected = loss(cut.input, cut.target, cut.anchors)
    expected.backward()
    torch.testing.assert_close(value, expected)
    gradient = found.input["pred_logits"].grad
    torch.testing.assert_close(gradient[..., PRESENT], cut.input["pred_logits"].grad)
    assert (gradient[..., ~PRESENT] == 0).all()


@pytest.mark.parametrize("matcher", PLANS)
@pytest.mark.parametrize(
    ("position", "name", "cost"), [x for x in cases() if x[1] not in ("harmonised",)]
)  # which reads all images together
def test_each_image_may_have_classes_of_its_own(matcher, position, name, cost) -> None:
    present = torch.rand(B, C) < 0.6
    present[:, :2] = True
    loss, found = build(position, name, cost, matcher), problem(position == "first", present)
    total = 0
    for b in range(B):
        cut = without(found, present[b], slice(b, b + 1))
        total = total + loss(cut.input, cut.target, cut.anchors)
    torch.testing.assert_close(loss(found.input, found.target, found.anchors), total)


def test_the_mask_is_that_of_all_decoder_layers() -> None:
    loss, found = build("first", "cross-entropy", "probability", "hard"), problem(True)
    earlier = problem(True).input
    terms = loss.terms(found.input | {"aux_outputs": [earlier]}, found.target)
    final, cut = without(found, PRESENT), without(Problem(earlier, found.target, found.anchors), PRESENT)
    expected = loss.terms(final.input | {"aux_outputs": [cut.input]}, final.target)
    for key, value in expected.items():
        torch.testing.assert_close(terms[key], value, msg=key)


@pytest.mark.parametrize("name", ["Hungarian", "TaskAligned", "SimOTA", "OTA", "DynamicSoftLabel", "ATSS-alpha"])
def test_the_plan_is_that_of_the_logits_without_the_absent_classes(name) -> None:
    matcher, found = MATCHERS[name].build(), problem(False)
    cut = without(found, PRESENT)
    plan = matcher(found.input, found.target, found.anchors)
    torch.testing.assert_close(plan, matcher(cut.input, cut.target, cut.anchors))


@pytest.mark.parametrize("quality", ["iou", "score"])
def test_a_quality_does_not_see_them(quality) -> None:
    cls, found = Classification(QualityFocalLoss(reduction=N), quality=quality), problem(False)
    loss = criterion(cls, SigmoidFocalCost(reduction=N), "hard", "none")
    cut = without(found, PRESENT)
    torch.testing.assert_close(loss(found.input, found.target), loss(cut.input, cut.target))
    errors, expected = (detection_errors(x.input, x.target, loss) for x in (found, cut))
    torch.testing.assert_close(errors, expected)


def test_mining_does_not_see_them() -> None:
    found = problem(True)
    loss = DetectionLoss(nn.CrossEntropyLoss(reduction=N), L1, PLANS["hard"](None), "first", True, 2.0)
    cut = without(found, PRESENT)
    torch.testing.assert_close(loss(found.input, found.target), loss(cut.input, cut.target))


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_half_precision_holds_what_stands_for_them(dtype) -> None:
    found = problem(False)
    input = {k: x.detach().to(dtype) if x.is_floating_point() else x for k, x in found.input.items()}
    input["pred_logits"].requires_grad_()
    loss = build("none", "focal", "focal", "hard")(input, found.target)
    loss.backward()
    assert loss.isfinite()
    assert (input["pred_logits"].grad[..., ~PRESENT] == 0).all()


@pytest.mark.parametrize("reader", ["criterion", "matcher"])
@pytest.mark.parametrize("one_hot", [False, True])
@pytest.mark.parametrize("key", ["labels", "cost_labels"])
def test_a_target_of_an_absent_class_raises(reader, one_hot, key) -> None:
    found = problem(False)
    found.target["mask"][1, 0] = True
    found.target["boxes"][1, 0] = torch.tensor([0.1, 0.1, 0.5, 0.5])
    labels = found.target["labels"].clamp(min=0)
    labels = labels.where(PRESENT[labels], 0)
    found.target["labels"] = labels
    wrong = labels.clone()
    wrong[1, 0] = 4
    found.target[key] = nn.functional.one_hot(wrong, C).double() if one_hot else wrong
    loss = build("none", "focal", "focal", "hard")
    module = loss if reader == "criterion" else loss.matching_method
    message = (
        rf"target\['{key}'\] must name classes for which input\['image_class_mask'\] is True, got the absent class 4"
    )
    with pytest.raises(ValueError, match=message + " in image 1"):
        module(found.input, found.target)


@pytest.mark.parametrize("value", [-math.inf, math.inf, math.nan])
def test_a_present_class_must_have_a_finite_logit(value) -> None:
    found = problem(False)
    with torch.no_grad():
        found.input["pred_logits"][2, 1, 3] = value
    with pytest.raises(ValueError, match=r"input\['pred_logits'\] must be finite, got 1 non-finite values in image 2"):
        build("none", "focal", "focal", "hard")(found.input, found.target)


def test_the_background_is_present_everywhere() -> None:
    found = problem(True)
    found.input["image_class_mask"][1, 0] = False
    with pytest.raises(ValueError, match=r"input\['image_class_mask'\] must be True for the background class 0"):
        build("first", "cross-entropy", "probability", "hard")(found.input, found.target)


@pytest.mark.parametrize(
    ("mask", "error", "message"),
    [
        (torch.ones(B, C), TypeError, r"input\['image_class_mask'\] must have dtype torch.bool"),
        (torch.ones(B, C + 1).bool(), ValueError, r"must have shape \(3, 6\) to fit its logits, got \(3, 7\)"),
        (torch.ones(C).bool(), ValueError, r"must have shape \(3, 6\)"),
    ],
)
def test_a_mask_of_another_kind_raises(mask, error, message) -> None:
    found = problem(False)
    for module in (build("none", "focal", "focal", "hard"), PLANS["hard"](None)):
        with pytest.raises(error, match=message):
            module(found.input | {"image_class_mask": mask}, found.target)


def test_a_branch_has_the_classes_of_the_input_unless_it_is_class_agnostic() -> None:
    main, found = build("none", "focal", "focal", "hard"), problem(False)
    agnostic = {"pred_logits": torch.randn(B, P, 1), "pred_boxes": found.input["pred_boxes"]}
    other = {key: x for key, x in problem(False).input.items() if key != "image_class_mask"}
    both = Branches(main, enc_outputs=Branch(main, class_agnostic=True), other_outputs=Branch(main))
    terms = both.terms(found.input | {"enc_outputs": agnostic, "other_outputs": other}, found.target)
    mask = {"image_class_mask": found.input["image_class_mask"]}
    torch.testing.assert_close(terms["loss_other"], main(other | mask, found.target))
    assert terms["loss_enc"].isfinite()


def test_a_matcher_of_ones_own_sees_no_absent_class() -> None:
    class Greedy(Matcher):
        def match(self, cost, mask):
            assert (cost[:, :-1][mask] < 1e9).all()
            return ClosestTarget().match(cost, mask)

    found = problem(False)
    Greedy(cls_match_module=nn.BCEWithLogitsLoss(reduction=N))(found.input, found.target)
