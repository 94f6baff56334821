"""Recipes: published detectors as matcher, losses, weights and normaliser, any part of which can be exchanged."""

from collections.abc import Callable

from torch import nn

from uotod.recipes.atss import atss
from uotod.recipes.fcos import fcos
from uotod.recipes.gfl import gfl
from uotod.recipes.ota import ota
from uotod.recipes.rtmdet import rtmdet
from uotod.recipes.tood import tood
from uotod.recipes.yolov8 import yolov8
from uotod.recipes.yolox import yolox

ALL_RECIPES: dict[str, Callable[..., nn.Module]] = {
    "atss": atss,
    "fcos": fcos,
    "gfl": gfl,
    "ota": ota,
    "rtmdet": rtmdet,
    "tood": tood,
    "yolov8": yolov8,
    "yolox": yolox,
}

__all__ = [
    "ALL_RECIPES",
    "atss",
    "fcos",
    "gfl",
    "ota",
    "rtmdet",
    "tood",
    "yolov8",
    "yolox",
]
