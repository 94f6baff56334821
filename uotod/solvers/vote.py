"""Votes of decoder layers: one target of each prediction a layer in, the target with the most votes out."""

import torch
from torch import Tensor


def union_vote(index: Tensor, mass: Tensor, num_targets: int) -> tuple[Tensor, Tensor]:
    """Give each prediction in all layers the target that most of them match it to, the lowest on ties.

    A prediction that no layer matches to a target keeps what each layer says. Memory: (B, T + 2, P) counts.

    Args:
        index: (L, B, P) target of each prediction in each layer; `num_targets` for the background, -1 for ignored.
        mass: (L, B, P) mass of each prediction in each layer.
        num_targets: T.

    Returns:
        Index and mass, (L, B, P); the mass on a target is the mean over the layers that voted for it.
    """
    columns = num_targets + 2
    choice = index.transpose(0, 1)  # (B, L, P)
    votes = torch.zeros(len(choice), columns, choice.shape[2], dtype=torch.int32, device=index.device)
    votes.scatter_add_(1, choice.remainder(columns), torch.ones_like(choice, dtype=torch.int32))
    votes[:, num_targets:] = 0  # background and ignored have no vote; a column stays where there is no target
    count, winner = votes[:, : num_targets + 1].max(1)  # the first maximum
    voted = count > 0
    agreed = mass.masked_fill(index != winner, 0).sum(0) / count.clamp(min=1)
    return torch.where(voted, winner, index), torch.where(voted, agreed, mass)
