"""Boxes as distributions of the distances from a point to their sides: logits of bins in, expected boxes out."""

import torch
from torch import Tensor
from torch.nn import functional as F

from uotod.geometry.boxes import full_precision
from uotod.geometry.coders import DistanceCoder


def bins_of(pred_dist: Tensor, bins: Tensor | None) -> Tensor:
    """Return the (K + 1,) positions of the bins of (..., K + 1) logits: those given, or 0, 1, ..., K.

    Raises:
        ValueError: there are fewer than two bins, or their number differs from that of the logits.
    """
    count = pred_dist.shape[-1]
    if count < 2:
        raise ValueError(f"pred_dist must have at least two bins, got the shape {tuple(pred_dist.shape)}")
    if bins is None:
        return torch.arange(count, device=pred_dist.device, dtype=pred_dist.dtype)
    if len(bins) != count:
        raise ValueError(f"pred_dist must have {len(bins)} bins like the argument bins, got {count}")
    return bins.to(pred_dist.device, pred_dist.dtype)


def check_sides(target: Tensor, pred_dist: Tensor) -> None:
    """Raise a ValueError unless the four sides of each target box have a distribution each."""
    if pred_dist.shape[:-1] != target.shape or target.shape[-1:] != (4,):
        raise ValueError(
            "target and pred_dist must have the shapes (..., 4) and (..., 4, K + 1), "
            f"got {tuple(target.shape)} and {tuple(pred_dist.shape)}"
        )


def interpolated_loss(pred_dist: Tensor, value: Tensor, bins: Tensor) -> Tensor:
    """Return the cross-entropy (...) of (..., K + 1) logits against the two (K + 1,) bins around (...) values.

    A value outside of the bins is that of the nearest one.
    """
    value = torch.minimum(torch.maximum(value, bins[0]), bins[-1])
    left = (torch.searchsorted(bins, value.contiguous(), right=True) - 1).clamp(0, len(bins) - 2)
    share = (value - bins[left]) / (bins[left + 1] - bins[left])
    log_p = F.log_softmax(pred_dist, dim=-1)
    near, far = (log_p.gather(-1, index.unsqueeze(-1)).squeeze(-1) for index in (left, left + 1))
    return -((1 - share) * near + share * far)


def distribution_to_box(pred_dist: Tensor, anchors: Tensor, stride: Tensor, bins: Tensor | None = None) -> Tensor:
    r"""Return the boxes whose sides are at the expected distances, `Σ_n softmax(pred_dist)_n y_n` strides.

    Args:
        pred_dist: (..., 4, K + 1) logits of the distances of the left, upper, right and lower side.
        anchors: (..., 2) points, or (..., 4) anchors, xyxy, whose centres are meant.
        stride: (...) strides, in the units of the boxes.
        bins: (K + 1,) distances `y` in strides that the logits stand for; 0, 1, ..., K by default.

    Returns:
        (..., 4) boxes, xyxy.

    Raises:
        ValueError: a shape is wrong.

    References:
        Li et al., "Generalized focal loss", NeurIPS 2020, eqs. 3-5.

    Examples:
        >>> even = torch.zeros(1, 4, 5)  # K = 4: each side 2 strides away
        >>> distribution_to_box(even, torch.tensor([[20.0, 20.0]]), torch.tensor([8.0]))
        tensor([[ 4.,  4., 36., 36.]])
    """
    if pred_dist.dim() < 2 or pred_dist.shape[-2] != 4:
        raise ValueError(f"pred_dist must have shape (..., 4, K + 1), got {tuple(pred_dist.shape)}")
    pred_dist = full_precision(pred_dist)
    distances = pred_dist.softmax(-1) @ bins_of(pred_dist, bins)
    return DistanceCoder(by_stride=True).decode(distances, anchors, stride)
