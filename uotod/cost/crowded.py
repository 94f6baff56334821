"""Crowded scenes: a function of a scene in, what it says of some of the targets at a time out."""

from collections.abc import Callable, Iterator
from typing import TypeVar

from uotod.cost.blocks import MAX_GPU_BLOCK_ELEMENTS, MAX_TARGET_ELEMENTS, slices
from uotod.scene.scene import Scene

Value = TypeVar("Value")


def by_targets(function: Callable[[Scene], Value], scene: Scene) -> Iterator[Value]:
    """Yield what a function says of a scene with some of its targets at a time, all of them in a common batch."""
    limit = MAX_TARGET_ELEMENTS if scene.mask.device.type == "cpu" else MAX_GPU_BLOCK_ELEMENTS
    some = slices(scene.mask.shape[1], scene.logits[..., 0].numel(), limit)
    yield from (function(scene.part(targets=block)) for block in some) if len(some) > 1 else (function(scene),)
