"""Votes of decoder layers: the mass of each layer in, the target with the most mass of each prediction out."""

from torch import Tensor


def union_vote(mass: Tensor) -> tuple[Tensor, Tensor]:
    """Give each prediction the target to which all layers together give the most mass, the lowest on ties.

    Args:
        mass: (L, B, T, P) mass on the targets in each layer, of which there is one at least.

    Returns:
        The mass (B, P), its mean over the layers that give the target some, 0 where no layer does; and the target
        (B, P), 0 where there is no mass.
    """
    votes, target = mass.sum(0).max(1)  # (B, P), the first maximum
    voters = (mass > 0).sum(0).gather(1, target.unsqueeze(1)).squeeze(1)
    return votes / voters.clamp(min=1), target.masked_fill(votes <= 0, 0)
