"""Adaptive training sample selection: distances and similarities in, each target's threshold and assignment out."""

import math

import torch
from torch import Tensor

from uotod.solvers.candidates import stable_topk, suitors


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
