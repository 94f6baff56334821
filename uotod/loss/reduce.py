"""Reduce the values of a loss: "none", "mean" (0 of nothing) or "sum"."""

from torch import Tensor

from uotod.check import check_choice

REDUCTIONS = ("none", "mean", "sum")


def check_reduction(reduction: str) -> str:
    """Return `reduction` if it is one of "none", "mean" and "sum", else raise a ValueError."""
    return check_choice("reduction", reduction, REDUCTIONS)


def reduce_loss(loss: Tensor, reduction: str) -> Tensor:
    """Return the loss as it is, its mean (0 with a gradient if there is nothing) or its sum."""
    if reduction == "none":
        return loss
    total = loss.sum()
    return total / max(loss.numel(), 1) if reduction == "mean" else total
