"""Ignored targets (crowds): a plan in, the same plan without the background of predictions that lie in one out."""

from torch import Tensor

from uotod.geometry.boxes import box_area, pairwise_intersection
from uotod.plan import Plan
from uotod.scene.targets import Targets
from uotod.solvers.overlaps import pairwise, present_boxes


def ignore_background(plan: Plan, boxes: Tensor, target_boxes: Tensor, targets: Targets, threshold: float) -> Plan:
    r"""Take the background mass of predictions whose intersection over foreground with an ignored target is large.

    .. math:: \mathrm{IoF}_{ij} = |b_i \cap c_j| / |b_i| > \text{threshold}

    A matched prediction of a plan of one target a prediction keeps its background share, which tells its quality.

    Args:
        plan: plan of the batch.
        boxes: (B, P, 4) boxes or anchors, xyxy.
        target_boxes: (B, T, 4) boxes of the targets, xyxy.
        targets: targets with their `ignored` mask.
        threshold: least share of a box that lies in an ignored target, exclusive.

    References:
        The ignore regions of Caltech and CityPersons, as detectors with anchors train them.
    """
    assert targets.ignored is not None
    if not targets.ignored.shape[1]:
        return plan
    crowds = present_boxes(target_boxes, targets.ignored)  # the others have no area and meet nothing
    inside = pairwise(_largest_intersection, crowds, boxes).squeeze(1)  # (B, P)
    return plan.ignoring(inside > threshold * box_area(boxes))


def _largest_intersection(target_boxes: Tensor, boxes: Tensor) -> Tensor:
    return pairwise_intersection(target_boxes, boxes).amax(1, keepdim=True)
