"""Matchers: each turns the cost of predictions and targets into a transport plan."""

from uotod.match.atss import ATSS as ATSS
from uotod.match.balanced_sinkhorn import BalancedSinkhorn as BalancedSinkhorn
from uotod.match.base import Matcher as Matcher
from uotod.match.center_region import CenterRegion as CenterRegion
from uotod.match.closest import ClosestPrediction as ClosestPrediction, ClosestTarget as ClosestTarget, Min as Min
from uotod.match.dynamic_soft_label import DynamicSoftLabel as DynamicSoftLabel
from uotod.match.emd import EMD as EMD
from uotod.match.fcos import FCOS as FCOS
from uotod.match.grid_cell import GridCell as GridCell
from uotod.match.hungarian import Hungarian as Hungarian
from uotod.match.iou_threshold import IoUThreshold as IoUThreshold
from uotod.match.ota import OTA as OTA
from uotod.match.partial_ot import PartialOT as PartialOT
from uotod.match.pot import BalancedPOT as BalancedPOT, UnbalancedPOT as UnbalancedPOT
from uotod.match.shared_layers import SharedLayers as SharedLayers
from uotod.match.simota import SimOTA as SimOTA
from uotod.match.sinkhorn import SinkhornResult as SinkhornResult
from uotod.match.soft_min import SoftMin as SoftMin
from uotod.match.task_aligned import TaskAligned as TaskAligned
from uotod.match.unbalanced_sinkhorn import UnbalancedSinkhorn as UnbalancedSinkhorn
from uotod.match.uniform import Uniform as Uniform
from uotod.match.union_vote import UnionVote as UnionVote
from uotod.match.weighted_sum import WeightedSum as WeightedSum

# every rule by its name
ALL_MATCHERS: dict[str, type[Matcher]] = {
    name: value
    for name, value in sorted(globals().items())
    if isinstance(value, type) and issubclass(value, Matcher) and value is not Matcher
}
