"""Task-aligned assignment: how well each pair is aligned in, the target of each prediction and its score out."""

import math

import torch
from torch import Tensor

from uotod.solvers.candidates import largest
from uotod.solvers.some_pairs import SomePairs


def align(
    metric: Tensor,
    overlap: Tensor,
    inside: Tensor | None,
    pairs: SomePairs,
    topk: int,
    topk2: int | None,
    *,
    inside_first: bool,
) -> Tensor:
    """Assign to each target the predictions of its largest metric, and each prediction to one target at most.

    With `inside_first` the largest are taken among the pairs inside, and a prediction that several targets take goes
    to the target of largest overlap among all of those that it lies inside of. Otherwise the largest are taken among
    all pairs, those outside are dropped afterwards, and the targets that still take the prediction share the conflict.
    The lowest index wins ties.

    Args:
        metric: (B, T, K) metric of the pairs; `-inf` forbids a pair.
        overlap: (B, T, K), which decides conflicts.
        inside: (B, T, K) bool, True if the prediction's point lies inside the target; None for everywhere.
        pairs: what the K are.
        topk: number of predictions that a target takes.
        topk2: number of predictions that a target keeps of those that were left to it; None for all.
        inside_first: see above.

    Returns:
        (B, P) index of the target, T for none.
    """
    images, num_targets, _ = metric.shape
    if not metric.numel():
        return torch.full((images, pairs.preds), num_targets, device=metric.device)
    allowed = metric > -math.inf
    if inside is not None:
        allowed = allowed & inside
    if inside_first:
        taken = largest(metric.masked_fill(~allowed, -math.inf), topk)
        takers = pairs.count(taken)  # (B, P)
        rivals = taken | (allowed & (pairs.at(takers) > 1))
    else:
        taken = rivals = largest(metric, topk) & allowed
        takers = pairs.count(taken)
    index = pairs.best_target(overlap.masked_fill(~rivals, -math.inf))  # (B, P)
    if topk2 is None:
        return index
    own = torch.arange(num_targets, device=index.device).view(1, -1, 1) == pairs.at(index)
    kept = largest(metric.masked_fill(~own, -math.inf), topk2)
    return index.masked_fill(pairs.count(kept) == 0, num_targets)


def relative_scores(
    index: Tensor, log_metric: Tensor, num_targets: int, eps: float = 0.0, weight: Tensor | None = None
) -> Tensor:
    r"""Return the (B, P) metric of each assigned prediction relative to the best of its target, 0 for the others.

    .. math:: \left( \frac{t_i}{\max_k t_k + \text{eps}} \right)^w

    with the maximum over the predictions of the same target. In logarithms, for the metric may be below all that the
    dtype holds, or above.

    Args:
        index: (B, P) target of each prediction, T for none.
        log_metric: (B, P) logarithm of the metric `t` of each prediction with its target; not read without one.
        num_targets: T.
        eps: in units of the metric.
        weight: (B, P) exponent `w` of each prediction's target; None for 1.

    References:
        Feng et al., "TOOD: task-aligned one-stage object detection", ICCV 2021, sec. 3.2.
    """
    best = best_of_target(log_metric, index, num_targets)
    if eps > 0:
        best = torch.logaddexp(best, best.new_full((), math.log(eps)))
    ratio = log_metric - best
    if weight is not None:
        ratio = ratio * weight
    return ratio.masked_fill(index == num_targets, -math.inf).exp()


def pick(value: Tensor, index: Tensor, other: float) -> Tensor:
    """Return the (B, P) entries of (B, T, P) values in the rows of `index`, and `other` where that is T."""
    num_targets = value.shape[1]
    if not num_targets:
        return value.new_full(index.shape, other)
    row = index.clamp(max=num_targets - 1).unsqueeze(1)
    return value.gather(1, row).squeeze(1).masked_fill(index == num_targets, other)


def best_of_target(value: Tensor, index: Tensor, num_targets: int) -> Tensor:
    """Return for each prediction the largest of the (B, P) values of the predictions with the same `index`."""
    most = value.new_full((len(value), num_targets + 1), -math.inf)
    return most.scatter_reduce(1, index, value, "amax").gather(1, index)
