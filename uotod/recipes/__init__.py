"""Recipes: published detectors as a matcher, losses, weights and a normaliser, each part of which can be replaced."""

from collections.abc import Callable
from types import FunctionType

from torch import nn

from uotod.recipes.atss import atss as atss
from uotod.recipes.d_fine import d_fine as d_fine, deim as deim
from uotod.recipes.deformable_detr import deformable_detr as deformable_detr
from uotod.recipes.detr import detr as detr
from uotod.recipes.dino import dino as dino
from uotod.recipes.fcos import fcos as fcos
from uotod.recipes.gfl import gfl as gfl
from uotod.recipes.group_detr import group_detr as group_detr
from uotod.recipes.h_detr import h_detr as h_detr
from uotod.recipes.ota import ota as ota
from uotod.recipes.retinanet import retinanet as retinanet
from uotod.recipes.rt_detr import rt_detr as rt_detr
from uotod.recipes.rtmdet import rtmdet as rtmdet
from uotod.recipes.ssd import ssd300 as ssd300, uot_ssd as uot_ssd
from uotod.recipes.tood import tood as tood
from uotod.recipes.uot_detr import uot_deformable_detr as uot_deformable_detr, uot_detr as uot_detr
from uotod.recipes.yolo import yolo as yolo
from uotod.recipes.yolo26 import yolo26 as yolo26
from uotod.recipes.yolov8 import yolov8 as yolov8
from uotod.recipes.yolox import yolox as yolox

# every recipe by its name
ALL_RECIPES: dict[str, Callable[..., nn.Module]] = {
    name: value for name, value in sorted(globals().items()) if isinstance(value, FunctionType)
}
