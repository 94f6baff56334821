"""Stack the tensors of decoder layers along the batch, without a copy where they already lie so in memory."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


def stack_layers(layers: Sequence[Tensor]) -> Tensor:
    """Return (B, ...) tensors, one a layer, as one of shape (L * B, ...).

    The layers of a set predictor are most often slices of one (L, B, ...) tensor: then this is a view of it.
    """
    if len(layers) == 1:
        return layers[0]
    if torch.compiler.is_compiling() or not _are_adjacent(layers):
        return torch.cat(list(layers))
    stacked: Tensor = _Adjacent.apply(*layers)  # type: ignore[no-untyped-call]
    return stacked


def _are_adjacent(layers: Sequence[Tensor]) -> bool:
    """Tell whether each tensor begins in memory where the one before it ends."""
    first = layers[0]
    size = first.numel()
    start, storage = first.storage_offset(), first.untyped_storage().data_ptr()
    return size > 0 and all(
        x.is_contiguous()
        and x.dtype == first.dtype
        and x.untyped_storage().data_ptr() == storage
        and x.storage_offset() == start + i * size
        for i, x in enumerate(layers)
    )


class _Adjacent(torch.autograd.Function):
    """The concatenation of tensors that follow each other in memory."""

    @staticmethod
    def forward(ctx: Any, *layers: Tensor) -> Tensor:
        first = layers[0]
        ctx.layers = len(layers)
        return first.as_strided((len(layers) * len(first), *first.shape[1:]), first.stride())

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, ...]:
        return gradient.chunk(ctx.layers)
