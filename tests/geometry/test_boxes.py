"""Properties of box geometry: conversions invert each other, overlaps keep their bounds and stay finite."""

import math

import pytest
import torch

from tests.support.problems import random_boxes
from uotod import utils
from uotod.geometry.boxes import aligned_overlap, box_centers, pairwise_overlap

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


def integer_boxes(dtype: torch.dtype, count: int) -> torch.Tensor:
    """Return boxes over the whole range of a dtype, at most 2^30, some of them small and far from the origin."""
    low, high = max(torch.iinfo(dtype).min, -(2**30)), min(torch.iinfo(dtype).max, 2**30)
    corners = torch.randint(low, high + 1, (count, 2, 2)).sort(1).values
    corners[: count // 4, 1] = torch.minimum(corners[: count // 4, 0] + 9, torch.tensor(high))
    return corners.flatten(1).to(dtype)


INTEGERS = [torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64]


@pytest.mark.parametrize("dtype", INTEGERS)
@pytest.mark.parametrize("count", [0, 1, 40])
def test_overlaps_of_integers_are_those_of_float64_in_float32(dtype, count) -> None:
    boxes, other = integer_boxes(dtype, count), integer_boxes(dtype, 12)
    other[: min(count, 3)] = boxes[:3]
    other[3:5] += torch.tensor([1, 0, 0, -1], dtype=dtype)
    for overlap in (utils.box_iou, utils.box_giou, utils.box_diou, utils.box_ciou):
        values = overlap(boxes, other)
        assert values.dtype == torch.float32
        torch.testing.assert_close(values.double(), overlap(boxes.double(), other.double()), rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(overlap(boxes, other.double()), overlap(boxes.double(), other.double()))


@pytest.mark.parametrize("dtype", INTEGERS)
@pytest.mark.parametrize("shape", [(0,), (), (3, 5)])
def test_areas_centers_and_conversions_of_integers_do_not_overflow(dtype, shape) -> None:
    boxes = integer_boxes(dtype, max(math.prod(shape), 1))[: math.prod(shape)].view(*shape, 4)
    area = utils.box_area(boxes)
    assert area.dtype == torch.int64
    torch.testing.assert_close(area.double(), utils.box_area(boxes.double()))
    scale = 2 * float(boxes.double().abs().amax()) if boxes.numel() else 0.0
    exact = [utils.box_xyxy_to_xywh, utils.box_xywh_to_xyxy]
    halved = [utils.box_xyxy_to_cxcywh, utils.box_cxcywh_to_xyxy, box_centers]
    for function, result in [*((f, torch.int64) for f in exact), *((f, torch.float32) for f in halved)]:
        value = function(boxes)
        assert value.dtype == result
        rounding = torch.finfo(value.dtype).eps * scale if value.is_floating_point() else 0.0
        torch.testing.assert_close(value.double(), function(boxes.double()), rtol=0.0, atol=rounding)


def test_the_smallest_integers_overlap_as_the_largest() -> None:
    full = torch.tensor([[-128, -128, 127, 127]], dtype=torch.int8)
    assert utils.box_area(full) == 255**2
    assert utils.box_iou(full, full) == 1
    wide = torch.tensor([[0, 0, 10, 10]], dtype=torch.int32) + 10**8  # float32 knows but every eighth number there
    torch.testing.assert_close(utils.box_iou(wide, wide + 5), torch.tensor([[25 / 175]]))


def test_suppression_of_integer_boxes_is_that_of_float_ones() -> None:
    boxes, scores = integer_boxes(torch.int16, 60), torch.rand(60)
    torch.testing.assert_close(utils.nms(boxes, scores, 0.2), utils.nms(boxes.double(), scores, 0.2))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_areas_of_half_precision_boxes_are_computed_in_float32(dtype) -> None:
    boxes = random_boxes(5).to(dtype) * 1000
    torch.testing.assert_close(utils.box_area(boxes), utils.box_area(boxes.float()))


@pytest.mark.parametrize("boxes", [torch.zeros(3), torch.zeros(2, 5)])
def test_what_is_not_a_box_is_refused(boxes) -> None:
    with pytest.raises(ValueError, match=r"boxes must have shape \(\.\.\., 4\), got"):
        utils.box_area(boxes)
    with pytest.raises(ValueError, match=r"boxes must have shape \(\.\.\., N, 4\), got"):
        utils.box_iou(boxes, torch.zeros(1, 4))
    with pytest.raises(TypeError, match="boxes must be a tensor, got list"):
        utils.box_area([0, 0, 1, 1])
