"""Checks of tensors that a user passes; every error names the tensor, what it was and what was expected."""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor


def reads_values(tensor: Tensor, validate: bool) -> bool:
    """Tell whether values of `tensor` may be looked at: on a GPU that synchronises, so only on request."""
    return validate or tensor.device.type == "cpu"


def entry(name: str, values: Mapping[str, Any], key: str) -> Tensor:
    if key not in values:
        raise ValueError(f"{name} must have the key {key!r}, got the keys {sorted(map(str, values))}")
    if not isinstance(values[key], Tensor):
        raise TypeError(f"{name}[{key!r}] must be a tensor, got {type(values[key]).__name__}")
    tensor: Tensor = values[key]
    return tensor


def check_device(name: str, tensor: Tensor, device: torch.device) -> None:
    if tensor.device != device:
        raise ValueError(f"{name} must be on {device} like the rest, got {tensor.device}")


def check_finite(name: str, tensor: Tensor, validate: bool, hint: str = "") -> None:
    """Raise a ValueError that names the first image with a non-finite value and how many it has."""
    if not tensor.numel() or not reads_values(tensor, validate):
        return
    if is_finite(tensor):
        return
    bad = ~torch.isfinite(tensor.detach())
    if tensor.dim() == 2:
        raise ValueError(f"{name} must be finite, got {int(bad.sum())} non-finite values{hint}")
    per_image = bad.flatten(1).sum(1)
    image = int(per_image.ne(0).nonzero()[0])
    raise ValueError(f"{name} must be finite, got {int(per_image[image])} non-finite values in image {image}{hint}")


def is_finite(tensor: Tensor) -> bool:
    """Tell whether a tensor holds finite numbers only; on a GPU that synchronises."""
    # one pass: NaN comes through both
    return not tensor.numel() or all(math.isfinite(x.item()) for x in torch.aminmax(tensor.detach()))


def check_ordered(name: str, boxes: Tensor) -> None:
    inverted = (boxes[..., 2:] < boxes[..., :2]).any(-1)
    if bool(inverted.any()):
        first = tuple(int(x) for x in inverted.nonzero()[0])
        values = [float(x) for x in boxes[first]]
        raise ValueError(f"{name} must have x1 <= x2 and y1 <= y2 (xyxy), got {values} at index {first}")
