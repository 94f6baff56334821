"""What transport problems are made of: the scale of a cost and the masses of its columns."""

import math

import torch
from torch import Tensor

from uotod.check import reads_values


def cost_unit(cost: Tensor, active: Tensor, scale: str, seen: Tensor | None = None) -> Tensor:
    """Return what each image's cost (B, K, P) is divided by, (B,): its `largest_entry`, or `typical_entry`.

    Args:
        cost: target-major; `inf` forbids a pair.
        active: (B, K) bool, False for a column that is absent.
        scale: "max" or "median".
        seen: (B, P) bool, predictions that count; None for all.
    """
    return (largest_entry if scale == "max" else typical_entry)(cost, active, seen)


def typical_entry(cost: Tensor, active: Tensor, seen: Tensor | None = None) -> Tensor:
    """Return the median (B,) over predictions of each one's largest absolute finite entry, the lower of two; 1 for 0.

    Arguments as in `largest_entry`. A prediction without a finite entry does not count.
    """
    if not cost.numel():
        return cost.new_ones(len(cost))
    finite = cost.isfinite() & active.unsqueeze(-1)
    counts = finite.any(1) if seen is None else finite.any(1) & seen
    largest = cost.abs().masked_fill_(~finite, 0).amax(1).masked_fill_(~counts, math.inf)  # (B, P)
    middle = (counts.sum(1, keepdim=True) - 1).clamp_(min=0) // 2
    median = largest.sort(dim=1).values.gather(1, middle).squeeze(1)
    return torch.where((median > 0) & (median < math.inf), median, 1.0)


def largest_entry(cost: Tensor, active: Tensor, seen: Tensor | None = None) -> Tensor:
    """Return each image's largest absolute finite entry in active (B, K) columns of a cost (B, K, P), or 1 for 0, (B,).

    `seen` (B, P) bool leaves predictions out of the search; None for none.
    """
    if not cost.numel():
        return cost.new_ones(len(cost))
    highest = cost.amax(2)  # (B, K)
    if seen is None and reads_values(cost, validate=False) and not bool(((highest == math.inf) & active).any()):
        # nothing is forbidden: no tensor of the size of the cost is needed
        largest = torch.maximum(highest, -cost.amin(2)).masked_fill_(~active, 0.0).amax(1)
    else:
        finite = cost.isfinite() & active.unsqueeze(-1)
        if seen is not None:
            finite = finite & seen.unsqueeze(1)
        largest = cost.abs().masked_fill_(~finite, 0).amax((1, 2))
    return torch.where(largest > 0, largest, 1.0)


def column_masses(mask: Tensor, preds: int, background: bool, dtype: torch.dtype) -> Tensor:
    """Return the marginal of each column times `preds`, (B, K): the mass that it has where a prediction has 1.

    A target has 1 and the background `P - T_b`. Without background, or with more targets than predictions, the targets
    share `P` evenly.
    """
    count = mask.sum(1, keepdim=True)  # (B, 1)
    share = preds / count.clamp(min=1).to(dtype)
    each = torch.where(count <= preds, torch.ones_like(share), share) if background else share
    columns = mask.to(dtype) * each
    if not background:
        return columns
    return torch.cat((columns, (preds - count).clamp(min=0).to(dtype)), dim=1)
