"""The plan of a hard rule: an index for each prediction in, a plan of mass 1 out."""

from torch import Tensor

from uotod.plan import Plan


def assigned_plan(index: Tensor, like: Tensor, num_targets: int, background: bool) -> Plan:
    """Return the plan that gives each prediction to its `index`, in the dtype of `like`; see `Plan.from_index`."""
    return Plan.from_index(index, num_targets, background, like.dtype)
