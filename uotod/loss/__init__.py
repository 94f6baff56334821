"""Losses: the detection loss, and the sub-losses that it weighs with the plan's mass."""

from torch import nn

from uotod.criterion.branches import Branch, Branches, denoising_plan
from uotod.criterion.detection import DetectionLoss
from uotod.criterion.errors import detection_errors
from uotod.criterion.normalize import (
    ByTerm,
    ImagePositiveNormalizer,
    Masses,
    MassNormalizer,
    MovingAverageNormalizer,
    Normalizer,
    PairedTargetNormalizer,
    PerImageNormalizer,
    PositiveNormalizer,
    ScoreNormalizer,
    TargetNormalizer,
    TotalMassNormalizer,
)
from uotod.criterion.terms import Classification, Distillation, Localization, Objectness, Term
from uotod.loss.alpha_iou import AlphaIoULoss
from uotod.loss.balanced_l1 import BalancedL1Loss
from uotod.loss.box_space import BoxSpace
from uotod.loss.confidence import ConfidenceLoss
from uotod.loss.distribution import DistributionFocalLoss
from uotod.loss.eiou import EIoULoss, ExtendedIoULoss
from uotod.loss.fine_grained import DistillationLoss, FineGrainedLoss
from uotod.loss.focal import SigmoidFocalCost, SigmoidFocalLoss
from uotod.loss.ghm import GHMCLoss
from uotod.loss.inner_iou import InnerIoULoss
from uotod.loss.iou import CIoULoss, DIoULoss, GIoULoss, IoULoss
from uotod.loss.iou_aware import IoUAwareBCELoss
from uotod.loss.matchability import MatchabilityAwareLoss
from uotod.loss.mpdiou import MPDIoULoss
from uotod.loss.multiple import MultipleObjectiveLoss
from uotod.loss.negative_prob import NegativeProbLoss
from uotod.loss.objectness import ObjectnessLoss
from uotod.loss.poly import PolyLoss, SigmoidPolyLoss
from uotod.loss.quality_focal import QualityFocalLoss
from uotod.loss.siou import SIoULoss
from uotod.loss.softmax_focal import SoftmaxFocalLoss
from uotod.loss.varifocal import VarifocalLoss
from uotod.loss.wise_iou import WiseIoULoss
from uotod.loss.yolo import YOLOLoss

ALL_LOSSES: dict[str, type[nn.Module]] = {
    "AlphaIoULoss": AlphaIoULoss,
    "BalancedL1Loss": BalancedL1Loss,
    "BoxSpace": BoxSpace,
    "Branches": Branches,
    "CIoULoss": CIoULoss,
    "ConfidenceLoss": ConfidenceLoss,
    "DIoULoss": DIoULoss,
    "DetectionLoss": DetectionLoss,
    "DistillationLoss": DistillationLoss,
    "DistributionFocalLoss": DistributionFocalLoss,
    "EIoULoss": EIoULoss,
    "ExtendedIoULoss": ExtendedIoULoss,
    "FineGrainedLoss": FineGrainedLoss,
    "GHMCLoss": GHMCLoss,
    "GIoULoss": GIoULoss,
    "InnerIoULoss": InnerIoULoss,
    "IoUAwareBCELoss": IoUAwareBCELoss,
    "IoULoss": IoULoss,
    "MPDIoULoss": MPDIoULoss,
    "MatchabilityAwareLoss": MatchabilityAwareLoss,
    "MultipleObjectiveLoss": MultipleObjectiveLoss,
    "NegativeProbLoss": NegativeProbLoss,
    "ObjectnessLoss": ObjectnessLoss,
    "PolyLoss": PolyLoss,
    "QualityFocalLoss": QualityFocalLoss,
    "SIoULoss": SIoULoss,
    "SigmoidFocalCost": SigmoidFocalCost,
    "SigmoidFocalLoss": SigmoidFocalLoss,
    "SigmoidPolyLoss": SigmoidPolyLoss,
    "SoftmaxFocalLoss": SoftmaxFocalLoss,
    "VarifocalLoss": VarifocalLoss,
    "WiseIoULoss": WiseIoULoss,
    "YOLOLoss": YOLOLoss,
}

__all__ = [
    "ALL_LOSSES",
    "AlphaIoULoss",
    "BalancedL1Loss",
    "BoxSpace",
    "Branch",
    "Branches",
    "ByTerm",
    "CIoULoss",
    "Classification",
    "ConfidenceLoss",
    "DIoULoss",
    "DetectionLoss",
    "Distillation",
    "DistillationLoss",
    "DistributionFocalLoss",
    "EIoULoss",
    "ExtendedIoULoss",
    "FineGrainedLoss",
    "GHMCLoss",
    "GIoULoss",
    "ImagePositiveNormalizer",
    "InnerIoULoss",
    "IoUAwareBCELoss",
    "IoULoss",
    "Localization",
    "MPDIoULoss",
    "MassNormalizer",
    "Masses",
    "MatchabilityAwareLoss",
    "MovingAverageNormalizer",
    "MultipleObjectiveLoss",
    "NegativeProbLoss",
    "Normalizer",
    "Objectness",
    "ObjectnessLoss",
    "PairedTargetNormalizer",
    "PerImageNormalizer",
    "PolyLoss",
    "PositiveNormalizer",
    "QualityFocalLoss",
    "SIoULoss",
    "ScoreNormalizer",
    "SigmoidFocalCost",
    "SigmoidFocalLoss",
    "SigmoidPolyLoss",
    "SoftmaxFocalLoss",
    "TargetNormalizer",
    "Term",
    "TotalMassNormalizer",
    "VarifocalLoss",
    "WiseIoULoss",
    "YOLOLoss",
    "denoising_plan",
    "detection_errors",
]
