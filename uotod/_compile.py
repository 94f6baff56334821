"""Compile the pure parts of a criterion or matcher: an option, never needed."""

import copy
from typing import Any, TypeVar

import torch
from torch import nn

M = TypeVar("M", bound=nn.Module)

# functions of tensors alone, which the layers above call on all pairs, on rows of boxes and on rows of logits
PURE_METHODS = ("_of_pair", "class_terms", "_values")


def compile(module: M, **options: Any) -> M:
    """Return a copy of a criterion or matcher whose pure parts are compiled by `torch.compile`.

    These are the formulas of the sub-losses and costs: a box loss of all pairs becomes one loop instead of two dozen.
    What depends on data (assignments, solvers, mining) and modules that are not of `uotod` stay as they are. The
    results are the same but for rounding. Each formula is compiled at its first call, which takes seconds, for all
    shapes; on a CPU this needs a C++ compiler.

    The copy cannot be pickled or copied again, which raises an error: save its `state_dict`, and copy what it was made
    from.

    Args:
        module: a `DetectionLoss`, `Branches` or matcher, or any module that holds one.
        options: arguments of `torch.compile`, such as `mode` or `backend`; `dynamic` is True by default, so that
            another number of targets compiles nothing anew.

    Raises:
        TypeError: `module` is not a `torch.nn.Module`.

    Examples:
        >>> import uotod
        >>> criterion = uotod.compile(uotod.recipes.detr(num_classes=91))
    """
    if not isinstance(module, nn.Module):
        raise TypeError(f"module must be a torch.nn.Module, got {module!r} of type {type(module).__name__}")
    module = copy.deepcopy(module)
    for part in module.modules():
        for name in PURE_METHODS:
            if type(part).__module__.startswith("uotod.") and callable(getattr(part, name, None)):
                setattr(part, name, torch.compile(getattr(part, name), **{"dynamic": True, **options}))
                part.__dict__["__deepcopy__"] = _refuse_copy
    return module


def _refuse_copy(memo: dict[int, Any]) -> None:
    """Raise a TypeError: the compiled methods of a copy would be those of the module that it was copied from."""
    raise TypeError("a module of uotod.compile cannot be copied: copy it before it is compiled")
