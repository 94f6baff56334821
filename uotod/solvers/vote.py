"""Votes of decoder layers: the plan of all of them in, one in which they agree out."""

import torch
from torch import Tensor

from uotod.plan import Plan


def unite_layers(plan: Plan, layers: int, valid: Tensor | None) -> Plan:
    """Return the united plan of stacked decoder layers, in each of which (S, P) `valid` predictions are no padding."""
    if layers == 1 or not plan.num_targets:
        return plan
    dense = plan.to_dense()[..., : plan.num_targets].transpose(1, 2)  # (L * B, T, P)
    mass, target = union_vote(dense.view(layers, len(dense) // layers, *dense.shape[1:]))
    mass, target = mass.repeat(layers, 1), target.repeat(layers, 1)
    background = plan.background
    if background is not None:
        rest = (plan.positive + background - mass).clamp(min=0)
        background = torch.where(mass > 0, rest, background)
    return Plan(mass.unsqueeze(1), target.unsqueeze(1), background, plan.num_targets).only(valid)


def union_vote(mass: Tensor) -> tuple[Tensor, Tensor]:
    """Give each prediction the target to which all layers together give the most mass, the lowest on ties.

    Args:
        mass: (L, B, T, P) mass on the targets in each layer, of which there is one at least.

    Returns:
        The mass (B, P), its mean over the layers, each weighted by its mass, so that a trace in one does not count as
        a vote, 0 where no layer gives the target some; and the target (B, P), 0 where there is no mass.
    """
    votes, target = mass.sum(0).max(1)  # (B, P), the first maximum
    squares = mass.square().sum(0).gather(1, target.unsqueeze(1)).squeeze(1)
    return squares / torch.where(votes > 0, votes, 1), target.masked_fill(votes <= 0, 0)
