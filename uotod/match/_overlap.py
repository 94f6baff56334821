"""Matchers that compare boxes by their IoU: without modules the cost is `1 - IoU`."""

from functools import partial

from torch import Tensor

from uotod._batch import Batch
from uotod._boxes import pairwise_overlap
from uotod._cost import by_blocks
from uotod.match._base import PlanMatcher


class OverlapMatcher(PlanMatcher):
    """A matcher that works on the IoU, or on 1 - cost if modules are given."""

    def _has_modules(self) -> bool:
        return self.cls_match_module is not None or self.loc_match_module is not None

    def _iou(self, batch: Batch) -> Tensor:
        """Return the IoU (B, T, P) of the located boxes with the targets."""
        overlap = partial(pairwise_overlap, kind="iou", eps=0.0)
        return by_blocks(overlap, batch.targets.boxes, self._located_boxes(batch))

    def _pair_cost(self, batch: Batch) -> Tensor:
        return super()._pair_cost(batch) if self._has_modules() else 1 - self._iou(batch)
