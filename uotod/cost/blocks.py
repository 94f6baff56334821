"""Blocks of images: what is computed for all pairs of targets and predictions is computed a few images at a time."""

from collections.abc import Callable

import torch
from torch import Tensor

MAX_BLOCK_ELEMENTS = 1 << 17  # of a (B, T, P) block on the CPU: the dozen temporaries of an overlap stay in its cache
MAX_GPU_BLOCK_ELEMENTS = 1 << 24  # of a (B, t, P) block on a GPU: large enough to keep it busy
MAX_ROW_ELEMENTS = 1 << 18  # of a block of rows on the CPU
MAX_GPU_ROW_ELEMENTS = 1 << 24  # of a block of rows on a GPU: enough to keep it busy


def images_per_block(images: int, elements: int, device: torch.device) -> int:
    """Return how many images of `elements` pairs each to compute at once, at least 1: all of them on a GPU."""
    return max(MAX_BLOCK_ELEMENTS // max(elements, 1), 1) if device.type == "cpu" else max(images, 1)


def rows_per_block(width: int, device: torch.device) -> int:
    """Return how many rows of `width` elements each to compute at once, at least 1."""
    limit = MAX_ROW_ELEMENTS if device.type == "cpu" else MAX_GPU_ROW_ELEMENTS
    return max(limit // max(width, 1), 1)


def by_blocks(function: Callable[[Tensor, Tensor], Tensor], target_boxes: Tensor, boxes: Tensor) -> Tensor:
    """Return `function(target_boxes, boxes)`, of shape (B, T, P), computed on the CPU a few images at a time."""
    images = len(boxes)
    size = images_per_block(images, target_boxes.shape[1] * boxes.shape[1], boxes.device)
    if size >= images:
        return function(target_boxes, boxes)
    starts = range(0, images, size)
    return torch.cat([function(target_boxes[i : i + size], boxes[i : i + size]) for i in starts])
