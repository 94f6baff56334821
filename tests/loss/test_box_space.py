"""Boxes in other parameterisations: coders invert themselves, losses in their space, and the fields of matched rows."""

import re
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.geometry.test_boxes import EDGE_CASES
from tests.oracles import box_loss as oracle
from tests.support.costs import box_cost
from tests.support.guards import take_gpu_path
from tests.support.problems import random_boxes, random_problem
from uotod.cost import kinds
from uotod.loss import (
    BalancedL1Loss,
    BoxSpace,
    DetectionLoss,
    DistributionFocalLoss,
    GIoULoss,
    MultipleObjectiveLoss,
)
from uotod.match import BalancedSinkhorn, Hungarian, IoUThreshold
from uotod.utils import Anchors, DeltaCoder, DistanceCoder, Points, box_xyxy_to_cxcywh

N = "none"
WEIGHTS = (10.0, 8.0, 5.0, 4.0)
CODERS = {
    "deltas": DeltaCoder(),
    "deltas-weights": DeltaCoder(WEIGHTS),
    "distances": DistanceCoder(),
    "strides": DistanceCoder(by_stride=True),
}
SPACES = {"xyxy": lambda **o: BoxSpace(space="xyxy", **o), "cxcywh": lambda **o: BoxSpace(space="cxcywh", **o)}


def encoded(name: str, box: Tensor, anchor: Tensor, stride: float) -> list[float]:
    """Encode one box by a scalar loop."""
    a, b = tuple(anchor.tolist()), tuple(box.tolist())
    if name.startswith("deltas"):
        return oracle.deltas(b, a, (10, 10, 5, 5) if name == "deltas" else WEIGHTS)
    return oracle.distances(b, ((a[0] + a[2]) / 2, (a[1] + a[3]) / 2), stride if name == "strides" else 1.0)


@pytest.mark.parametrize("name", CODERS)
def test_coders_equal_a_loop_over_plain_floats(name: str) -> None:
    boxes, anchors, stride = random_boxes(120), random_boxes(120), torch.rand(120, dtype=torch.float64) + 0.5
    values = CODERS[name].encode(boxes, anchors, stride)
    expected = [encoded(name, b, a, float(s)) for b, a, s in zip(boxes, anchors, stride, strict=True)]
    torch.testing.assert_close(values, torch.tensor(expected, dtype=torch.float64))


@pytest.mark.parametrize("name", CODERS)
@pytest.mark.parametrize("shape", [(), (0,), (7,), (2, 3)])
def test_decoding_inverts_encoding(name: str, shape: tuple[int, ...]) -> None:
    boxes, anchors, stride = random_boxes(*shape), random_boxes(*shape), torch.rand(shape, dtype=torch.float64) + 0.5
    coder = CODERS[name]
    torch.testing.assert_close(coder.decode(coder.encode(boxes, anchors, stride), anchors, stride), boxes)


def test_points_stand_for_the_centres_of_anchors() -> None:
    boxes, anchors = random_boxes(9), random_boxes(9)
    points = (anchors[:, :2] + anchors[:, 2:]) / 2
    assert torch.equal(DistanceCoder().encode(boxes, anchors), DistanceCoder().encode(boxes, points))
    assert torch.equal(DistanceCoder().decode(boxes, anchors), DistanceCoder().decode(boxes, points))


@pytest.mark.parametrize("name", CODERS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("case", EDGE_CASES)
def test_degenerate_boxes_and_anchors_have_finite_values_and_gradients(name, dtype, case) -> None:
    for swap in (False, True):
        box, anchor = (torch.tensor(x, dtype=dtype) for x in EDGE_CASES[case])
        box, anchor = (anchor, box) if swap else (box, anchor)
        box.requires_grad_()
        values = CODERS[name].encode(box, anchor, torch.ones((), dtype=dtype))
        values.sum().backward()
        assert values.isfinite().all()
        assert box.grad.isfinite().all()
        assert CODERS[name].decode(values.detach(), anchor, torch.ones((), dtype=dtype)).isfinite().all()


def test_the_logarithm_of_a_delta_continues_as_its_tangent() -> None:
    anchor = torch.tensor([0.0, 0.0, 1.0, 1.0], dtype=torch.float64)
    width = torch.tensor([1e-3 * (1 - 1e-6), 1e-3 * (1 + 1e-6), 0.0, -0.5], dtype=torch.float64, requires_grad=True)
    boxes = torch.stack((0 * width, 0 * width, width, 1 + 0 * width), dim=-1)
    values = DeltaCoder((1.0, 1.0, 1.0, 1.0)).encode(boxes, anchor.expand(4, 4))[:, 2]
    (slope,) = torch.autograd.grad(values.sum(), width)
    torch.testing.assert_close(slope, torch.full_like(slope, 1e3), rtol=1e-5, atol=0)
    assert values[0].item() == pytest.approx(values[1].item(), abs=1e-5)
    assert values[3] < values[2] < values[0]


def test_decoded_sizes_are_bounded() -> None:
    boxes = DeltaCoder().decode(torch.full((1, 4), 1e4), torch.tensor([[0.0, 0.0, 2.0, 2.0]]))
    torch.testing.assert_close(box_xyxy_to_cxcywh(boxes)[0, 2:], torch.full((2,), 125.0))


@pytest.mark.parametrize("size", [None, (1.5, 0.8)])
def test_the_loss_of_centres_and_sizes_equals_a_loop(size) -> None:
    boxes, target = random_boxes(120), random_boxes(120)
    loss = BoxSpace(nn.SmoothL1Loss(beta=0.2, reduction=N), "cxcywh", image_size=size)(boxes, target).sum(-1)
    w, h = (1.0, 1.0) if size is None else size
    expected = [
        oracle.smooth_l1(oracle.center_size(tuple(a.tolist()), w, h), oracle.center_size(tuple(b.tolist()), w, h), 0.2)
        for a, b in zip(boxes, target, strict=True)
    ]
    torch.testing.assert_close(loss, torch.tensor(expected, dtype=torch.float64))


@pytest.mark.parametrize("inner", [nn.L1Loss, nn.MSELoss, nn.SmoothL1Loss, BalancedL1Loss])
def test_corners_are_what_the_loss_gets_without_a_space(inner) -> None:
    boxes, target = random_boxes(9), random_boxes(9)
    for reduction in (N, "mean", "sum"):
        loss = BoxSpace(inner(reduction=reduction), "xyxy")
        assert loss.reduction == reduction
        assert torch.equal(loss(boxes, target), inner(reduction=reduction)(boxes, target))


@pytest.mark.parametrize("space", SPACES)
@pytest.mark.parametrize("size", [None, (1.5, 0.8)])
@pytest.mark.parametrize("inner", [nn.L1Loss, nn.MSELoss, nn.SmoothL1Loss, nn.HuberLoss, BalancedL1Loss])
@pytest.mark.parametrize("sizes", [(2, 5, 3), (2, 0, 3), (2, 5, 0)])
def test_all_pairs_equal_the_rows(space, size, inner, sizes) -> None:
    images, preds, targets = sizes
    module = SPACES[space](loss=inner(reduction=N), image_size=size)
    boxes, target = random_boxes(images, preds), random_boxes(images, targets)
    left, right = boxes[:, None].expand(-1, targets, -1, -1), target[:, :, None].expand(-1, -1, preds, -1)
    cost = box_cost(module, boxes, target)
    assert cost.shape == (images, targets, preds)
    torch.testing.assert_close(cost, module(left, right).sum(-1))


def test_the_cost_of_detr_never_makes_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kinds, "cost_by_rows", None)
    problem = random_problem()
    module = BoxSpace(nn.L1Loss(reduction=N), "cxcywh")
    cost = Hungarian(loc_match_module=module).compute_cost_matrix(problem.input, problem.target)[..., :-1]
    boxes, target = (
        box_xyxy_to_cxcywh(x["boxes" if "boxes" in x else "pred_boxes"]) for x in (problem.input, problem.target)
    )
    mask = problem.target["mask"][:, None].expand(cost.shape)
    torch.testing.assert_close(cost[mask], torch.cdist(boxes.detach(), target, p=1.0)[mask])


@pytest.mark.parametrize("space", [*SPACES, *CODERS])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(space: str, dtype: torch.dtype) -> None:
    boxes, target, anchors = (random_boxes(6, dtype=torch.float32).to(dtype) for _ in range(3))
    loss = BoxSpace(nn.L1Loss(reduction=N), CODERS.get(space, space))
    value = loss(boxes, target, anchors, torch.ones(6))
    assert value.dtype == torch.float32
    torch.testing.assert_close(value, loss(boxes.float(), target.float(), anchors.float(), torch.ones(6)))


@pytest.mark.parametrize("space", [*SPACES, *CODERS])
def test_losses_in_a_space_pass_gradcheck(space: str) -> None:
    boxes, target, anchors = random_boxes(5).requires_grad_(), random_boxes(5), random_boxes(5)
    loss = BoxSpace(nn.MSELoss(reduction=N), CODERS.get(space, space))
    assert torch.autograd.gradcheck(lambda x: loss(x, target, anchors, torch.ones(5, dtype=torch.float64)), (boxes,))


def criterion(loss: nn.Module, matcher=None) -> DetectionLoss:
    matcher = Hungarian(loc_match_module=nn.L1Loss(reduction=N)) if matcher is None else matcher
    return DetectionLoss(nn.CrossEntropyLoss(reduction=N), loss, matcher, reduction="sum")


class Seen(nn.Module):
    """Return a value a row made of everything that it asks for."""

    def __init__(self, needs: tuple[str, ...]) -> None:
        super().__init__()
        self.needs = needs

    def forward(self, boxes: Tensor, target_boxes: Tensor, **fields: Tensor) -> Tensor:
        assert tuple(fields) == self.needs
        return (boxes - target_boxes).abs().sum(-1) + sum(
            x.flatten(1).sum(1) if x.dim() > 1 else x for x in fields.values()
        )


class TestFields:
    @pytest.mark.parametrize("name", CODERS)
    @pytest.mark.parametrize(
        "matcher",
        [
            Hungarian(loc_match_module=nn.L1Loss(reduction=N)),
            IoUThreshold(),
            BalancedSinkhorn(loc_match_module=nn.L1Loss(reduction=N)),
        ],
        ids=lambda x: type(x).__name__,
    )
    @pytest.mark.parametrize(("preds", "targets"), [(12, 4), (1, 1), (5, 0), (3, 6)])
    @pytest.mark.parametrize("layers", [1, 2])
    def test_the_loss_of_a_plan_equals_a_loop(self, name, matcher, preds, targets, layers, device) -> None:
        problem = random_problem(3, preds, targets).to(device)
        loss = criterion(BoxSpace(nn.SmoothL1Loss(reduction=N), CODERS[name]), matcher)
        input = dict(problem.input)
        others = [{k: v.detach().flip(1) for k, v in input.items()} for _ in range(layers - 1)]
        if layers > 1:
            input["aux_outputs"] = others
        terms = loss.terms(input, problem.target, problem.anchors)
        assert isinstance(problem.anchors.stride, Tensor)
        for layer, key in zip([*others, input], ["loss_loc_0", "loss_loc"][-layers:], strict=True):
            plan = matcher(layer, problem.target, problem.anchors)
            expected = 0.0
            for b in range(3):
                for i in range(preds):
                    for j in range(targets):
                        if plan[b, i, j] > 0:
                            anchor, stride = problem.anchors.boxes[i], float(problem.anchors.stride[i])
                            pair = layer["pred_boxes"][b, i], problem.target["boxes"][b, j]
                            values = [encoded(name, x, anchor, stride) for x in pair]
                            expected += float(plan[b, i, j]) * oracle.smooth_l1(values[0], values[1], 1.0)
            assert terms[key].item() == pytest.approx(expected, rel=1e-6, abs=1e-9)
        terms["loss"].backward()
        assert problem.input["pred_boxes"].grad.isfinite().all()

    @pytest.mark.parametrize("space", ["cxcywh", *CODERS])
    @pytest.mark.parametrize("targets", [0, 1, 4])
    @pytest.mark.parametrize("matcher", ["assigned", "dense"])
    def test_shapes_that_do_not_depend_on_data_give_the_same(self, space, targets, matcher, monkeypatch) -> None:
        problem = random_problem(3, 6, targets)
        problem.input["pred_dist"] = torch.randn(3, 6, 4, 5, dtype=torch.float64).requires_grad_()
        kind = {"assigned": Hungarian, "dense": BalancedSinkhorn}[matcher]
        parts = [BoxSpace(nn.L1Loss(reduction=N), CODERS.get(space, space)), DistributionFocalLoss(reduction=N)]
        loss = criterion(MultipleObjectiveLoss(parts), kind(loc_match_module=nn.L1Loss(reduction=N)))
        results = []
        for static in (False, True):
            if static:
                take_gpu_path(monkeypatch)
            value = loss(problem.input, problem.target, problem.anchors)
            results.append([value, *torch.autograd.grad(value, list(problem.input.values()), allow_unused=False)])
        for dynamic, static in zip(*results, strict=True):
            torch.testing.assert_close(static, dynamic)

    def test_points_serve_as_anchors(self) -> None:
        problem = random_problem(2, 5, 3)
        points = Points.from_levels([(2, 2), (1, 1)], [0.5, 1.0], dtype=torch.float64)
        loss = criterion(BoxSpace(nn.L1Loss(reduction=N), DistanceCoder(by_stride=True)))
        corners = criterion(nn.L1Loss(reduction=N))
        weight = 1 / points.stride
        plan = loss.matching_method(problem.input, problem.target)[..., :-1]
        pairs = (problem.input["pred_boxes"][:, :, None] - problem.target["boxes"][:, None]).abs().sum(-1)
        expected = torch.where(plan > 0, plan * pairs * weight[:, None], 0).sum()
        torch.testing.assert_close(loss.terms(problem.input, problem.target, points)["loss_loc"], expected)
        assert corners(problem.input, problem.target, points).isfinite()

    @pytest.mark.parametrize("needs", [("anchors",), ("centers", "stride"), ("stride", "anchors", "centers")])
    def test_a_module_gets_the_rows_of_what_it_needs(self, needs) -> None:
        problem = random_problem(2, 6, 3)
        loss = criterion(MultipleObjectiveLoss({"seen": Seen(needs), "giou": GIoULoss(reduction=N)}))
        terms = loss.terms(problem.input, problem.target, problem.anchors)
        plan = loss.matching_method(problem.input, problem.target)[..., :-1]
        anchors = problem.anchors
        fields = {
            "anchors": anchors.boxes.sum(-1),
            "centers": (anchors.boxes[:, :2] + anchors.boxes[:, 2:]).sum(-1) / 2,
            "stride": anchors.stride,
        }
        pairs = (problem.input["pred_boxes"][:, :, None] - problem.target["boxes"][:, None]).abs().sum(-1)
        pairs = pairs + sum(fields[name] for name in needs)[:, None]
        torch.testing.assert_close(terms["loss_loc_seen"], torch.where(plan > 0, pairs, 0).sum())

    @pytest.mark.parametrize(
        ("needs", "anchors", "message"),
        [
            (("anchors",), None, "anchors must be given for Seen, got None"),
            (
                ("stride",),
                torch.tensor([0.0, 0, 1, 1]).expand(4, 4),
                "anchors must have strides (Anchors or Points) for Seen",
            ),
            (("stride",), Anchors(torch.tensor([0.0, 0, 1, 1]).expand(4, 4)), "anchors must have strides (Anchors or"),
            (
                ("color",),
                None,
                "Seen.needs must hold names of the kinds 'pred_…', 'target_…' and 'image_…', or 'anchors', "
                "'centers' or 'stride'",
            ),
        ],
    )
    @pytest.mark.parametrize("targets", [0, 2])
    def test_what_is_missing_is_named(self, needs, anchors, message, targets) -> None:
        problem = random_problem(2, 4, targets)
        with pytest.raises(ValueError, match=re.escape(message)):
            criterion(Seen(needs))(problem.input, problem.target, anchors)

    def test_a_cost_of_rows_gets_the_fields_that_it_needs(self) -> None:
        class FromAnchors(nn.Module):
            reduction, needs = N, ("anchors",)

            def forward(self, boxes: Tensor, target: Tensor, anchors: Tensor) -> Tensor:
                return (boxes - target).abs().sum(-1) + (anchors - target).square().sum(-1)

        problem = random_problem(2, 5, 3)
        cost = Hungarian(loc_match_module=FromAnchors()).compute_cost_matrix(
            problem.input, problem.target, problem.anchors
        )
        boxes, target = problem.input["pred_boxes"][:, :, None], problem.target["boxes"][:, None]
        anchors = problem.anchors.boxes.expand(2, -1, -1)[:, :, None]
        expected = (boxes - target).abs().sum(-1) + (anchors - target).square().sum(-1)
        mask = problem.target["mask"][:, None].expand_as(expected)
        torch.testing.assert_close(cost[..., :-1][mask], expected[mask].detach())

    def test_a_coder_is_no_matching_cost(self) -> None:
        problem = random_problem()
        module = BoxSpace(nn.L1Loss(reduction=N), DeltaCoder())
        with pytest.raises(ValueError, match="a BoxSpace with DeltaCoder cannot be a matching cost: it needs anchors"):
            Hungarian(loc_match_module=module)(problem.input, problem.target, problem.anchors)


@pytest.mark.parametrize(
    ("build", "message", "error"),
    [
        (lambda: BoxSpace("l1", "xyxy"), "loss must be a torch.nn.Module, got 'l1'", TypeError),
        (
            lambda: BoxSpace(GIoULoss(), "xyxy"),
            "loss must compare values one by one, got GIoULoss of boxes",
            ValueError,
        ),
        (
            lambda: BoxSpace(MultipleObjectiveLoss([nn.L1Loss(), GIoULoss()]), "xyxy"),
            "loss must compare values one by one, got GIoULoss of boxes",
            ValueError,
        ),
        (lambda: BoxSpace(nn.L1Loss(), "xywh"), "space must be one of ['xyxy', 'cxcywh'], got 'xywh'", ValueError),
        (lambda: BoxSpace(nn.L1Loss(), 3), "space must be a string or a BoxCoder, got 3 of type int", TypeError),
        (
            lambda: BoxSpace(nn.L1Loss(), DeltaCoder(), image_size=(1, 2)),
            "image_size must be None with a coder, got (1, 2)",
            ValueError,
        ),
        (lambda: BoxSpace(nn.L1Loss(), "xyxy", image_size=(1,)), "image_size must hold width and height", ValueError),
        (
            lambda: BoxSpace(nn.L1Loss(), "xyxy", image_size="image"),
            "image_size must hold width and height, or be 'input', got 'image'",
            ValueError,
        ),
        (
            lambda: BoxSpace(nn.L1Loss(), "xyxy", image_size="input")(torch.zeros(2, 4), torch.zeros(2, 4)),
            'image_size must be given to a BoxSpace with image_size="input", got None',
            ValueError,
        ),
        (lambda: BoxSpace(nn.L1Loss(), "xyxy", image_size=(1, 0)), "image_size[1] must lie in (0.0, inf)", ValueError),
        (
            lambda: BoxSpace(nn.L1Loss(), DeltaCoder())(torch.zeros(2, 4), torch.zeros(2, 4)),
            "anchors must be given to a BoxSpace with DeltaCoder, got None",
            ValueError,
        ),
        (
            lambda: BoxSpace(nn.L1Loss(), "xyxy")(torch.zeros(2, 4), torch.zeros(1, 4)),
            "input and target must have the same shape (..., 4), got (2, 4) and (1, 4)",
            ValueError,
        ),
        (lambda: DeltaCoder((1.0, 1.0)), "weights must hold four numbers, got (1.0, 1.0)", ValueError),
        (lambda: DeltaCoder((1.0, 1.0, 0.0, 1.0)), "weights[2] must lie in (0.0, inf), got 0.0", ValueError),
        (lambda: DeltaCoder(eps=0.0), "eps must lie in (0.0, 1.0], got 0.0", ValueError),
        (lambda: DistanceCoder(by_stride=1), "by_stride must be a bool, got 1", TypeError),
        (
            lambda: DistanceCoder(by_stride=True).encode(torch.zeros(1, 4), torch.zeros(1, 4)),
            "stride must be given with by_stride=True, got None",
            ValueError,
        ),
    ],
)
def test_bad_arguments_raise(build, message: str, error: type[Exception]) -> None:
    with pytest.raises(error, match=re.escape(message)):
        build()


def image_of(value: Any, index: int) -> Any:
    """Return the part of one image of predictions and of their layers."""
    if isinstance(value, dict):
        return {key: image_of(x, index) for key, x in value.items()}
    return [image_of(x, index) for x in value] if isinstance(value, list) else value[index : index + 1]


@pytest.mark.parametrize("targets", [0, 1, 4])
@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("matcher", [Hungarian, BalancedSinkhorn])
@pytest.mark.parametrize("space", SPACES)
def test_every_image_may_have_a_size_of_its_own(space, matcher, layers, targets, monkeypatch) -> None:
    sizes = torch.tensor([[1.5, 0.8], [2.0, 1.0], [0.7, 3.0]])
    problem = random_problem(3, 6, targets)
    input = dict(problem.input)
    if layers > 1:
        input["aux_outputs"] = [{k: x.detach().flip(1) for k, x in problem.input.items()}]
    loss = SPACES[space](loss=nn.L1Loss(reduction=N), image_size="input")
    whole = criterion(loss, matcher(loc_match_module=loss))
    expected = torch.zeros((), dtype=torch.float64)
    for b, size in enumerate(sizes.tolist()):
        own = SPACES[space](loss=nn.L1Loss(reduction=N), image_size=size)
        part = criterion(own, matcher(loc_match_module=own))(image_of(input, b), image_of(problem.target, b))
        expected = expected + part
    for static in (False, True):
        if static:
            take_gpu_path(monkeypatch)
        value = whole(input | {"image_size": sizes}, problem.target)
        torch.testing.assert_close(value, expected)
        ours, theirs = (
            torch.autograd.grad(x, list(problem.input.values()), retain_graph=True) for x in (value, expected)
        )
        torch.testing.assert_close(ours, theirs)
    with pytest.raises(ValueError, match="input must have the key 'image_size' for BoxSpace"):
        whole(input, problem.target)


def test_a_sum_names_it_by_its_loss() -> None:
    l1, deltas = nn.L1Loss(reduction=N), BoxSpace(nn.SmoothL1Loss(reduction=N), DeltaCoder())
    assert MultipleObjectiveLoss([BoxSpace(l1, "cxcywh"), deltas, l1]).names == ("l1", "smooth_l1", "l1#2")
    many = BoxSpace(MultipleObjectiveLoss([l1, nn.MSELoss(reduction=N)]), "cxcywh")
    assert MultipleObjectiveLoss([many]).names == ("box_space",)
