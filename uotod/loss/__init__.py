"""Losses: the detection loss, and the sub-losses that it weighs with the plan's mass."""

from torch import nn

from uotod.loss.detection import DetectionLoss
from uotod.loss.focal import SigmoidFocalCost, SigmoidFocalLoss
from uotod.loss.ghm import GHMCLoss
from uotod.loss.iou import CIoULoss, DIoULoss, GIoULoss, IoULoss
from uotod.loss.iou_aware import IoUAwareBCELoss
from uotod.loss.matchability import MatchabilityAwareLoss
from uotod.loss.multiple import MultipleObjectiveLoss
from uotod.loss.negative_prob import NegativeProbLoss
from uotod.loss.normalize import (
    Divisors,
    Masses,
    MassNormalizer,
    MovingAverageNormalizer,
    Normalizer,
    PerImageNormalizer,
    PositiveNormalizer,
    ScoreNormalizer,
    TargetNormalizer,
    TotalMassNormalizer,
)
from uotod.loss.objectness import ObjectnessLoss
from uotod.loss.poly import PolyLoss, SigmoidPolyLoss
from uotod.loss.quality_focal import QualityFocalLoss
from uotod.loss.softmax_focal import SoftmaxFocalLoss
from uotod.loss.varifocal import VarifocalLoss

ALL_LOSSES: dict[str, type[nn.Module]] = {
    "CIoULoss": CIoULoss,
    "DIoULoss": DIoULoss,
    "DetectionLoss": DetectionLoss,
    "GHMCLoss": GHMCLoss,
    "GIoULoss": GIoULoss,
    "IoUAwareBCELoss": IoUAwareBCELoss,
    "IoULoss": IoULoss,
    "MatchabilityAwareLoss": MatchabilityAwareLoss,
    "MultipleObjectiveLoss": MultipleObjectiveLoss,
    "NegativeProbLoss": NegativeProbLoss,
    "ObjectnessLoss": ObjectnessLoss,
    "PolyLoss": PolyLoss,
    "QualityFocalLoss": QualityFocalLoss,
    "SigmoidFocalCost": SigmoidFocalCost,
    "SigmoidFocalLoss": SigmoidFocalLoss,
    "SigmoidPolyLoss": SigmoidPolyLoss,
    "SoftmaxFocalLoss": SoftmaxFocalLoss,
    "VarifocalLoss": VarifocalLoss,
}

__all__ = [
    "ALL_LOSSES",
    "CIoULoss",
    "DIoULoss",
    "DetectionLoss",
    "Divisors",
    "GHMCLoss",
    "GIoULoss",
    "IoUAwareBCELoss",
    "IoULoss",
    "MassNormalizer",
    "Masses",
    "MatchabilityAwareLoss",
    "MovingAverageNormalizer",
    "MultipleObjectiveLoss",
    "NegativeProbLoss",
    "Normalizer",
    "ObjectnessLoss",
    "PerImageNormalizer",
    "PolyLoss",
    "PositiveNormalizer",
    "QualityFocalLoss",
    "ScoreNormalizer",
    "SigmoidFocalCost",
    "SigmoidFocalLoss",
    "SigmoidPolyLoss",
    "SoftmaxFocalLoss",
    "TargetNormalizer",
    "TotalMassNormalizer",
    "VarifocalLoss",
]
