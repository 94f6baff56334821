"""Data sets to train and to measure detectors on: generated Color Boxes, and folders in the COCO layout."""

from uotod.datasets._target import TargetDict, collate
from uotod.datasets.coco import CocoDetection
from uotod.datasets.color_boxes import ColorBoxes
from uotod.datasets.write import write_coco

__all__ = ["CocoDetection", "ColorBoxes", "TargetDict", "collate", "write_coco"]
