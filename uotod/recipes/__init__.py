"""Recipes: published detectors as a matcher, losses, weights and a normaliser, each part of which can be replaced."""

from collections.abc import Callable

from torch import nn

from uotod.recipes.deformable_detr import deformable_detr
from uotod.recipes.detr import detr
from uotod.recipes.uot_detr import uot_deformable_detr, uot_detr

ALL_RECIPES: dict[str, Callable[..., nn.Module]] = {
    "deformable_detr": deformable_detr,
    "detr": detr,
    "uot_deformable_detr": uot_deformable_detr,
    "uot_detr": uot_detr,
}

__all__ = [
    "ALL_RECIPES",
    "deformable_detr",
    "detr",
    "uot_deformable_detr",
    "uot_detr",
]
