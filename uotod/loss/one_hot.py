"""Targets of classification rows: integer or one-hot labels in, one-hot labels out."""

import torch
from torch import Tensor

from uotod.check import check_labels


def one_hot_rows(target: Tensor, logits: Tensor) -> Tensor:
    """Return the target of (..., C) logits as (..., C) one-hot values of their dtype.

    Raises:
        TypeError: labels of the shape (...) are not integers.
        ValueError: the shape fits neither kind of target, or a label on the CPU is not in [0, C).
    """
    num_classes = logits.shape[-1]
    if target.shape == logits.shape:
        return target.to(logits.dtype)
    if target.shape != logits.shape[:-1]:
        raise ValueError(
            f"target must have shape {tuple(logits.shape[:-1])} (integers) or {tuple(logits.shape)} (one-hot), "
            f"got {tuple(target.shape)}"
        )
    if target.is_floating_point() or target.is_complex() or target.dtype == torch.bool:
        raise TypeError(f"target of shape {tuple(target.shape)} must have an integer dtype, got {target.dtype}")
    check_labels("target", target, num_classes)
    return (target.unsqueeze(-1) == torch.arange(num_classes, device=target.device)).to(logits.dtype)


def smooth_rows(one_hot: Tensor, smoothing: float) -> Tensor:
    """Spread the share `smoothing` of (..., C) labels over all classes; a row of zeros stays one."""
    if not smoothing:
        return one_hot
    mean = (one_hot / one_hot.shape[-1]).sum(-1, keepdim=True)  # the sum itself may overflow
    return (1 - smoothing) * one_hot + smoothing * mean


def smooth_gain(gain: Tensor, smoothing: float) -> Tensor:
    """Return the (..., C) gain for which a label gives what its smoothed row gives with the one handed in."""
    return smooth_rows(gain, smoothing)  # spreading is a symmetric map
