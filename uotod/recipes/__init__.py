"""Recipes: published detectors as matcher, losses, weights and normaliser, any part of which can be exchanged."""

from collections.abc import Callable

from torch import nn

from uotod.recipes.tood import tood
from uotod.recipes.yolov8 import yolov8

ALL_RECIPES: dict[str, Callable[..., nn.Module]] = {
    "tood": tood,
    "yolov8": yolov8,
}

__all__ = [
    "ALL_RECIPES",
    "tood",
    "yolov8",
]
