"""Losses and their weights in, one loss out."""

from collections.abc import Mapping

from torch import nn

from uotod.check import check_number
from uotod.loss.multiple import MultipleObjectiveLoss


def weigh(name: str, given: nn.Module | None, published: nn.Module, weight: float) -> nn.Module:
    """Return the published loss, or the given one in its place, times the weight; the loss itself for 1.

    The parts of a sum keep their names. `name` is "cls" if the arguments are `cls_loss` and `cls_weight`.
    """
    check_number(f"{name}_weight", weight, low=0.0)
    loss = published if given is None else given
    if not isinstance(loss, nn.Module):
        raise TypeError(f"{name}_loss must be a torch.nn.Module, got {loss!r} of type {type(loss).__name__}")
    if weight == 1:
        return loss
    if isinstance(loss, MultipleObjectiveLoss):
        parts = dict(zip(loss.names, loss.losses, strict=True))
        return MultipleObjectiveLoss(parts, [weight * part for part in loss.weights])
    return MultipleObjectiveLoss([loss], [weight])


def weighted_sum(losses: Mapping[str, nn.Module], weights: Mapping[str, float]) -> MultipleObjectiveLoss:
    """Return the sum of named losses, times weights that have the names of their arguments.

    A loss of weight 0 is left out, so that what it needs may be missing; but not the first.
    """
    values = [check_number(name, weight, low=0.0) for name, weight in weights.items()]
    kept = [i for i, weight in enumerate(values) if weight or not i]
    parts = list(losses.items())
    return MultipleObjectiveLoss(dict(parts[i] for i in kept), [values[i] for i in kept])
