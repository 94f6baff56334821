"""Losses that are evaluated block by block, with a gradient made on the way, are those that autograd finds."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from tests.support.costs import row_values, row_values_by_autograd
from uotod.cost import blocks
from uotod.cost.adapters import adapt
from uotod.cost.kinds import Affine, ClassTerms
from uotod.cost.labels import ClassLabels
from uotod.loss import (
    ConfidenceLoss,
    GHMCLoss,
    PolyLoss,
    QualityFocalLoss,
    SigmoidFocalLoss,
    SigmoidPolyLoss,
    SoftmaxFocalLoss,
    VarifocalLoss,
)

N = "none"
B, P, C = 3, 14, 6
WEIGHT = torch.tensor([0.5, 1.0, 2.0, 1.5, 0.0, 1.0], dtype=torch.float64)


class Learned(nn.Module):
    """A loss of rows with a weight of its own; `affine` adds the fast form."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(1.5, dtype=torch.float64))

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        return self.scale * nn.functional.cross_entropy(input, target, reduction=N)


class LearnedAffine(SigmoidFocalLoss):
    def __init__(self) -> None:
        super().__init__(reduction=N)
        self.scale = nn.Parameter(torch.tensor(1.5, dtype=torch.float64))

    def adapter(self) -> Affine:
        return Affine(self, self.scaled_terms)

    def scaled_terms(self, logits: Tensor) -> ClassTerms:
        gain, base = super().adapter().terms(logits)
        return ClassTerms(self.scale * gain, self.scale * base)

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        return self.scale * super().forward(input, target)


MODULES: dict[str, Callable[[], nn.Module]] = {
    "cross_entropy": lambda: nn.CrossEntropyLoss(reduction=N),
    "weighted": lambda: nn.CrossEntropyLoss(weight=WEIGHT, reduction=N, ignore_index=2),
    "smoothed": lambda: nn.CrossEntropyLoss(reduction=N, label_smoothing=0.2),
    "bce": lambda: nn.BCEWithLogitsLoss(reduction=N),
    "bce_weighted": lambda: nn.BCEWithLogitsLoss(reduction=N, pos_weight=WEIGHT),
    "focal": lambda: SigmoidFocalLoss(alpha=0.25, reduction=N),
    "focal_gamma_1": lambda: SigmoidFocalLoss(gamma=1.0, reduction=N),
    "focal_gamma_0": lambda: SigmoidFocalLoss(alpha=0.7, gamma=0.0, reduction=N),
    "focal_gamma_1.5": lambda: SigmoidFocalLoss(gamma=1.5, reduction=N),
    "focal_smoothed": lambda: SigmoidFocalLoss(label_smoothing=0.1, reduction=N),
    "softmax_focal": lambda: SoftmaxFocalLoss(reduction=N),
    "poly": lambda: PolyLoss(reduction=N),
    "sigmoid_poly": lambda: SigmoidPolyLoss(gamma=2.0, reduction=N),
    "qfl": lambda: QualityFocalLoss(reduction=N),
    "vfl": lambda: VarifocalLoss(reduction=N),
    "confidence": lambda: ConfidenceLoss(reduction=N),
    "learned_affine": LearnedAffine,
}


def logits_of(scale: float = 2.0) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    logits = scale * torch.randn(B, P, C, generator=generator, dtype=torch.float64)
    logits[0, 0] = torch.tensor([90.0, -90.0, 0.0, 700.0, -700.0, 3.0])
    return logits.requires_grad_()


def labels_of(soft: bool, bg_class: int | None, mined: bool) -> ClassLabels:
    generator = torch.Generator().manual_seed(1)
    none = C if bg_class is None else bg_class
    index = torch.randint(0, C, (B, P), generator=generator)
    index = index.where(torch.rand(B, P, generator=generator) < 0.5, none)
    mass = torch.rand(B, P, generator=generator, dtype=torch.float64)
    positive, background = mass * (index != none), mass * (index == none) + 0.1
    if mined:
        background = background * (torch.rand(B, P, generator=generator) < 0.2)
        positive = positive * (torch.rand(B, P, generator=generator) < 0.3)
    if not soft:
        return ClassLabels(positive, background, index, None, bg_class)
    shares = torch.rand(B, P, C, generator=generator, dtype=torch.float64).softmax(-1) * positive.unsqueeze(-1)
    return ClassLabels(positive, background, None, shares, bg_class)


@pytest.mark.parametrize("mined", [False, True])
@pytest.mark.parametrize("soft", [False, True])
@pytest.mark.parametrize("bg_class", [None, 0, C - 1])
@pytest.mark.parametrize("name", list(MODULES))
def test_blocks_have_the_values_and_gradients_of_autograd(name, bg_class, soft, mined, monkeypatch) -> None:
    module, logits, labels = MODULES[name](), logits_of(), labels_of(soft, bg_class, mined)
    assert all(part.adapter.by_row for part in adapt(module))
    expected = row_values_by_autograd(module, logits, labels)
    outer = torch.rand(B, P, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    (slope,) = torch.autograd.grad(expected, logits, outer, retain_graph=True)
    for elements in (1 << 17, 5 * C):
        monkeypatch.setattr(blocks, "MAX_ROW_ELEMENTS", elements)
        values = row_values(module, logits, labels)
        torch.testing.assert_close(values, expected, rtol=1e-12, atol=1e-12)
        (actual,) = torch.autograd.grad(values, logits, outer, retain_graph=True)
        torch.testing.assert_close(actual, slope, rtol=1e-11, atol=1e-12)
        (again,) = torch.autograd.grad(values, logits, 2 * outer)
        torch.testing.assert_close(again, 2 * slope, rtol=1e-11, atol=1e-12)
    with torch.no_grad():
        torch.testing.assert_close(row_values(module, logits, labels), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", ["cross_entropy", "weighted", "bce", "focal", "qfl"])
def test_a_second_derivative_is_right(name) -> None:
    logits, labels = logits_of().detach()[:, 1:4].requires_grad_(), labels_of(False, None, False)
    some = ClassLabels(*(x[:, 1:4] for x in (labels.positive, labels.background, labels.index)), None, None)
    module = MODULES[name]()
    torch.autograd.gradgradcheck(lambda x: row_values(module, x, some), (logits,))


def test_float32_is_as_exact_as_autograd() -> None:
    logits = (4 * torch.randn(2, 50, 20, generator=torch.Generator().manual_seed(0))).requires_grad_()
    index = torch.randint(0, 20, (2, 50), generator=torch.Generator().manual_seed(1))
    labels = ClassLabels(torch.ones(2, 50), torch.zeros(2, 50), index, None, None)
    for name in ("cross_entropy", "bce", "focal"):
        exact = row_values_by_autograd(MODULES[name](), logits.double(), labels)
        values = row_values(MODULES[name](), logits, labels)
        torch.testing.assert_close(values.double(), exact, rtol=2e-6, atol=2e-6)
        found, expected = (torch.autograd.grad(x.sum(), logits)[0] for x in (values, exact))
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


def test_a_row_that_is_not_finite_reaches_the_loss_even_without_mass() -> None:
    logits = logits_of().detach()
    logits[1, 3, 2] = torch.nan
    labels = ClassLabels(torch.zeros(B, P).double(), torch.zeros(B, P).double(), torch.full((B, P), C), None, None)
    values = row_values(nn.BCEWithLogitsLoss(reduction=N), logits, labels)
    assert values[1, 3].isnan()
    assert values.nan_to_num().eq(0).all()


@pytest.mark.parametrize("module", [Learned, LearnedAffine])
def test_a_loss_that_learns_gets_its_gradient(module, monkeypatch) -> None:
    logits, labels, learned = logits_of(), labels_of(False, 0, False), module()

    def gradients() -> tuple[Tensor, Tensor, Tensor]:
        total = row_values(learned, logits, labels).sum()
        return (total, *torch.autograd.grad(total, (logits, learned.scale)))

    whole = gradients()
    torch.testing.assert_close(whole[2], whole[0].detach() / learned.scale.detach())  # the loss is linear in it
    monkeypatch.setattr(blocks, "MAX_MODULE_ELEMENTS", 5 * C)
    for actual, expected in zip(gradients(), whole, strict=True):
        torch.testing.assert_close(actual, expected)


def test_an_unknown_module_sees_a_bounded_number_of_rows(monkeypatch) -> None:
    seen = []

    class Spy(nn.Module):
        def forward(self, input: Tensor, target: Tensor) -> Tensor:
            seen.append(len(input))
            return nn.functional.cross_entropy(input, target, reduction=N)

    logits, labels = logits_of(), labels_of(True, 0, False)
    expected = row_values(nn.CrossEntropyLoss(reduction=N), logits, labels).sum(1)
    monkeypatch.setattr(blocks, "MAX_MODULE_ELEMENTS", 5 * C)
    actual = row_values(Spy(), logits, labels).sum(1)
    assert max(seen) <= 5 * C  # a row may have every class
    torch.testing.assert_close(actual, expected)
    slopes = [torch.autograd.grad(x.sum(), logits)[0] for x in (actual, expected)]
    torch.testing.assert_close(*slopes)


def test_a_histogram_over_all_rows_is_not_cut_into_blocks(monkeypatch) -> None:
    logits, labels = logits_of(), labels_of(False, None, False)
    assert not any(part.adapter.by_row for part in adapt(GHMCLoss(reduction=N)))
    whole = row_values(GHMCLoss(reduction=N), logits, labels).sum(1)
    monkeypatch.setattr(blocks, "MAX_ROW_ELEMENTS", C)
    torch.testing.assert_close(row_values(GHMCLoss(reduction=N), logits, labels).sum(1), whole)


class Doubled(SigmoidFocalLoss):
    """A subclass that replaces the affine form alone, not `forward`."""

    def adapter(self) -> Affine:
        return Affine(self, self.doubled_terms)

    def doubled_terms(self, logits: Tensor) -> ClassTerms:
        gain, base = super().adapter().terms(logits)
        return ClassTerms(2 * gain, 2 * base)


def test_a_replaced_affine_form_is_used_with_and_without_a_gradient() -> None:
    logits, labels = logits_of(), labels_of(False, None, False)
    expected = 2 * row_values(SigmoidFocalLoss(reduction=N), logits, labels)
    torch.testing.assert_close(row_values(Doubled(reduction=N), logits, labels), expected)
    with torch.no_grad():
        torch.testing.assert_close(row_values(Doubled(reduction=N), logits, labels), expected)


def test_gradients_of_several_outputs_may_be_taken_at_once() -> None:
    logits, labels = logits_of(), labels_of(False, 0, False)
    loss = nn.CrossEntropyLoss(reduction=N)
    terms = row_values(loss, logits, labels).sum(1)
    one_by_one = [torch.autograd.grad(x, logits, retain_graph=True)[0] for x in terms]
    terms = row_values(loss, logits, labels).sum(1)
    (batched,) = torch.autograd.grad(terms, logits, torch.eye(B).double(), is_grads_batched=True)
    torch.testing.assert_close(batched, torch.stack(one_by_one))
