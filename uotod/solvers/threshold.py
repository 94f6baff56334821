"""Matching by thresholds on a similarity: SSD's and RetinaNet's rule for anchors."""

import math

import torch
from torch import Tensor


def threshold_match(
    similarity: Tensor, mask: Tensor, positive: float, negative: float, force_match: str | None
) -> Tensor:
    """Assign each prediction by its best similarity to a target.

    A prediction goes to its best target from `positive` on, to the background below `negative`, and is ignored
    between. `force_match="best"` also gives every target its best prediction (see `force_best`), and "low_quality"
    makes the predictions that tie a target's best similarity, if that is above 0, positive for their own best target.

    Args:
        similarity: (B, T, P), in practice the IoU; `-inf` forbids a pair.
        mask: (B, T) bool, False for padding.
        positive: least similarity of a match.
        negative: similarity below which a prediction is background.
        force_match: "best", "low_quality" or None.

    Returns:
        (B, P) index of the target, T for the background, -1 for an ignored prediction.

    References:
        Liu et al., "SSD", ECCV 2016, sec. 2.2; Lin et al., "Focal loss for dense object detection", ICCV 2017, sec. 4.
    """
    images, num_targets, preds = similarity.shape
    if not num_targets or not preds:
        return torch.full((images, preds), num_targets, device=similarity.device)
    similarity = similarity.masked_fill(~mask.unsqueeze(-1), -math.inf)
    value, index = similarity.max(1)  # (B, P)
    is_positive = value >= positive
    if force_match == "low_quality":
        best = similarity.amax(2, keepdim=True)
        is_positive = is_positive | ((similarity == best) & (best > 0)).any(1)
    other = torch.where(value < negative, num_targets, -1)
    index = torch.where(is_positive, index, other)
    return force_best(index, similarity) if force_match == "best" else index


def force_best(assigned: Tensor, similarity: Tensor) -> Tensor:
    """Give every target its best prediction, a distinct one for distinct targets wherever that is possible.

    Pairs are fixed in the order of decreasing similarity, each target and each prediction at most once; the lowest
    target, then the lowest prediction wins ties. All pairs that are best for both of their sides are fixed at once,
    which gives the result of the sequential rule in typically one or two rounds.

    Args:
        assigned: (B, P) assignment to be overruled.
        similarity: (B, T, P); `-inf` forbids a pair.

    Returns:
        (B, P) the assignment with the forced pairs.
    """
    images, num_targets, preds = similarity.shape
    targets = torch.arange(num_targets, device=assigned.device).expand(images, -1)
    for _ in range(min(num_targets, preds)):
        value, wish = similarity.max(2)  # (B, T)
        suitor = similarity.max(1).indices  # (B, P)
        wins = (value > -math.inf) & (suitor.gather(1, wish) == targets)
        forced = torch.full_like(assigned, -1).scatter_reduce(1, wish, torch.where(wins, targets, -1), "amax")
        assigned = torch.where(forced >= 0, forced, assigned)
        if assigned.device.type == "cpu" and bool((wins | (value == -math.inf)).all()):
            break
        similarity = similarity.masked_fill(wins.unsqueeze(2) | (forced >= 0).unsqueeze(1), -math.inf)
    return assigned
