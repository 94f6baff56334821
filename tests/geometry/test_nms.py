"""Non-maximum suppression equals the sequential rule."""

import pytest
import torch

from tests.support.problems import random_boxes
from uotod.utils import batched_nms, box_iou, nms


def sequential_nms(boxes: torch.Tensor, scores: torch.Tensor, iou_threshold: float) -> list[int]:
    kept: list[int] = []
    for index in scores.argsort(descending=True, stable=True).tolist():
        if all(box_iou(boxes[index : index + 1], boxes[k : k + 1]).item() <= iou_threshold for k in kept):
            kept.append(index)
    return kept


@pytest.mark.parametrize("count", [0, 1, 2, 60])
@pytest.mark.parametrize("threshold", [0.0, 0.3, 0.5, 1.0])
def test_nms_equals_the_sequential_rule(count, threshold) -> None:
    boxes, scores = random_boxes(count), (torch.rand(count) * 10).round()  # with ties
    assert nms(boxes, scores, threshold).tolist() == sequential_nms(boxes, scores, threshold)


def test_a_long_chain_of_suppressions_is_settled() -> None:
    left = torch.arange(40.0) * 0.6
    boxes = torch.stack((left, torch.zeros(40), left + 1, torch.ones(40)), dim=1)  # each overlaps its neighbours
    assert nms(boxes, torch.arange(40.0), 0.2).tolist() == list(range(39, -1, -2))


def test_batched_nms_is_nms_in_each_group() -> None:
    boxes, scores, groups = random_boxes(50), torch.rand(50), torch.randint(0, 3, (50,))
    expected = []
    for group in range(3):
        index = (groups == group).nonzero().flatten()
        expected += index[nms(boxes[index], scores[index], 0.4)].tolist()
    kept = batched_nms(boxes, scores, groups, 0.4)
    assert sorted(kept.tolist()) == sorted(expected)
    assert (scores[kept].diff() <= 0).all()


def test_bad_input_is_refused() -> None:
    with pytest.raises(ValueError, match=r"iou_threshold must lie in \[0.0, 1.0\], got 1.5"):
        nms(torch.zeros(2, 4), torch.zeros(2), 1.5)
    with pytest.raises(ValueError, match=r"boxes must have shape \(N, 4\), got \(4,\)"):
        nms(torch.zeros(4), torch.zeros(4), 0.5)
    with pytest.raises(ValueError, match=r"scores must have shape \(2,\) like the boxes, got \(3,\)"):
        nms(torch.zeros(2, 4), torch.zeros(3), 0.5)
