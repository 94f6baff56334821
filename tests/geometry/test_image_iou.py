"""The IoU of one image by rows: the values of `box_iou`, to the last bit."""

import pytest
import torch

from tests.support.guards import take_gpu_path
from tests.support.problems import random_boxes
from uotod.geometry.image_iou import IoURows
from uotod.solvers.overlaps import largest_iou, pairwise_iou
from uotod.utils import box_iou


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("preds", "targets"), [(0, 3), (1, 1), (37, 0), (501, 6)])
def test_rows_and_columns_are_those_of_box_iou(preds: int, targets: int, dtype: torch.dtype) -> None:
    torch.manual_seed(preds)
    boxes, target_boxes = random_boxes(preds).to(dtype), random_boxes(targets).to(dtype)
    if preds > 9 and targets > 3:
        boxes[0] = target_boxes[0]
        boxes[1, 2:] = boxes[1, :2]  # no area
        boxes[2] = boxes[2].roll(2)  # inverted
        target_boxes[1, 2] = target_boxes[1, 0]
        boxes[3] = target_boxes[1]
    expected = box_iou(target_boxes, boxes)
    rows = IoURows(boxes)
    assert torch.equal(rows.rows(target_boxes), expected)
    for row, target in zip(expected.split(2), target_boxes.split(2), strict=True):  # its memory is large enough
        assert torch.equal(rows.rows(target), row)
        assert torch.equal(rows.rows(target, out=torch.empty_like(row)), row)
    index = torch.randperm(preds)[: preds // 2]
    assert torch.equal(rows.columns(target_boxes, index), expected[:, index])


def test_the_overlap_of_a_batch_does_not_depend_on_where_it_is_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    boxes, target_boxes = random_boxes(3, 700), random_boxes(3, 5)
    mask = torch.tensor([[True, False, True, True, False], [False] * 5, [True] * 5])
    found = pairwise_iou(target_boxes, boxes), largest_iou(target_boxes, mask, boxes)
    shared = pairwise_iou(target_boxes, boxes[:1].expand(3, -1, -1))
    take_gpu_path(monkeypatch)
    assert torch.equal(found[0], pairwise_iou(target_boxes, boxes))
    assert torch.equal(found[1], largest_iou(target_boxes, mask, boxes))
    assert torch.equal(shared, pairwise_iou(target_boxes, boxes[:1].expand(3, -1, -1)))
