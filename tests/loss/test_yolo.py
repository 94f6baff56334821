"""YOLO on a grid equals a loop over cells, and the same thing said with GridCell, confidence and DetectionLoss."""

import math
import pickle
from functools import partial

import pytest
import torch
from torch import Tensor, nn

from tests.oracles import yolo as oracle
from tests.support.criteria import detection_loss
from tests.support.problems import random_boxes
from uotod.loss import (
    BoxSpace,
    CIoULoss,
    ConfidenceLoss,
    DetectionLoss,
    GIoULoss,
    IoULoss,
    MultipleObjectiveLoss,
    ObjectnessLoss,
    YOLOLoss,
)
from uotod.loss.yolo import grid_boxes
from uotod.match import GridCell
from uotod.recipes import yolo
from uotod.utils import Anchors, CellCoder, Points, pad_targets

CLASSES = 3
STYLES = {
    "v1": {},
    "v1-iou": {"obj_quality": "iou"},
    "v3": {"size": "log", "confidence": "bce", "classes": "bce"},
    "bce-iou": {"box": "ciou", "confidence": "bce", "classes": "bce", "obj_quality": "iou"},
    "linear": {"box": "smooth_l1", "size": "linear", "classes": "bce"},
    "iou": {"box": "iou", "confidence": "bce"},
    "giou": {"box": "giou"},
}
WEIGHTS = [(5.0, 1.0, 0.5, 1.0), (2.0, 3.0, 0.25, 0.7)]


def problem(seed: int, side: int) -> tuple[Tensor, list[list[tuple[Tensor, int]]]]:
    """Return a grid of predictions and the targets of its images, at most one in a cell."""
    torch.manual_seed(seed)
    images = seed % 3 + 1
    grid = torch.randn(images, side, side, CLASSES + 5, dtype=torch.float64)
    grid[..., :4] = grid[..., :4].sigmoid()
    targets = []
    for _ in range(images):
        taken: set[tuple[int, ...]] = set()
        image = []
        for box in random_boxes(int(torch.randint(5, ()))):
            cell = tuple(((box[:2] + box[2:]) / 2 * side).long().tolist())
            if cell not in taken:
                taken.add(cell)
                image.append((box, int(torch.randint(CLASSES, ()))))
        targets.append(image)
    return grid.requires_grad_(), targets


def as_detections(grid: Tensor, targets: list[list[tuple[Tensor, int]]]):
    """Return input, target and points that say the same of a grid."""
    side = grid.shape[1]
    cells = grid.flatten(1, 2)
    input = {
        "pred_logits": cells[..., 5:],
        "pred_boxes": grid_boxes(grid).flatten(1, 2),
        "pred_objectness": cells[..., 4],
    }
    target = pad_targets(
        [
            {
                "boxes": torch.stack([box for box, _ in image]) if image else torch.zeros(0, 4).double(),
                "labels": torch.tensor([label for _, label in image]).long(),
            }
            for image in targets
        ]
    )
    return input, target, Points.from_levels([(side, side)], [1 / side], dtype=torch.float64)


def assert_same(ours: Tensor, theirs: Tensor, leaf: Tensor, rtol: float = 1e-9) -> None:
    torch.testing.assert_close(ours, theirs, rtol=rtol, atol=1e-12)
    gradients = (torch.autograd.grad(x, leaf, retain_graph=True)[0] for x in (ours, theirs))
    torch.testing.assert_close(*gradients, rtol=rtol, atol=1e-12)


@pytest.mark.parametrize("weights", WEIGHTS)
@pytest.mark.parametrize("style", STYLES)
def test_it_equals_a_loop_over_cells(style: str, weights) -> None:
    for seed in range(24):
        grid, targets = problem(seed, side=(1, 4, 7)[seed % 3])
        target = oracle.grid_target(targets, grid.shape[1], CLASSES)
        empty = (target[..., 4] == 0) & (torch.rand(target.shape[:3]) < 0.2)
        target[..., 4] = torch.where(empty, -1.0, target[..., 4])  # ignored
        expected = oracle.yolo(grid, target, weights, **STYLES[style])
        terms = YOLOLoss(*weights, **STYLES[style], reduction="sum").terms(grid, target)
        for name, value in expected.items():
            torch.testing.assert_close(terms[name], value, rtol=1e-9, atol=1e-12)
        assert_same(terms["loss"], sum(expected.values(), torch.zeros(())), grid)
        count = sum(map(len, targets))
        assert (terms["num_pos"], terms["num_neg"]) == (count, (target[..., 4] == 0).sum())
        mean = YOLOLoss(*weights, **STYLES[style])(grid, target)
        torch.testing.assert_close(mean, terms["loss"] / max(count, 1))


def composed(style: dict, weights, reduction: str) -> DetectionLoss:
    """Say the same with GridCell, a confidence loss and DetectionLoss."""
    overlaps = {"iou": IoULoss, "giou": GIoULoss, "ciou": CIoULoss}
    box, coord = style.get("box", "mse"), CellCoder(style.get("size", "sqrt"))
    if box in overlaps:
        loc = overlaps[box](reduction="none")
    else:
        loc = BoxSpace((nn.MSELoss if box == "mse" else nn.SmoothL1Loss)(reduction="none"), coord)
    classes = nn.BCEWithLogitsLoss if style.get("classes") == "bce" else nn.MSELoss
    confidence = ConfidenceLoss(
        kind=style.get("confidence", "mse"), positive_weight=weights[1], negative_weight=weights[2], reduction="none"
    )
    return detection_loss(
        MultipleObjectiveLoss([classes(reduction="none")], weights[3:]),
        MultipleObjectiveLoss([loc], weights[:1]),
        GridCell(choose="prediction", negative=None),
        obj_loss=confidence,
        obj_quality=style.get("obj_quality"),
        cls_background=False,
        reduction=reduction,
    )


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("weights", WEIGHTS)
@pytest.mark.parametrize("style", STYLES)
def test_it_equals_the_same_thing_said_with_a_detection_loss(style: str, weights, reduction: str) -> None:
    for seed in range(20):
        grid, targets = problem(seed, side=(1, 4, 8)[seed % 3])
        target = oracle.grid_target(targets, grid.shape[1], CLASSES)
        ours = YOLOLoss(*weights, **STYLES[style], reduction=reduction).terms(grid, target)
        theirs = composed(STYLES[style], weights, reduction).terms(*as_detections(grid, targets))
        torch.testing.assert_close(ours["loss_loc"], theirs["loss_loc"], rtol=1e-8, atol=1e-12)
        torch.testing.assert_close(ours["loss_cls"], theirs["loss_cls"], rtol=1e-8, atol=1e-12)
        torch.testing.assert_close(ours["loss_obj"] + ours["loss_noobj"], theirs["loss_obj"], rtol=1e-8, atol=1e-12)
        assert_same(ours["loss"], theirs["loss"], grid, rtol=1e-8)
        assert (ours["num_pos"], ours["num_neg"]) == (theirs["num_pos"], theirs["num_neg"])


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("style", ["v1", "v3"])
def test_the_recipe_on_one_grid_equals_it(style: str, reduction: str) -> None:
    published = {
        "v1": YOLOLoss(obj_quality="iou", reduction=reduction),
        "v3": YOLOLoss(1, 1, 1, 1, size="log", confidence="bce", classes="bce", reduction=reduction),
    }
    ignored = 0
    for seed in range(24):
        grid, targets = problem(seed, side=(1, 4, 8)[seed % 3])
        input, padded, points = as_detections(grid, targets)
        side = grid.shape[1]
        anchors = Anchors(random_boxes(side * side), 1 / side) if style == "v3" else points
        if isinstance(anchors, Anchors):  # one of any size at each cell, for which v3's sizes are logarithms
            half = (anchors.boxes[:, 2:] - anchors.boxes[:, :2]) / 2
            anchors = Anchors(torch.cat((points.centers - half, points.centers + half), dim=-1), 1 / side)
        criterion = yolo(CLASSES, style=style, reduction=reduction)
        target = oracle.grid_target(targets, side, CLASSES)
        plan = criterion.matching_method(input, padded, anchors)
        out = (plan.sum(-1) == 0).view(target.shape[:3])
        ignored += int(out.sum())
        target[..., 4] = torch.where(out, -1.0, target[..., 4])
        assert_same(published[style](grid, target), criterion(input, padded, anchors), grid, rtol=1e-8)
    assert (ignored > 0) == (style == "v3")


def test_the_recipe_takes_other_weights_and_parts() -> None:
    grid, targets = problem(2, 4)
    args = as_detections(grid, targets)
    weights = {"loc": 2.0, "obj": 3.0, "noobj": 0.25, "cls": 0.7}
    expected = composed(STYLES["v1-iou"], list(weights.values()), "mean")(*args)
    torch.testing.assert_close(yolo(CLASSES, style="v1", weights=weights)(*args), expected)
    swapped = yolo(
        CLASSES,
        style="v1",
        matcher=GridCell(choose="anchor"),
        losses={
            "cls": nn.BCEWithLogitsLoss(reduction="none"),
            "loc": CIoULoss(reduction="none"),
            "obj": ObjectnessLoss(reduction="none"),
        },
    )
    names = [name for name in swapped.terms(*args) if name.startswith("loss_")]
    assert names == ["loss_cls", "loss_cls_bce_with_logits", "loss_loc", "loss_loc_ciou", "loss_obj"]
    with pytest.raises(ValueError, match=r"style must be one of \['v1', 'v3'\], got 'v2'"):
        yolo(CLASSES, style="v2")
    with pytest.raises(ValueError, match=r"weights\['loc'\] must lie in"):
        yolo(CLASSES, weights={"loc": -1.0})


def test_cells_without_object_are_not_read_but_for_their_confidence() -> None:
    grid, targets = problem(4, 4)
    target = oracle.grid_target(targets, 4, CLASSES)
    target[0, 0, 0, 4], leaf = -1.0, grid.detach().clone()
    empty = target[..., 4] <= 0
    others = [*range(4), *range(5, CLASSES + 5)]
    poisoned, poisoned_target = leaf.clone(), target.clone()
    for tensor in (poisoned, poisoned_target):
        for index in others:
            tensor[..., index][empty] = math.nan
    poisoned[0, 0, 0, 4] = math.nan  # ignored: not read at all
    loss = YOLOLoss(obj_quality="iou")
    values = []
    for input, wanted in ((leaf, target), (poisoned, poisoned_target)):
        input.requires_grad_()
        value = loss(input, wanted)
        value.backward()
        values.append(value.detach())
    torch.testing.assert_close(*values, rtol=0, atol=0)
    assert poisoned.grad is not None
    torch.testing.assert_close(poisoned.grad, leaf.grad, rtol=0, atol=0)


@pytest.mark.parametrize("style", STYLES)
def test_gradients_are_those_of_finite_differences(style: str) -> None:
    grid, targets = problem(5, 3)
    target = oracle.grid_target(targets, 3, CLASSES)
    options = {**STYLES[style], "obj_quality": None}  # the quality has no gradient, nor has the weight in CIoU
    options = {**options, "box": "giou"} if options.get("box") == "ciou" else options
    assert torch.autograd.gradcheck(lambda x: YOLOLoss(**options)(x, target), grid)


@pytest.mark.parametrize("size", ["sqrt", "log"])
def test_boxes_without_area_give_finite_losses_and_gradients_that_make_them_grow(size: str) -> None:
    target = torch.tensor([0.5, 0.5, 0.3, 0.3, 1.0, 1.0]).view(1, 1, 1, 6)
    for width in (0.0, -0.4):
        grid = target.clone()
        grid[..., 2:4] = width
        loss = YOLOLoss(size=size)(grid.requires_grad_(), target)
        loss.backward()
        assert loss.isfinite()
        assert grid.grad is not None
        assert grid.grad.isfinite().all()
        assert (grid.grad[..., 2:4] < 0).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_half_precision_is_computed_in_float32(dtype: torch.dtype) -> None:
    grid, targets = problem(6, 4)
    value = YOLOLoss()(grid.to(dtype), oracle.grid_target(targets, 4, CLASSES))
    assert value.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert value.isfinite()


def test_an_empty_batch_and_images_without_objects_have_a_gradient() -> None:
    for images in (0, 2):
        grid = torch.zeros(images, 4, 4, 8, requires_grad=True)
        loss = YOLOLoss()(grid, torch.zeros(images, 4, 4, 8))
        loss.backward()
        assert loss == 0
        assert grid.grad is not None


TEXTBOOK = {
    "mse": oracle.textbook_mse,
    "smooth_l1": oracle.textbook_smooth_l1,
    "smooth_l1_overlap": partial(oracle.textbook_smooth_l1, by_overlap=True),
}


def textbook_problem(seed: int, images: int, side: int, classes: int, filled: float) -> tuple[Tensor, Tensor]:
    """Return a grid of values in (0, 1) and its target, with a share of cells filled, predicted closely or not."""
    torch.manual_seed(seed)
    target = torch.rand(images, side, side, 5 + classes, dtype=torch.float64)
    target[..., 2:4] = 0.1 + 0.4 * target[..., 2:4]
    has_object = torch.rand(target.shape[:3]) < filled
    target[..., 5:] = nn.functional.one_hot(torch.randint(classes, target.shape[:3]), classes).double()
    target = target.where(has_object.unsqueeze(-1), 0.0)
    target[..., 4] = has_object.double()
    grid = torch.rand_like(target)
    near = torch.rand(*target.shape[:3], 1) < 0.5
    grid[..., :4] = torch.where(near, target[..., :4] * (1 + 0.2 * torch.rand_like(grid[..., :4])), grid[..., :4])
    return grid.requires_grad_(), target


@pytest.mark.parametrize("filled", [0.0, 0.3, 1.0])
@pytest.mark.parametrize(
    ("images", "side", "classes"), [(0, 2, 3), (1, 1, 1), (1, 1, 4), (3, 1, 1), (2, 3, 1), (2, 4, 3)]
)
@pytest.mark.parametrize("form", TEXTBOOK)
def test_a_textbook_form_equals_its_loop(form: str, images: int, side: int, classes: int, filled: float) -> None:
    for seed in range(3):
        grid, target = textbook_problem(seed, images, side, classes, filled)
        terms = YOLOLoss.textbook(form).terms(grid, target)
        assert_same(terms["loss"], TEXTBOOK[form](grid, target), grid)
        parts = [terms[name] for name in ("loss_loc", "loss_obj", "loss_noobj", "loss_cls")]
        torch.testing.assert_close(terms["loss"], torch.stack(parts).sum())
        assert terms["num_pos"] + terms["num_neg"] == images * side**2
        assert not terms["num_pos"].requires_grad


@pytest.mark.parametrize("form", TEXTBOOK)
def test_a_textbook_form_reads_nothing_of_an_ignored_cell(form: str) -> None:
    grid, target = textbook_problem(0, 2, 4, 3, 0.4)
    ignored = torch.rand(target.shape[:3]) < 0.3
    target[..., 4][ignored] = -1.0
    poisoned = grid.detach().clone()
    poisoned[ignored] = math.nan
    loss, expected = YOLOLoss.textbook(form)(poisoned.requires_grad_(), target), TEXTBOOK[form](grid, target)
    torch.testing.assert_close(loss, expected)
    ours, theirs = torch.autograd.grad(loss, poisoned)[0], torch.autograd.grad(expected, grid)[0]
    torch.testing.assert_close(ours, theirs)


def test_objects_by_overlap_need_more_than_half_of_it_and_no_confidence_in_the_target() -> None:
    target = torch.tensor([0.5, 0.5, 0.5, 0.5, 1.0, 1.0]).view(1, 1, 1, 6)
    loss = YOLOLoss.textbook("smooth_l1_overlap")
    for width, confidence, is_object in ((0.25, 1.0, False), (0.2501, 1.0, True), (0.2501, 0.0, True)):
        grid = target.clone()
        grid[..., 2], target[..., 4] = width, confidence
        assert loss.terms(grid, target)["num_pos"] == is_object


@pytest.mark.parametrize("form", ["smooth_l1", "smooth_l1_overlap"])
def test_probabilities_of_0_and_1_have_a_finite_loss_and_gradient(form: str) -> None:
    target = torch.tensor([0.5, 0.5, 0.5, 0.5, 1.0, 1.0, 0.0, 1.0, 0.0]).view(1, 1, 1, 9)
    grid = target.clone()
    grid[..., 5:] = torch.tensor([0.0, 1.0, 1.0, 0.0])
    terms = YOLOLoss.textbook(form).terms(grid.requires_grad_(), target)
    terms["loss"].backward()
    assert terms["loss_cls"] == 50  # two of four are as wrong as can be, which torch bounds by 100
    assert grid.grad is not None
    assert grid.grad.isfinite().all()


@pytest.mark.parametrize("form", TEXTBOOK)
def test_a_textbook_form_can_be_pickled_and_printed(form: str) -> None:
    loss = pickle.loads(pickle.dumps(YOLOLoss.textbook(form)))
    assert f"form={form!r}, lambda_coord={1.0 if form == 'mse' else 5.0}" in repr(loss)
    grid, target = textbook_problem(0, 2, 3, 2, 0.5)
    torch.testing.assert_close(loss(grid, target), YOLOLoss.textbook(form)(grid, target), rtol=0, atol=0)
    half = loss(grid.half(), target.half())
    assert half.dtype == torch.float32
    assert half.isfinite()


def test_what_is_no_textbook_form_or_no_probability_raises() -> None:
    with pytest.raises(ValueError, match=r"form must be one of \['mse', 'smooth_l1', 'smooth_l1_overlap'\], got 'l1'"):
        YOLOLoss.textbook("l1")
    for value in (-0.5, 1.5, math.nan):
        grid, target = textbook_problem(0, 1, 2, 2, 1.0)
        grid.detach()[0, 0, 0, 5] = value
        message = rf"input\[..., 5:\] must hold probabilities in \[0, 1\], not logits, got {value}"
        with pytest.raises(ValueError, match=message):
            YOLOLoss.textbook("smooth_l1")(grid, target)
        target[0, 0, 0, 4] = 0.0  # not read there
        assert YOLOLoss.textbook("smooth_l1")(grid, target).isfinite()


def test_it_can_be_pickled_and_printed() -> None:
    loss = pickle.loads(pickle.dumps(YOLOLoss(box="ciou", obj_quality="iou")))
    assert "lambda_noobj=0.5, lambda_class=1.0, box='ciou'" in repr(loss)
    assert not loss.state_dict()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"box": "diou"}, r"box must be one of \['mse', 'smooth_l1', 'iou', 'giou', 'ciou'\], got 'diou'"),
        ({"size": "square"}, r"size must be one of \['sqrt', 'log', 'linear'\], got 'square'"),
        ({"confidence": "l1"}, r"confidence must be one of \['mse', 'bce'\], got 'l1'"),
        ({"classes": "ce"}, r"classes must be one of \['mse', 'bce'\], got 'ce'"),
        ({"obj_quality": "giou"}, r"obj_quality must be one of \[None, 'iou'\], got 'giou'"),
        ({"reduction": "none"}, r"reduction must be one of \['mean', 'sum'\], got 'none'"),
        ({"lambda_noobj": -0.5}, "lambda_noobj must lie in"),
    ],
)
def test_bad_arguments_raise(options, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        YOLOLoss(**options)


@pytest.mark.parametrize(
    ("shape", "target_shape", "message"),
    [
        ((1, 4, 8), (1, 4, 8), r"input must have shape \(B, S, S, C \+ 5\) with S, C >= 1, got \(1, 4, 8\)"),
        ((1, 4, 5, 8), (1, 4, 5, 8), r"input must have shape \(B, S, S, C \+ 5\) with S, C >= 1, got \(1, 4, 5, 8\)"),
        ((1, 4, 4, 5), (1, 4, 4, 5), r"input must have shape .* got \(1, 4, 4, 5\)"),
        ((1, 4, 4, 8), (1, 4, 4, 7), r"target must have shape \(1, 4, 4, 8\) like input, got \(1, 4, 4, 7\)"),
    ],
)
def test_bad_shapes_raise(shape, target_shape, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        YOLOLoss()(torch.zeros(shape), torch.zeros(target_shape))


def test_bad_types_and_confidences_raise() -> None:
    grid = torch.zeros(1, 2, 2, 6)
    with pytest.raises(TypeError, match=r"target must be a floating tensor, got torch.int64"):
        YOLOLoss()(grid, grid.long())
    with pytest.raises(TypeError, match="input must be a floating tensor, got list"):
        YOLOLoss()([], grid)
    for value in (2.0, -0.5, math.nan):
        target = grid.clone()
        target[0, 0, 0, 4] = value
        with pytest.raises(ValueError, match=rf"must lie in \[0, 1\] or be -1 for an ignored cell, got {value}"):
            YOLOLoss()(grid, target)
