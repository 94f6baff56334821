"""Recipes: published detectors as matcher, losses, weights and normaliser, any part of which can be exchanged."""

from collections.abc import Callable

from torch import nn

from uotod.recipes.retinanet import retinanet
from uotod.recipes.ssd import ssd300, uot_ssd
from uotod.recipes.yolo import yolo

ALL_RECIPES: dict[str, Callable[..., nn.Module]] = {
    "retinanet": retinanet,
    "ssd300": ssd300,
    "uot_ssd": uot_ssd,
    "yolo": yolo,
}

__all__ = [
    "ALL_RECIPES",
    "retinanet",
    "ssd300",
    "uot_ssd",
    "yolo",
]
