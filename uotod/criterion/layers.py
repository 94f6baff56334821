"""Losses of stacked decoder layers: values of all images in, values and named terms of each layer out."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from uotod.check import check_number
from uotod.cost.adapters import parts_of


def check_layer_weights(weights: Sequence[float] | None) -> tuple[float, ...] | None:
    """Return the weights as a tuple.

    Raises:
        TypeError: they are not a sequence of numbers.
        ValueError: there are none, or one is negative.
    """
    if weights is None:
        return None
    if not isinstance(weights, Sequence):
        raise TypeError(
            f"layer_weights must be a sequence of numbers, got {weights!r} of type {type(weights).__name__}"
        )
    if not weights:
        raise ValueError("layer_weights must hold one number a decoder layer, got none")
    return tuple(check_number(f"layer_weights[{i}]", x, low=0.0) for i, x in enumerate(weights))


def weigh_layers(losses: Tensor, weights: Sequence[float] | None) -> Tensor:
    """Return (K, L) losses, those of each layer times its weight.

    Raises:
        ValueError: the number of weights differs.
    """
    if weights is None:
        return losses
    if len(weights) != losses.shape[1]:
        raise ValueError(
            f"layer_weights must hold {losses.shape[1]} numbers, one a decoder layer of the input, got {len(weights)}"
        )
    # layer by layer: a tensor of the weights would be a transfer that synchronises with a GPU
    return torch.stack([loss * weight for loss, weight in zip(losses.unbind(1), weights, strict=True)], dim=1)


def per_layer(values: Tensor, layers: int) -> Tensor:
    """View (layers * B,) values as (layers, B)."""
    return values.view(layers, len(values) // layers)


class SubLosses(NamedTuple):
    """What a sub-loss module gives: the (K, L) losses of its weighted parts for each decoder layer."""

    name: str
    module: nn.Module
    values: Tensor


def add_terms(losses: Sequence[SubLosses], weights: Sequence[float] | None) -> dict[str, Tensor]:
    """Weigh the layers and add up all losses to "loss"; name the sums and, of composites, the parts of each layer."""
    weighted = [loss._replace(values=weigh_layers(loss.values, weights)) for loss in losses]
    total = weighted[0].values.sum()
    for loss in weighted[1:]:
        total = total + loss.values.sum()
    terms = {"loss": total}
    for loss in weighted:
        terms |= name_terms(*loss)
    return terms


def name_terms(name: str, module: nn.Module, losses: Tensor) -> dict[str, Tensor]:
    """Name the sum and, of a composite, the parts of (K, L) losses; earlier layers get their number behind."""
    parts, layers = parts_of(module), losses.shape[1]
    terms: dict[str, Tensor] = {}
    for layer, (total, column) in enumerate(zip(losses.sum(0).unbind(), losses.unbind(1), strict=True)):
        suffix = "" if layer == layers - 1 else f"_{layer}"
        terms[f"{name}{suffix}"] = total
        if parts[0].name:
            values = zip(parts, column.unbind(), strict=True)
            terms |= {f"{name}_{part.name}{suffix}": value for part, value in values}
    return terms
