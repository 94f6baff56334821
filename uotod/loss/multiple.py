"""A weighted sum of losses that is itself a loss."""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import reduce

import torch
from torch import Tensor, nn

from uotod.check import check_number
from uotod.cost.adapters import Part, adapt
from uotod.loss.box_space import BoxSpace


class MultipleObjectiveLoss(nn.Module):
    r"""Add several losses on the same rows, each with its weight.

    .. math:: L(x, y) = \sum_k w_k L_k(x, y)

    The losses keep their names, under which `DetectionLoss.terms` reports them.

    Args:
        losses: the losses, or a dict that names them. Without names a loss is called by its class: `L1Loss` is
            "l1", a second one "l1#2"; a `BoxSpace` is called by its loss.
        weights: one weight of at least 0 a loss; all 1 by default.

    Shape:
        input and target: rows that every loss takes. A loss that returns (N, K) is summed over K. Output: (N,) if the
        losses have `reduction="none"`, () if they reduce.

    Raises:
        TypeError: `losses` does not hold modules.
        ValueError: there is no loss, the number of weights differs, or a weight is negative.

    Examples:
        >>> import torch
        >>> loss = MultipleObjectiveLoss([nn.L1Loss(reduction="none"), nn.MSELoss(reduction="none")], weights=[5, 2])
        >>> loss(torch.zeros(1, 4), torch.full((1, 4), 0.5)), [part.name for part in loss.parts()]
        (tensor([12.]), ['l1', 'mse'])
    """

    def __init__(
        self, losses: Sequence[nn.Module] | Mapping[str, nn.Module], weights: Sequence[float] | None = None
    ) -> None:
        super().__init__()
        modules = list(losses.values()) if isinstance(losses, Mapping) else list(losses)
        if not modules:
            raise ValueError("losses must hold at least one loss, got none")
        for index, module in enumerate(modules):
            if not isinstance(module, nn.Module):
                raise TypeError(f"losses[{index}] must be a torch.nn.Module, got {module!r}")
        reductions = {getattr(module, "reduction", "none") == "none" for module in modules}
        if len(reductions) > 1:
            raise ValueError("losses must all have reduction='none' or all reduce, got both kinds")
        if weights is None:
            weights = [1.0] * len(modules)
        if len(weights) != len(modules):
            raise ValueError(f"weights must hold {len(modules)} numbers, one a loss, got {len(weights)}")
        self.losses = _Fixed(modules)
        self._weights = tuple(check_number(f"weights[{i}]", w, low=0.0) for i, w in enumerate(weights))
        self.names = tuple(losses) if isinstance(losses, Mapping) else _names(modules)
        names = [part.name for part in self.parts()]
        for name in names:
            if not isinstance(name, str) or not name or name.rsplit("_", 1)[-1].isdecimal() or names.count(name) > 1:
                raise ValueError(f"names of losses must be distinct strings that end in no _number, got {name!r}")
        self.reduction = "none" if reductions == {True} else "mixed"

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        """Return the weighted sum of the losses."""
        values: list[Tensor] = [loss(input, target) for loss in self.losses]
        rows = [value.flatten(1).sum(1) if value.dim() > 1 else value for value in values]
        return reduce(torch.add, (weight * value for weight, value in zip(self.weights, rows, strict=True)))

    @property
    def weights(self) -> tuple[float, ...]:
        """The weights; what a criterion has taken in does not change: assign it a new `MultipleObjectiveLoss`."""
        return self._weights

    def parts(self) -> list[Part]:
        """Return name, weight and module of every loss, nested sums taken apart."""
        parts = []
        for name, weight, loss in zip(self.names, self.weights, self.losses, strict=True):
            parts += [Part(f"{name}_{x.name}" if x.name else name, weight * x.weight, x.adapter) for x in adapt(loss)]
        return parts

    def extra_repr(self) -> str:
        """Return the arguments for `repr`."""
        return f"weights={self.weights}"


class _Fixed(nn.ModuleList):
    """Losses whose adapters a criterion may hold already."""

    def __setitem__(self, index: int, module: nn.Module) -> None:
        raise TypeError(
            "losses of a MultipleObjectiveLoss are fixed: build another one, and assign it to the criterion"
        )


def _names(modules: Sequence[nn.Module]) -> tuple[str, ...]:
    """Return a name a module: its class without `Loss`, in snake case, numbered from the second of a kind on."""
    names, seen = [], Counter[str]()
    for module in modules:
        while isinstance(module, BoxSpace) and not isinstance(module.loss, MultipleObjectiveLoss):
            module = module.loss
        stem = re.sub(r"Loss$", "", type(module).__name__) or "loss"
        stem = re.sub(r"[A-Z]*IoU", lambda match: match[0].capitalize(), stem)  # GIoU is one word
        name = re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", stem).lower()
        seen[name] += 1
        names.append(name if seen[name] == 1 else f"{name}#{seen[name]}")
    return tuple(names)
