"""Every loss of logits is finite, with a finite gradient, for any finite logits, labels and soft targets."""

import itertools
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from tests.support.loss_cases import CASES, CLASSES, rows
from uotod import loss
from uotod.cost.adapters import adapt
from uotod.cost.labels import ClassLabels
from uotod.loss.soft_target import SoftTargetLoss

LABELLED = {name: case.build for name, case in CASES.items() if case.reads in ("labels", "scores")}
LABELLED["PolyLoss"] = lambda **o: loss.PolyLoss(class_weight=torch.tensor([0.5, 1.0, 0.2, 0.1]), **o)  # not above 1
# settings that change what happens far out: whole, zero and fractional exponents, smoothing, soft and weighted targets
LABELLED |= {
    "IoUAwareBCELoss-plain": lambda **o: loss.IoUAwareBCELoss(alpha=0.0, gamma=0.0, **o),
    "PolyLoss-smooth": lambda **o: loss.PolyLoss(epsilon=-1.0, label_smoothing=0.3, **o),
    "QualityFocalLoss-zero": lambda **o: loss.QualityFocalLoss(beta=0.0, **o),
    "SigmoidFocalLoss-three": lambda **o: loss.SigmoidFocalLoss(gamma=3.0, **o),
    "SigmoidFocalLoss-zero": lambda **o: loss.SigmoidFocalLoss(gamma=0.0, **o),
    "SigmoidPolyLoss-three": lambda **o: loss.SigmoidPolyLoss(gamma=3.0, epsilon=-1.0, **o),
    "SoftmaxFocalLoss-three": lambda **o: loss.SoftmaxFocalLoss(gamma=3.0, **o),
    "SoftmaxFocalLoss-smooth": lambda **o: loss.SoftmaxFocalLoss(gamma=2.0, label_smoothing=0.3, **o),
    "SoftmaxFocalLoss-zero": lambda **o: loss.SoftmaxFocalLoss(gamma=0.0, **o),
    "VarifocalLoss-three": lambda **o: loss.VarifocalLoss(gamma=3.0, **o),
    "cross-entropy": lambda **o: nn.CrossEntropyLoss(label_smoothing=0.1, **o),
}
SOFT = {name for name, build in LABELLED.items() if isinstance(build(), (SoftTargetLoss, loss.ConfidenceLoss))}
EXTREMES = {torch.float32: 1e38, torch.float64: 1e307, torch.float16: 3e4, torch.bfloat16: 1e38}


def grid(dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Return logits (N, C), all combinations of the least, the largest and ordinary ones, and each label of each."""
    far = EXTREMES[dtype]
    values = list(itertools.product([-far, -90.0, 0.0, 90.0, far], repeat=CLASSES))
    logits = torch.tensor(values, dtype=dtype).repeat(CLASSES, 1)
    return logits, torch.arange(CLASSES).repeat_interleave(len(values))


def check(function: Callable[[Tensor], Tensor], logits: Tensor) -> None:
    logits = logits.detach().requires_grad_()
    value = function(logits)
    assert value.isfinite().all()
    (slope,) = torch.autograd.grad(value.sum(), logits)
    assert slope.isfinite().all()


@pytest.mark.parametrize("dtype", EXTREMES)
@pytest.mark.parametrize("name", sorted(set(LABELLED) - {"cross-entropy"}))  # torch's own overflows when it is smooth
def test_a_loss_of_extreme_logits_is_finite(name: str, dtype: torch.dtype) -> None:
    logits, labels = grid(dtype)
    if name == "GHMCLoss":
        logits = logits / len(logits)  # by which it may multiply a rare one
    module = LABELLED[name](reduction="none").to(torch.promote_types(dtype, torch.float32))
    targets = [labels]
    if name in SOFT:
        quality = torch.tensor([0.0, 0.3, 1.0], dtype=module_dtype(dtype))[torch.arange(len(labels)) % 3]
        targets = [] if name.startswith("ConfidenceLoss") else targets
        targets.append(nn.functional.one_hot(labels, CLASSES) * quality[:, None])
        targets.append(torch.rand(len(labels), CLASSES, dtype=module_dtype(dtype)))
    for target in targets:
        check(lambda x, target=target: module(x, target), logits)


def module_dtype(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)


@pytest.mark.parametrize("dtype", EXTREMES)
@pytest.mark.parametrize("name", ["DistributionFocalLoss", "FineGrainedLoss"])
def test_a_loss_of_extreme_distributions_is_finite(name: str, dtype: torch.dtype) -> None:
    far = EXTREMES[dtype] / 8  # four sides are summed
    _, fields = rows(name, 200, dtype=module_dtype(dtype))
    choice = torch.tensor([-far, -90.0, 0.0, 90.0, far], dtype=dtype)
    logits = choice[torch.randint(5, fields["pred_dist"].shape)]
    module = CASES[name].build(reduction="none")
    check(lambda x: module(**{**fields, "pred_dist": x}), logits)


@pytest.mark.parametrize("name", LABELLED)
def test_the_rows_of_a_criterion_are_finite_for_extreme_logits(name: str) -> None:
    """Of a mass on a target and the rest on the background, by the adapter that a criterion uses."""
    logits, label = grid(torch.float32)
    logits = logits.clamp(-1e36, 1e36)  # a sum over the classes is to be a number
    (part,) = adapt(LABELLED[name](reduction="none"))
    positive = torch.tensor([0.0, 0.4, 1.0])[torch.arange(len(label)) % 3]
    bg_class = None if name in SOFT else 0
    labels = ClassLabels(positive, 1 - positive, label, None, bg_class)
    check(lambda x: part.adapter.values(x, labels), logits)
    if hasattr(part.adapter, "write_gradient"):
        out = torch.empty_like(logits)
        value = part.adapter.write_gradient(logits, labels, out)
        assert value.isfinite().all()
        assert out.isfinite().all()
