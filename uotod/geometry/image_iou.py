"""The IoU of the boxes of one image with its targets, a few targets at a time and into memory that is used again."""

import torch
from torch import Tensor


class IoURows:
    """The boxes of one image, of which what no target changes is computed once.

    Its values are those of `box_iou`, to the last bit, for boxes whose areas are finite. It takes twelve passes over
    a block and no new memory, where functions of all pairs write a tensor for each step.

    Args:
        boxes: (P, 4) boxes, xyxy, in at least float32.

    Examples:
        >>> boxes = IoURows(torch.tensor([[0.0, 0.0, 2.0, 2.0], [0.0, 0.0, 2.0, 1.0]]))
        >>> boxes.rows(torch.tensor([[0.0, 0.0, 2.0, 1.0]]))
        tensor([[0.5000, 1.0000]])
    """

    def __init__(self, boxes: Tensor) -> None:
        self._planes = _planes(boxes.detach())
        self._memory = [boxes.new_empty(0)] * 3

    def rows(self, targets: Tensor, out: Tensor | None = None) -> Tensor:
        """Return the IoU (t, P) with (t, 4) boxes, in `out` or in memory that the next call overwrites."""
        count, preds = len(targets), len(self._planes[0])
        if len(self._memory[0]) < count * preds:
            self._memory = [targets.new_empty(count * preds) for _ in self._memory]
        own, *spare = (x[: count * preds].view(count, preds) for x in self._memory)
        return _write_iou(_planes(targets).unsqueeze(2), self._planes, own if out is None else out, spare)

    def columns(self, targets: Tensor, preds: Tensor) -> Tensor:
        """Return the IoU (t, N) of the boxes of (N,) indices with (t, 4) boxes."""
        found = self._planes.index_select(1, preds)
        value, *spare = (targets.new_empty(len(targets), len(preds)) for _ in self._memory)
        return _write_iou(_planes(targets).unsqueeze(2), found, value, spare)


def iou_rows(boxes: Tensor) -> list[IoURows]:
    """Return the rows of the (P, 4) boxes of each image; anchors that the batch shares are prepared once."""
    if len(boxes) and not boxes.stride(0):
        return [IoURows(boxes[0])] * len(boxes)
    return [IoURows(x) for x in boxes]


def _planes(boxes: Tensor) -> Tensor:
    """Return x1, y1, x2, y2 and the area of (N, 4) boxes as (5, N); an inverted box has area 0."""
    planes = boxes.new_empty(5, len(boxes))
    planes[:4] = boxes.t()
    size = (planes[2:4] - planes[:2]).clamp_(min=0)
    torch.mul(size[0], size[1], out=planes[4])
    return planes


def _write_iou(targets: Tensor, boxes: Tensor, out: Tensor, spare: list[Tensor]) -> Tensor:
    """Write the IoU of the boxes of (5, t, 1) and (5, P) planes into `out`, (t, P)."""
    x1, y1, x2, y2, target_area = targets.unbind(0)
    a1, b1, a2, b2, area = boxes.unbind(0)
    other, height = spare
    torch.minimum(x2, a2, out=out).sub_(torch.maximum(x1, a1, out=other)).clamp_(min=0)
    torch.minimum(y2, b2, out=height).sub_(torch.maximum(y1, b1, out=other)).clamp_(min=0)
    shared = out.mul_(height)
    # a target without area shares none: whatever it is divided by, the IoU is 0, and there is no 0 / 0 to look for
    positive_area = target_area.where(target_area > 0, 1)
    return shared.div_(torch.add(positive_area, area, out=other).sub_(shared))
