"""Matching by thresholds on a similarity: SSD's and RetinaNet's rule for anchors."""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from uotod.solvers.candidates import RunningMax, stable_topk, suitors


class ThresholdRule(NamedTuple):
    """What `threshold_match` does with a prediction of a given best similarity.

    Attributes:
        positive: least similarity of a match.
        negative: half-open interval of the similarity of the background.
        force_match: "best" gives every target its best prediction (see `greedy_pairs`); "low_quality" makes the
            predictions that tie a target's best similarity, if that is above 0, positive for their own best target,
            and "all_best" for the target whose best they tie, of several the most similar one.
        floor: least best similarity of a target for which something is forced.
    """

    positive: float
    negative: tuple[float, float]
    force_match: str | None
    floor: float


def threshold_match(
    similarity: Callable[[slice], Tensor], mask: Tensor, preds: int, rule: ThresholdRule, chunk: int
) -> Tensor:
    """Assign each prediction by its best similarity to a target.

    A prediction goes to its best target from `positive` on, to the background in the interval `negative`, and is
    ignored elsewhere; in an image without targets all is background. The lowest index wins ties. Memory: a few
    (B, chunk, P) blocks and, with "best", the (B, T, min(T, P)) best of each target. It reads no value on the host;
    where that costs nothing, `threshold_image` is faster.

    Args:
        similarity: function of a slice of the targets that returns their (B, t, P) values, in practice the IoU;
            `-inf` forbids a pair.
        mask: (B, T) bool, False for padding.
        preds: P.
        rule: thresholds and what is forced.
        chunk: number of targets at a time.

    Returns:
        (B, P) index of the target, T for the background, -1 for an ignored prediction.

    References:
        Liu et al., "SSD", ECCV 2016, sec. 2.2; Lin et al., "Focal loss for dense object detection", ICCV 2017, sec. 4.
    """
    images, num_targets = mask.shape
    if not images or not num_targets or not preds:
        return torch.full((images, preds), num_targets, device=mask.device)
    chunks = [slice(start, min(start + chunk, num_targets)) for start in range(0, num_targets, chunk)]

    nearest, forced, found = RunningMax(), RunningMax(), []
    # of its `T` best predictions, at most `T - 1` can be taken from a target
    count = min(num_targets, preds)
    is_tied = torch.zeros(images, preds, dtype=torch.bool, device=mask.device)
    for targets in chunks:
        values = similarity(targets).masked_fill(~mask[:, targets].unsqueeze(-1), -math.inf)  # (B, t, P)
        nearest.add(values, targets.start)
        if rule.force_match == "best":
            found.append(stable_topk(values, count))
        if rule.force_match in ("low_quality", "all_best"):
            best = values.amax(2)  # (B, t)
            ties = values == best.where((best > 0) & (best >= rule.floor), math.inf).unsqueeze(-1)
            if rule.force_match == "low_quality":
                is_tied |= ties.any(1)
            else:
                forced.add(values.masked_fill(~ties, -math.inf), targets.start)

    low, high = rule.negative
    is_background = ((nearest.value >= low) & (nearest.value < high)) | ~mask.any(1, keepdim=True)
    is_positive = (nearest.value >= rule.positive) | is_tied
    assigned = torch.where(is_positive, nearest.index, torch.where(is_background, num_targets, -1))
    if rule.force_match == "all_best":
        return torch.where(forced.value > -math.inf, forced.index, assigned)
    if rule.force_match != "best":
        return assigned

    value, index = (torch.cat(parts, dim=1) for parts in zip(*found, strict=True))  # (B, T, K)
    owner = greedy_pairs(value.masked_fill(value < rule.floor, -math.inf), index, preds)
    return torch.where(owner >= 0, owner, assigned)


def greedy_pairs(value: Tensor, index: Tensor, preds: int) -> Tensor:
    """Pair targets and predictions in the order of decreasing value, each target and each prediction at most once.

    The lowest target, then the lowest prediction wins ties. All pairs that are best for both of their sides are fixed
    at once, which gives the result of the sequential rule in `min(T, P)` rounds at most.

    Args:
        value: (B, T, K) values of the best candidates of each target, in descending order; `-inf` for none.
        index: (B, T, K) predictions of these values, the lowest first on ties.
        preds: number of predictions.

    Returns:
        (B, P) target of each prediction, -1 for none.
    """
    images, num_targets, _ = value.shape
    targets = torch.arange(num_targets, device=value.device).expand(images, -1)
    owner = torch.full((images, preds), -1, device=value.device)
    for _ in range(min(num_targets, preds)):
        best, slot = value.max(2)  # (B, T)
        wish = index.gather(2, slot.unsqueeze(2)).squeeze(2)
        wins = (best > -math.inf) & (suitors(value, index, preds).gather(1, wish) == targets)
        owner = _scatter_targets(owner, wish, wins)
        taken = (owner >= 0).gather(1, index.flatten(1)).view_as(value)
        value = value.masked_fill(wins.unsqueeze(2) | taken, -math.inf)
    return owner


def _scatter_targets(owner: Tensor, wish: Tensor, wins: Tensor) -> Tensor:
    """Write each target that wins at its (B, T) wish into the (B, P) owners."""
    targets = torch.arange(wish.shape[1], device=wish.device).expand_as(wish)
    return owner.scatter_reduce(1, wish, torch.where(wins, targets, -1), "amax")
