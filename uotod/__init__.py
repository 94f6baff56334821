"""Matching and losses for object detection, as one family: unbalanced optimal transport."""

from uotod import loss, match, recipes, utils

__all__ = ["loss", "match", "recipes", "utils"]
__version__ = "1.0.0.dev0"
