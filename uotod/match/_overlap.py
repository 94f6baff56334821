"""Matchers that compare boxes by their IoU: without modules the cost is `1 - IoU`."""

from functools import partial

from torch import Tensor

from uotod._batch import Batch
from uotod._boxes import pairwise_overlap
from uotod._cost import by_blocks
from uotod.match._base import PlanMatcher


class OverlapMatcher(PlanMatcher):
    """A matcher that works on a similarity: the IoU, or 1 - cost if modules or weights of targets are given."""

    def _reads_cost(self, batch: Batch) -> bool:
        """Tell whether the cost is more than the similarity without modules."""
        return self._has_modules() or self._target_weight(batch) is not None

    def _similarity(self, batch: Batch) -> Tensor:
        """Return the similarity (B, T, P) without modules: the IoU of the located boxes with the targets."""
        overlap = partial(pairwise_overlap, kind="iou", eps=0.0)
        return by_blocks(overlap, batch.targets.boxes, self._located_boxes(batch))

    def _pair_cost(self, batch: Batch) -> Tensor:
        return super()._pair_cost(batch) if self._has_modules() else 1 - self._similarity(batch)
