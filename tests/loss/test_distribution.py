"""The distribution focal loss and the boxes of distributions: scalar loops, limits, gradients, edges and parsing."""

import re

import pytest
import torch
from torch import Tensor, nn

from tests.geometry.test_boxes import EDGE_CASES
from tests.oracles import box_loss as oracle
from tests.support.peers import peer
from tests.support.problems import random_boxes, random_problem
from uotod.loss import DetectionLoss, DistributionFocalLoss, GIoULoss, MultipleObjectiveLoss
from uotod.match import BalancedSinkhorn, Hungarian, IoUThreshold
from uotod.utils import DistanceCoder, distribution_to_box

N = "none"
BINS = [0.0, 0.25, 0.5, 1.0, 2.0, 4.0]


def rows(count: int, bins: int, dtype: torch.dtype = torch.float64) -> tuple[Tensor, dict[str, Tensor]]:
    """Return target boxes, and the fields of their rows; some sides lie beyond the bins, some behind the point."""
    fields = {
        "pred_dist": 2 * torch.randn(count, 4, bins, dtype=dtype),
        "anchors": random_boxes(count, dtype=dtype),
        "stride": 0.02 + 0.2 * torch.rand(count, dtype=dtype),
    }
    return random_boxes(count, dtype=dtype), fields


def loop(target: Tensor, anchor: Tensor, stride: float, logits: Tensor, bins: list[float]) -> float:
    x1, y1, x2, y2 = anchor.tolist()
    distances = oracle.distances(tuple(target.tolist()), ((x1 + x2) / 2, (y1 + y2) / 2), stride)
    return oracle.distribution_focal(logits.tolist(), distances, bins)


@pytest.mark.parametrize(("count", "bins"), [(2, None), (5, None), (17, None), (6, BINS)])
def test_the_loss_equals_a_loop_over_plain_floats(count: int, bins: list[float] | None) -> None:
    target, fields = rows(150, count)
    loss = DistributionFocalLoss(bins=bins, reduction=N)(target_boxes=target, **fields)
    positions = list(map(float, range(count))) if bins is None else bins
    expected = [
        loop(target[i], fields["anchors"][i], float(fields["stride"][i]), fields["pred_dist"][i], positions)
        for i in range(150)
    ]
    torch.testing.assert_close(loss, torch.tensor(expected, dtype=torch.float64))


def test_it_equals_the_loss_of_mmdet() -> None:
    reference = peer("mmdet.models.losses.gfocal_loss").distribution_focal_loss
    target, fields = rows(300, 9)
    distance = DistanceCoder(by_stride=True).encode(target, fields["anchors"], fields["stride"]).clamp(0, 8 - 0.1)
    expected = reference(fields["pred_dist"].flatten(0, 1), distance.flatten(), reduction=N).view(300, 4).mean(1)
    point = (fields["anchors"][:, :2] + fields["anchors"][:, 2:]) / 2
    target = DistanceCoder(by_stride=True).decode(distance, point, fields["stride"])
    actual = DistributionFocalLoss(reduction=N)(target_boxes=target, **fields)
    torch.testing.assert_close(actual, expected)


def test_reductions_and_the_mean_of_nothing() -> None:
    target, fields = rows(6, 5)
    none = DistributionFocalLoss(reduction=N)(target_boxes=target, **fields)
    assert none.shape == (6,)
    torch.testing.assert_close(DistributionFocalLoss()(target_boxes=target, **fields), none.mean())
    torch.testing.assert_close(DistributionFocalLoss(reduction="sum")(target_boxes=target, **fields), none.sum())
    target, fields = rows(0, 5)
    fields["pred_dist"].requires_grad_()
    loss = DistributionFocalLoss()(target_boxes=target, **fields)
    loss.backward()
    assert loss.detach() == 0


def test_the_loss_passes_gradcheck() -> None:
    target, fields = rows(5, 6)
    logits = fields.pop("pred_dist").requires_grad_()
    loss = DistributionFocalLoss(bins=BINS, reduction=N)
    assert torch.autograd.gradcheck(lambda x: loss(target_boxes=target, pred_dist=x, **fields), (logits,))
    to_box = lambda x: distribution_to_box(x, fields["anchors"], fields["stride"])  # noqa: E731
    assert torch.autograd.gradcheck(to_box, (logits,))


@pytest.mark.parametrize("bins", [None, BINS])
def test_the_loss_is_least_where_the_expected_box_is_the_target(bins) -> None:
    _, fields = rows(20, 6)
    positions = torch.arange(6.0, dtype=torch.float64) if bins is None else torch.tensor(bins, dtype=torch.float64)
    distance = positions[-1] * torch.rand(20, 4, dtype=torch.float64)
    target = DistanceCoder(by_stride=True).decode(distance, fields["anchors"], fields["stride"])
    logits = torch.zeros(20, 4, 6, dtype=torch.float64, requires_grad=True)
    fields.pop("pred_dist")
    loss = DistributionFocalLoss(bins=bins, reduction="sum")
    optimizer = torch.optim.LBFGS([logits], max_iter=300, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        value = loss(target_boxes=target, pred_dist=logits, **fields)
        value.backward()
        return value

    optimizer.step(closure)
    boxes = distribution_to_box(
        logits.detach(), fields["anchors"], fields["stride"], None if bins is None else positions
    )
    torch.testing.assert_close(boxes, target, rtol=0, atol=1e-3)


def test_a_sharp_distribution_is_one_distance() -> None:
    logits = torch.full((1, 4, 5), -1e4)
    for side, n in enumerate([0, 4, 2, 1]):
        logits[0, side, n] = 1e4
    boxes = distribution_to_box(logits, torch.tensor([[10.0, 10.0]]), torch.tensor([2.0]))
    assert boxes.tolist() == [[10.0, 2.0, 14.0, 12.0]]


@pytest.mark.parametrize("case", EDGE_CASES)
@pytest.mark.parametrize("scale", [1.0, 1e4, 1e30])
def test_degenerate_targets_and_extreme_logits_are_finite(case: str, scale: float) -> None:
    target, anchor = (torch.tensor([x]) for x in EDGE_CASES[case])
    logits = (scale * torch.randn(1, 4, 5)).requires_grad_()
    loss = DistributionFocalLoss()(target_boxes=target, pred_dist=logits, anchors=anchor, stride=torch.ones(1))
    loss.backward()
    assert loss.isfinite()
    assert logits.grad.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(dtype: torch.dtype) -> None:
    target, fields = rows(6, 5, torch.float32)
    half = fields["pred_dist"].to(dtype)
    single = fields | {"pred_dist": half.float()}
    loss = DistributionFocalLoss(bins=BINS[:5], reduction=N)
    value = loss(target_boxes=target, **(fields | {"pred_dist": half}))
    assert value.dtype == torch.float32
    torch.testing.assert_close(value, loss(target_boxes=target, **single))
    assert distribution_to_box(half, fields["anchors"], fields["stride"]).dtype == torch.float32


def criterion(matcher=None, **options) -> DetectionLoss:
    matcher = Hungarian(loc_match_module=nn.L1Loss(reduction=N)) if matcher is None else matcher
    loss = MultipleObjectiveLoss(
        {"giou": GIoULoss(reduction=N), "dfl": DistributionFocalLoss(reduction=N)}, [2.0, 0.25]
    )
    return DetectionLoss(nn.CrossEntropyLoss(reduction=N), loss, matcher, reduction="sum", **options)


class TestDetectionLoss:
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
    def test_the_loss_of_a_plan_equals_a_loop(self, matcher, preds, targets, layers, device) -> None:
        problem = random_problem(3, preds, targets)
        problem.input["pred_dist"] = torch.randn(3, preds, 4, 6, dtype=torch.float64).requires_grad_()
        problem = problem.to(device)
        input = dict(problem.input)
        others = [{k: v.detach().flip(1) for k, v in input.items()} for _ in range(layers - 1)]
        if layers > 1:
            input["aux_outputs"] = others
        terms = criterion(matcher).terms(input, problem.target, problem.anchors)
        keys = ["loss_loc_dfl_0", "loss_loc_dfl"][-layers:]
        bins = list(map(float, range(6)))
        for layer, key in zip([*others, input], keys, strict=True):
            plan = matcher(layer, problem.target, problem.anchors)
            expected = 0.0
            for b, i, j in torch.cartesian_prod(*(torch.arange(n) for n in (3, preds, targets))).tolist():
                if plan[b, i, j] > 0:
                    anchor, stride = problem.anchors.boxes[i], float(problem.anchors.stride[i])
                    value = loop(problem.target["boxes"][b, j], anchor, stride, layer["pred_dist"][b, i], bins)
                    expected += 0.25 * float(plan[b, i, j]) * value
            assert terms[key].item() == pytest.approx(expected, rel=1e-6, abs=1e-9)
        terms["loss"].backward()
        assert problem.input["pred_dist"].grad.isfinite().all()

    def test_half_precision_and_other_layers_are_parsed(self) -> None:
        problem = random_problem(2, 5, 3, dtype=torch.float32)
        problem.input["pred_dist"] = torch.randn(2, 5, 4, 6).half()
        value = criterion()(problem.input, problem.target, problem.anchors)
        problem.input["pred_dist"] = problem.input["pred_dist"].float()
        torch.testing.assert_close(value, criterion()(problem.input, problem.target, problem.anchors))

    def test_a_prediction_with_a_non_finite_distribution_is_matched_last(self) -> None:
        problem = random_problem(1, 3, 2, full=True)
        problem.input["pred_dist"] = torch.randn(1, 3, 4, 6, dtype=torch.float64)
        problem.input["pred_dist"][0, 1, 2, 3] = float("nan")
        matcher = Hungarian(loc_match_module=nn.L1Loss(reduction=N), nonfinite="propagate")
        assert matcher(problem.input, problem.target)[0, 1].tolist() == [0.0, 0.0, 1.0]

    @pytest.mark.parametrize(
        ("dist", "message", "error"),
        [
            (None, "input must have the key 'pred_dist' for DistributionFocalLoss", ValueError),
            (torch.zeros(2, 5, 4), "input['pred_dist'] must have shape (2, 5, 4, K + 1) with K >= 1", ValueError),
            (
                torch.zeros(2, 5, 4, 1),
                "input['pred_dist'] must have shape (2, 5, 4, K + 1) with K >= 1",
                ValueError,
            ),
            (torch.zeros(2, 4, 4, 6), "to fit its logits, got (2, 4, 4, 6)", ValueError),
            (
                torch.zeros(2, 5, 4, 6).long(),
                "input['pred_dist'] must have a floating dtype, got torch.int64",
                TypeError,
            ),
            (
                torch.zeros(2, 5, 4, 6, device="meta"),
                "input['pred_dist'] must be on cpu like the rest, got meta",
                ValueError,
            ),
            (torch.full((2, 5, 4, 6), torch.nan), "input['pred_dist'] must be finite, got 120 non-finite", ValueError),
            ([1], "input['pred_dist'] must be a tensor, got list", TypeError),
        ],
    )
    def test_a_bad_distribution_raises(self, dist, message, error) -> None:
        problem = random_problem(2, 5, 3)
        if dist is not None:
            problem.input["pred_dist"] = dist
        with pytest.raises(error, match=re.escape(message)):
            criterion()(problem.input, problem.target, problem.anchors)

    def test_layers_without_distributions_have_no_loss_of_them(self) -> None:
        problem = random_problem(2, 5, 3, full=True)
        bare, full = dict(problem.input), problem.input | {"pred_dist": torch.randn(2, 5, 4, 6, dtype=torch.float64)}
        both = criterion().terms(full | {"aux_outputs": [full, bare]}, problem.target, problem.anchors)
        alone = criterion().terms(full, problem.target, problem.anchors)
        name = "loss_loc_dfl"
        assert float(both[f"{name}_1"].detach()) == 0
        torch.testing.assert_close(both[f"{name}_0"], alone[name])
        torch.testing.assert_close(both[name], alone[name])

    def test_layers_have_the_same_distributions(self) -> None:
        problem = random_problem(2, 5, 3)
        dist = torch.zeros(2, 5, 4, 6)
        problem.input["aux_outputs"] = [problem.input | {"pred_dist": dist}]
        with pytest.raises(ValueError, match=re.escape("[0] must have the key 'pred_dist' only if the final layer")):
            criterion()(problem.input, problem.target, problem.anchors)
        problem.input["pred_dist"] = dist
        problem.input["aux_outputs"][0]["pred_dist"] = torch.zeros(2, 5, 4, 7)
        with pytest.raises(ValueError, match=re.escape("must have shape (2, 5, 4, 6) like the final layer, got (2, 5")):
            criterion()(problem.input, problem.target, problem.anchors)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: DistributionFocalLoss(bins=[0.0]), "bins must hold at least two increasing distances, got [0.0]"),
        (
            lambda: DistributionFocalLoss(bins=[0, 2, 2]),
            "bins must hold at least two increasing distances, got [0.0, 2",
        ),
        (lambda: DistributionFocalLoss(reduction="avg"), "reduction must be one of ['none', 'mean', 'sum'], got 'avg'"),
        (
            lambda: DistributionFocalLoss(bins=BINS)(target_boxes=rows(2, 6)[0], **rows(2, 5)[1]),
            "pred_dist must have 6 bins like the argument bins, got 5",
        ),
        (
            lambda: DistributionFocalLoss()(target_boxes=torch.zeros(3, 4), **rows(2, 5)[1]),
            "the shapes (..., 4) and (..., 4, K + 1), got (3, 4) and (2, 4, 5)",
        ),
        (
            lambda: distribution_to_box(torch.zeros(3, 5), torch.zeros(3, 2), torch.ones(3)),
            "pred_dist must have shape (..., 4, K + 1), got (3, 5)",
        ),
        (
            lambda: distribution_to_box(torch.zeros(3, 4, 1), torch.zeros(3, 2), torch.ones(3)),
            "pred_dist must have at least two bins, got the shape (3, 4, 1)",
        ),
    ],
)
def test_bad_arguments_raise(build, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        build()
