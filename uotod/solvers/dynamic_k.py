"""Costs and overlaps in, an assignment out in which each target takes as many predictions as overlap it well."""

import math

import torch
from torch import Tensor

from uotod.solvers.aligned import Block, align


def dynamic_k_match(cost: Tensor, overlap: Tensor | None, topk: int, contested: str = "all") -> Tensor:
    r"""Let each target take its `k_j` cheapest predictions, and give each prediction to one target.

    .. math:: k_j = \max\bigl(1, \bigl\lfloor \textstyle\sum \text{the topk largest overlaps of } j \bigr\rfloor\bigr)

    A target takes fewer than `k_j` if it has no more candidates. The lowest index wins every tie, in the choice of
    predictions and in the choice among targets. O(B·P·T) time and memory.

    Args:
        cost: (B, T, P); `inf` forbids a pair, and a prediction that is no candidate of a target has no part in `k_j`.
        overlap: (B, T, P) IoU, in [0, 1]; None for `k_j = 1`.
        topk: number of overlaps that are summed, at least 1.
        contested: which targets compete for a prediction that several took: "all" of the image, as in the published
            implementations, so that it may go to one that did not take it, or only its "takers".

    Returns:
        (B, P) index of the target, T for the background.

    References:
        Ge et al., "YOLOX: exceeding YOLO series in 2021", arXiv 2107.08430, sec. 2.1 (SimOTA); Ge et al., "OTA:
        optimal transport assignment for object detection", CVPR 2021, sec. 3.3 (dynamic k).
    """
    images, num_targets, preds = cost.shape
    if not cost.numel():
        return torch.full((images, preds), num_targets, device=cost.device)
    return align([dynamic_block(cost, overlap, topk)], preds, topk, among_all=contested == "all")


def dynamic_block(cost: Tensor, overlap: Tensor | None, topk: int) -> Block:
    """Return a block of `align` in which targets take their `k_j` cheapest predictions; see `dynamic_k_match`."""
    if overlap is None:
        count = torch.ones_like(cost[..., 0], dtype=torch.long)
    else:
        count = dynamic_count(overlap.masked_fill(cost == math.inf, 0), topk)
    return Block(-cost, -cost, most=count)


def dynamic_count(overlap: Tensor, topk: int) -> Tensor:
    """Return `max(1, int(sum))` of the `topk` largest overlaps (B, T, P) of each target, (B, T); 1 without any.

    Args:
        overlap: (B, T, P) IoU, 0 for pairs that do not count.
        topk: number of overlaps that are summed; all if there are fewer.
    """
    found = overlap.topk(min(topk, overlap.shape[2]), dim=2).values
    return found.sum(2).long().clamp(min=1)
