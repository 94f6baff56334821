"""The cost of a batch, computed a few images at a time: blocks that stay in the cache of a CPU, without padding."""

import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from uotod.check import reads_values
from uotod.cost.blocks import MAX_BLOCK_ELEMENTS
from uotod.scene.predictions import Scene


def cost_by_images(scene: Scene, pair_cost: Callable[[Scene], Tensor], background_cost: float | None) -> Tensor:
    """Return the target-major cost (B, T, P) of all pairs, `inf` on padding, or (B, T + 1, P) with a background.

    Args:
        scene: B images, decoder layers included.
        pair_cost: function of a batch of some of the images that returns their cost (b, t, P). What it returns for
            padding is not read, and the targets after the last one that is not padding are not there.
        background_cost: cost of the background in the last column, or None for no such column.
    """
    preds, num_targets = scene.pred_boxes.shape[1], scene.mask.shape[1]
    columns = num_targets + (background_cost is not None)
    cost: Tensor | None = None
    for some, count, block in cost_blocks(scene, pair_cost):
        if cost is None:
            layers = scene.layers
            cost = block.new_empty(layers, len(scene.mask) // layers, columns, preds)
        cost[:, some, :count] = block
        cost[:, some, count:num_targets].fill_(math.inf)
    assert cost is not None
    if background_cost is not None:
        cost[:, :, num_targets].fill_(background_cost)
    return cost.flatten(0, 1)


def cost_blocks(scene: Scene, pair_cost: Callable[[Scene], Tensor]) -> Iterator[tuple[slice, int, Tensor]]:
    """Yield some of the images, the targets `t` that the fullest of them has, and their cost (L, b, t, P)."""
    layers, mask = scene.layers, scene.mask
    for some, count in _image_blocks(scene):
        whole = count == mask.shape[1] and some == slice(0, len(mask) // layers)
        part = scene if whole else scene.images(some, count)
        cost = forbid_padding(pair_cost(part), part.targets.mask)
        yield some, count, cost.view(layers, len(cost) // layers, *cost.shape[1:])


def forbid_padding(cost: Tensor, mask: Tensor) -> Tensor:
    """Make a (B, T, P) cost `inf` where the (B, T) mask is False; in place if it is contiguous."""
    if not reads_values(cost, validate=False):
        return cost.masked_fill(~mask.unsqueeze(-1), math.inf)
    padding = (~mask).flatten().nonzero().squeeze(1)
    cost = cost.contiguous()
    if len(padding):
        cost.flatten(0, 1).index_fill_(0, padding, math.inf)  # `masked_fill` takes 30 times as long
    return cost


def _image_blocks(scene: Scene) -> Iterator[tuple[slice, int]]:
    """Yield slices of the images of a decoder layer, and the targets that the fullest of them has."""
    layers, mask = scene.layers, scene.mask
    images, num_targets = len(mask) // layers, mask.shape[1]
    if not reads_values(mask, validate=False) or not mask.numel():
        yield slice(0, images), num_targets
        return
    position = torch.arange(1, num_targets + 1)
    counts = (mask[:images] * position).amax(1).tolist()
    pairs = layers * scene.pred_boxes.shape[1]
    start, most = 0, 0
    for image, count in enumerate(counts):
        if image > start and (image + 1 - start) * max(most, count) * pairs > MAX_BLOCK_ELEMENTS:
            yield slice(start, image), most
            start, most = image, 0
        most = max(most, count)
    yield slice(start, images), most
