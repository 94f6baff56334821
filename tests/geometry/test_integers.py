"""Every public function of boxes takes integers of any dtype, and says what it says of the same numbers in float64."""

import inspect
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from tests.geometry.test_boxes import INTEGERS, integer_boxes
from tests.support.loss_cases import CASES
from uotod import utils
from uotod.loss.box_pair import BoxPairLoss

STRIDE = torch.tensor([8.0, 16.0, 8.0, 32.0]).repeat(5)


def both(coder: utils.BoxCoder) -> Callable[[Tensor, Tensor], Tensor]:
    """Return the values of boxes and, decoded from anchors, of what there is to decode."""
    return lambda boxes, other: torch.cat(
        (coder.encode(boxes, other, STRIDE.double()), coder.decode(coder.encode(boxes, other, STRIDE), other, STRIDE))
    )


# of (20, 4) boxes and others in the same rows; what is not here has no boxes to take, or refuses integers
FUNCTIONS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "box_area": lambda boxes, other: utils.box_area(boxes),
    "box_ciou": utils.box_ciou,
    "box_cxcywh_to_xyxy": lambda boxes, other: utils.box_cxcywh_to_xyxy(boxes),
    "box_diou": utils.box_diou,
    "box_giou": utils.box_giou,
    "box_iou": utils.box_iou,
    "box_xywh_to_xyxy": lambda boxes, other: utils.box_xywh_to_xyxy(boxes),
    "box_xyxy_to_cxcywh": lambda boxes, other: utils.box_xyxy_to_cxcywh(boxes),
    "box_xyxy_to_xywh": lambda boxes, other: utils.box_xyxy_to_xywh(boxes),
    "batched_nms": lambda boxes, other: utils.batched_nms(boxes, scores(), torch.arange(20) % 2, 0.2),
    "nms": lambda boxes, other: utils.nms(boxes, scores(), 0.2),
    "pad_targets": lambda boxes, other: utils.pad_targets(
        [{"boxes": x, "labels": torch.zeros(20, dtype=torch.long)} for x in (boxes, other)]
    )["boxes"],
    "CellCoder": both(utils.CellCoder(size="log")),
    "DeltaCoder": both(utils.DeltaCoder()),
    "DistanceCoder": both(utils.DistanceCoder(by_stride=True)),
    "distribution_to_box": lambda boxes, other: utils.distribution_to_box(torch.zeros(20, 4, 5), other, STRIDE),
}
REFUSED = {"Anchors", "Points"}  # their floating dtype is that of the cost
LOSSES = [name for name, case in CASES.items() if case.reads == "boxes" and isinstance(case.build(), BoxPairLoss)]


def scores() -> Tensor:
    return torch.rand(20, generator=torch.Generator().manual_seed(0))


def test_every_public_function_of_boxes_is_here() -> None:
    public = {name for name, x in vars(utils).items() if not inspect.ismodule(x) and not name.startswith("_")}
    assert set(FUNCTIONS) == public - REFUSED - {"BoxCoder"}


@pytest.mark.parametrize("dtype", INTEGERS)
@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_function_of_integers_is_that_of_float64(name: str, dtype: torch.dtype) -> None:
    boxes, other = integer_boxes(dtype, 20), integer_boxes(dtype, 20)
    other[:4] = boxes[:4]
    value, expected = (FUNCTIONS[name](x, y).double() for x, y in ((boxes, other), (boxes.double(), other.double())))
    assert value.isfinite().all()
    scale = max(float(expected.abs().amax()), 1.0) if expected.numel() else 1.0
    torch.testing.assert_close(value, expected, rtol=1e-5, atol=1e-6 * scale)


@pytest.mark.parametrize("dtype", INTEGERS)
@pytest.mark.parametrize("name", LOSSES)
def test_a_loss_of_integer_boxes_is_that_of_float64(name: str, dtype: torch.dtype) -> None:
    boxes, target = integer_boxes(dtype, 20), integer_boxes(dtype, 20)
    target[:4] = boxes[:4]
    unit = 1e3 if name == "MPDIoULoss" else 1.0
    boxes, target = (x.clamp(min=-30_000, max=30_000) if x.dtype in INTEGERS[2:] else x for x in (boxes, target))
    loss = CASES[name].build(reduction="none")
    expected = loss(boxes.double(), target.double())
    torch.testing.assert_close(loss(boxes, target).double(), expected, rtol=1e-4 * unit, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", [name for name in FUNCTIONS if "_to_x" not in name and "_to_c" not in name])
def test_a_function_of_half_precision_is_that_of_float32(name: str, dtype: torch.dtype) -> None:
    boxes, other = (integer_boxes(torch.int16, 20).to(dtype) for _ in range(2))
    value, expected = (FUNCTIONS[name](x, y) for x, y in ((boxes, other), (boxes.float(), other.float())))
    torch.testing.assert_close(value.to(expected.dtype), expected, rtol=1e-6, atol=1e-6 * 2**16, equal_nan=True)
