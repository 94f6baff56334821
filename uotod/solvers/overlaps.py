"""Overlaps and regions of all pairs of targets and predictions: boxes and points in, (B, T, P) values or maxima out."""

from collections.abc import Callable

import torch
from torch import Tensor

from uotod.check import reads_values
from uotod.cost.blocks import MAX_BLOCK_ELEMENTS, slices
from uotod.geometry.boxes import pairwise_overlap
from uotod.geometry.image_iou import iou_rows


def pairwise(function: Callable[[Tensor, Tensor], Tensor], target_boxes: Tensor, others: Tensor) -> Tensor:
    """Return `function(target_boxes, others)`, (B, T, P), for (B, T, 4) boxes and (B, P, …) of the predictions.

    On the CPU it is computed a few images at a time.
    """
    blocks = slices(len(others), target_boxes.shape[1] * others.shape[1], MAX_BLOCK_ELEMENTS)
    if others.device.type != "cpu" or len(blocks) < 2:
        return function(target_boxes, others)
    return torch.cat([function(target_boxes[some], others[some]) for some in blocks])


def pairwise_iou(target_boxes: Tensor, boxes: Tensor) -> Tensor:
    """Return the IoU (B, T, P) of (B, T, 4) with (B, P, 4) boxes."""
    if not reads_values(boxes, validate=False):
        return pairwise_overlap(target_boxes, boxes, kind="iou", eps=0.0)
    value = boxes.new_empty(*target_boxes.shape[:2], boxes.shape[1])
    for rows, targets, out in zip(iou_rows(boxes), target_boxes, value, strict=True):
        for some in slices(len(targets), boxes.shape[1], MAX_BLOCK_ELEMENTS):
            rows.rows(targets[some], out=out[some])
    return value


def largest_iou(target_boxes: Tensor, mask: Tensor, boxes: Tensor) -> Tensor:
    """Return the (B, P) largest IoU of each of the (B, P, 4) boxes with a target in the (B, T) mask; 0 for none."""
    if not mask.shape[1]:
        return torch.zeros_like(boxes[..., 0])
    if not reads_values(boxes, validate=False):
        return pairwise_overlap(present_boxes(target_boxes, mask), boxes, kind="iou", eps=0.0).amax(1)
    value = torch.zeros(boxes.shape[:2], dtype=boxes.dtype)
    for rows, targets, real, out in zip(iou_rows(boxes), target_boxes, mask, value, strict=True):
        present = targets[real]
        for some in slices(len(present), boxes.shape[1], MAX_BLOCK_ELEMENTS):
            torch.maximum(out, rows.rows(present[some]).amax(0), out=out)
    return value


def present_boxes(target_boxes: Tensor, mask: Tensor) -> Tensor:
    """Return the (B, T, 4) boxes of the targets in a (B, T) mask; the others become boxes without area at 0."""
    return torch.where(mask.unsqueeze(-1), target_boxes, target_boxes.new_zeros(4))
