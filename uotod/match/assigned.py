"""The plan of a hard rule: an index for each prediction in, a plan of mass 1 out."""

import torch
from torch import Tensor

from uotod.plan import AssignedPlan


def assigned_plan(index: Tensor, like: Tensor, num_targets: int, background: bool) -> AssignedPlan:
    """Return the plan that gives each prediction wholly to its `index`, in the dtype of `like`.

    Args:
        index: (B, P) target of each prediction, T for the background and -1 for an ignored prediction.
        like: a tensor of the dtype of the masses.
        num_targets: T.
        background: whether the plan has a background column.
    """
    return AssignedPlan(index, torch.ones_like(index, dtype=like.dtype), num_targets, background)
