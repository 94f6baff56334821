"""Matchers that compare boxes by their IoU: without modules the cost is `1 - IoU`."""

from torch import Tensor

from uotod.match.base import Matcher
from uotod.scene.scene import Scene
from uotod.solvers.overlaps import pairwise_iou


class OverlapMatcher(Matcher, abstract=True):
    """A matcher that works on a similarity: the IoU, or 1 - cost if modules or weights of targets are given."""

    def _reads_cost(self, scene: Scene) -> bool:
        """Tell whether the cost is more than the similarity without modules."""
        return self._has_modules() or self.costs.target_weight(scene) is not None

    def _similarity(self, scene: Scene) -> Tensor:
        """Return the similarity (B, T, P) without modules: the IoU of the located boxes with the targets."""
        return pairwise_iou(scene.target_boxes, self._located_boxes(scene))

    def own_pair_cost(self, scene: Scene) -> Tensor:
        return 1 - self._similarity(scene)
