"""Adaptive training sample selection: distances and similarities in, each target's threshold and assignment out."""

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from uotod.solvers.candidates import stable_topk, suitors

Array = NDArray[np.floating]
Index = NDArray[np.int64]


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


def nearest_of_image(
    centers: Tensor, places: Tensor, finite: Tensor, level: Tensor, num_levels: int, k: int, block: int
) -> tuple[Tensor, Tensor]:
    """Return the `k` nearest predictions of each target of one image on each level, on the CPU.

    Args:
        centers: (T, 2) centres of the targets.
        places: (P, 2) places of the predictions.
        finite: (P,) bool, False for a prediction that is nowhere.
        level: (P,) index of the level of each prediction.
        num_levels: number of levels.
        k: number of candidates on a level.
        block: number of pairs at a time.

    Returns:
        (T, num_levels · k) indices, and bool, False where a level has not so many.
    """
    shape = len(centers), num_levels, k
    index, valid = np.zeros(shape, dtype=np.int64), np.zeros(shape, dtype=bool)
    for i in range(num_levels):
        preds = ((level == i) & finite).nonzero().squeeze(1)
        x, y = places[preds].t().contiguous().numpy()
        size = max(block // max(len(x), 1), 1)
        for start in range(0, len(centers) if len(x) else 0, size):
            cx, cy = centers[start : start + size].t().numpy()[:, :, None]
            # the square has the order of the distance; by products of matrices it has not
            row, rank, column = _smallest((cx - x) ** 2 + (cy - y) ** 2, k)
            index[start + row, i, rank], valid[start + row, i, rank] = preds.numpy()[column], True
    return torch.from_numpy(index).flatten(1), torch.from_numpy(valid).flatten(1)


def _smallest(values: Array, k: int) -> tuple[Index, Index, Index]:
    """Return row, rank and column of the `k` smallest finite values of each row, the lowest column first on ties."""
    last = np.partition(values, k - 1, axis=1)[:, k - 1 : k] if k < values.shape[1] else np.inf
    row, column = np.nonzero((values <= last) & (values < np.inf))
    order = np.lexsort((values[row, column], row))
    row, column = row[order], column[order]
    rank = np.arange(len(row)) - np.searchsorted(row, row)
    return row[rank < k], rank[rank < k], column[rank < k]


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
