"""Losses: the detection loss, and the sub-losses that it weighs with the plan's mass."""

from torch import nn

from uotod.criterion.branches import Branch as Branch, Branches as Branches, denoising_plan as denoising_plan
from uotod.criterion.detection import DetectionLoss as DetectionLoss
from uotod.criterion.errors import detection_errors as detection_errors
from uotod.criterion.masses import Masses as Masses
from uotod.criterion.normalize import (
    ByTerm as ByTerm,
    ImagePositiveNormalizer as ImagePositiveNormalizer,
    MassNormalizer as MassNormalizer,
    MovingAverageNormalizer as MovingAverageNormalizer,
    Normalizer as Normalizer,
    PairedTargetNormalizer as PairedTargetNormalizer,
    PerImageNormalizer as PerImageNormalizer,
    PositiveNormalizer as PositiveNormalizer,
    ScoreNormalizer as ScoreNormalizer,
    TargetNormalizer as TargetNormalizer,
    TotalMassNormalizer as TotalMassNormalizer,
)
from uotod.criterion.starved import StarvedTargetsWarning as StarvedTargetsWarning
from uotod.criterion.terms import (
    Classification as Classification,
    Distillation as Distillation,
    Localization as Localization,
    Objectness as Objectness,
    Term as Term,
)
from uotod.loss.alpha_iou import AlphaIoULoss as AlphaIoULoss
from uotod.loss.balanced_l1 import BalancedL1Loss as BalancedL1Loss
from uotod.loss.box_space import BoxSpace as BoxSpace
from uotod.loss.confidence import ConfidenceLoss as ConfidenceLoss
from uotod.loss.distribution import DistributionFocalLoss as DistributionFocalLoss
from uotod.loss.eiou import EIoULoss as EIoULoss, ExtendedIoULoss as ExtendedIoULoss
from uotod.loss.fine_grained import DistillationLoss as DistillationLoss, FineGrainedLoss as FineGrainedLoss
from uotod.loss.focal import SigmoidFocalCost as SigmoidFocalCost, SigmoidFocalLoss as SigmoidFocalLoss
from uotod.loss.ghm import GHMCLoss as GHMCLoss
from uotod.loss.inner_iou import InnerIoULoss as InnerIoULoss
from uotod.loss.iou import CIoULoss as CIoULoss, DIoULoss as DIoULoss, GIoULoss as GIoULoss, IoULoss as IoULoss
from uotod.loss.iou_aware import IoUAwareBCELoss as IoUAwareBCELoss
from uotod.loss.matchability import MatchabilityAwareLoss as MatchabilityAwareLoss
from uotod.loss.mpdiou import MPDIoULoss as MPDIoULoss
from uotod.loss.multiple import MultipleObjectiveLoss as MultipleObjectiveLoss
from uotod.loss.negative_prob import NegativeProbLoss as NegativeProbLoss
from uotod.loss.objectness import ObjectnessLoss as ObjectnessLoss
from uotod.loss.poly import PolyLoss as PolyLoss, SigmoidPolyLoss as SigmoidPolyLoss
from uotod.loss.quality_focal import QualityFocalLoss as QualityFocalLoss
from uotod.loss.siou import SIoULoss as SIoULoss
from uotod.loss.softmax_focal import SoftmaxFocalLoss as SoftmaxFocalLoss
from uotod.loss.varifocal import VarifocalLoss as VarifocalLoss
from uotod.loss.wise_iou import WiseIoULoss as WiseIoULoss
from uotod.loss.yolo import YOLOLoss as YOLOLoss

# every loss by its name
ALL_LOSSES: dict[str, type[nn.Module]] = {
    name: value
    for name, value in sorted(globals().items())
    if isinstance(value, type) and issubclass(value, nn.Module) and not issubclass(value, (Branch, Normalizer, Term))
}
