"""Matchers: each turns the cost of predictions and targets into a transport plan."""

from uotod.match._base import Matcher
from uotod.match.atss import ATSS
from uotod.match.balanced_sinkhorn import BalancedSinkhorn
from uotod.match.closest import ClosestPrediction, ClosestTarget, Min
from uotod.match.hungarian import Hungarian
from uotod.match.iou_threshold import IoUThreshold
from uotod.match.soft_min import SoftMin
from uotod.match.unbalanced_sinkhorn import UnbalancedSinkhorn
from uotod.match.uniform import Uniform
from uotod.match.weighted_sum import WeightedSum

ALL_MATCHERS: dict[str, type[Matcher]] = {
    "ATSS": ATSS,
    "BalancedSinkhorn": BalancedSinkhorn,
    "ClosestPrediction": ClosestPrediction,
    "ClosestTarget": ClosestTarget,
    "Hungarian": Hungarian,
    "IoUThreshold": IoUThreshold,
    "Min": Min,
    "SoftMin": SoftMin,
    "UnbalancedSinkhorn": UnbalancedSinkhorn,
    "Uniform": Uniform,
    "WeightedSum": WeightedSum,
}

__all__ = [
    "ALL_MATCHERS",
    "ATSS",
    "BalancedSinkhorn",
    "ClosestPrediction",
    "ClosestTarget",
    "Hungarian",
    "IoUThreshold",
    "Matcher",
    "Min",
    "SoftMin",
    "UnbalancedSinkhorn",
    "Uniform",
    "WeightedSum",
]
