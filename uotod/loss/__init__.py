"""Losses: the detection loss, and the sub-losses that it weighs with the plan's mass."""

from torch import nn

from uotod.loss.alpha_iou import AlphaIoULoss
from uotod.loss.balanced_l1 import BalancedL1Loss
from uotod.loss.box_space import BoxSpace
from uotod.loss.detection import DetectionLoss
from uotod.loss.distribution import DistributionFocalLoss
from uotod.loss.eiou import EIoULoss, ExtendedIoULoss
from uotod.loss.focal import SigmoidFocalCost, SigmoidFocalLoss
from uotod.loss.inner_iou import InnerIoULoss
from uotod.loss.iou import CIoULoss, DIoULoss, GIoULoss, IoULoss
from uotod.loss.mpdiou import MPDIoULoss
from uotod.loss.multiple import MultipleObjectiveLoss
from uotod.loss.negative_prob import NegativeProbLoss
from uotod.loss.normalize import MassNormalizer, Normalizer, TargetNormalizer
from uotod.loss.siou import SIoULoss
from uotod.loss.wise_iou import WiseIoULoss

ALL_LOSSES: dict[str, type[nn.Module]] = {
    "AlphaIoULoss": AlphaIoULoss,
    "BalancedL1Loss": BalancedL1Loss,
    "BoxSpace": BoxSpace,
    "CIoULoss": CIoULoss,
    "DIoULoss": DIoULoss,
    "DetectionLoss": DetectionLoss,
    "DistributionFocalLoss": DistributionFocalLoss,
    "EIoULoss": EIoULoss,
    "ExtendedIoULoss": ExtendedIoULoss,
    "GIoULoss": GIoULoss,
    "InnerIoULoss": InnerIoULoss,
    "IoULoss": IoULoss,
    "MPDIoULoss": MPDIoULoss,
    "MultipleObjectiveLoss": MultipleObjectiveLoss,
    "NegativeProbLoss": NegativeProbLoss,
    "SIoULoss": SIoULoss,
    "SigmoidFocalCost": SigmoidFocalCost,
    "SigmoidFocalLoss": SigmoidFocalLoss,
    "WiseIoULoss": WiseIoULoss,
}

__all__ = [
    "ALL_LOSSES",
    "AlphaIoULoss",
    "BalancedL1Loss",
    "BoxSpace",
    "CIoULoss",
    "DIoULoss",
    "DetectionLoss",
    "DistributionFocalLoss",
    "EIoULoss",
    "ExtendedIoULoss",
    "GIoULoss",
    "InnerIoULoss",
    "IoULoss",
    "MPDIoULoss",
    "MassNormalizer",
    "MultipleObjectiveLoss",
    "NegativeProbLoss",
    "Normalizer",
    "SIoULoss",
    "SigmoidFocalCost",
    "SigmoidFocalLoss",
    "TargetNormalizer",
    "WiseIoULoss",
]
