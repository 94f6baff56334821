"""A weight that is one for all classes, or one a class: what a constructor is given in, a number or a buffer out."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from uotod.check import check_number

Alpha = float | Sequence[float] | Tensor


def set_alpha(module: Any, value: Any, *, high: float = torch.inf, none: float | None = None) -> None:
    """Give a module its `alpha`: a number, or a buffer (C,) that moves with it and is no state to be saved.

    Args:
        module: the loss or matcher.
        value: a number, or one for each class.
        high: the largest value; the least is 0.
        none: a number outside that stands for no weights, if there is one.

    Raises:
        TypeError: it is neither a number nor numbers.
        ValueError: a value is out of its range, or the shape is not (C,).
    """
    name = "alpha" if none is None else f"alpha ({none:g} for none)"
    if isinstance(value, str) or not hasattr(value, "__len__"):
        module.alpha = none if none is not None and value == none else check_number(name, value, low=0.0, high=high)
        return
    weights = torch.as_tensor(value).detach().clone()
    if weights.dim() != 1 or not len(weights) or weights.is_complex() or weights.dtype == torch.bool:
        raise ValueError(
            f"alpha must be a number or have shape (C,), one number a class, got {tuple(weights.shape)} of "
            f"{weights.dtype}"
        )
    if not weights.is_floating_point():
        weights = weights.to(torch.get_default_dtype())
    for index, weight in enumerate(weights.tolist()):
        check_number(f"alpha[{index}]", weight, low=0.0, high=high)
    module.register_buffer("alpha", weights, persistent=False)


def alpha_of(module: Any, logits: Tensor) -> float | Tensor:
    """Return the `alpha` of a module for (..., C) logits: a number, or (C,) in their dtype.

    Raises:
        ValueError: there is no logit for each of its classes.
    """
    alpha: float | Tensor = module.alpha
    if not isinstance(alpha, Tensor):
        return alpha
    if len(alpha) != logits.shape[-1]:
        raise ValueError(
            f"alpha of {type(module).__name__} must have one number for each of the {logits.shape[-1]} logits, "
            f"got {len(alpha)}"
        )
    return alpha.to(logits.dtype)
