"""The classification losses equal scalar loops and the published implementations, and tend to known limits."""

import math
from functools import partial

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.oracles import classify as oracle
from tests.oracles.loss import binary_cross_entropy, sigmoid_focal
from tests.support.peers import peer
from uotod.loss import (
    GHMCLoss,
    IoUAwareBCELoss,
    MatchabilityAwareLoss,
    ObjectnessLoss,
    PolyLoss,
    QualityFocalLoss,
    SigmoidFocalLoss,
    SigmoidPolyLoss,
    SoftmaxFocalLoss,
    VarifocalLoss,
)

N = "none"
SOFT = {
    "qfl": (QualityFocalLoss(reduction=N), oracle.quality_focal),
    "qfl-1.5": (QualityFocalLoss(beta=1.5, reduction=N), partial(oracle.quality_focal, beta=1.5)),
    "vfl": (VarifocalLoss(reduction=N), oracle.varifocal),
    "vfl-rtdetr": (VarifocalLoss(form="rtdetr", alpha=0.6, reduction=N), partial(oracle.varifocal_rtdetr, alpha=0.6)),
    "vfl-ultralytics": (
        VarifocalLoss(form="ultralytics", alpha=0.25, gamma=1.5, reduction=N),
        partial(oracle.varifocal_ultralytics, alpha=0.25, gamma=1.5),
    ),
    "mal": (MatchabilityAwareLoss(reduction=N), oracle.matchability),
    "mal-alpha": (
        MatchabilityAwareLoss(alpha=0.4, gamma=2.0, reduction=N),
        partial(oracle.matchability, alpha=0.4, gamma=2.0),
    ),
    "iabce": (IoUAwareBCELoss(reduction=N), oracle.iou_aware),
    "iabce-0": (IoUAwareBCELoss(alpha=0.0, gamma=1.0, reduction=N), partial(oracle.iou_aware, alpha=0.0, gamma=1.0)),
}
WEIGHT = torch.tensor([0.1, 1.0, 2.0, 0.5], dtype=torch.float64)
SOFTMAX = {
    "focal": (SoftmaxFocalLoss(reduction=N), oracle.softmax_focal),
    "focal-weight": (
        SoftmaxFocalLoss(gamma=1.5, class_weight=WEIGHT, label_smoothing=0.1, reduction=N),
        partial(oracle.softmax_focal, gamma=1.5, weight=WEIGHT, smoothing=0.1),
    ),
    "poly": (PolyLoss(reduction=N), oracle.poly),
    "poly-weight": (
        PolyLoss(epsilon=-0.5, class_weight=WEIGHT, label_smoothing=0.2, reduction=N),
        partial(oracle.poly, epsilon=-0.5, weight=WEIGHT, smoothing=0.2),
    ),
}


def qualities(rows: int, classes: int = 4) -> tuple[Tensor, Tensor]:
    """Return qualities with zeros for negatives, ones and pairs of quality 0 among them, and the one-hot label."""
    positive = (torch.rand(rows, classes) < 0.4).double()
    quality = torch.rand(rows, classes, dtype=torch.float64) * positive
    quality = torch.where((torch.rand(rows, classes) < 0.2) & (positive > 0), quality.round(), quality)
    return quality, positive


def close_with_gradients(actual: Tensor, expected: Tensor, *inputs: Tensor, **tolerance: float) -> None:
    torch.testing.assert_close(actual, expected, **tolerance)
    for a, e in zip(
        torch.autograd.grad(actual.sum(), inputs), torch.autograd.grad(expected.sum(), inputs), strict=True
    ):
        torch.testing.assert_close(a, e, **tolerance)


@pytest.mark.parametrize("name", SOFT)
def test_a_soft_loss_equals_its_loop(name: str) -> None:
    module, scalar = SOFT[name]
    for _ in range(100):
        logits = (3 * torch.randn(5, 4, dtype=torch.float64)).requires_grad_()
        quality, positive = qualities(5)
        expected = torch.stack(
            [
                torch.stack([scalar(logits[i, c], float(quality[i, c]), float(positive[i, c])) for c in range(4)])
                for i in range(5)
            ]
        )
        close_with_gradients(module(logits, quality, positive), expected, logits)


@pytest.mark.parametrize("name", SOFT)
def test_the_positives_are_the_classes_of_positive_quality(name: str) -> None:
    module, _ = SOFT[name]
    logits, (quality, _) = torch.randn(6, 4, dtype=torch.float64), qualities(6)
    assert torch.equal(module(logits, quality), module(logits, quality, quality > 0))


@pytest.mark.parametrize("name", SOFTMAX)
def test_a_softmax_loss_equals_its_loop(name: str) -> None:
    module, row = SOFTMAX[name]
    for _ in range(100):
        logits = (3 * torch.randn(5, 4, dtype=torch.float64)).requires_grad_()
        labels = torch.randint(0, 4, (5,))
        expected = torch.stack([row(logits[i], int(labels[i])) for i in range(5)])
        close_with_gradients(module(logits, labels), expected, logits)


@pytest.mark.parametrize(("epsilon", "gamma"), [(1.0, 0.0), (-1.0, 2.0), (0.5, 0.5)])
def test_the_sigmoid_poly_loss_equals_its_loop(epsilon: float, gamma: float) -> None:
    module = SigmoidPolyLoss(epsilon=epsilon, gamma=gamma, reduction=N)
    for _ in range(100):
        logits, labels = torch.randn(5, 3, dtype=torch.float64).requires_grad_(), torch.randint(0, 3, (5,))
        expected = torch.stack(
            [
                torch.stack(
                    [oracle.sigmoid_poly(logits[i, c], float(labels[i] == c), epsilon, gamma) for c in range(3)]
                )
                for i in range(5)
            ]
        )
        close_with_gradients(module(logits, labels), expected, logits)


class TestLimits:
    logits = torch.linspace(-6, 6, 40, dtype=torch.float64).view(10, 4)
    labels = torch.arange(10) % 4

    def bce(self, target: Tensor) -> Tensor:
        return F.binary_cross_entropy_with_logits(self.logits, target, reduction=N)

    def test_softmax_losses_without_focus_are_the_cross_entropy(self) -> None:
        for options in ({}, {"label_smoothing": 0.1}):
            expected = nn.CrossEntropyLoss(WEIGHT, reduction=N, **options)(self.logits, self.labels)
            for module in (
                SoftmaxFocalLoss(gamma=0.0, class_weight=WEIGHT, reduction=N, **options),
                PolyLoss(epsilon=0.0, class_weight=WEIGHT, reduction=N, **options),
            ):
                torch.testing.assert_close(module(self.logits, self.labels), expected)

    def test_soft_losses_without_focus_are_the_binary_cross_entropy(self) -> None:
        quality, positive = qualities(10)
        one_hot = F.one_hot(self.labels, 4).double()
        torch.testing.assert_close(QualityFocalLoss(beta=0.0, reduction=N)(self.logits, quality), self.bce(quality))
        for module in (
            VarifocalLoss(alpha=1.0, gamma=0.0, reduction=N),
            VarifocalLoss(alpha=1.0, gamma=0.0, form="rtdetr", reduction=N),
            MatchabilityAwareLoss(gamma=0.0, reduction=N),
            GHMCLoss(bins=1, reduction=N),
            SigmoidPolyLoss(epsilon=0.0, reduction=N),
            ObjectnessLoss(reduction=N),
        ):
            torch.testing.assert_close(module(self.logits, self.labels), self.bce(one_hot))
        torch.testing.assert_close(GHMCLoss(bins=1, reduction=N)(self.logits, quality), self.bce(quality))
        clipped = torch.where(positive > 0, quality.clamp(min=0.01), 0)
        aware = IoUAwareBCELoss(alpha=0.0, gamma=0.0, reduction=N)(self.logits, quality, positive)
        torch.testing.assert_close(aware, self.bce(clipped))

    def test_losses_of_hard_labels_are_the_focal_loss(self) -> None:
        focal = SigmoidFocalLoss(gamma=1.5, reduction=N)(self.logits, self.labels)
        torch.testing.assert_close(QualityFocalLoss(beta=1.5, reduction=N)(self.logits, self.labels), focal)
        poly = SigmoidPolyLoss(epsilon=0.0, gamma=1.5, reduction=N)(self.logits, self.labels)
        torch.testing.assert_close(poly, focal)

    @pytest.mark.parametrize("form", ["rtdetr", "ultralytics"])
    def test_the_varifocal_losses_agree_on_pairs_of_positive_quality(self, form: str) -> None:
        quality, _ = qualities(10)
        forms = [VarifocalLoss(form=x, reduction=N)(self.logits, quality) for x in ("varifocal", form)]
        torch.testing.assert_close(*forms)

    def test_a_pair_of_quality_zero_is_taught_by_the_matchability_aware_loss_only(self) -> None:
        logits, zero, one = torch.tensor([[2.0]]), torch.zeros(1, 1), torch.ones(1, 1)
        assert VarifocalLoss(form="rtdetr")(logits, zero, one) == 0
        torch.testing.assert_close(MatchabilityAwareLoss()(logits, zero, one), F.softplus(logits).sum())

    def test_a_quality_is_the_best_score(self) -> None:
        """Without focus the loss is least where the score is the quality."""
        quality = torch.full((401, 1), 0.3, dtype=torch.float64)
        scores = torch.linspace(0.1, 0.5, 401, dtype=torch.float64)[:, None]
        for module in (
            QualityFocalLoss(reduction=N),
            VarifocalLoss(reduction=N),
            VarifocalLoss(form="rtdetr", reduction=N),
            MatchabilityAwareLoss(gamma=1.0, reduction=N),
            IoUAwareBCELoss(alpha=0.0, reduction=N),
        ):
            best = scores[module(scores.logit(), quality).argmin()]
            torch.testing.assert_close(best.squeeze(), quality[0, 0], rtol=0, atol=1e-3)


class TestLabelSmoothing:
    def test_a_smoothed_label_is_spread_over_the_classes(self) -> None:
        logits, labels = torch.randn(6, 4, dtype=torch.float64), torch.randint(0, 4, (6,))
        smooth = 0.9 * F.one_hot(labels, 4).double() + 0.1 / 4
        for make in (partial(SigmoidFocalLoss, gamma=1.5), SigmoidPolyLoss):
            expected = make(reduction=N)(logits, smooth)
            torch.testing.assert_close(make(label_smoothing=0.1, reduction=N)(logits, labels), expected)
        bce = SigmoidFocalLoss(gamma=0.0, label_smoothing=0.1, reduction=N)(logits, labels)
        torch.testing.assert_close(bce, F.binary_cross_entropy_with_logits(logits, smooth, reduction=N))

    def test_the_background_stays_zero(self) -> None:
        logits, zeros = torch.randn(6, 4), torch.zeros(6, 4)
        for make in (SigmoidFocalLoss, SigmoidPolyLoss):
            assert torch.equal(make(label_smoothing=0.1)(logits, zeros), make()(logits, zeros))


class TestGHMC:
    @pytest.mark.parametrize("bins", [1, 3, 10])
    def test_it_equals_its_loop(self, bins: int) -> None:
        for _ in range(100):
            logits = (3 * torch.randn(6, 3, dtype=torch.float64)).requires_grad_()
            target = torch.rand(6, 3, dtype=torch.float64).round(decimals=1) * (torch.rand(6, 3) < 0.5)
            expected = oracle.ghm(logits, target, bins=bins)
            close_with_gradients(GHMCLoss(bins=bins, reduction=N)(logits, target), expected, logits)

    def test_the_weights_average_to_one(self) -> None:
        logits, target = 3 * torch.randn(50, 4, dtype=torch.float64), torch.rand(50, 4).double().round()
        weight = GHMCLoss(reduction=N)(logits, target) / F.binary_cross_entropy_with_logits(logits, target, reduction=N)
        torch.testing.assert_close(weight.mean(), torch.ones((), dtype=torch.float64))


class TestReferences:
    def test_ultralytics(self) -> None:
        reference = peer("ultralytics.utils.loss")
        for _ in range(50):
            logits = (2 * torch.randn(7, 4, dtype=torch.float32)).requires_grad_()
            labels = F.one_hot(torch.randint(0, 5, (7,)), 5)[:, :4].float()
            quality = torch.rand(7, 4) * labels * (torch.rand(7, 1) < 0.7)  # pairs that do not overlap among them
            varifocal = reference.VarifocalLoss(gamma=2.0, alpha=0.75)
            expected = varifocal(logits, quality, labels)  # mean over classes, Σ over rows
            ours = VarifocalLoss(form="ultralytics", reduction=N)(logits, quality, labels).sum() / 4
            close_with_gradients(ours, expected, logits)
            expected = reference.FocalLoss(gamma=1.5, alpha=0.25)(logits, labels)
            ours = SigmoidFocalLoss(gamma=1.5, alpha=0.25, reduction="sum")(logits, labels) / 4
            close_with_gradients(ours, expected, logits)

    def test_mmdetection(self) -> None:
        gfl = peer("mmdet.models.losses.gfocal_loss")
        vfl = peer("mmdet.models.losses.varifocal_loss")
        ghm = peer("mmdet.models.losses.ghm_loss")
        for _ in range(50):
            logits = (2 * torch.randn(7, 4, dtype=torch.float64)).requires_grad_()
            labels = torch.randint(0, 5, (7,))
            one_hot = F.one_hot(labels, 5)[:, :4].double()
            score = 0.01 + 0.99 * torch.rand(7, dtype=torch.float64)
            quality = score[:, None] * one_hot
            expected = gfl.QualityFocalLoss(beta=2.0, reduction=N)(logits, (labels, score))
            close_with_gradients(QualityFocalLoss(reduction=N)(logits, quality).sum(-1), expected, logits)
            expected = vfl.VarifocalLoss(reduction=N)(logits, quality)
            close_with_gradients(VarifocalLoss(reduction=N)(logits, quality), expected, logits)
            expected = ghm.GHMC(bins=10, momentum=0)(logits, one_hot, torch.ones(7, 4))
            close_with_gradients(GHMCLoss()(logits, one_hot), expected, logits)


@pytest.mark.parametrize(
    ("build", "error", "message"),
    [
        (lambda: QualityFocalLoss(beta=-1.0), ValueError, r"beta must lie in \[0.0, inf\), got -1.0"),
        (
            lambda: VarifocalLoss(form="mmdet"),
            ValueError,
            r"form must be one of \['varifocal', 'rtdetr', 'ultralytics'\], got 'mmdet'",
        ),
        (lambda: VarifocalLoss(alpha=math.inf), ValueError, r"alpha must lie in \[0.0, inf\), got inf"),
        (lambda: MatchabilityAwareLoss(gamma=-1.0), ValueError, r"gamma must lie in \[0.0, inf\), got -1.0"),
        (lambda: IoUAwareBCELoss(alpha=1.5), ValueError, r"alpha must lie in \[0.0, 1.0\], got 1.5"),
        (lambda: SoftmaxFocalLoss(gamma=-1.0), ValueError, r"gamma must lie in \[0.0, inf\), got -1.0"),
        (lambda: SoftmaxFocalLoss(class_weight=[1.0]), ValueError, r"class_weight must be a tensor of shape \(C,\)"),
        (lambda: PolyLoss(label_smoothing=1.5), ValueError, r"label_smoothing must lie in \[0.0, 1.0\], got 1.5"),
        (lambda: PolyLoss(epsilon=-2.0), ValueError, r"epsilon must lie in \[-1.0, inf\), got -2.0"),
        (lambda: GHMCLoss(bins=0), ValueError, "bins must be at least 1, got 0"),
        (lambda: ObjectnessLoss(negative_weight=-1.0), ValueError, r"negative_weight must lie in \[0.0, inf\)"),
        (
            lambda: QualityFocalLoss()(torch.zeros(2, 3), torch.zeros(2, 3), torch.zeros(2)),
            ValueError,
            r"positive must have shape \(2, 3\), got \(2,\)",
        ),
        (
            lambda: QualityFocalLoss()(torch.zeros(2, 3), torch.zeros(3, 3)),
            ValueError,
            r"target must have shape \(2,\) \(integers\)",
        ),
    ],
)
def test_bad_arguments_raise(build, error, message: str) -> None:
    with pytest.raises(error, match=message):
        build()


def test_the_loops_agree_with_those_of_the_linear_losses() -> None:
    x = torch.randn(4, dtype=torch.float64)
    zero_one = [float(c == 2) for c in range(4)]
    bce = sum(oracle.soft_bce(x[c], zero_one[c], zero_one[c]) for c in range(4))
    torch.testing.assert_close(bce, binary_cross_entropy(x, 2))
    qfl = sum(oracle.quality_focal(x[c], zero_one[c], zero_one[c]) for c in range(4))
    torch.testing.assert_close(qfl, sigmoid_focal(x, 2))
