"""Losses of rows, evaluated a block at a time with their gradient, so that no temporary is as large as the logits."""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from uotod.check import reads_values
from uotod.cost.blocks import rows_per_block
from uotod.cost.labels import ClassLabels
from uotod.cost.row_losses import RowLoss

MAX_MODULE_ELEMENTS = 1 << 20  # of the logits that an unknown module sees at once


def row_losses(loss: RowLoss, logits: Tensor, labels: ClassLabels) -> Tensor:
    """Return the loss (B, P) of (B, P, C) logits, each times its mass."""
    rows, flat = logits.flatten(0, 1), labels.flat()
    if not torch.is_grad_enabled():
        rows = rows.detach()  # for a function of its own autograd asks for a gradient even then
    if not logits.numel() or torch.compiler.is_compiling() or loss.trains_more(rows, flat):
        values = loss.values(rows, flat)
    else:
        values = _Blockwise.apply(rows, flat, loss)  # type: ignore[no-untyped-call]
    return values.view(logits.shape[:2])


def module_losses(function: Callable[[Tensor, ClassLabels], Tensor], logits: Tensor, labels: ClassLabels) -> Tensor:
    """Return the loss (B, P) of a function of rows that may learn, and that is called on many rows at a time.

    With more than one block the function is evaluated again in the backward pass instead of remembered.
    """
    rows, flat = logits.flatten(0, 1), labels.flat()
    size = max(MAX_MODULE_ELEMENTS // logits.shape[-1], 1)
    if len(rows) <= size:
        return function(rows, flat).view(logits.shape[:2])
    values = [
        checkpoint(function, part, flat.rows(slice(start, start + size)), use_reentrant=False)
        for start, part in zip(range(0, len(rows), size), torch.split(rows, size), strict=True)
    ]
    return torch.cat(values).view(logits.shape[:2])


class _Blockwise(torch.autograd.Function):
    """The losses of rows; their gradient is made in the forward pass, while a block's logits are in the cache."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, labels: ClassLabels, loss: RowLoss) -> Tensor:
        ctx.save_for_backward(rows)
        ctx.labels, ctx.loss = labels, loss
        values, ctx.gradient = _evaluate(rows, labels, loss, ctx.needs_input_grad[0])
        return values

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        made, ctx.gradient = ctx.gradient, None
        if made is not None and not torch.is_grad_enabled():
            return _scale_(made, gradient.unsqueeze(1)), None, None
        # a second derivative, or a second backward pass through the same graph
        (rows,) = ctx.saved_tensors
        with torch.enable_grad():
            leaf = rows if torch.is_grad_enabled() and rows.requires_grad else rows.detach().requires_grad_()
            values = ctx.loss.values(leaf, ctx.labels)
        (again,) = torch.autograd.grad(values, leaf, gradient, create_graph=torch.is_grad_enabled())
        return again, None, None


def _scale_(made: Tensor, factor: Tensor) -> Tensor:
    """Return `made`, (N, C), times a factor (N, 1), in its place if that can be."""
    try:
        is_one = reads_values(factor, validate=False) and bool((factor == 1).all())
        return made if is_one else made.mul_(factor)
    except RuntimeError:  # a batch of gradients (`is_grads_batched`) has no truth value, and no place in `made`
        return made * factor


def _evaluate(rows: Tensor, labels: ClassLabels, loss: RowLoss, differentiate: bool) -> tuple[Tensor, Tensor | None]:
    """Return the values (N,) and, if asked for, their gradient (N, C)."""
    some = _rows_with_mass(rows, labels)
    if some is not None:
        values, gradient = rows.new_zeros(len(rows)), torch.zeros_like(rows) if differentiate else None
        found = _evaluate_blocks(rows[some], labels.rows(some), loss, differentiate)
        values.index_copy_(0, some, found[0])
        if gradient is not None and found[1] is not None:
            gradient.index_copy_(0, some, found[1])
        return values, gradient
    return _evaluate_blocks(rows, labels, loss, differentiate)


def _evaluate_blocks(
    rows: Tensor, labels: ClassLabels, loss: RowLoss, differentiate: bool
) -> tuple[Tensor, Tensor | None]:
    values, gradient = rows.new_empty(len(rows)), torch.empty_like(rows) if differentiate else None
    for block in row_blocks(rows):
        if gradient is None:
            values[block] = loss.values(rows[block], labels.rows(block))
        else:
            values[block] = loss.write_gradient(rows[block], labels.rows(block), gradient[block])
    return values, gradient


def row_blocks(rows: Tensor) -> Iterator[slice]:
    """Yield slices of the (N, C) rows that fit the cache of a CPU."""
    size = rows_per_block(rows.shape[1], rows.device)
    for start in range(0, len(rows), size):
        yield slice(start, start + size)


def _rows_with_mass(rows: Tensor, labels: ClassLabels) -> Tensor | None:
    """Return the rows that have a loss, after mining a few, or None if nothing is gained by leaving out the others."""
    if not reads_values(rows, validate=False):
        return None
    some = (labels.positive + labels.background).nonzero().squeeze(1)
    if 2 * len(some) > len(rows) or not bool(rows.sum().isfinite()):  # what is not finite must reach the loss
        return None
    return some
