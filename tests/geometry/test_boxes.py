"""Properties of box geometry: conversions invert each other, overlaps keep their bounds and stay finite."""

import math

import pytest
import torch

from tests.support.problems import random_boxes
from uotod import utils
from uotod.geometry.boxes import aligned_overlap, pairwise_overlap

KINDS = ["iou", "giou", "diou", "ciou"]
EDGE_CASES = {
    "zero area": ([0.2, 0.2, 0.2, 0.2], [0.1, 0.1, 0.5, 0.5]),
    "both zero area": ([0.2, 0.2, 0.2, 0.2], [0.2, 0.2, 0.2, 0.2]),
    "zero width": ([0.2, 0.1, 0.2, 0.6], [0.2, 0.1, 0.2, 0.6]),
    "equal": ([0.1, 0.1, 0.5, 0.5], [0.1, 0.1, 0.5, 0.5]),
    "inverted": ([0.5, 0.5, 0.1, 0.2], [0.1, 0.1, 0.4, 0.4]),
    "inverted in x": ([0.5, 0.1, 0.1, 0.4], [0.1, 0.1, 0.4, 0.4]),
    "disjoint": ([0.0, 0.0, 0.1, 0.1], [0.8, 0.8, 0.9, 0.9]),
    "tiny": ([0.1, 0.1, 0.1 + 1e-30, 0.1 + 1e-30], [0.1, 0.1, 0.4, 0.4]),
    "huge": ([0.0, 0.0, 1e8, 1e8], [0.0, 0.0, 1e-8, 1e-8]),
}


@pytest.mark.parametrize(
    ("there", "back"),
    [
        (utils.box_xyxy_to_cxcywh, utils.box_cxcywh_to_xyxy),
        (utils.box_xyxy_to_xywh, utils.box_xywh_to_xyxy),
    ],
)
@pytest.mark.parametrize("shape", [(), (0,), (7,), (2, 3)])
def test_conversions_invert_each_other(there, back, shape) -> None:
    boxes = random_boxes(*shape)
    torch.testing.assert_close(back(there(boxes)), boxes)
    torch.testing.assert_close(there(back(boxes)), boxes)


def test_area_is_width_times_height() -> None:
    boxes = random_boxes(3, 5)
    torch.testing.assert_close(utils.box_area(boxes), utils.box_xyxy_to_xywh(boxes)[..., 2:].prod(-1))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("sizes", [(0, 3), (3, 0), (1, 1), (5, 4)])
def test_pairwise_overlap_is_the_aligned_one_of_every_pair(kind, sizes) -> None:
    boxes, other = random_boxes(sizes[0]), random_boxes(sizes[1])
    pairs = aligned_overlap(boxes[:, None].expand(*sizes, 4), other[None].expand(*sizes, 4), kind, 1e-7)
    torch.testing.assert_close(pairwise_overlap(boxes, other, kind, 1e-7), pairs)


def test_iou_of_a_box_with_itself_is_exactly_one() -> None:
    boxes = random_boxes(50, dtype=torch.float32) * 1e-3  # an epsilon in the union would show
    assert (utils.box_iou(boxes, boxes).diagonal() == 1).all()


@pytest.mark.parametrize("overlap", [utils.box_iou, utils.box_giou, utils.box_diou, utils.box_ciou])
def test_overlaps_do_not_depend_on_translation_and_scale(overlap) -> None:
    boxes, other = random_boxes(6), random_boxes(5)
    torch.testing.assert_close(overlap(boxes * 300 + 7, other * 300 + 7), overlap(boxes, other))


def test_overlaps_are_ordered() -> None:
    boxes, other = random_boxes(30), random_boxes(30)
    iou, giou = utils.box_iou(boxes, other), utils.box_giou(boxes, other)
    diou, ciou = utils.box_diou(boxes, other), utils.box_ciou(boxes, other)
    assert ((iou >= 0) & (iou <= 1)).all()
    assert ((giou <= iou + 1e-12) & (giou > -1)).all()
    assert ((diou <= iou + 1e-12) & (diou > -1)).all()
    assert (ciou <= diou + 1e-12).all()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("eps", [0.0, 1e-7])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("case", EDGE_CASES)
def test_degenerate_boxes_have_finite_overlaps_and_gradients(kind, eps, dtype, case) -> None:
    box, other = (torch.tensor(x, dtype=dtype, requires_grad=True) for x in EDGE_CASES[case])
    value = aligned_overlap(box, other, kind, eps)
    value.backward()
    assert math.isfinite(value.detach())
    assert box.grad.isfinite().all()
    assert other.grad.isfinite().all()


def test_an_inverted_box_has_no_area_and_overlaps_nothing() -> None:
    inverted = torch.tensor([[0.9, 0.9, 0.1, 0.1]])
    assert utils.box_area(inverted) == 0
    assert utils.box_iou(inverted, torch.tensor([[0.0, 0.0, 1.0, 1.0]])) == 0


@pytest.mark.parametrize("kind", KINDS)
def test_overlaps_pass_gradcheck(kind) -> None:
    boxes, other = random_boxes(6).requires_grad_(), random_boxes(6).requires_grad_()
    if kind == "ciou":  # its trade-off weight is held constant by definition
        kind = "diou"
    assert torch.autograd.gradcheck(lambda a, b: aligned_overlap(a, b, kind, 1e-7), (boxes, other))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_overlaps_are_computed_in_float32(dtype) -> None:
    boxes, other = random_boxes(4).to(dtype) * 1000, random_boxes(4).to(dtype) * 1000  # areas overflow float16
    assert utils.box_iou(boxes, other).dtype == torch.float32
    torch.testing.assert_close(utils.box_iou(boxes, other), utils.box_iou(boxes.float(), other.float()))


@pytest.mark.parametrize("boxes", [torch.zeros(3), torch.zeros(2, 5)])
def test_what_is_not_a_box_is_refused(boxes) -> None:
    with pytest.raises(ValueError, match=r"boxes must have shape \(\.\.\., 4\), got"):
        utils.box_area(boxes)
    with pytest.raises(ValueError, match=r"boxes must have shape \(\.\.\., N, 4\), got"):
        utils.box_iou(boxes, torch.zeros(1, 4))
    with pytest.raises(TypeError, match="boxes must be a tensor, got list"):
        utils.box_area([0, 0, 1, 1])
