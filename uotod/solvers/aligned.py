"""Task-aligned assignment: how well each pair is aligned in, the target of each prediction and its score out."""

import math

import torch
from torch import Tensor


def align(
    metric: Tensor, overlap: Tensor, inside: Tensor | None, topk: int, topk2: int | None, *, inside_first: bool
) -> Tensor:
    """Assign to each target the predictions of its largest metric, and each prediction to one target at most.

    With `inside_first` the largest are taken among the pairs inside, and a prediction that several targets take goes
    to the target of largest overlap among all of those that it lies inside of. Otherwise the largest are taken among
    all pairs, those outside are dropped afterwards, and the targets that still take the prediction share the conflict.
    The lowest index wins ties.

    Args:
        metric: (B, T, P); `-inf` forbids a pair.
        overlap: (B, T, P), which decides conflicts.
        inside: (B, T, P) bool, True if the prediction's point lies inside the target; None for everywhere.
        topk: number of predictions that a target takes.
        topk2: number of predictions that a target keeps of those that were left to it; None for all.
        inside_first: see above.

    Returns:
        (B, P) index of the target, T for none.
    """
    images, num_targets, preds = metric.shape
    if not num_targets or not preds:
        return torch.full((images, preds), num_targets, device=metric.device)
    allowed = metric > -math.inf
    if inside is not None:
        allowed = allowed & inside
    if inside_first:
        taken = largest(metric.masked_fill(~allowed, -math.inf), topk)
        takers = taken.sum(1, dtype=torch.int32)  # (B, P)
        rivals = taken | (allowed & (takers > 1).unsqueeze(1))
    else:
        taken = rivals = largest(metric, topk) & allowed
        takers = taken.sum(1, dtype=torch.int32)
    index = overlap.masked_fill(~rivals, -math.inf).max(1).indices  # (B, P)
    index = torch.where(takers > 0, index, num_targets)
    if topk2 is None:
        return index
    own = torch.arange(num_targets, device=index.device).view(1, -1, 1) == index.unsqueeze(1)
    kept = largest(metric.masked_fill(~own, -math.inf), topk2).any(1)
    return index.masked_fill(~kept, num_targets)


def largest(value: Tensor, count: int) -> Tensor:
    """Return the mask (..., P) of the `count` largest values above `-inf` of each row, the lowest index on ties."""
    # the values of topk are unique although its indices are not: ties at the last one are counted from the left
    last = value.topk(min(count, value.shape[-1]), dim=-1).values[..., -1:]
    above, ties = value > last, value == last
    room = count - above.sum(-1, keepdim=True)
    return (above | (ties & (ties.cumsum(-1, dtype=torch.int32) <= room))) & (value > -math.inf)


def normalized_scores(index: Tensor, metric: Tensor, overlap: Tensor, eps: float) -> Tensor:
    r"""Return the (B, P) alignment score of each assigned prediction, 0 for the others.

    .. math:: \hat s_i = t_i \, \frac{\max_k u_k}{\max_k t_k + \text{eps}}

    with the maxima over the predictions of the same target.

    Args:
        index: (B, P) target of each prediction, T for none.
        metric: (B, T, P) metric `t`.
        overlap: (B, T, P) overlap `u`, at most 1 up to rounding.
        eps: in units of the metric.

    References:
        Feng et al., "TOOD: task-aligned one-stage object detection", ICCV 2021, sec. 3.2.
    """
    own_metric, own_overlap = pick(metric, index, 0.0), pick(overlap, index, 0.0)
    most_metric, most_overlap = best_of_target(own_metric, index, metric), best_of_target(own_overlap, index, overlap)
    ratio = own_metric / (most_metric + eps).where(own_metric > 0, 1.0)
    return (ratio * most_overlap).clamp(max=1)


def relative_scores(index: Tensor, log_metric: Tensor) -> Tensor:
    """Return the (B, P) metric of each assigned prediction divided by the largest of its target, 0 for the others.

    Args:
        index: (B, P) target of each prediction, T for none.
        log_metric: (B, T, P) logarithm of the metric.
    """
    own = pick(log_metric, index, -math.inf)
    matched = index < log_metric.shape[1]
    return torch.where(matched, own - best_of_target(own, index, log_metric), -math.inf).exp()


def pick(value: Tensor, index: Tensor, other: float) -> Tensor:
    """Return the (B, P) entries of (B, T, P) values in the rows of `index`, and `other` where that is T."""
    num_targets = value.shape[1]
    if not num_targets:
        return value.new_full(index.shape, other)
    row = index.clamp(max=num_targets - 1).unsqueeze(1)
    return value.gather(1, row).squeeze(1).masked_fill(index == num_targets, other)


def best_of_target(value: Tensor, index: Tensor, like: Tensor) -> Tensor:
    """Return for each prediction the largest of the (B, P) values of the predictions with the same `index`."""
    most = value.new_full((len(like), like.shape[1] + 1), -math.inf)
    return most.scatter_reduce(1, index, value, "amax").gather(1, index)
