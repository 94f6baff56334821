"""Weights of a cost: those that a matcher gives to classes and the targets bring along in, one for each target out."""

from collections.abc import Sequence

import torch
from torch import Tensor

from uotod.check import check_device, check_number
from uotod.geometry.boxes import full_precision
from uotod.scene.targets import Targets


def parse_class_weight(value: Sequence[float] | Tensor | None) -> Tensor | None:
    """Return class weights as a (C,) tensor, float32 or, where they are given so, float64.

    Raises:
        TypeError: `value` holds anything but real numbers.
        ValueError: `value` has another shape, or holds a number that is not finite and above 0.
    """
    if value is None:
        return None
    if isinstance(value, Tensor):
        if not value.is_floating_point():
            raise TypeError(f"class_weight must have a floating dtype, got {value.dtype}")
        if value.dim() != 1:
            raise ValueError(f"class_weight must have shape (C,), got {tuple(value.shape)}")
        weight = full_precision(value.detach().clone())
        if not bool(((weight > 0) & weight.isfinite()).all()):
            raise ValueError(f"class_weight must hold finite numbers above 0, got {weight.tolist()}")
        return weight
    if not isinstance(value, Sequence):
        raise TypeError(f"class_weight must be a sequence of numbers or a tensor, got {type(value).__name__}")
    numbers = [check_number(f"class_weight[{i}]", w, low=0.0, low_open=True) for i, w in enumerate(value)]
    return torch.tensor(numbers, dtype=torch.float32)


def target_weight(class_weight: Tensor | None, targets: Targets, num_classes: int) -> Tensor | None:
    """Return the (B, T) factors of the targets' costs, or None if all are 1.

    The factor of a one-hot target is the mean of the class weights, weighted by its labels; 1 for a row of zeros.

    Raises:
        ValueError: there are fewer or more class weights than classes, or they are on another device.
    """
    if class_weight is None:
        return targets.weight
    if len(class_weight) != num_classes:
        raise ValueError(f"class_weight must hold C = {num_classes} numbers, one a class, got {len(class_weight)}")
    check_device("class_weight", class_weight, targets.boxes.device)
    weight = class_weight.to(targets.boxes.dtype)
    if targets.one_hot is None:
        assert targets.labels is not None
        weight = weight[targets.labels]  # (B, T)
    else:
        share = targets.one_hot.to(weight.dtype)
        total = share.sum(-1)
        weight = torch.where(total > 0, share @ weight / total.where(total > 0, 1.0), 1.0)
    return weight if targets.weight is None else weight * targets.weight
