"""Matchers: each turns the cost of predictions and targets into a transport plan."""

from uotod.match._base import Matcher
from uotod.match.balanced_sinkhorn import BalancedSinkhorn
from uotod.match.closest import ClosestPrediction, ClosestTarget, Min
from uotod.match.dynamic_soft_label import DynamicSoftLabel
from uotod.match.hungarian import Hungarian
from uotod.match.iou_threshold import IoUThreshold
from uotod.match.ota import OTA
from uotod.match.simota import SimOTA
from uotod.match.soft_min import SoftMin
from uotod.match.unbalanced_sinkhorn import UnbalancedSinkhorn
from uotod.match.weighted_sum import WeightedSum

ALL_MATCHERS: dict[str, type[Matcher]] = {
    "BalancedSinkhorn": BalancedSinkhorn,
    "ClosestPrediction": ClosestPrediction,
    "ClosestTarget": ClosestTarget,
    "DynamicSoftLabel": DynamicSoftLabel,
    "Hungarian": Hungarian,
    "IoUThreshold": IoUThreshold,
    "Min": Min,
    "OTA": OTA,
    "SimOTA": SimOTA,
    "SoftMin": SoftMin,
    "UnbalancedSinkhorn": UnbalancedSinkhorn,
    "WeightedSum": WeightedSum,
}

__all__ = [
    "ALL_MATCHERS",
    "OTA",
    "BalancedSinkhorn",
    "ClosestPrediction",
    "ClosestTarget",
    "DynamicSoftLabel",
    "Hungarian",
    "IoUThreshold",
    "Matcher",
    "Min",
    "SimOTA",
    "SoftMin",
    "UnbalancedSinkhorn",
    "WeightedSum",
]
