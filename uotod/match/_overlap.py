"""The IoU of all pairs, and matchers that compare boxes by it: without modules the cost is `1 - IoU`."""

from functools import partial

import torch
from torch import Tensor

from uotod._batch import Batch
from uotod._blocks import by_blocks
from uotod._boxes import pairwise_overlap
from uotod._targets import Targets
from uotod.match._base import PlanMatcher


class OverlapMatcher(PlanMatcher):
    """A matcher that works on a similarity: the IoU, or 1 - cost if modules or weights of targets are given."""

    def _reads_cost(self, batch: Batch) -> bool:
        """Tell whether the cost is more than the similarity without modules."""
        return self._has_modules() or self._target_weight(batch) is not None

    def _similarity(self, batch: Batch) -> Tensor:
        """Return the similarity (B, T, P) without modules: the IoU of the located boxes with the targets."""
        return pairwise_iou(batch.targets.boxes, self._located_boxes(batch))

    def _own_pair_cost(self, batch: Batch) -> Tensor:
        return 1 - self._similarity(batch)


def pairwise_iou(target_boxes: Tensor, boxes: Tensor) -> Tensor:
    """Return the IoU (B, T, P) of (B, T, 4) with (B, P, 4) boxes."""
    return by_blocks(_iou, target_boxes, boxes)


def largest_iou(targets: Targets, boxes: Tensor) -> Tensor:
    """Return the (B, P) largest IoU of each of the (B, P, 4) boxes with a target that is not padding; 0 for none."""
    if not targets.mask.shape[1]:
        return torch.zeros_like(boxes[..., 0])
    return by_blocks(_largest_iou, present_boxes(targets), boxes).squeeze(1)


def present_boxes(targets: Targets) -> Tensor:
    """Return the (B, T, 4) boxes of the targets; padding and ignored ones become boxes without area at 0."""
    return torch.where(targets.mask.unsqueeze(-1), targets.boxes, targets.boxes.new_zeros(4))


_iou = partial(pairwise_overlap, kind="iou", eps=0.0)


def _largest_iou(target_boxes: Tensor, boxes: Tensor) -> Tensor:
    return _iou(target_boxes, boxes).amax(1, keepdim=True)
