"""Rules that look at values, under every transform of `torch.func`: wrapped tensors in, what plain ones give out.

Matching and mining carry no gradient and know images one by one. So a transform needs nothing from inside of them:
under `grad`, `vjp` and `jvp` they get the values, and under `vmap` the mapped dimension becomes further images.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, replace
from typing import Any, TypeVar

import torch
from torch import Tensor

from uotod.check import is_transformed, reads_values
from uotod.geometry.anchors import Locations
from uotod.plan import Plan
from uotod.scene.scene import Scene
from uotod.scene.targets import Targets

Whole = TypeVar("Whole", Scene, Plan)


def plan_of_values(rule: Callable[[Scene], Plan], scene: Scene) -> Plan:
    """Return the plan of a scene, without gradient, by a rule that may look at the values of what is transformed."""
    found: list[Plan] = []

    def plan(*values: Tensor) -> tuple[Tensor, ...]:
        rest = iter(values)
        plain = _map(scene, lambda _: next(rest))
        found.append(rule(replace(plain, looks=reads_values(plain.logits, validate=False))))
        return _tensors(found[-1])

    made = iter(on_values(plan, _tensors(scene), scene.layers))
    return _map(found[-1], lambda _: next(made))


def on_values(
    function: Callable[..., tuple[Tensor, ...]], tensors: Sequence[Tensor], layers: int = 1
) -> tuple[Tensor, ...]:
    """Return a function of the values of (S, ...) tensors, without gradient.

    Args:
        function: takes the tensors and returns some, all with the images in front and none of them read by another.
        tensors: what it takes, S = layers * images stacked images.
        layers: number of decoder layers, the outer part of S.
    """
    if not is_transformed():
        return function(*tensors)
    made: tuple[Tensor, ...] = _OnValues.apply(function, layers, *(x.detach() for x in tensors))  # type: ignore[no-untyped-call]
    return made


class _OnValues(torch.autograd.Function):
    """A function of values; `torch.func` takes off its wrappers, and asks how a mapped dimension is to be treated."""

    @staticmethod
    def forward(function: Callable[..., tuple[Tensor, ...]], layers: int, *tensors: Tensor) -> tuple[Tensor, ...]:
        return function(*tensors)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.mark_non_differentiable(*output)
        ctx.count = len(inputs), len(output)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[None, ...]:
        return (None,) * int(ctx.count[0])

    @staticmethod
    def jvp(ctx: Any, *tangents: Tensor) -> tuple[None, ...]:
        return (None,) * int(ctx.count[1])

    @staticmethod
    def vmap(
        info: Any,
        dims: tuple[int | None, ...],
        function: Callable[..., tuple[Tensor, ...]],
        layers: int,
        *tensors: Tensor,
    ) -> tuple[tuple[Tensor, ...], tuple[int, ...]]:
        size, images = info.batch_size, 0
        folded = []
        for x, dim in zip(tensors, dims[2:], strict=True):
            mapped = x.expand(size, *x.shape) if dim is None else x.movedim(dim, 0)  # (V, L·B, ...)
            images = mapped.shape[1] // layers
            stacked = mapped.reshape(size, layers, images, *mapped.shape[2:]).movedim(0, 1)
            folded.append(stacked.flatten(0, 2))  # (L·V·B, ...)
        made = on_values(function, folded, layers)
        unfolded = [x.view(layers, size, images, *x.shape[1:]).movedim(1, 0).flatten(1, 2) for x in made]
        return tuple(unfolded), (0,) * len(made)


def _tensors(value: Whole) -> tuple[Tensor, ...]:
    found: list[Tensor] = []

    def collect(x: Tensor) -> Tensor:
        found.append(x)
        return x

    _map(value, collect)
    return tuple(found)


def _map(value: Whole, function: Callable[[Tensor], Tensor]) -> Whole:
    """Return a scene or a plan with a function applied to every tensor, in their order."""
    return replace(value, **{x.name: _map_value(getattr(value, x.name), function) for x in fields(value)})


def _map_value(value: Any, function: Callable[[Tensor], Tensor]) -> Any:
    if isinstance(value, Tensor):
        return function(value)
    if isinstance(value, (Targets, Locations)):
        return value.map(function)
    return {name: _map_value(x, function) for name, x in value.items()} if isinstance(value, Mapping) else value
