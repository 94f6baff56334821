"""Adapters, how a sub-loss takes part: a module in, its weighted parts with an adapter each out.

Most losses are known by a form that is cheaper than calling them on every pair. They declare it by a method
`adapter()`, which returns one of `uotod.cost.kinds`; those of `torch.nn` are known by their exact type. Any other
module is called on aligned rows, a bounded number at a time. A module that weighs others offers `parts()`.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

from torch import nn

from uotod.cost.kinds import Adapter
from uotod.cost.torch_losses import KNOWN


class Part(NamedTuple):
    """One weighted sub-loss of a loss; the name of a loss that is a single part is empty."""

    name: str
    weight: float
    adapter: Adapter

    @property
    def module(self) -> nn.Module:
        """The sub-loss."""
        return self.adapter.module


def adapt(module: nn.Module | None) -> tuple[Part, ...]:
    """Return the weighted parts of a sub-loss, each with its adapter; nothing for None.

    A subclass that replaces `forward` of a loss that is known is rows, unless it declares its adapter itself.
    """
    if module is None:
        return ()
    parts = _declared(module, "parts")
    if parts is not None:
        return tuple(parts())
    declared = _declared(module, "adapter")
    if declared is not None:
        return (Part("", 1.0, declared()),)
    known = KNOWN.get(type(module))
    return (Part("", 1.0, Adapter(module) if known is None else known(module)),)


class Adapting(nn.Module):
    """A module that adapts its sub-modules when they are assigned, under their names in `adapted`."""

    adapted: dict[str, tuple[Part, ...]]

    def __setattr__(self, name: str, value: Any) -> None:
        """Set an attribute, and adapt a module."""
        super().__setattr__(name, value)
        if value is None or isinstance(value, nn.Module):
            self.__dict__.setdefault("adapted", {})[name] = adapt(value)


def _declared(module: nn.Module, name: str) -> Callable[[], Any] | None:
    """Return a method of a module, unless a subclass has replaced the `forward` that it stands for."""
    for cls in type(module).__mro__:
        if name in vars(cls):
            method: Callable[[], Any] = getattr(module, name)
            return method
        if "forward" in vars(cls):
            return None
    return None
