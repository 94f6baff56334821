"""Adaptive training sample selection: distances and similarities in, each target's threshold and assignment out."""

import math

import torch
from torch import Tensor

from uotod.check import reads_values
from uotod.cost.blocks import MAX_BLOCK_ELEMENTS, MAX_GPU_BLOCK_ELEMENTS, slices
from uotod.solvers.candidates import stable_topk, suitors


def nearest_candidates(
    centers: Tensor,
    places: Tensor,
    mask: Tensor,
    finite: Tensor,
    level: Tensor,
    num_levels: int,
    k: int,
    forbidden: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Return the `k` nearest predictions of each target on each level, in bounded memory; the lowest index wins ties.

    Args:
        centers: (B, T, 2) centres of the targets.
        places: (B, P, 2) places of the predictions.
        mask: (B, T) bool, False for padding.
        finite: (B, P) bool, False for a prediction that is nowhere.
        level: (B, P) index of the level of each prediction.
        num_levels: number of levels.
        k: number of candidates on a level.
        forbidden: (B, T, P) bool, pairs that are no candidates; None for none.

    Returns:
        (B, T, num_levels · min(k, P)) indices, and bool, False where a level has not so many.
    """
    (images, num_targets), preds = mask.shape, places.shape[1]
    if forbidden is None and mask.numel() and preds and reads_values(mask, validate=False):
        return _nearest_by_image(centers, places, mask, finite, level, num_levels, min(k, preds))
    found = []
    for some in slices(max(num_targets, 1), images * preds, MAX_GPU_BLOCK_ELEMENTS):
        allowed = mask[:, some, None] & finite.unsqueeze(1)
        if forbidden is not None:
            allowed = allowed & ~forbidden[:, some]
        distance = _square_distance(centers[:, some].transpose(1, 2), places.transpose(1, 2))  # (B, t, P)
        found.append(nearest_per_level(distance.masked_fill(~allowed, math.inf), level, num_levels, k))
    index, valid = (torch.cat(parts, dim=1) for parts in zip(*found, strict=True))
    return index, valid


def _nearest_by_image(
    centers: Tensor, places: Tensor, mask: Tensor, finite: Tensor, level: Tensor, num_levels: int, k: int
) -> tuple[Tensor, Tensor]:
    """Return what `nearest_candidates` returns, on the host of each level's predictions alone."""
    index = torch.zeros(*mask.shape, num_levels, k, dtype=torch.long)
    valid = torch.zeros_like(index, dtype=torch.bool)
    for image, real in enumerate(mask):
        targets = real.nonzero().squeeze(1)
        for i in range(num_levels):
            preds = ((level[image] == i) & finite[image]).nonzero().squeeze(1)
            there = places[image, preds].t().contiguous()
            for some in slices(len(targets) if len(preds) else 0, len(preds), MAX_BLOCK_ELEMENTS):
                row = targets[some]
                near, found = stable_topk(-_square_distance(centers[image, row].t(), there), min(k, len(preds)))
                index[image, row, i, : near.shape[1]] = preds[found]
                valid[image, row, i, : near.shape[1]] = near > -math.inf
    return index.flatten(2), valid.flatten(2)


def _square_distance(centers: Tensor, places: Tensor) -> Tensor:
    """Return the squared distances (…, T, P) of (…, 2, T) and (…, 2, P) points: the distance's order, and no root.

    Not by `cdist`, whose products of matrices have not that order.
    """
    x, y = (centers[..., k, :, None] - places[..., k, None, :] for k in (0, 1))
    return x.square_().add_(y.square_())


def nearest_per_level(distance: Tensor, level: Tensor, num_levels: int, k: int) -> tuple[Tensor, Tensor]:
    """Return the `k` nearest predictions of each target on each level; the lowest index wins ties.

    Args:
        distance: (B, T, P); `inf` forbids a pair.
        level: (B, P) index of the level of each prediction.
        num_levels: number of levels.
        k: number of candidates on a level.

    Returns:
        (B, T, K) indices with `K ≤ num_levels · k`, and (B, T, K) bool, False where a level has not so many.
    """
    nearness, count = -distance, min(k, distance.shape[2])
    found = []
    for i in range(num_levels):
        found.append(stable_topk(nearness.masked_fill((level != i).unsqueeze(1), -math.inf), count))
    value, index = (torch.cat(parts, dim=2) for parts in zip(*found, strict=True))
    return index, value > -math.inf


def adaptive_threshold(similarity: Tensor, valid: Tensor) -> Tensor:
    """Return the mean plus the sample standard deviation, that of a single candidate being 0.

    Args:
        similarity: (B, T, K) similarities of the candidates.
        valid: (B, T, K) bool, False for no candidate.

    Returns:
        (B, T) thresholds; 0 without candidates.
    """
    if not valid.numel():
        return similarity.new_zeros(similarity.shape[:2])
    count = valid.sum(2, keepdim=True)
    low = similarity.masked_fill(~valid, math.inf).amin(2, keepdim=True).where(count > 0, 0.0)
    # relative to the least: the mean of equal numbers must not be rounded above them
    mean = low + (similarity - low).masked_fill(~valid, 0).sum(2, keepdim=True) / count.clamp(min=1)
    square = ((similarity - mean) ** 2).masked_fill(~valid, 0).sum(2, keepdim=True)
    return (mean + (square / (count - 1).clamp(min=1)).sqrt()).squeeze(2)


def atss_match(similarity: Tensor, index: Tensor, valid: Tensor, allowed: Tensor, preds: int) -> Tensor:
    """Assign candidates that reach the threshold of their target, to the most similar of such targets.

    Args:
        similarity: (B, T, K) similarities of the candidates.
        index: (B, T, K) predictions that are the candidates.
        valid: (B, T, K) bool, False for no candidate.
        allowed: (B, T, K) bool, False for a candidate that counts for the threshold but may not be positive.
        preds: number of predictions.

    Returns:
        (B, P) target of each prediction, T for the background.

    References:
        Zhang et al., "Bridging the gap between anchor-based and anchor-free detection via adaptive training sample
        selection", CVPR 2020, algorithm 1.
    """
    threshold = adaptive_threshold(similarity, valid).unsqueeze(2)
    positive = valid & allowed & (similarity >= threshold)
    return suitors(similarity.masked_fill(~positive, -math.inf), index, preds)
