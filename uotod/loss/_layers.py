"""Losses of stacked decoder layers: values of all images in, values and named terms of each layer out."""

from torch import Tensor, nn

from uotod._cost import parts_of


def per_layer(values: Tensor, layers: int) -> Tensor:
    """View (layers * B,) values as (layers, B)."""
    return values.view(layers, len(values) // layers)


def name_terms(name: str, module: nn.Module, losses: Tensor) -> dict[str, Tensor]:
    """Name the sum and, of a composite, the parts of (K, L) losses; earlier layers get their number behind."""
    terms = {}
    parts = parts_of(module)
    layers = losses.shape[1]
    for layer in range(layers):
        suffix = "" if layer == layers - 1 else f"_{layer}"
        terms[f"{name}{suffix}"] = losses[:, layer].sum()
        if parts[0].name:
            terms |= {f"{name}_{part.name}{suffix}": losses[k, layer] for k, part in enumerate(parts)}
    return terms
