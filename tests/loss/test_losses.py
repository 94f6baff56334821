"""Properties of the sub-losses: limits, references, gradients, edges, reductions and half precision."""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from tests.support.problems import random_boxes
from uotod.cost.adapters import adapt
from uotod.loss import (
    CIoULoss,
    DIoULoss,
    GHMCLoss,
    GIoULoss,
    IoUAwareBCELoss,
    IoULoss,
    MatchabilityAwareLoss,
    MultipleObjectiveLoss,
    NegativeProbLoss,
    ObjectnessLoss,
    PolyLoss,
    QualityFocalLoss,
    SigmoidFocalCost,
    SigmoidFocalLoss,
    SigmoidPolyLoss,
    SoftmaxFocalLoss,
    VarifocalLoss,
)
from uotod.utils import box_iou

BOX_LOSSES = {
    "iou": lambda **o: IoULoss(**o),
    "iou-log": lambda **o: IoULoss(mode="log", **o),
    "iou-square": lambda **o: IoULoss(mode="square", **o),
    "giou": lambda **o: GIoULoss(**o),
    "diou": lambda **o: DIoULoss(**o),
    "ciou": lambda **o: CIoULoss(**o),
}
CLASS_LOSSES = {
    "prob": lambda **o: NegativeProbLoss(**o),
    "focal": lambda **o: SigmoidFocalLoss(alpha=0.25, **o),
    "focal-plain": lambda **o: SigmoidFocalLoss(gamma=0.5, **o),
    "focal-cost": lambda **o: SigmoidFocalCost(**o),
    "focal-smooth": lambda **o: SigmoidFocalLoss(alpha=0.25, label_smoothing=0.1, **o),
    "softmax-focal": lambda **o: SoftmaxFocalLoss(**o),
    "softmax-focal-half": lambda **o: SoftmaxFocalLoss(gamma=0.5, label_smoothing=0.1, **o),
    "poly": lambda **o: PolyLoss(class_weight=torch.tensor([0.5, 1.0, 2.0, 0.1]), **o),
    "sigmoid-poly": lambda **o: SigmoidPolyLoss(gamma=0.5, label_smoothing=0.1, **o),
    "objectness": lambda **o: ObjectnessLoss(negative_weight=0.5, **o),
}
# those that are not affine in the target; half of them hold a part of their gradient constant
SOFT_LOSSES = {
    "qfl": lambda **o: QualityFocalLoss(**o),
    "qfl-half": lambda **o: QualityFocalLoss(beta=0.5, **o),
    "vfl": lambda **o: VarifocalLoss(gamma=0.5, **o),
    "vfl-rtdetr": lambda **o: VarifocalLoss(form="rtdetr", **o),
    "mal": lambda **o: MatchabilityAwareLoss(**o),
    "iabce": lambda **o: IoUAwareBCELoss(gamma=0.5, **o),
    "ghm": lambda **o: GHMCLoss(**o),
}
DETACHED = {"vfl-rtdetr", "mal", "iabce", "ghm"}
AFFINE_LOSSES = CLASS_LOSSES
CLASS_LOSSES = AFFINE_LOSSES | SOFT_LOSSES
ALL = BOX_LOSSES | CLASS_LOSSES


def rows(name: str, count: int = 6, dtype: torch.dtype = torch.float64):
    if name in BOX_LOSSES:
        return random_boxes(count, dtype=dtype).requires_grad_(), random_boxes(count, dtype=dtype)
    return torch.randn(count, 4, dtype=dtype).requires_grad_(), torch.randint(0, 4, (count,))


@pytest.mark.parametrize("name", sorted(set(ALL) - {"ciou", "iou-log"} - DETACHED))
def test_losses_pass_gradcheck(name: str) -> None:
    input, target = rows(name)
    assert torch.autograd.gradcheck(lambda x: ALL[name](reduction="none")(x, target), (input,))


def test_the_trade_off_of_ciou_is_held_constant() -> None:
    input, target = rows("ciou")
    boxes = input.detach()
    w, h = boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1]
    tw, th = target[:, 2] - target[:, 0], target[:, 3] - target[:, 1]
    v = 4 / math.pi**2 * (torch.atan(tw / th) - torch.atan(w / h)) ** 2
    iou = 1 - IoULoss(reduction="none")(boxes, target)
    alpha = v / (1 - iou + v + 1e-7)

    def reference(x: torch.Tensor) -> torch.Tensor:
        angle = torch.atan((x[:, 2] - x[:, 0]) / (x[:, 3] - x[:, 1]))
        aspect = 4 / math.pi**2 * (torch.atan(tw / th) - angle) ** 2
        return DIoULoss(reduction="none")(x, target) + alpha * aspect

    expected = reference(input)
    actual = CIoULoss(reduction="none")(input, target)
    torch.testing.assert_close(actual, expected)
    for a, e in zip(torch.autograd.grad(actual.sum(), input), torch.autograd.grad(expected.sum(), input), strict=True):
        torch.testing.assert_close(a, e)


@pytest.mark.parametrize("name", CLASS_LOSSES)
@pytest.mark.parametrize("scale", [50.0, 1e4, 1e30])
def test_extreme_logits_are_finite(name: str, scale: float) -> None:
    logits = (scale * torch.tensor([[1.0, -1.0, 0.0, 0.5], [0.0, 1.0, 0.0, 0.0]])).requires_grad_()
    for label in (0, 1, 2):
        loss = CLASS_LOSSES[name](reduction="sum")(logits, torch.tensor([label, label]))
        (grad,) = torch.autograd.grad(loss, logits)
        assert loss.isfinite()
        assert grad.isfinite().all()


@pytest.mark.parametrize("name", CLASS_LOSSES)
def test_integer_and_one_hot_targets_agree(name: str) -> None:
    logits, labels = rows(name)
    loss = CLASS_LOSSES[name](reduction="none")
    assert torch.equal(loss(logits, labels), loss(logits, F.one_hot(labels, 4)))


@pytest.mark.parametrize("name", SOFT_LOSSES)
@pytest.mark.parametrize("scale", [50.0, 1e4, 1e30])
def test_extreme_logits_with_a_quality_are_finite(name: str, scale: float) -> None:
    logits = (scale * torch.tensor([[1.0, -1.0, 0.0, 0.5], [0.0, 1.0, 0.0, 0.0]])).requires_grad_()
    quality = torch.tensor([[0.0, 0.3, 0.5, 1.0], [1.0, 0.0, 0.0, 1e-30]])
    for positive in (None, torch.ones(2, 4)):
        loss = CLASS_LOSSES[name](reduction="sum")(logits, quality, positive)
        (grad,) = torch.autograd.grad(loss, logits)
        assert loss.isfinite()
        assert grad.isfinite().all()


@pytest.mark.parametrize("name", AFFINE_LOSSES)
def test_class_terms_are_the_loss_of_a_one_hot_target(name: str) -> None:
    logits, labels = rows(name)
    module = CLASS_LOSSES[name](reduction="none")
    ((_, _, adapter),) = adapt(module)
    terms = adapter.terms(logits)
    value = terms.gain.gather(1, labels[:, None])[:, 0] + (0 if terms.base is None else terms.base)
    loss = module(logits, labels)
    torch.testing.assert_close(value, loss.sum(-1) if loss.dim() > 1 else loss)


def test_focal_loss_without_focus_is_binary_cross_entropy() -> None:
    logits, target = torch.randn(5, 3, dtype=torch.float64), torch.rand(5, 3, dtype=torch.float64).round()
    focal = SigmoidFocalLoss(gamma=0.0, reduction="none")(logits, target)
    torch.testing.assert_close(focal, F.binary_cross_entropy_with_logits(logits, target, reduction="none"))
    half = SigmoidFocalLoss(alpha=0.5, gamma=0.0, reduction="none")(logits, target)
    torch.testing.assert_close(half, 0.5 * focal)


def test_focal_loss_equals_its_formula() -> None:
    logits, target = torch.randn(5, 3, dtype=torch.float64), torch.rand(5, 3, dtype=torch.float64).round()
    p = logits.sigmoid()
    p_t, alpha_t = torch.where(target == 1, p, 1 - p), torch.where(target == 1, 0.3, 0.7)
    expected = -alpha_t * (1 - p_t) ** 1.7 * p_t.log()
    torch.testing.assert_close(SigmoidFocalLoss(alpha=0.3, gamma=1.7, reduction="none")(logits, target), expected)


def test_focal_cost_is_the_change_of_the_focal_loss() -> None:
    logits, labels = torch.randn(5, 3, dtype=torch.float64), torch.randint(0, 3, (5,))
    for alpha in (-1, 0.0, 0.25, 1.0):
        focal = SigmoidFocalLoss(alpha=alpha, reduction="none")
        change = focal(logits, labels).sum(-1) - focal(logits, torch.zeros(5, 3)).sum(-1)
        torch.testing.assert_close(SigmoidFocalCost(alpha=alpha, reduction="none")(logits, labels), change)


def test_negative_probability_equals_its_formula() -> None:
    logits, labels = torch.randn(5, 3, dtype=torch.float64), torch.randint(0, 3, (5,))
    expected = -logits.softmax(-1)[torch.arange(5), labels]
    torch.testing.assert_close(NegativeProbLoss(reduction="none")(logits, labels), expected)


def test_iou_modes_are_functions_of_the_iou() -> None:
    boxes, target = random_boxes(30), random_boxes(30)
    u = box_iou(boxes, target).diagonal()
    tolerance = {"rtol": 0, "atol": 1e-3}  # the loss pads the union with 1e-7
    torch.testing.assert_close(IoULoss(reduction="none")(boxes, target), 1 - u, rtol=0, atol=1e-4)
    torch.testing.assert_close(IoULoss(mode="square", reduction="none")(boxes, target), 1 - u**2, **tolerance)
    torch.testing.assert_close(
        IoULoss(mode="log", reduction="none")(boxes, target), -u.clamp(min=1e-6).log(), **tolerance
    )


@pytest.mark.parametrize("name", BOX_LOSSES)
def test_a_box_costs_nothing_against_itself(name: str) -> None:
    boxes = random_boxes(9) * 1000
    assert BOX_LOSSES[name](reduction="sum")(boxes, boxes).abs() < 1e-9


@pytest.mark.parametrize("name", ["giou", "diou", "ciou"])
def test_disjoint_and_inverted_boxes_have_a_gradient(name: str) -> None:
    for values in ([0.0, 0.0, 0.1, 0.1], [0.4, 0.4, 0.1, 0.2]):
        box = torch.tensor([values], requires_grad=True)
        BOX_LOSSES[name]()(box, torch.tensor([[0.6, 0.6, 0.9, 0.9]])).backward()
        assert box.grad.isfinite().all()
        assert box.grad.abs().sum() > 0


class TestMultipleObjectiveLoss:
    def test_it_is_the_weighted_sum(self) -> None:
        boxes, target = random_boxes(5), random_boxes(5)
        parts = [nn.L1Loss(reduction="none"), GIoULoss(reduction="none")]
        expected = 5 * parts[0](boxes, target).sum(-1) + 2 * parts[1](boxes, target)
        torch.testing.assert_close(MultipleObjectiveLoss(parts, [5, 2])(boxes, target), expected)
        named = MultipleObjectiveLoss({"corners": parts[0], "overlap": parts[1]}, [5, 2])
        torch.testing.assert_close(named(boxes, target), expected)
        assert [part.name for part in named.parts()] == ["corners", "overlap"]

    def test_its_parts_are_registered(self) -> None:
        loss = MultipleObjectiveLoss([nn.CrossEntropyLoss(torch.ones(3), reduction="none")])
        assert list(loss.state_dict()) == ["losses.0.weight"]
        assert loss.double().losses[0].weight.dtype == torch.float64

    def test_nested_sums_are_taken_apart(self) -> None:
        inner = MultipleObjectiveLoss([nn.L1Loss(reduction="none"), nn.L1Loss(reduction="none")], [1, 2])
        outer = MultipleObjectiveLoss({"in": inner, "iou": IoULoss(reduction="none")}, [3, 4])
        assert [(x.name, x.weight) for x in outer.parts()] == [("in_l1", 3), ("in_l1#2", 6), ("iou", 4)]

    def test_reduced_parts_give_a_scalar(self) -> None:
        boxes, target = random_boxes(5), random_boxes(5)
        loss = MultipleObjectiveLoss([nn.L1Loss(), GIoULoss()], [5, 2])(boxes, target)
        torch.testing.assert_close(loss, 5 * nn.L1Loss()(boxes, target) + 2 * GIoULoss()(boxes, target))

    @pytest.mark.parametrize(
        ("arguments", "message", "error"),
        [
            (([],), "losses must hold at least one loss, got none", ValueError),
            (([1],), r"losses\[0\] must be a torch.nn.Module, got 1", TypeError),
            (([nn.L1Loss()], [1, 2]), "weights must hold 1 numbers, one a loss, got 2", ValueError),
            (
                ({"l1_0": nn.L1Loss()},),
                "names of losses must be distinct strings that end in no _number, got 'l1_0'",
                ValueError,
            ),
            (([nn.L1Loss()], [-1.0]), r"weights\[0\] must lie in \[0.0, inf\), got -1.0", ValueError),
            (([nn.L1Loss(), nn.L1Loss(reduction="none")],), "losses must all have reduction='none' or all", ValueError),
        ],
    )
    def test_bad_arguments_raise(self, arguments, message, error) -> None:
        with pytest.raises(error, match=message):
            MultipleObjectiveLoss(*arguments)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: SigmoidFocalLoss(alpha=1.5), r"alpha \(-1 for none\) must lie in \[0.0, 1.0\], got 1.5"),
        (lambda: SigmoidFocalLoss(alpha=-0.5), r"alpha \(-1 for none\) must lie in \[0.0, 1.0\], got -0.5"),
        (lambda: SigmoidFocalLoss(gamma=-1.0), r"gamma must lie in \[0.0, inf\), got -1.0"),
        (lambda: SigmoidFocalLoss(gamma=math.nan), r"gamma must lie in \[0.0, inf\), got nan"),
        (lambda: IoULoss(mode="linaer"), r"mode must be one of \['linear', 'log', 'square'\], got 'linaer'"),
        (lambda: IoULoss(reduction="avg"), r"reduction must be one of \['none', 'mean', 'sum'\], got 'avg'"),
        (lambda: GIoULoss(eps=-1.0), r"eps must lie in \[0.0, inf\), got -1.0"),
        (
            lambda: GIoULoss()(torch.zeros(2, 4), torch.zeros(3, 4)),
            r"same shape \(\.\.\., 4\), got \(2, 4\) and \(3, 4\)",
        ),
        (
            lambda: NegativeProbLoss()(torch.zeros(2, 3), torch.zeros(4).long()),
            r"target must have shape \(2,\) \(integers\)",
        ),
        (lambda: NegativeProbLoss()(torch.zeros(2, 3), torch.tensor([0, 3])), r"target must lie in \[0, 3\), got 3"),
    ],
)
def test_bad_arguments_raise(build, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build()
