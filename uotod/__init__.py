"""Matching and losses for object detection, as one family: unbalanced optimal transport."""

from uotod import loss, match, recipes, utils
from uotod._compile import compile

__all__ = ["compile", "loss", "match", "recipes", "utils"]
__version__ = "1.0.0.dev0"
