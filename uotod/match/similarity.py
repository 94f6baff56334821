"""The IoU of all pairs, and matchers that compare boxes by it: without modules the cost is `1 - IoU`."""

import torch
from torch import Tensor

from uotod.check import reads_values
from uotod.cost.blocks import MAX_BLOCK_ELEMENTS
from uotod.geometry.boxes import pairwise_overlap
from uotod.geometry.image_iou import IoURows
from uotod.match.base import Matcher
from uotod.scene.scene import Scene

NOT_FINITE = -1.0  # the IoU of a prediction that is not finite: below any other


class OverlapMatcher(Matcher, abstract=True):
    """A matcher that works on a similarity: the IoU, or 1 - cost if modules or weights of targets are given."""

    def _reads_cost(self, scene: Scene) -> bool:
        """Tell whether the cost is more than the similarity without modules."""
        return self._has_modules() or self._target_weight(scene) is not None

    def _similarity(self, scene: Scene) -> Tensor:
        """Return the similarity (B, T, P) without modules: the IoU of the located boxes with the targets."""
        return pairwise_iou(scene.target_boxes, self._located_boxes(scene))

    def own_pair_cost(self, scene: Scene) -> Tensor:
        return 1 - self._similarity(scene)


class ImageIoU:
    """The IoU of the targets and the boxes of one image, a `solvers.threshold_image.Similarity`.

    Args:
        rows: the (P, 4) boxes.
        targets: (T, 4) boxes, xyxy.
        finite: (P,) bool, False for predictions that are not finite, whose IoU is `NOT_FINITE`; None if all are.
    """

    def __init__(self, rows: IoURows, targets: Tensor, finite: Tensor | None) -> None:
        self._rows, self._targets = rows, targets
        self._bad = None if finite is None or bool(finite.all()) else ~finite

    def rows(self, targets: slice) -> Tensor:
        """Return the IoU (t, P), in memory that the next call overwrites."""
        value = self._rows.rows(self._targets[targets])
        return value if self._bad is None else value.masked_fill_(self._bad, NOT_FINITE)

    def columns(self, preds: Tensor) -> Tensor:
        """Return the IoU (T, N) of the boxes of (N,) indices."""
        value = self._rows.columns(self._targets, preds)
        return value if self._bad is None else value.masked_fill_(self._bad[preds], NOT_FINITE)


def rows_of_images(boxes: Tensor) -> list[IoURows]:
    """Return the rows of each image's (P, 4) boxes; anchors that the batch shares are prepared once."""
    if len(boxes) and not boxes.stride(0):
        return [IoURows(boxes[0])] * len(boxes)
    return [IoURows(x) for x in boxes]


def pairwise_iou(target_boxes: Tensor, boxes: Tensor) -> Tensor:
    """Return the IoU (B, T, P) of (B, T, 4) with (B, P, 4) boxes."""
    if not reads_values(boxes, validate=False):
        return pairwise_overlap(target_boxes, boxes, kind="iou", eps=0.0)
    value = boxes.new_empty(*target_boxes.shape[:2], boxes.shape[1])
    size = max(MAX_BLOCK_ELEMENTS // max(boxes.shape[1], 1), 1)
    for rows, targets, out in zip(rows_of_images(boxes), target_boxes, value, strict=True):
        for start in range(0, len(targets), size):
            rows.rows(targets[start : start + size], out=out[start : start + size])
    return value


def largest_iou(scene: Scene, boxes: Tensor) -> Tensor:
    """Return the (B, P) largest IoU of each of the (B, P, 4) boxes with a target that is not padding; 0 for none."""
    if not scene.mask.shape[1]:
        return torch.zeros_like(boxes[..., 0])
    if not reads_values(boxes, validate=False):
        return pairwise_overlap(present_boxes(scene), boxes, kind="iou", eps=0.0).amax(1)
    value = torch.zeros(boxes.shape[:2], dtype=boxes.dtype)
    size = max(MAX_BLOCK_ELEMENTS // max(boxes.shape[1], 1), 1)
    for image, rows in enumerate(rows_of_images(boxes)):
        present = scene.target_boxes[image, scene.mask[image]]
        for start in range(0, len(present), size):
            torch.maximum(value[image], rows.rows(present[start : start + size]).amax(0), out=value[image])
    return value


def present_boxes(scene: Scene) -> Tensor:
    """Return the (B, T, 4) boxes of the targets; padding and ignored ones become boxes without area at 0."""
    return torch.where(scene.mask.unsqueeze(-1), scene.target_boxes, scene.target_boxes.new_zeros(4))
