"""Matchers: each turns the cost of predictions and targets into a transport plan."""

from uotod.match.atss import ATSS
from uotod.match.balanced_sinkhorn import BalancedSinkhorn
from uotod.match.base import Matcher
from uotod.match.center_region import CenterRegion
from uotod.match.closest import ClosestPrediction, ClosestTarget, Min
from uotod.match.dynamic_soft_label import DynamicSoftLabel
from uotod.match.emd import EMD
from uotod.match.fcos import FCOS
from uotod.match.grid_cell import GridCell
from uotod.match.hungarian import Hungarian
from uotod.match.iou_threshold import IoUThreshold
from uotod.match.ota import OTA
from uotod.match.partial_ot import PartialOT
from uotod.match.pot import BalancedPOT, UnbalancedPOT
from uotod.match.shared_layers import SharedLayers
from uotod.match.simota import SimOTA
from uotod.match.sinkhorn import SinkhornResult
from uotod.match.soft_min import SoftMin
from uotod.match.task_aligned import TaskAligned
from uotod.match.unbalanced_sinkhorn import UnbalancedSinkhorn
from uotod.match.uniform import Uniform
from uotod.match.union_vote import UnionVote
from uotod.match.weighted_sum import WeightedSum

ALL_MATCHERS: dict[str, type[Matcher]] = {
    "ATSS": ATSS,
    "BalancedPOT": BalancedPOT,
    "BalancedSinkhorn": BalancedSinkhorn,
    "CenterRegion": CenterRegion,
    "ClosestPrediction": ClosestPrediction,
    "ClosestTarget": ClosestTarget,
    "DynamicSoftLabel": DynamicSoftLabel,
    "EMD": EMD,
    "FCOS": FCOS,
    "GridCell": GridCell,
    "Hungarian": Hungarian,
    "IoUThreshold": IoUThreshold,
    "Min": Min,
    "OTA": OTA,
    "PartialOT": PartialOT,
    "SharedLayers": SharedLayers,
    "SimOTA": SimOTA,
    "SoftMin": SoftMin,
    "TaskAligned": TaskAligned,
    "UnbalancedPOT": UnbalancedPOT,
    "UnbalancedSinkhorn": UnbalancedSinkhorn,
    "Uniform": Uniform,
    "UnionVote": UnionVote,
    "WeightedSum": WeightedSum,
}

__all__ = [
    "ALL_MATCHERS",
    "ATSS",
    "EMD",
    "FCOS",
    "OTA",
    "BalancedPOT",
    "BalancedSinkhorn",
    "CenterRegion",
    "ClosestPrediction",
    "ClosestTarget",
    "DynamicSoftLabel",
    "GridCell",
    "Hungarian",
    "IoUThreshold",
    "Matcher",
    "Min",
    "PartialOT",
    "SharedLayers",
    "SimOTA",
    "SinkhornResult",
    "SoftMin",
    "TaskAligned",
    "UnbalancedPOT",
    "UnbalancedSinkhorn",
    "Uniform",
    "UnionVote",
    "WeightedSum",
]
