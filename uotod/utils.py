"""Tools around matching and losses: box conversions, overlaps, non-maximum suppression and padding."""

from uotod.geometry.anchors import Anchors as Anchors, Points as Points
from uotod.geometry.boxes import (
    box_area as box_area,
    box_ciou as box_ciou,
    box_cxcywh_to_xyxy as box_cxcywh_to_xyxy,
    box_diou as box_diou,
    box_giou as box_giou,
    box_iou as box_iou,
    box_xywh_to_xyxy as box_xywh_to_xyxy,
    box_xyxy_to_cxcywh as box_xyxy_to_cxcywh,
    box_xyxy_to_xywh as box_xyxy_to_xywh,
)
from uotod.geometry.cell_coder import CellCoder as CellCoder
from uotod.geometry.coders import BoxCoder as BoxCoder, DeltaCoder as DeltaCoder, DistanceCoder as DistanceCoder
from uotod.geometry.nms import batched_nms as batched_nms, nms as nms
from uotod.geometry.sides import distribution_to_box as distribution_to_box
from uotod.scene.padding import pad_targets as pad_targets
