"""Every sub-loss of the library in the settings that the contract tests, one line each."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from tests.support.problems import jittered, random_boxes
from uotod import loss

CLASSES = 4
WEIGHT = torch.tensor([0.5, 1.0, 2.0, 0.1])
Arguments = tuple[tuple[Tensor, ...], dict[str, Tensor]]  # positional ones, and those by keyword


class Case(NamedTuple):
    build: Callable[..., nn.Module]
    reads: str = "boxes"  # beside the predictions: "boxes", "labels", "scores", or the "fields" that it `needs`
    sizes: dict[str, tuple[int, ...]] | None = None  # of a row of fields that `rows` does not know


CASES = {
    "AlphaIoULoss": Case(lambda **o: loss.AlphaIoULoss(**o)),
    "AlphaIoULoss-ciou": Case(lambda **o: loss.AlphaIoULoss(kind="ciou", alpha=0.5, **o)),
    "BalancedL1Loss": Case(lambda **o: loss.BalancedL1Loss(**o)),
    "BoxSpace": Case(lambda **o: loss.BoxSpace(loss.BalancedL1Loss(**o), "cxcywh")),
    "CIoULoss": Case(lambda **o: loss.CIoULoss(**o)),
    "ConfidenceLoss": Case(lambda **o: loss.ConfidenceLoss(**o), "scores"),
    "DIoULoss": Case(lambda **o: loss.DIoULoss(**o)),
    "DistributionFocalLoss": Case(lambda **o: loss.DistributionFocalLoss(**o), "fields"),
    "EIoULoss": Case(lambda **o: loss.EIoULoss(**o)),
    "EIoULoss-focal": Case(lambda **o: loss.EIoULoss(gamma=0.5, **o)),
    "ExtendedIoULoss": Case(lambda **o: loss.ExtendedIoULoss(**o)),
    "FineGrainedLoss": Case(lambda **o: loss.FineGrainedLoss(max_bin=8, **o), "fields"),
    "GHMCLoss": Case(lambda **o: loss.GHMCLoss(**o), "labels"),
    "GIoULoss": Case(lambda **o: loss.GIoULoss(**o)),
    "InnerIoULoss": Case(lambda **o: loss.InnerIoULoss(**o)),
    "InnerIoULoss-giou": Case(lambda **o: loss.InnerIoULoss(kind="giou", ratio=1.3, **o)),
    "IoUAwareBCELoss": Case(lambda **o: loss.IoUAwareBCELoss(gamma=0.5, **o), "labels"),
    "IoULoss": Case(lambda **o: loss.IoULoss(**o)),
    "IoULoss-log": Case(lambda **o: loss.IoULoss(mode="log", **o)),
    "IoULoss-square": Case(lambda **o: loss.IoULoss(mode="square", **o)),
    "MatchabilityAwareLoss": Case(lambda **o: loss.MatchabilityAwareLoss(**o), "labels"),
    "MPDIoULoss": Case(lambda **o: loss.MPDIoULoss(image_size=(1.5, 0.9), **o)),
    "MultipleObjectiveLoss": Case(lambda **o: loss.MultipleObjectiveLoss([loss.GIoULoss(**o), loss.IoULoss(**o)])),
    "NegativeProbLoss": Case(lambda **o: loss.NegativeProbLoss(**o), "labels"),
    "ObjectnessLoss": Case(lambda **o: loss.ObjectnessLoss(negative_weight=0.5, **o), "labels"),
    "PolyLoss": Case(lambda **o: loss.PolyLoss(class_weight=WEIGHT, **o), "labels"),
    "QualityFocalLoss": Case(lambda **o: loss.QualityFocalLoss(**o), "labels"),
    "QualityFocalLoss-half": Case(lambda **o: loss.QualityFocalLoss(beta=0.5, **o), "labels"),
    "SigmoidFocalCost": Case(lambda **o: loss.SigmoidFocalCost(**o), "labels"),
    "SigmoidFocalLoss": Case(lambda **o: loss.SigmoidFocalLoss(alpha=0.25, **o), "labels"),
    "SigmoidFocalLoss-plain": Case(lambda **o: loss.SigmoidFocalLoss(gamma=0.5, **o), "labels"),
    "SigmoidFocalLoss-smooth": Case(lambda **o: loss.SigmoidFocalLoss(label_smoothing=0.1, **o), "labels"),
    "SigmoidPolyLoss": Case(lambda **o: loss.SigmoidPolyLoss(gamma=0.5, label_smoothing=0.1, **o), "labels"),
    "SIoULoss": Case(lambda **o: loss.SIoULoss(**o)),
    "SIoULoss-2": Case(lambda **o: loss.SIoULoss(theta=2, **o)),
    "SoftmaxFocalLoss": Case(lambda **o: loss.SoftmaxFocalLoss(**o), "labels"),
    "SoftmaxFocalLoss-half": Case(lambda **o: loss.SoftmaxFocalLoss(gamma=0.5, label_smoothing=0.1, **o), "labels"),
    "VarifocalLoss": Case(lambda **o: loss.VarifocalLoss(gamma=0.5, **o), "labels"),
    "VarifocalLoss-rtdetr": Case(lambda **o: loss.VarifocalLoss(form="rtdetr", **o), "labels"),
    "VarifocalLoss-ultralytics": Case(lambda **o: loss.VarifocalLoss(form="ultralytics", **o), "labels"),
    "WiseIoULoss": Case(lambda **o: loss.WiseIoULoss(version=3, **o)),
    "WiseIoULoss-1": Case(lambda **o: loss.WiseIoULoss(version=1, **o)),
}


def rows(name: str, count: int = 6, dtype: torch.dtype = torch.float64) -> Arguments:
    """Return the arguments of a loss on some rows, the predicted ones with a gradient."""
    reads = CASES[name].reads
    target = random_boxes(count, dtype=dtype)
    boxes = jittered(target)  # all overlap: others have no gradient in some losses
    logits = torch.randn(count, CLASSES, dtype=dtype).requires_grad_()
    if reads == "boxes":
        return (boxes.requires_grad_(), target), {}
    if reads == "labels":
        return (logits, torch.randint(0, CLASSES, (count,))), {}
    if reads == "scores":
        return (logits, torch.rand(count, CLASSES, dtype=dtype)), {}
    fields = {
        "pred_boxes": boxes.requires_grad_(),
        "pred_dist": torch.randn(count, 4, 9, dtype=dtype).requires_grad_(),
        "target_boxes": target,
        "anchors": random_boxes(count, dtype=dtype),
        "stride": torch.full((count,), 0.1, dtype=dtype),
    }
    for key, size in (CASES[name].sizes or {}).items():
        fields[key] = torch.rand(count, *size, dtype=dtype).requires_grad_(key.startswith("pred_"))
    return (), {key: fields[key] for key in CASES[name].build().needs}
