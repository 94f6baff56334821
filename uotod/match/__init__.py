"""Matchers: each turns the cost of predictions and targets into a transport plan."""

from uotod.match._base import Matcher
from uotod.match._sinkhorn import SinkhornResult
from uotod.match.balanced_sinkhorn import BalancedSinkhorn
from uotod.match.closest import ClosestPrediction, ClosestTarget, Min
from uotod.match.emd import EMD
from uotod.match.hungarian import Hungarian
from uotod.match.iou_threshold import IoUThreshold
from uotod.match.partial_ot import PartialOT
from uotod.match.pot import BalancedPOT, UnbalancedPOT
from uotod.match.soft_min import SoftMin
from uotod.match.unbalanced_sinkhorn import UnbalancedSinkhorn
from uotod.match.weighted_sum import WeightedSum

ALL_MATCHERS: dict[str, type[Matcher]] = {
    "BalancedPOT": BalancedPOT,
    "BalancedSinkhorn": BalancedSinkhorn,
    "ClosestPrediction": ClosestPrediction,
    "ClosestTarget": ClosestTarget,
    "EMD": EMD,
    "Hungarian": Hungarian,
    "IoUThreshold": IoUThreshold,
    "Min": Min,
    "PartialOT": PartialOT,
    "SoftMin": SoftMin,
    "UnbalancedPOT": UnbalancedPOT,
    "UnbalancedSinkhorn": UnbalancedSinkhorn,
    "WeightedSum": WeightedSum,
}

__all__ = [
    "ALL_MATCHERS",
    "EMD",
    "BalancedPOT",
    "BalancedSinkhorn",
    "ClosestPrediction",
    "ClosestTarget",
    "Hungarian",
    "IoUThreshold",
    "Matcher",
    "Min",
    "PartialOT",
    "SinkhornResult",
    "SoftMin",
    "UnbalancedPOT",
    "UnbalancedSinkhorn",
    "WeightedSum",
]
