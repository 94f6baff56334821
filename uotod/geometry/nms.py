"""Non-maximum suppression in plain torch: boxes and scores in, the indices of the boxes that stay out."""

import torch
from torch import Tensor

from uotod.check import check_number
from uotod.geometry.boxes import box_iou


def nms(boxes: Tensor, scores: Tensor, iou_threshold: float) -> Tensor:
    """Remove every box that overlaps a kept box of higher score by more than `iou_threshold`.

    The result is that of the sequential rule, found by repeating one parallel step until it changes nothing; the
    lower index wins ties of the score. Memory grows with N²: preselect by score where N is large.

    Args:
        boxes: (N, 4), xyxy.
        scores: (N,).
        iou_threshold: largest IoU of two boxes that both stay, in [0, 1].

    Returns:
        Indices of the boxes that stay, by decreasing score.

    Raises:
        ValueError: the shapes do not fit, or `iou_threshold` is out of its range.

    Examples:
        >>> boxes = torch.tensor([[0.0, 0.0, 2.0, 2.0], [0.0, 0.0, 2.0, 1.8], [5.0, 5.0, 6.0, 6.0]])
        >>> nms(boxes, torch.tensor([0.8, 0.9, 0.3]), iou_threshold=0.5)
        tensor([1, 2])
    """
    return batched_nms(boxes, scores, torch.zeros_like(scores, dtype=torch.long), iou_threshold)


def batched_nms(boxes: Tensor, scores: Tensor, groups: Tensor, iou_threshold: float) -> Tensor:
    """Apply `nms` within each group (a class, an image, or both) at once.

    Args:
        boxes: (N, 4), xyxy.
        scores: (N,).
        groups: (N,) integers; boxes of different groups never suppress each other.
        iou_threshold: largest IoU of two boxes of a group that both stay, in [0, 1].

    Returns:
        Indices of the boxes that stay, by decreasing score.

    Raises:
        ValueError: the shapes do not fit, or `iou_threshold` is out of its range.

    Examples:
        >>> boxes = torch.tensor([[0.0, 0.0, 2.0, 2.0], [0.0, 0.0, 2.0, 1.8]])
        >>> batched_nms(boxes, torch.tensor([0.8, 0.9]), torch.tensor([0, 1]), iou_threshold=0.5)
        tensor([1, 0])
    """
    check_number("iou_threshold", iou_threshold, low=0.0, high=1.0)
    if boxes.dim() != 2 or boxes.shape[-1] != 4:
        raise ValueError(f"boxes must have shape (N, 4), got {tuple(boxes.shape)}")
    for name, values in (("scores", scores), ("groups", groups)):
        if values.shape != boxes.shape[:1]:
            raise ValueError(f"{name} must have shape ({len(boxes)},) like the boxes, got {tuple(values.shape)}")
    order = scores.argsort(descending=True, stable=True)
    sorted_boxes, sorted_groups = boxes[order], groups[order]
    suppresses = (box_iou(sorted_boxes, sorted_boxes) > iou_threshold) & (sorted_groups[:, None] == sorted_groups)
    suppresses = suppresses.triu(diagonal=1)  # only a higher score suppresses
    keep = torch.ones_like(sorted_groups, dtype=torch.bool)
    # after k steps the first k boxes are settled; in practice few steps settle all
    for _ in range(len(boxes)):
        settled = ~(suppresses & keep[:, None]).any(0)
        if torch.equal(settled, keep):
            break
        keep = settled
    return order[keep]
