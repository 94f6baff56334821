"""The best candidates of each target and what becomes of predictions that several want; the lowest index wins ties."""

import math

import torch
from torch import Tensor

from uotod.check import reads_values


def stable_topk(values: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Return the `k` largest values of the last dimension in descending order, and their indices.

    Of equal values the one with the lowest index comes first; `torch.topk` promises no order. A selection, a count
    and a sort of `k` values: cheaper than a stable sort of everything.

    Args:
        values: (..., P) without NaN.
        k: at most P.

    Returns:
        (..., k) values and (..., k) indices.

    Examples:
        >>> stable_topk(torch.tensor([0.0, 2.0, 1.0, 2.0, 1.0]), 3)
        (tensor([2., 2., 1.]), tensor([1, 3, 2]))
    """
    if not k or not values.numel():
        return values[..., :k], torch.zeros_like(values[..., :k], dtype=torch.long)
    if reads_values(values, validate=False):
        # what `topk` returns are the right ones unless the first one that is left out ties the last one that is not
        value, index = values.topk(min(k + 1, values.shape[-1]), dim=-1)
        if k == values.shape[-1] or not bool((value[..., -1] == value[..., -2]).any()):
            return _in_order(values, index[..., :k].sort(dim=-1).values)
    # topk promises its values but not which of equal ones it finds: the ties at the last one are counted off
    last = values.topk(k, dim=-1).values[..., -1:]
    above, tied = values > last, values == last
    room = k - above.sum(-1, keepdim=True, dtype=torch.int32)
    chosen = above | (tied & (tied.cumsum(-1, dtype=torch.int32) <= room))
    rank = torch.arange(1, k + 1, dtype=torch.int32, device=values.device).expand(*values.shape[:-1], k).contiguous()
    index = torch.searchsorted(chosen.cumsum(-1, dtype=torch.int32), rank)  # ascending
    return _in_order(values, index.clamp(max=values.shape[-1] - 1))  # of a row with NaN nothing is chosen


def _in_order(values: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
    """Return the values at ascending (..., k) indices in descending order, and their indices."""
    found, order = values.gather(-1, index).sort(dim=-1, descending=True, stable=True)
    return found, index.gather(-1, order)


def suitors(value: Tensor, index: Tensor, preds: int) -> Tensor:
    """Return for each prediction the target that lists it with the largest value, the lowest on ties.

    Args:
        value: (B, T, K) values of the candidates of each target; `-inf` for none.
        index: (B, T, K) predictions of these values; one may be listed twice.
        preds: number of predictions.

    Returns:
        (B, P) target of each prediction, T for none.
    """
    images, num_targets, _ = value.shape
    listed, flat = index.flatten(1), value.flatten(1)  # (B, T·K)
    target = torch.arange(num_targets, device=value.device)[None, :, None].expand_as(index).flatten(1)
    top = value.new_full((images, preds), -math.inf).scatter_reduce(1, listed, flat, "amax")
    wins = (flat == top.gather(1, listed)) & (flat > -math.inf)
    nobody = torch.full((images, preds), num_targets, device=value.device)
    return nobody.scatter_reduce(1, listed, torch.where(wins, target, num_targets), "amin")


class RunningMax:
    """The running maximum over the targets, and its index; the lowest index wins ties."""

    value: Tensor
    index: Tensor

    def add(self, values: Tensor, start: int) -> None:
        """Take in (B, t, P) values of the targets from `start` on."""
        value, index = values.max(1)  # (B, P)
        if not start:
            self.value, self.index = value, index
            return
        self.index = torch.where(value > self.value, index + start, self.index)
        self.value = torch.maximum(value, self.value)
