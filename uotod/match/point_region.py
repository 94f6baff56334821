"""Rules by which a prediction may match only the targets that its anchor or point belongs to."""

import math
from abc import abstractmethod

import torch
from torch import Tensor

from uotod.cost.crowded import by_targets
from uotod.geometry.boxes import box_area
from uotod.match.base import Matcher
from uotod.plan import Plan
from uotod.scene.scene import Scene
from uotod.solvers.nearest import nearest_of_parts


class RegionMatcher(Matcher, abstract=True):
    """Match each prediction to the cheapest target whose region holds its point; without modules, to the smallest.

    A subclass says by `_candidates` which pairs are allowed; all others cost `inf`.
    """

    @abstractmethod
    def _candidates(self, scene: Scene) -> Tensor:
        """Return the (B, T, P) bool mask of allowed pairs, in which padding may be allowed too."""

    def cost(self, scene: Scene) -> Tensor:
        """Return the target-major cost (B, T + 1, P), or (B, T, P) without background, of a parsed batch."""
        cost = super().cost(scene)
        with torch.no_grad(), torch.autocast(cost.device.type, enabled=False):
            cost[:, : scene.mask.shape[1]].masked_fill_(~self._candidates(scene), math.inf)
            return cost  # of our own: the base has just made it

    def plan(self, scene: Scene) -> Plan:
        """Return the plan of a scene, which holds the cost of some targets at a time."""
        index = nearest_of_parts(by_targets(lambda part: self.cost(part)[:, : part.mask.shape[1]], scene))
        return Plan.from_index(index, scene.mask.shape[1], self.background, scene.logits.dtype)

    def own_pair_cost(self, scene: Scene) -> Tensor:
        return box_area(scene.target_boxes).unsqueeze(-1).expand(-1, -1, scene.pred_boxes.shape[1])

    def match(self, cost: Tensor, mask: Tensor) -> Plan:
        num_targets = mask.shape[1]
        index = nearest_of_parts([cost[:, :num_targets]])  # (B, P)
        return Plan.from_index(index, num_targets, self.background, cost.dtype)

    def _drop_nonfinite(self, allowed: Tensor, scene: Scene) -> Tensor:
        """Forbid the pairs of predictions that are not finite, which can only be there if they are propagated."""
        return allowed & scene.finite.unsqueeze(1) if self.nonfinite == "propagate" else allowed
