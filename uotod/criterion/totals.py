"""Decoder layers of a loss: the losses of each in, weighted and named terms out."""

from collections.abc import Sequence

import torch
from torch import Tensor

from uotod.check import check_number
from uotod.criterion.terms import Term


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


def weigh_layers(losses: Tensor, weights: Sequence[float]) -> Tensor:
    """Return (K, L) losses, those of each layer times its weight.

    Raises:
        ValueError: the number of weights differs.
    """
    if len(weights) != losses.shape[1]:
        raise ValueError(
            f"layer_weights must hold {losses.shape[1]} numbers, one a decoder layer of the input, got {len(weights)}"
        )
    # layer by layer: a tensor of the weights would be a transfer that synchronises with a GPU
    return torch.stack([loss * weight for loss, weight in zip(losses.unbind(1), weights, strict=True)], dim=1)


def name_terms(term: Term, losses: Tensor) -> dict[str, Tensor]:
    """Name the sum and, of a composite, the parts of (K, L) losses; earlier layers get their number behind."""
    layers, name, parts = losses.shape[1], f"loss_{term.name}", term.parts
    terms: dict[str, Tensor] = {}
    for layer, (total, column) in enumerate(zip(losses.sum(0).unbind(), losses.unbind(1), strict=True)):
        suffix = "" if layer == layers - 1 else f"_{layer}"
        terms[f"{name}{suffix}"] = total
        if parts and parts[0].name:
            values = zip(parts, column.unbind(), strict=True)
            terms |= {f"{name}_{part.name}{suffix}": value for part, value in values}
    return terms
