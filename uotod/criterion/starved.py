"""Targets that hardly train: a plan and a scene in, how many have less than half a unit of mass out."""

import warnings

from torch import Tensor

from uotod.check import known_largest
from uotod.plan import Plan
from uotod.scene.scene import Scene

STARVED = 0.5  # a target with less mass hardly trains


class StarvedTargetsWarning(UserWarning):
    """Some targets have less than half a unit of mass in the plan, so that they hardly train."""


# without a number: Python's own filter then shows it once a process
ADVICE = (
    "some targets have less than half a unit of mass in the plan, so that they hardly train; the term 'num_starved' "
    "counts them, and criterion.describe(input, target, anchors) tells more. What helps depends on the matcher: for "
    "unbalanced transport a higher reg_target or background_cost; for a threshold on anchors force_match='best', or "
    "anchors of the size of the targets; for points finer strides; and for all no fewer predictions than targets. If "
    "it is meant to be so, ignore uotod.loss.StarvedTargetsWarning."
)


def count_starved(plan: Plan, scene: Scene) -> Tensor:
    """Return the number () of real targets with less than half a unit of mass in the final layer.

    Padded and ignored ones do not count. Where the number may be looked at, one that is not zero warns.
    """
    final = slice(len(scene.mask) - scene.images, None)
    count = ((plan.target_mass(final) < STARVED) & scene.mask[final]).sum().to(plan.mass.dtype)
    if known_largest(count, validate=False):
        warnings.warn(ADVICE, StarvedTargetsWarning, stacklevel=2)
    return count
