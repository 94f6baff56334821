"""A loss and its weight in, one loss out."""

from torch import nn

from uotod.loss.multiple import MultipleObjectiveLoss


def weigh(loss: nn.Module, weight: float) -> nn.Module:
    """Return a loss times a weight; the loss itself for 1."""
    return loss if weight == 1 else MultipleObjectiveLoss([loss], [weight])
