"""Losses: the detection loss, and the sub-losses that it weighs with the plan's mass."""

from torch import nn

from uotod.loss.detection import DetectionLoss
from uotod.loss.focal import SigmoidFocalCost, SigmoidFocalLoss
from uotod.loss.iou import CIoULoss, DIoULoss, GIoULoss, IoULoss
from uotod.loss.multiple import MultipleObjectiveLoss
from uotod.loss.negative_prob import NegativeProbLoss
from uotod.loss.normalize import MassNormalizer, Normalizer, TargetNormalizer

ALL_LOSSES: dict[str, type[nn.Module]] = {
    "CIoULoss": CIoULoss,
    "DIoULoss": DIoULoss,
    "DetectionLoss": DetectionLoss,
    "GIoULoss": GIoULoss,
    "IoULoss": IoULoss,
    "MultipleObjectiveLoss": MultipleObjectiveLoss,
    "NegativeProbLoss": NegativeProbLoss,
    "SigmoidFocalCost": SigmoidFocalCost,
    "SigmoidFocalLoss": SigmoidFocalLoss,
}

__all__ = [
    "ALL_LOSSES",
    "CIoULoss",
    "DIoULoss",
    "DetectionLoss",
    "GIoULoss",
    "IoULoss",
    "MassNormalizer",
    "MultipleObjectiveLoss",
    "NegativeProbLoss",
    "Normalizer",
    "SigmoidFocalCost",
    "SigmoidFocalLoss",
    "TargetNormalizer",
]
