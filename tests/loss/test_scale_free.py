"""Box losses and overlaps know no unit: scaled boxes have the same value, and small perfect ones cost nothing."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from tests.support.costs import box_cost
from tests.support.loss_cases import CASES
from tests.support.problems import jittered, random_boxes
from uotod import loss, utils
from uotod.loss.box_pair import BoxPairLoss

EXPONENTS = [-6, -3, 0, 3, 6]
NAMES = [name for name, case in CASES.items() if case.reads == "boxes" and isinstance(case.build(), BoxPairLoss)]
OVERLAPS = [utils.box_iou, utils.box_giou, utils.box_diou, utils.box_ciou]
# the target holds the point, the segment, the inverted box, meets it, or is far from it; or is none of a box itself
SHAPES = {
    "zero area": ([0.2, 0.2, 0.2, 0.2], [0.1, 0.1, 0.5, 0.5]),
    "equal and of zero area": ([0.2, 0.2, 0.2, 0.2], [0.2, 0.2, 0.2, 0.2]),
    "two points": ([0.2, 0.2, 0.2, 0.2], [0.3, 0.3, 0.3, 0.3]),
    "equal and of zero width": ([0.2, 0.1, 0.2, 0.6], [0.2, 0.1, 0.2, 0.6]),
    "equal": ([0.1, 0.1, 0.5, 0.5], [0.1, 0.1, 0.5, 0.5]),
    "inverted": ([0.5, 0.5, 0.1, 0.2], [0.1, 0.1, 0.4, 0.4]),
    "inverted in x": ([0.5, 0.1, 0.1, 0.4], [0.1, 0.1, 0.4, 0.4]),
    "inverted around a point": ([0.9, 0.9, 0.2, 0.2], [0.3, 0.3, 0.3, 0.3]),
    "equal and inverted": ([0.5, 0.5, 0.1, 0.2], [0.5, 0.5, 0.1, 0.2]),
    "both inverted, apart": ([0.5, 0.5, 0.4, 0.1], [0.3, 0.9, 0.2, 0.7]),
    "disjoint": ([0.0, 0.0, 0.1, 0.1], [0.8, 0.8, 0.9, 0.9]),
}


def build(name: str, scale: float = 1.0, reduction: str = "none", dtype: torch.dtype = torch.float64) -> BoxPairLoss:
    """Return a loss; one that measures in images gets an image of the scale."""
    if name == "MPDIoULoss":
        return loss.MPDIoULoss(image_size=(1.5 * scale, 0.9 * scale), reduction=reduction)
    module = CASES[name].build(reduction=reduction)
    assert isinstance(module, BoxPairLoss)
    return module.to(dtype)


def gradient(module: Callable[[Tensor, Tensor], Tensor], boxes: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    boxes = boxes.detach().requires_grad_()
    value = module(boxes, target)
    (slope,) = torch.autograd.grad(value.sum(), boxes)
    return value.detach(), slope


def shapes(dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    boxes, target = zip(*SHAPES.values(), strict=True)
    return torch.tensor(boxes, dtype=dtype), torch.tensor(target, dtype=dtype)


@pytest.mark.parametrize("exponent", EXPONENTS)
@pytest.mark.parametrize("name", NAMES)
def test_a_loss_and_its_cost_do_not_change_with_the_unit(name: str, exponent: int) -> None:
    target = torch.cat((random_boxes(40), random_boxes(20)))
    boxes = torch.cat((jittered(target[:40]), random_boxes(20)))
    scale = 10.0**exponent
    value, slope = gradient(build(name), boxes, target)
    scaled, steep = gradient(build(name, scale), scale * boxes, scale * target)
    torch.testing.assert_close(scaled, value, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(scale * steep, slope, rtol=1e-7, atol=1e-9)
    cost = box_cost(build(name, scale), scale * boxes[None], scale * target[None])
    torch.testing.assert_close(cost, box_cost(build(name), boxes[None], target[None]), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", NAMES)
def test_degenerate_boxes_have_finite_losses_in_any_unit(name: str, dtype: torch.dtype) -> None:
    boxes, target = shapes(dtype)
    value, slope = gradient(build(name, dtype=dtype), boxes, target)
    assert value.isfinite().all()
    assert slope.isfinite().all()
    for exponent in EXPONENTS:
        scale = 2.0 ** (3 * exponent)  # without rounding, which would part what coincides
        scaled, steep = gradient(build(name, scale, dtype=dtype), scale * boxes, scale * target)
        torch.testing.assert_close(scaled, value)
        torch.testing.assert_close(scale * steep, slope)


@pytest.mark.parametrize("exponent", [-13, *EXPONENTS, 13])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", NAMES)
def test_a_perfect_box_of_any_size_costs_nothing(name: str, dtype: torch.dtype, exponent: int) -> None:
    scale = 10.0**exponent
    boxes = scale * random_boxes(30, dtype=dtype)
    value, slope = gradient(build(name, scale, dtype=dtype), boxes, boxes)
    assert value.abs().amax() <= 4 * torch.finfo(dtype).eps
    # in relative units: in a perfect box nothing is to be moved
    assert (scale * slope).abs().amax() <= 1e-2


@pytest.mark.parametrize("name", NAMES)
def test_boxes_too_small_for_their_dtype_have_finite_losses(name: str) -> None:
    for exponent in range(-46, -16):
        scale = 10.0**exponent
        boxes = scale * random_boxes(20, dtype=torch.float32)
        for target in (boxes, scale * random_boxes(20, dtype=torch.float32), random_boxes(20, dtype=torch.float32)):
            value, slope = gradient(build(name, dtype=torch.float32), boxes, target)
            assert value.isfinite().all()
            assert slope.isfinite().all()


@pytest.mark.parametrize("overlap", OVERLAPS)
@pytest.mark.parametrize("exponent", EXPONENTS)
def test_an_overlap_does_not_change_with_the_unit(overlap, exponent: int) -> None:
    boxes, other = random_boxes(20), random_boxes(30)
    scale = 10.0**exponent
    torch.testing.assert_close(overlap(scale * boxes, scale * other), overlap(boxes, other), rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(overlap(scale * boxes, scale * boxes).diagonal(), torch.ones(20, dtype=torch.float64))
    given, target = shapes(torch.float64)
    expected = overlap(given, target)
    assert expected.isfinite().all()
    scale = 2.0 ** (3 * exponent)
    torch.testing.assert_close(overlap(scale * given, scale * target), expected)


@pytest.mark.parametrize("name", NAMES)
def test_no_loss_has_an_epsilon_by_default(name: str) -> None:
    assert build(name).eps == 0


@pytest.mark.parametrize("version", [2, 3])
def test_wise_iou_stays_finite_when_all_boxes_are_perfect(version: int) -> None:
    module = loss.WiseIoULoss(version=version, momentum=1.0, reduction="none")
    boxes = random_boxes(9, dtype=torch.float32)
    assert module.update(boxes, boxes) == 0
    for target in (boxes, jittered(boxes), random_boxes(9, dtype=torch.float32)):
        value, slope = gradient(module, boxes, target)
        assert value.isfinite().all()
        assert slope.isfinite().all()


def test_a_small_perfect_box_is_left_where_it_is() -> None:
    box = torch.tensor([[0.5, 0.5, 0.501, 0.501]])
    value, slope = gradient(loss.GIoULoss(), box, box)
    assert value == 0
    assert slope.abs().amax() <= 1e-3  # 41 with an epsilon of 1e-7 in the areas
