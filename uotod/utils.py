"""Tools around matching and losses: box conversions, overlaps, non-maximum suppression and padding."""

from uotod.geometry.anchors import Anchors, Points
from uotod.geometry.boxes import (
    box_area,
    box_ciou,
    box_cxcywh_to_xyxy,
    box_diou,
    box_giou,
    box_iou,
    box_xywh_to_xyxy,
    box_xyxy_to_cxcywh,
    box_xyxy_to_xywh,
)
from uotod.geometry.cell_coder import CellCoder
from uotod.geometry.coders import BoxCoder, DeltaCoder, DistanceCoder
from uotod.geometry.nms import batched_nms, nms
from uotod.geometry.sides import distribution_to_box
from uotod.scene.targets import pad_targets

__all__ = [
    "Anchors",
    "BoxCoder",
    "CellCoder",
    "DeltaCoder",
    "DistanceCoder",
    "Points",
    "batched_nms",
    "box_area",
    "box_ciou",
    "box_cxcywh_to_xyxy",
    "box_diou",
    "box_giou",
    "box_iou",
    "box_xywh_to_xyxy",
    "box_xyxy_to_cxcywh",
    "box_xyxy_to_xywh",
    "distribution_to_box",
    "nms",
    "pad_targets",
]
