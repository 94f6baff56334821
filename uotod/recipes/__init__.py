"""Recipes: published detectors as a matcher, losses, weights and a normaliser, each part of which can be replaced."""

from collections.abc import Callable

from torch import nn

from uotod.recipes.atss import atss
from uotod.recipes.d_fine import d_fine, deim
from uotod.recipes.deformable_detr import deformable_detr
from uotod.recipes.detr import detr
from uotod.recipes.dino import dino
from uotod.recipes.fcos import fcos
from uotod.recipes.gfl import gfl
from uotod.recipes.group_detr import group_detr
from uotod.recipes.h_detr import h_detr
from uotod.recipes.ota import ota
from uotod.recipes.retinanet import retinanet
from uotod.recipes.rt_detr import rt_detr
from uotod.recipes.rtmdet import rtmdet
from uotod.recipes.ssd import ssd300, uot_ssd
from uotod.recipes.tood import tood
from uotod.recipes.uot_detr import uot_deformable_detr, uot_detr
from uotod.recipes.yolo import yolo
from uotod.recipes.yolov8 import yolov8
from uotod.recipes.yolox import yolox

ALL_RECIPES: dict[str, Callable[..., nn.Module]] = {
    "atss": atss,
    "d_fine": d_fine,
    "deformable_detr": deformable_detr,
    "deim": deim,
    "detr": detr,
    "dino": dino,
    "fcos": fcos,
    "gfl": gfl,
    "group_detr": group_detr,
    "h_detr": h_detr,
    "ota": ota,
    "retinanet": retinanet,
    "rt_detr": rt_detr,
    "rtmdet": rtmdet,
    "ssd300": ssd300,
    "tood": tood,
    "uot_deformable_detr": uot_deformable_detr,
    "uot_detr": uot_detr,
    "uot_ssd": uot_ssd,
    "yolo": yolo,
    "yolov8": yolov8,
    "yolox": yolox,
}

__all__ = [
    "ALL_RECIPES",
    "atss",
    "d_fine",
    "deformable_detr",
    "deim",
    "detr",
    "dino",
    "fcos",
    "gfl",
    "group_detr",
    "h_detr",
    "ota",
    "retinanet",
    "rt_detr",
    "rtmdet",
    "ssd300",
    "tood",
    "uot_deformable_detr",
    "uot_detr",
    "uot_ssd",
    "yolo",
    "yolov8",
    "yolox",
]
