"""Check arguments of constructors and tensors; every error names the argument, its value and what was expected.

`Described` shows the arguments that passed.
"""

import inspect
import math
import numbers
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor

# tells whether a transform of `torch.func` is at work
is_transformed: Callable[[], bool] = torch._C._are_functorch_transforms_active

Choice = TypeVar("Choice", bound=str | None)


class Described(nn.Module):
    """A module whose `repr` shows the arguments of its constructor that it keeps under their names, but sub-modules."""

    def extra_repr(self) -> str:
        """Return the arguments for `repr`."""
        buffers = {
            name: [round(x, 6) for x in value.flatten().tolist()] for name, value in self.named_buffers(recurse=False)
        }
        kept = vars(self) | buffers
        return ", ".join(f"{name}={kept[name]!r}" for name in inspect.signature(type(self)).parameters if name in kept)


def check_number(
    name: str,
    value: float,
    *,
    low: float = -math.inf,
    high: float = math.inf,
    low_open: bool = False,
    finite: bool = True,
) -> float:
    """Return `value` as a float if it lies in the stated interval (closed unless `low_open`).

    Raises:
        TypeError: `value` is not a real number: an int, a float or a scalar of NumPy, but no bool.
        ValueError: `value` is NaN, outside the interval, or infinite where `finite` is asked for.
    """
    if isinstance(value, bool) or not isinstance(value, (int, float, numbers.Real)):
        raise TypeError(f"{name} must be a real number, got {value!r} of type {type(value).__name__}")
    inside = low < value if low_open else low <= value
    if not (inside and value <= high) or (finite and math.isinf(value)):
        left, right = ("(" if low_open or low == -math.inf else "["), ("]" if high < math.inf or not finite else ")")
        raise ValueError(f"{name} must lie in {left}{low}, {high}{right}, got {value!r}")
    return float(value)


def check_integer(name: str, value: int, *, low: int | None = None) -> int:
    """Return `value` as an int if it is an integer, of at least `low` if that is given.

    Raises:
        TypeError: `value` is not an integer: an int or a scalar of NumPy, but no bool.
        ValueError: `value` is below `low`.
    """
    if isinstance(value, bool) or not isinstance(value, (int, numbers.Integral)):
        raise TypeError(f"{name} must be an integer, got {value!r} of type {type(value).__name__}")
    if low is not None and value < low:
        raise ValueError(f"{name} must be at least {low}, got {value}")
    return int(value)


def check_flag(name: str, value: bool) -> bool:
    """Return `value` if it is a bool.

    Raises:
        TypeError: `value` is anything else.
    """
    if not isinstance(value, bool):
        raise TypeError(f"{name} must be a bool, got {value!r} of type {type(value).__name__}")
    return value


def check_choice(name: str, value: Choice, choices: Sequence[Choice]) -> Choice:
    """Return `value` if it is one of `choices`, else raise a ValueError."""
    if value not in choices:
        raise ValueError(f"{name} must be one of {list(choices)}, got {value!r}")
    return value


def check_sub_loss(name: str, module: nn.Module | None, *, optional: bool = False) -> None:
    """Check that `module` is a loss module that leaves its rows unreduced.

    Raises:
        TypeError: `module` is not a `torch.nn.Module`.
        ValueError: `module.reduction` exists and is not "none".
    """
    if module is None and optional:
        return
    if not isinstance(module, nn.Module):
        raise TypeError(f"{name} must be a torch.nn.Module, got {module!r} of type {type(module).__name__}")
    reduction = getattr(module, "reduction", "none")
    if reduction != "none":
        raise ValueError(f'{name} must be built with reduction="none", got {module} with reduction={reduction!r}')


def reads_values(tensor: Tensor, validate: bool) -> bool:
    """Tell whether values of `tensor` may be looked at: on a GPU that synchronises, so only on request.

    Under `torch.func.vmap` a tensor has as many values as there are calls, and under a compiler it has none yet: there
    none may be looked at.
    """
    if torch.compiler.is_compiling() or tensor.is_meta or isinstance(tensor, FakeTensor):
        return False
    return (validate or tensor.device.type == "cpu") and not (is_transformed() and _is_mapped(tensor))


def is_traced(tensor: Tensor) -> bool:
    """Tell whether a tensor has no values at all, as in a compiler, where it stands for all those of its shape."""
    return not reads_values(tensor, validate=True)


def _is_mapped(tensor: Tensor) -> bool:
    functorch = torch._C._functorch
    while functorch.is_functorch_wrapped_tensor(tensor):
        if functorch.is_batchedtensor(tensor):
            return True
        tensor = functorch.get_unwrapped(tensor)
    return False


def entry(name: str, values: Mapping[str, Any], key: str) -> Tensor:
    """Return the tensor under a key that must be there."""
    if key not in values:
        raise ValueError(f"{name} must have the key {key!r}, got the keys {sorted(map(str, values))}")
    if not isinstance(values[key], Tensor):
        raise TypeError(f"{name}[{key!r}] must be a tensor, got {type(values[key]).__name__}")
    tensor: Tensor = values[key]
    return tensor


def check_device(name: str, tensor: Tensor, device: torch.device) -> None:
    """Raise a ValueError unless the tensor is on the device."""
    if tensor.device != device:
        raise ValueError(f"{name} must be on {device} like the rest, got {tensor.device}")


def check_finite(name: str, tensor: Tensor, validate: bool, hint: str = "", largest: float = math.inf) -> None:
    """Raise a ValueError that names the first image with a value that `is_finite` refuses, and how many it has."""
    if not tensor.numel() or not reads_values(tensor, validate) or is_finite(tensor, largest):
        return
    values = tensor.detach()
    bad = ~values.isfinite()
    what, expected = "non-finite", "finite"
    if not bool(bad.any()):
        bad = values.abs() > largest
        what, expected = "larger", f"at most {largest:.1e} in size, for areas overflow beyond"
    if tensor.dim() == 2:
        raise ValueError(f"{name} must be {expected}, got {int(bad.sum())} {what} values{hint}")
    per_image = bad.flatten(1).sum(1)
    image = int(per_image.ne(0).nonzero()[0])
    raise ValueError(f"{name} must be {expected}, got {int(per_image[image])} {what} values in image {image}{hint}")


def is_finite(tensor: Tensor, largest: float = math.inf) -> bool:
    """Tell whether a tensor holds finite numbers of at most a size only; on a GPU that synchronises."""
    # one pass: NaN comes through both, and compares as False
    found = [x.item() for x in torch.aminmax(tensor.detach())] if tensor.numel() else []
    return all(math.isfinite(x) and abs(x) <= largest for x in found)


def check_ordered(name: str, boxes: Tensor) -> None:
    """Raise a ValueError that names the first inverted box."""
    inverted = (boxes[..., 2:] < boxes[..., :2]).any(-1)
    if bool(inverted.any()):
        first = tuple(int(x) for x in inverted.nonzero()[0])
        values = [float(x) for x in boxes[first]]
        raise ValueError(f"{name} must have x1 <= x2 and y1 <= y2 (xyxy), got {values} at index {first}")


def check_area(name: str, boxes: Tensor, mask: Tensor, validate: bool, remedy: str) -> None:
    """Raise a ValueError that names the first of (B, T, 4) boxes in a (B, T) mask without area, if it may be read."""
    if not reads_values(boxes, validate) or not boxes.numel():
        return
    flat = (boxes[..., 2:] <= boxes[..., :2]).any(-1) & mask
    for image, target in flat.nonzero()[:1].tolist():
        raise ValueError(
            f"{name} must have an area, got {boxes[image, target].tolist()} for target {target} in image {image}, "
            f"{remedy}"
        )


def check_unit(name: str, tensor: Tensor, validate: bool) -> None:
    """Raise a ValueError unless all values lie in [0, 1], where they may be looked at."""
    if reads_values(tensor, validate) and bool(((tensor < 0) | (tensor > 1)).any()):
        raise ValueError(f"{name} must lie in [0, 1], got a value outside")


def check_range(name: str, values: Tensor, high: int, *, low: int = 0, note: str = "") -> None:
    """Raise a ValueError, with a note after the interval, unless integers lie in [low, high)."""
    for value in torch.aminmax(values) if values.numel() else ():
        if not low <= int(value) < high:
            raise ValueError(f"{name} must lie in [{low}, {high}){note}, got {int(value)}")


def check_labels(name: str, labels: Tensor, num_classes: int) -> None:
    """Raise a ValueError unless labels lie in [0, num_classes), where they may be looked at."""
    if reads_values(labels, validate=False):
        check_range(name, labels, num_classes)


def check_positions(name: str, positions: Tensor, count: int) -> None:
    """Raise a ValueError unless (N,) integers are different positions among `count`, where they may be looked at."""
    if not positions.numel() or not reads_values(positions, validate=False):
        return
    check_range(name, positions, count)
    times = torch.bincount(positions)
    if int(times.max()) > 1:
        raise ValueError(f"{name} must hold each position once, got {int(times.argmax())} {int(times.max())} times")


def known_positive(tensor: Tensor) -> bool:
    """Tell whether all of a tensor is positive, where that can be asked without waiting for a GPU or a compiler."""
    if not reads_values(tensor, validate=False) or not tensor.numel():
        return False
    return bool(tensor.detach().amin() >= least_positive(tensor.dtype))


def least_positive(dtype: torch.dtype) -> float:
    """Return the least number that a quotient divides by: 1e-31 in float32, below which gradients would overflow."""
    return torch.finfo(dtype).tiny / torch.finfo(dtype).eps if dtype.is_floating_point else 0.5


def known_largest(tensor: Tensor, validate: bool) -> float | None:
    """Return the largest value of a tensor, or None where there is none or it may not be looked at."""
    if not tensor.numel() or not reads_values(tensor, validate):
        return None
    return float(tensor.max())


def check_shares(name: str, values: Tensor, expected: str, or_be: float = 0.0) -> None:
    """Raise a ValueError unless values lie in [0, 1] or are one other number, where they may be read."""
    if reads_values(values, validate=False):
        wrong = ~((values >= 0) & (values <= 1) | (values == or_be))
        if bool(wrong.any()):
            raise ValueError(f"{name} must {expected}, got {float(values.detach()[wrong][0])}")
