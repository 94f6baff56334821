"""Classification on a plan: logits and labels in, the loss of each prediction out, computed a block at a time.

The gradient of a loss of independent rows is made with its values, while a block's logits are in the cache, so that no
temporary is as large as the logits.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from uotod.check import is_transformed, reads_values
from uotod.cost import blocks
from uotod.cost.adapters import Part
from uotod.cost.kinds import Adapter, RowLoss
from uotod.cost.labels import ClassLabels


def class_losses(parts: tuple[Part, ...], logits: Tensor, labels: ClassLabels, divisor: Tensor, layers: int) -> Tensor:
    """Return the loss (K, S) of each weighted part on (S, P, C) logits, over its (K or 1, S) divisor."""
    losses = []
    for part, over in zip(parts, divisor.expand(len(parts), -1), strict=True):
        if part.adapter.by_row and labels.index is not None:
            # at once: the gradient is made with the loss, and another pass over it would take as long
            values = class_values(part.adapter, logits, labels.over(over.unsqueeze(1)), layers).sum(1)
        else:
            values = class_values(part.adapter, logits, labels, layers).sum(1) / over
        losses.append(values if part.weight == 1 else part.weight * values)
    return torch.stack(losses)


def class_masses(weights: Sequence[Tensor | None], labels: ClassLabels, background: bool) -> list[Tensor]:
    """Return the mass (S,) on targets, and on the background if that counts, times the (C,) class weights of each."""
    found = [_weighted_masses(weight, labels) for weight in weights]
    return [positive + rest if background else positive for positive, rest in found]


@torch.no_grad()
def background_losses(parts: tuple[Part, ...], logits: Tensor, bg_class: int | None, layers: int) -> Tensor:
    """Return the weighted loss (S, P) of calling each prediction background."""
    none, all_ = logits.new_zeros(logits.shape[:2]), logits.new_ones(logits.shape[:2])
    index = torch.full_like(none, logits.shape[2] if bg_class is None else bg_class, dtype=torch.long)
    labels = ClassLabels(none, all_, index, None, bg_class)
    return sum((part.weight * class_values(part.adapter, logits, labels, layers) for part in parts), start=none)


def class_values(adapter: Adapter, logits: Tensor, labels: ClassLabels, layers: int) -> Tensor:
    """Return the loss (S, P) of (S, P, C) logits of stacked decoder layers, each times its mass."""
    if isinstance(adapter, RowLoss):
        if adapter.by_row:
            return _row_values(adapter, logits, labels)
        chunk = len(logits) // layers  # a loss of soft targets that reads all rows of a decoder layer
        some = [slice(i * chunk, (i + 1) * chunk) for i in range(layers)]
        return torch.cat([adapter.values(logits[i], labels.rows(i)) for i in some])
    rows, flat = logits.flatten(0, 1), labels.pruned().flat()
    some = blocks.slices(len(rows), logits.shape[-1], blocks.MAX_MODULE_ELEMENTS)
    if len(some) < 2:
        return adapter.values(rows, flat).view(logits.shape[:2])
    values = [
        blocks.recomputed(adapter.values, part, flat.rows(block))
        for block, part in zip(some, torch.split(rows, some[0].stop), strict=True)
    ]
    return torch.cat(values).view(logits.shape[:2])


def _weighted_masses(weight: Tensor | None, labels: ClassLabels) -> tuple[Tensor, Tensor]:
    """Return the positive and the background mass (S,) of each image, each mass times its class weight."""
    background = labels.background.sum(1)
    if weight is None:
        return labels.positive.sum(1), background
    weight = weight.to(labels.positive)
    if labels.bg_class is not None:
        background = background * weight[labels.bg_class]
    if labels.index is None:
        return (labels.masses() * weight).sum((1, 2)), background
    padded = torch.cat((weight, weight.new_zeros(1)))  # the background without a class carries no positive mass
    return (labels.positive * padded[labels.index]).sum(1), background


def _row_values(loss: RowLoss, logits: Tensor, labels: ClassLabels) -> Tensor:
    """Return the loss (S, P) of a loss of independent rows."""
    rows, flat = logits.flatten(0, 1), labels.flat()
    if not torch.is_grad_enabled():
        rows = rows.detach()  # for a function of its own autograd asks for a gradient even then
    if not logits.numel() or is_transformed() or torch.compiler.is_compiling() or loss.trains_more(rows, flat):
        values = loss.values(rows, flat)
    else:
        values = _Blockwise.apply(rows, flat, loss)  # type: ignore[no-untyped-call]
    return values.view(logits.shape[:2])


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
    if some is None:
        return _evaluate_blocks(rows, labels, loss, differentiate)
    values, gradient = rows.new_zeros(len(rows)), torch.zeros_like(rows) if differentiate else None
    found = _evaluate_blocks(rows[some], labels.rows(some), loss, differentiate)
    values.index_copy_(0, some, found[0])
    if gradient is not None and found[1] is not None:
        gradient.index_copy_(0, some, found[1])
    return values, gradient


def _evaluate_blocks(
    rows: Tensor, labels: ClassLabels, loss: RowLoss, differentiate: bool
) -> tuple[Tensor, Tensor | None]:
    values, gradient = rows.new_empty(len(rows)), torch.empty_like(rows) if differentiate else None
    for block in blocks.row_blocks(rows):
        if gradient is None:
            values[block] = loss.values(rows[block], labels.rows(block))
        else:
            values[block] = loss.write_gradient(rows[block], labels.rows(block), gradient[block])
    return values, gradient


def _rows_with_mass(rows: Tensor, labels: ClassLabels) -> Tensor | None:
    """Return the rows that have a loss, after mining a few, or None if nothing is gained by leaving out the others."""
    if not reads_values(rows, validate=False):
        return None
    some = (labels.positive + labels.background).nonzero().squeeze(1)
    if 2 * len(some) > len(rows) or not bool(rows.sum().isfinite()):  # what is not finite must reach the loss
        return None
    return some
