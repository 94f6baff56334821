"""Recipes: published detectors as a matcher, losses, weights and a normaliser, each part of which can be replaced."""

from collections.abc import Callable

from torch import nn

from uotod.recipes.d_fine import d_fine, deim
from uotod.recipes.deformable_detr import deformable_detr
from uotod.recipes.detr import detr
from uotod.recipes.dino import dino
from uotod.recipes.group_detr import group_detr
from uotod.recipes.h_detr import h_detr
from uotod.recipes.rt_detr import rt_detr
from uotod.recipes.uot_detr import uot_deformable_detr, uot_detr

ALL_RECIPES: dict[str, Callable[..., nn.Module]] = {
    "d_fine": d_fine,
    "deformable_detr": deformable_detr,
    "deim": deim,
    "detr": detr,
    "dino": dino,
    "group_detr": group_detr,
    "h_detr": h_detr,
    "rt_detr": rt_detr,
    "uot_deformable_detr": uot_deformable_detr,
    "uot_detr": uot_detr,
}

__all__ = [
    "ALL_RECIPES",
    "d_fine",
    "deformable_detr",
    "deim",
    "detr",
    "dino",
    "group_detr",
    "h_detr",
    "rt_detr",
    "uot_deformable_detr",
    "uot_detr",
]
