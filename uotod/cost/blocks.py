"""Blocks, pieces of work that fit a cache: how large they are, and where they begin and end."""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from uotod.check import is_transformed, reads_values

MAX_BLOCK_ELEMENTS = 1 << 17  # of a (B, T, P) block on the CPU: the dozen temporaries of an overlap stay in its cache
MAX_TARGET_ELEMENTS = 1 << 18  # of the (B, t, P) pairs of a rule of geometry on the CPU
MAX_GPU_BLOCK_ELEMENTS = 1 << 24  # of a (B, t, P) block on a GPU: large enough to keep it busy
MAX_ROW_ELEMENTS = 1 << 18  # of a block of rows on the CPU
MAX_GPU_ROW_ELEMENTS = 1 << 24  # of a block of rows on a GPU: enough to keep it busy
MAX_COST_ROW_ELEMENTS = 1 << 18  # of the rows handed at once to a cost without a fast path
MAX_MODULE_ELEMENTS = 1 << 20  # of the logits that an unknown module sees at once
MAX_PAIR_ELEMENTS = 1 << 19  # of the plan's entries that are looked at together on the CPU
MAX_GPU_PAIR_ELEMENTS = 1 << 24
MAX_PAIRS = 1 << 18  # of several blocks, if they are evaluated together and remembered for the backward pass


def image_blocks(mask: Tensor, preds: int) -> Iterator[tuple[slice, int]]:
    """Yield slices of the images of a (B, T) mask of targets, and the targets that the fullest of them has.

    Where values may be read, a block has at most `MAX_BLOCK_ELEMENTS` pairs with `preds` predictions, or one image.
    """
    images, num_targets = mask.shape
    if not reads_values(mask, validate=False) or not mask.numel():
        yield slice(0, images), num_targets
        return
    counts = (mask * torch.arange(1, num_targets + 1)).amax(1).tolist()
    start, most = 0, 0
    for image, count in enumerate(counts):
        if image > start and (image + 1 - start) * max(most, count) * preds > MAX_BLOCK_ELEMENTS:
            yield slice(start, image), most
            start, most = image, 0
        most = max(most, count)
    yield slice(start, images), most


def row_blocks(rows: Tensor) -> list[slice]:
    """Return slices of (N, C) rows that fit the cache of a CPU."""
    return slices(len(rows), rows.shape[1], MAX_ROW_ELEMENTS if rows.device.type == "cpu" else MAX_GPU_ROW_ELEMENTS)


def recomputed(function: Callable[..., Tensor], *arguments: Any) -> Tensor:
    """Return a function's value, which is evaluated again in the backward pass instead of remembered.

    The transforms of `torch.func` have no such thing: under them it is remembered.
    """
    if is_transformed():
        return function(*arguments)
    value: Tensor = checkpoint(function, *arguments, use_reentrant=False)
    return value


def slices(count: int, width: int, limit: int) -> list[slice]:
    """Return slices of `count` rows of `width` elements each, of at most `limit` elements each, or of one row."""
    size = max(limit // max(width, 1), 1)
    return [slice(start, min(start + size, count)) for start in range(0, count, size)]
