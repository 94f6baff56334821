"""A loss and its weight in, one loss out."""

from torch import nn

from uotod.loss.multiple import MultipleObjectiveLoss


def weigh(loss: nn.Module, weight: float) -> nn.Module:
    """Return a loss times a weight; the loss itself for 1. The parts of a sum keep their names."""
    if weight == 1:
        return loss
    if isinstance(loss, MultipleObjectiveLoss):
        return MultipleObjectiveLoss(
            dict(zip(loss.names, loss.losses, strict=True)), [weight * part for part in loss.weights]
        )
    return MultipleObjectiveLoss([loss], [weight])
