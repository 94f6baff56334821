"""The IoU of the boxes of one image with its targets, a few targets at a time and into memory that is used again."""

import torch
from torch import Tensor

Planes = tuple[Tensor, Tensor, Tensor, Tensor, Tensor]  # x1, y1, x2, y2, area


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
        x1, y1, x2, y2, area = (x.unsqueeze(1) for x in _planes(targets))
        return _write_iou((x1, y1, x2, y2, area), self._planes, own if out is None else out, spare)

    def columns(self, targets: Tensor, preds: Tensor) -> Tensor:
        """Return the IoU (N, t) of the boxes of (N,) indices with (t, 4) boxes."""
        x1, y1, x2, y2, area = (x[preds].unsqueeze(1) for x in self._planes)
        value, *spare = (targets.new_empty(len(preds), len(targets)) for _ in self._memory)
        return _write_iou(_planes(targets), (x1, y1, x2, y2, area), value, spare)


def _planes(boxes: Tensor) -> Planes:
    """Return coordinates and area of (N, 4) boxes, each (N,); an inverted box has area 0."""
    x1, y1, x2, y2 = boxes.t().contiguous().unbind(0)
    return x1, y1, x2, y2, (x2 - x1).clamp_(min=0) * (y2 - y1).clamp_(min=0)


def _write_iou(targets: Planes, boxes: Planes, out: Tensor, spare: list[Tensor]) -> Tensor:
    """Write the IoU of boxes that broadcast together into `out`."""
    x1, y1, x2, y2, target_area = targets
    a1, b1, a2, b2, area = boxes
    other, height = spare
    torch.minimum(x2, a2, out=out).sub_(torch.maximum(x1, a1, out=other)).clamp_(min=0)
    torch.minimum(y2, b2, out=height).sub_(torch.maximum(y1, b1, out=other)).clamp_(min=0)
    shared = out.mul_(height)
    # a target without area shares none: whatever it is divided by, the IoU is 0, and there is no 0 / 0 to look for
    positive_area = target_area.where(target_area > 0, 1)
    return shared.div_(torch.add(positive_area, area, out=other).sub_(shared))
