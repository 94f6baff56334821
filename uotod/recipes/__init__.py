"""Recipes: published detectors as a matcher, losses, weights and a normaliser, each part of which can be replaced."""

from collections.abc import Callable

from torch import nn

from uotod.recipes.atss import atss
from uotod.recipes.fcos import fcos
from uotod.recipes.gfl import gfl
from uotod.recipes.ota import ota
from uotod.recipes.retinanet import retinanet
from uotod.recipes.rtmdet import rtmdet
from uotod.recipes.ssd import ssd300, uot_ssd
from uotod.recipes.tood import tood
from uotod.recipes.yolo import yolo
from uotod.recipes.yolov8 import yolov8
from uotod.recipes.yolox import yolox

ALL_RECIPES: dict[str, Callable[..., nn.Module]] = {
    "atss": atss,
    "fcos": fcos,
    "gfl": gfl,
    "ota": ota,
    "retinanet": retinanet,
    "rtmdet": rtmdet,
    "ssd300": ssd300,
    "tood": tood,
    "uot_ssd": uot_ssd,
    "yolo": yolo,
    "yolov8": yolov8,
    "yolox": yolox,
}

__all__ = [
    "ALL_RECIPES",
    "atss",
    "fcos",
    "gfl",
    "ota",
    "retinanet",
    "rtmdet",
    "ssd300",
    "tood",
    "uot_ssd",
    "yolo",
    "yolov8",
    "yolox",
]
