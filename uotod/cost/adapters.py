"""Adapters, how a sub-loss takes part: a module in, its weighted parts with an adapter each out.

Most losses are known by a form that is cheaper than calling them on every pair. They declare it by a method
`adapter()`, which returns one of `uotod.cost.kinds`; those of `torch.nn` are known by their exact type. Any other
module is called on aligned rows, a bounded number at a time. A module that weighs others offers `parts()`.
"""

from typing import Any, NamedTuple

from torch import nn

from uotod.cost.kinds import Adapter, declared
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
    parts = declared(module, "parts")
    if parts is not None:
        return tuple(parts())
    adapter = declared(module, "adapter")
    if adapter is not None:
        return (Part("", 1.0, adapter()),)
    known = next((KNOWN.get(x) for x in type(module).__mro__ if "forward" in vars(x)), None)
    return (Part("", 1.0, Adapter(module) if known is None else known(module)),)


class Adapting(nn.Module):
    """A module that adapts its sub-modules when they are assigned, under their names in `adapted`."""

    adapted: dict[str, tuple[Part, ...]]

    def __init__(self) -> None:
        super().__init__()
        self.adapted = {}

    def __setattr__(self, name: str, value: Any) -> None:
        """Set an attribute, and adapt a module."""
        super().__setattr__(name, value)
        if value is None or isinstance(value, nn.Module):
            self.adapted[name] = adapt(value)
