"""Costs and overlaps in, an assignment out in which each target takes as many predictions as overlap it well."""

import math
from collections.abc import Callable
from functools import reduce
from typing import NamedTuple

import torch
from torch import Tensor

from uotod.check import reads_values
from uotod.cost.blocks import MAX_BLOCK_ELEMENTS, MAX_GPU_BLOCK_ELEMENTS, slices
from uotod.solvers.aligned import Block, align
from uotod.solvers.by_image import assign_by_image

MAX_IMAGE_BLOCK_ELEMENTS = 1 << 20  # of a (t, P) block on the CPU: what is computed for each prediction is repeated
ALL = slice(None)


class Piece(NamedTuple):
    """Some images of a batch, some of their targets and some of their predictions: slices, or (N,) positions."""

    images: slice = ALL
    targets: slice | Tensor = ALL
    preds: slice | Tensor = ALL


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


def match_candidates(
    candidates: Callable[[Piece], Tensor],
    costs: Callable[[Piece], tuple[Tensor, Tensor]],
    mask: Tensor,
    boxes: Tensor,
    topk: int,
    contested: str,
) -> Tensor:
    """Return what `dynamic_k_match` returns where a prediction may be matched by all targets or none.

    Costs are computed a few targets at a time, on the host of one image and its candidates only.

    Args:
        candidates: function of a piece of the batch that returns which predictions some of its targets, of those that
            are not padding, make candidates: (b, 1, p) bool.
        costs: function of a piece of the batch that returns cost and overlap (b, t, p) of its pairs, padding included.
        mask: (B, T) bool, False for padding.
        boxes: (B, P, 4), or any tensor with that many predictions.
        topk: see `dynamic_k_match`.
        contested: see `dynamic_k_match`.
    """
    (images, num_targets), preds = mask.shape, boxes.shape[1]
    if not mask.numel() or not preds:
        return torch.full((images, preds), num_targets, device=boxes.device)
    among_all = contested == "all"
    if not reads_values(boxes, validate=False):
        pieces = [Piece(targets=some) for some in slices(num_targets, images * preds, MAX_GPU_BLOCK_ELEMENTS)]
        allowed = reduce(torch.logical_or, map(candidates, pieces))  # (B, 1, P)

        def block(piece: Piece) -> Block:
            cost, overlap = costs(piece)
            forbidden = ~(allowed & mask[:, piece.targets].unsqueeze(-1))
            return dynamic_block(cost.masked_fill(forbidden, math.inf), overlap, topk)

        return align(map(block, pieces), preds, topk, among_all=among_all)

    def of_image(image: int, real: Tensor) -> Tensor:
        whole = Piece(slice(image, image + 1))
        parts = [whole._replace(targets=real[some]) for some in slices(len(real), preds, MAX_BLOCK_ELEMENTS)]
        chosen = reduce(torch.logical_or, map(candidates, parts)).flatten().nonzero().squeeze(1)
        index = torch.full((preds,), len(real))
        if len(chosen):
            pieces = slices(len(real), len(chosen), MAX_IMAGE_BLOCK_ELEMENTS)
            blocks = (dynamic_block(*costs(whole._replace(targets=real[some], preds=chosen)), topk) for some in pieces)
            index[chosen] = align(blocks, len(chosen), topk, among_all=among_all)[0]
        return index

    return assign_by_image(of_image, mask, preds)


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
