"""Properties of the box losses: scalar loops, limits, gradients, edges, all pairs, half precision, mmdet's numbers."""

import copy
import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from tests.geometry.test_boxes import EDGE_CASES
from tests.oracles import box_loss as oracle
from tests.support.costs import box_cost
from tests.support.peers import peer
from tests.support.problems import random_boxes
from uotod.geometry.boxes import aligned_overlap
from uotod.geometry.overlap import OVERLAP_KINDS
from uotod.loss import (
    AlphaIoULoss,
    BalancedL1Loss,
    CIoULoss,
    DIoULoss,
    EIoULoss,
    ExtendedIoULoss,
    GIoULoss,
    InnerIoULoss,
    IoULoss,
    MPDIoULoss,
    MultipleObjectiveLoss,
    SIoULoss,
    WiseIoULoss,
)

BASE = {"iou": IoULoss, "giou": GIoULoss, "diou": DIoULoss, "ciou": CIoULoss, "eiou": EIoULoss, "siou": SIoULoss}


def wise(mean: float = 0.625, **options) -> WiseIoULoss:
    loss = WiseIoULoss(**options)
    loss.mean.fill_(mean)
    return loss


# name: (constructor, scalar loop)
LOSSES = {
    "eiou": (lambda **o: EIoULoss(**o), lambda a, b: oracle.family(a, b, "eiou")),
    "focal-eiou": (lambda **o: EIoULoss(gamma=0.5, **o), lambda a, b: oracle.focal_eiou(a, b, 0.5)),
    "extended": (lambda **o: ExtendedIoULoss(**o), lambda a, b: oracle.extended_iou(a, b, 0.1)),
    "extended-wide": (lambda **o: ExtendedIoULoss(smooth_point=0.9, **o), lambda a, b: oracle.extended_iou(a, b, 0.9)),
    "siou": (lambda **o: SIoULoss(**o), lambda a, b: oracle.family(a, b, "siou")),
    "siou-2": (lambda **o: SIoULoss(theta=2, **o), lambda a, b: oracle.siou(a, b, 2)),
    "mpdiou": (lambda **o: MPDIoULoss(image_size=(1.5, 0.9), **o), lambda a, b: oracle.mpdiou(a, b, 1.5, 0.9)),
    "wise-1": (lambda **o: wise(version=1, **o), lambda a, b: oracle.wise_iou(a, b, 1, 0.625)),
    "wise-2": (lambda **o: wise(version=2, **o), lambda a, b: oracle.wise_iou(a, b, 2, 0.625)),
    "wise-3": (lambda **o: wise(version=3, **o), lambda a, b: oracle.wise_iou(a, b, 3, 0.625)),
}
for _kind in OVERLAP_KINDS:
    for _ratio in (0.6, 1.3):
        LOSSES[f"inner-{_kind}-{_ratio}"] = (
            lambda kind=_kind, ratio=_ratio, **o: InnerIoULoss(kind=kind, ratio=ratio, **o),
            lambda a, b, kind=_kind, ratio=_ratio: oracle.inner_iou(a, b, kind, ratio),
        )
    for _alpha in (0.5, 3.0):
        LOSSES[f"alpha-{_kind}-{_alpha}"] = (
            lambda kind=_kind, alpha=_alpha, **o: AlphaIoULoss(kind=kind, alpha=alpha, **o),
            lambda a, b, kind=_kind, alpha=_alpha: oracle.alpha_iou(a, b, kind, alpha),
        )
ROWS = {name: build for name, (build, _) in LOSSES.items()} | {"balanced-l1": lambda **o: BalancedL1Loss(**o)}
# weights and trade-offs that are held constant by definition
CONSTANTS = {"focal-eiou", "wise-1", "wise-2", "wise-3", *(name for name in LOSSES if "ciou" in name)}


def near_boxes(count: int, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    """Return pairs of which most overlap, some a lot."""
    target = random_boxes(count, dtype=dtype)
    shift = 0.1 * torch.randn(count, 4, dtype=dtype)
    low, high = target[:, :2] + shift[:, :2], target[:, 2:] + shift[:, 2:]
    return torch.cat((torch.minimum(low, high), torch.maximum(low, high) + 0.01), dim=-1), target


@pytest.mark.parametrize("name", LOSSES)
def test_losses_equal_a_loop_over_plain_floats(name: str) -> None:
    build, expected = LOSSES[name]
    boxes, target = (
        torch.cat(x) for x in zip(near_boxes(80), (random_boxes(80), random_boxes(80)), strict=True)
    )  # some pairs are disjoint
    actual = build(reduction="none")(boxes, target)
    values = [expected(tuple(a.tolist()), tuple(b.tolist())) for a, b in zip(boxes, target, strict=True)]
    # a power below 1 continues as a line below 1e-6
    atol = 1e-3 if name.endswith("0.5") else 1e-9
    torch.testing.assert_close(actual, torch.tensor(values, dtype=torch.float64), rtol=1e-9, atol=atol)


@pytest.mark.parametrize("name", [x for x in LOSSES if not (x.startswith("alpha") and x.endswith("0.5"))])
def test_an_epsilon_shows_in_small_boxes_only(name: str) -> None:
    boxes, target = near_boxes(50)
    build = LOSSES[name][0]
    exact, padded = build(reduction="none"), build(eps=1e-7, reduction="none")
    torch.testing.assert_close(
        padded(boxes * 100, target * 100), exact(boxes * 100, target * 100), rtol=1e-5, atol=1e-5
    )
    assert (padded(boxes / 1000, target / 1000) - exact(boxes / 1000, target / 1000)).abs().amax() > 0.01


@pytest.mark.parametrize("kind", OVERLAP_KINDS)
def test_inner_iou_of_ratio_one_and_alpha_iou_of_power_one_are_their_base(kind) -> None:
    boxes, target = near_boxes(40)
    base = BASE[kind](reduction="none")(boxes, target)
    torch.testing.assert_close(InnerIoULoss(kind=kind, ratio=1.0, reduction="none")(boxes, target), base)
    torch.testing.assert_close(AlphaIoULoss(kind=kind, alpha=1.0, reduction="none")(boxes, target), base)
    torch.testing.assert_close(1 - aligned_overlap(boxes, target, kind, 0.0), base)


@pytest.mark.parametrize("kind", OVERLAP_KINDS)
def test_inner_iou_replaces_the_iou_of_its_base(kind) -> None:
    boxes, target = near_boxes(40)
    inner, iou = InnerIoULoss(ratio=0.8, reduction="none")(boxes, target), IoULoss(reduction="none")(boxes, target)
    expected = BASE[kind](reduction="none")(boxes, target) + inner - iou
    torch.testing.assert_close(InnerIoULoss(kind=kind, ratio=0.8, reduction="none")(boxes, target), expected)


def test_eiou_of_equal_shapes_is_diou() -> None:
    target = random_boxes(30)
    boxes = target + torch.rand(30, 2, dtype=torch.float64).repeat(1, 2)
    torch.testing.assert_close(EIoULoss()(boxes, target), DIoULoss()(boxes, target))


def test_the_angle_cost_of_siou_vanishes_along_the_axes_and_is_one_on_the_diagonals() -> None:
    target = torch.tensor([[0.0, 0.0, 1.0, 1.0]], dtype=torch.float64)
    for offset, angle in (([3.0, 0.0], 0.0), ([0.0, -3.0], 0.0), ([3.0, 3.0], 1.0), ([-3.0, 3.0], 1.0)):
        boxes = target + torch.tensor(offset, dtype=torch.float64).repeat(2)
        cost = sum(1 - math.exp(-(2 - angle) * (d / (1 + abs(d))) ** 2) for d in offset)
        assert SIoULoss()(boxes, target).item() == pytest.approx(1 + cost / 2)


def test_extended_iou_of_boxes_that_meet_is_the_smooth_iou_loss() -> None:
    boxes, target = near_boxes(60)
    loss = IoULoss(reduction="none")(boxes, target)
    meet = loss < 1
    assert meet.sum() > 20
    expected = F.smooth_l1_loss(loss, torch.zeros_like(loss), beta=0.1, reduction="none")
    torch.testing.assert_close(ExtendedIoULoss(reduction="none")(boxes, target)[meet], expected[meet])


def test_mpdiou_does_not_depend_on_the_unit() -> None:
    boxes, target = near_boxes(20)
    loss = MPDIoULoss(image_size=(1, 1))(boxes, target)
    torch.testing.assert_close(MPDIoULoss(image_size=(300, 300))(boxes * 300, target * 300), loss, rtol=1e-9, atol=0)


@pytest.mark.parametrize("name", ROWS)
def test_a_box_costs_nothing_against_itself(name: str) -> None:
    boxes = random_boxes(9) * 1000
    assert ROWS[name](reduction="sum")(boxes, boxes).abs() < 1e-8


@pytest.mark.parametrize("name", sorted(set(ROWS) - CONSTANTS))
def test_losses_pass_gradcheck(name: str) -> None:
    boxes, target = near_boxes(8)
    both = boxes.requires_grad_(), target.requires_grad_()
    assert torch.autograd.gradcheck(ROWS[name](reduction="none"), both)


@pytest.mark.parametrize("name", ["focal-eiou", "wise-2", "wise-3"])
def test_the_focus_carries_no_gradient(name: str) -> None:
    boxes, target = near_boxes(8)
    boxes = boxes.requires_grad_()
    loss, plain = (ROWS[x](reduction="none")(boxes, target) for x in (name, {"f": "eiou", "w": "wise-1"}[name[0]]))
    gradients = [torch.autograd.grad(x.sum(), boxes)[0] for x in (loss, plain)]
    torch.testing.assert_close(gradients[0], (loss / plain).detach()[:, None] * gradients[1])


def test_the_hull_of_wise_iou_carries_no_gradient() -> None:
    boxes, target = near_boxes(8)
    boxes = boxes.requires_grad_()
    low, high = torch.minimum(boxes, target)[:, :2].detach(), torch.maximum(boxes, target)[:, 2:].detach()
    offset = (boxes[:, :2] + boxes[:, 2:] - target[:, :2] - target[:, 2:]) / 2
    factor = ((offset**2).sum(1) / ((high - low) ** 2).sum(1)).exp()
    expected = factor * IoULoss(reduction="none")(boxes, target)
    loss = WiseIoULoss(version=1, reduction="none")(boxes, target)
    torch.testing.assert_close(loss, expected)
    gradients = [torch.autograd.grad(x.sum(), boxes)[0] for x in (loss, expected)]
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize("name", ROWS)
@pytest.mark.parametrize("eps", [0.0, 1e-7])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("case", [*EDGE_CASES, "far", "inverted on a point"])
def test_degenerate_boxes_have_finite_losses_and_gradients(name, eps, dtype, case) -> None:
    more = {
        "far": ([0.0, 0.0, 0.1, 0.1], [1e6, 1e6, 1e6 + 1, 1e6 + 1]),
        "inverted on a point": ([0.9, 0.9, 0.2, 0.2], [0.3, 0.3, 0.3, 0.3]),
    }
    box, other = (torch.tensor(x, dtype=dtype, requires_grad=True) for x in (EDGE_CASES | more)[case])
    value = ROWS[name](reduction="sum", **({} if name == "balanced-l1" else {"eps": eps}))(box, other)
    value.backward()
    assert value.isfinite()
    assert box.grad.isfinite().all()
    assert other.grad.isfinite().all()


@pytest.mark.parametrize("name", ["eiou", "siou", "mpdiou", "extended", "inner-giou-0.6", "alpha-diou-3.0"])
def test_disjoint_and_inverted_boxes_have_a_gradient(name: str) -> None:
    for values in ([0.0, 0.0, 0.1, 0.1], [0.4, 0.4, 0.1, 0.2]):
        box = torch.tensor([values], requires_grad=True)
        ROWS[name]()(box, torch.tensor([[0.6, 0.6, 0.9, 0.9]])).backward()
        assert box.grad.abs().sum() > 0


@pytest.mark.parametrize("name", ROWS)
@pytest.mark.parametrize("sizes", [(2, 5, 3), (2, 0, 3), (2, 5, 0), (0, 5, 3)])
def test_all_pairs_equal_the_rows(name: str, sizes: tuple[int, int, int]) -> None:
    images, preds, targets = sizes
    module = ROWS[name](reduction="none")
    boxes, target = random_boxes(images, preds), random_boxes(images, targets)
    rows = module(
        boxes[:, None].expand(-1, targets, -1, -1).reshape(-1, 4),
        target[:, :, None].expand(-1, -1, preds, -1).reshape(-1, 4),
    )
    rows = rows.sum(-1) if name == "balanced-l1" else rows
    cost = box_cost(module, boxes, target)
    assert cost.shape == (images, targets, preds)
    torch.testing.assert_close(cost, rows.view(cost.shape))


@pytest.mark.parametrize("version", [1, 2, 3])
def test_forward_leaves_the_mean_of_wise_iou_alone(version: int) -> None:
    loss = WiseIoULoss(version=version)
    before = copy.deepcopy(loss.state_dict())
    loss(*near_boxes(5))
    assert loss.state_dict() == before == {"mean": torch.ones(())}


def test_wise_iou_averages_the_iou_loss_over_steps() -> None:
    loss, mean = WiseIoULoss(momentum=0.25), 1.0
    for _ in range(5):
        boxes, target = near_boxes(7)
        mean = 0.75 * mean + 0.25 * IoULoss()(boxes, target).item()
        assert loss.update(boxes, target).item() == pytest.approx(mean, rel=1e-6)
    assert loss.mean.item() == pytest.approx(mean, rel=1e-6)


def test_wise_iou_averages_by_the_mass_of_a_plan_and_reads_nothing_else() -> None:
    loss = WiseIoULoss(momentum=1.0)
    boxes, target = random_boxes(2, 5), random_boxes(2, 3)
    plan = torch.rand(2, 5, 3, dtype=torch.float64)
    plan[:, :, 2], target[:, 2] = 0, math.nan
    rows = torch.stack([IoULoss(reduction="none")(boxes, target[:, j : j + 1].expand(-1, 5, -1)) for j in (0, 1)], -1)
    expected = (plan[..., :2] * rows).sum() / plan.sum()
    assert loss.update(boxes[:, :, None], target[:, None], plan).item() == pytest.approx(expected.item(), rel=1e-6)
    assert loss.update(boxes[:, :, None], target[:, None], 0 * plan) == loss.mean


def test_the_factor_of_the_third_version_is_one_at_delta_and_falls_behind_its_peak() -> None:
    target = torch.tensor([[0.0, 0.0, 1.0, 1.0]], dtype=torch.float64)
    boxes = torch.tensor([[0.25, 0.0, 0.75, 1.0]], dtype=torch.float64)  # u = 1/2, equal centres
    assert wise(0.25, version=3, delta=2.0)(boxes, target).item() == pytest.approx(0.5)
    peak = wise(0.5 * math.log(1.9), version=3)(boxes, target)
    assert peak > wise(0.4 * math.log(1.9), version=3)(boxes, target)
    assert peak > wise(0.6 * math.log(1.9), version=3)(boxes, target)


@pytest.mark.parametrize(("alpha", "gamma", "beta"), [(0.5, 1.5, 1.0), (0.5, 1.5, 0.11), (1.0, 0.7, 3.0)])
def test_balanced_l1_is_the_integral_of_its_slope(alpha: float, gamma: float, beta: float) -> None:
    loss = BalancedL1Loss(alpha=alpha, gamma=gamma, beta=beta, reduction="none")
    values = torch.tensor([-4.0, -beta, -0.3, 0.0, 0.01, 0.9 * beta, beta, 1.1 * beta, 7.0], dtype=torch.float64)
    expected = [oracle.balanced_l1(d, alpha, gamma, beta) for d in values.tolist()]
    torch.testing.assert_close(
        loss(values, 0 * values), torch.tensor(expected, dtype=torch.float64), rtol=1e-6, atol=1e-8
    )


@pytest.mark.parametrize("beta", [0.2, 1.0, 4.0])
def test_balanced_l1_and_its_slope_are_continuous(beta: float) -> None:
    d = torch.tensor([beta - 1e-9, beta, beta + 1e-9], dtype=torch.float64, requires_grad=True)
    value = BalancedL1Loss(beta=beta, reduction="none")(d, torch.zeros_like(d))
    (slope,) = torch.autograd.grad(value.sum(), d)
    torch.testing.assert_close(value, value[1].expand(3), rtol=0, atol=1e-8)
    torch.testing.assert_close(slope, torch.full_like(slope, 1.5), rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: EIoULoss(gamma=-1.0), r"gamma must lie in \[0.0, inf\), got -1.0"),
        (lambda: ExtendedIoULoss(smooth_point=0.0), r"smooth_point must lie in \(0.0, inf\), got 0.0"),
        (lambda: SIoULoss(theta=0.5), r"theta must lie in \[1.0, inf\), got 0.5"),
        (lambda: InnerIoULoss(ratio=0.0), r"ratio must lie in \(0.0, inf\), got 0.0"),
        (lambda: InnerIoULoss(kind="wiou"), r"kind must be one of \['iou', .*\], got 'wiou'"),
        (lambda: AlphaIoULoss(alpha=0.0), r"alpha must lie in \(0.0, inf\), got 0.0"),
        (lambda: AlphaIoULoss(kind="IoU"), r"kind must be one of \['iou', .*\], got 'IoU'"),
        (lambda: MPDIoULoss(image_size=(1, 2, 3)), r"image_size must hold width and height, got \(1, 2, 3\)"),
        (lambda: MPDIoULoss(image_size=(0, 2)), r"image_size\[0\] must lie in \(0.0, inf\), got 0"),
        (lambda: WiseIoULoss(version=4), "version must be 1, 2 or 3, got 4"),
        (lambda: WiseIoULoss(alpha=1.0), r"alpha must lie in \(1.0, inf\), got 1.0"),
        (lambda: WiseIoULoss(momentum=2.0), r"momentum must lie in \[0.0, 1.0\], got 2.0"),
        (lambda: BalancedL1Loss(beta=0.0), r"beta must lie in \(0.0, inf\), got 0.0"),
        (lambda: SIoULoss()(torch.zeros(2, 4), torch.zeros(3, 4)), r"same shape \(\.\.\., 4\), got \(2, 4\) and \(3"),
        (lambda: BalancedL1Loss()(torch.zeros(2, 4), torch.zeros(4)), r"the same shape, got \(2, 4\) and \(4,\)"),
    ],
)
def test_bad_arguments_raise(build, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build()


def test_the_losses_print_their_arguments() -> None:
    assert repr(AlphaIoULoss(kind="giou")) == "AlphaIoULoss(kind='giou', alpha=3.0, eps=0.0, reduction='mean')"
    assert repr(BalancedL1Loss()) == "BalancedL1Loss(alpha=0.5, gamma=1.5, beta=1.0, reduction='mean')"


@pytest.mark.parametrize("target", [[3.0, 3.0, 3.0, 3.0], [3.0, 3.0, 1.0, 1.0], [0.0, 0.0, 1.0, 1.0]])
def test_the_extended_iou_of_an_inverted_box_is_at_most_that_of_touching_boxes(target) -> None:
    """Its rectangles have the area 4, though the boxes have none to share."""
    box = torch.tensor([3.0, 3.0, 1.0, 1.0], requires_grad=True)
    loss = ExtendedIoULoss()(box, torch.tensor(target))
    (gradient,) = torch.autograd.grad(loss, box)
    assert 0.95 <= loss < 10
    assert gradient.isfinite().all()
    assert gradient.abs().amax() < 10


def test_a_sum_names_them_by_their_class() -> None:
    modules = [MPDIoULoss(image_size=(1, 1)), EIoULoss(), InnerIoULoss(), GIoULoss(), BalancedL1Loss()]
    assert MultipleObjectiveLoss(modules).names == ("mpdiou", "eiou", "inner_iou", "giou", "balanced_l1")


class TestMmdet:
    def rows(self, count: int = 200) -> tuple[Tensor, Tensor]:
        near, other = near_boxes(count), (random_boxes(count), random_boxes(count))
        return torch.cat((near[0], other[0])) * 100, torch.cat((near[1], other[1])) * 100

    def test_siou(self) -> None:
        reference = peer("mmdet.models.losses.iou_loss").siou_loss
        boxes, target = self.rows()
        expected = reference(boxes, target, neg_gamma=True, reduction="none")  # the sign of the paper
        torch.testing.assert_close(SIoULoss(reduction="none")(boxes, target), expected, rtol=0, atol=1e-6)

    def test_siou_with_the_default_sign_makes_distant_boxes_cheap(self) -> None:
        reference = peer("mmdet.models.losses.iou_loss").siou_loss
        target = torch.tensor([[0.0, 0.0, 10.0, 10.0]])
        near, far = target + torch.tensor([5.0, 0.0, 5.0, 0.0]), target + torch.tensor([20.0, 0.0, 20.0, 0.0])
        assert reference(far, target) < reference(near, target)
        assert SIoULoss()(far, target) > SIoULoss()(near, target)

    def test_extended_iou(self) -> None:
        reference = peer("mmdet.models.losses.iou_loss").eiou_loss
        boxes, target = self.rows()
        torch.testing.assert_close(
            ExtendedIoULoss(reduction="none")(boxes, target),
            reference(boxes, target, reduction="none"),
            rtol=0,
            atol=1e-9,
        )

    def test_balanced_l1(self) -> None:
        reference = peer("mmdet.models.losses.balanced_l1_loss").balanced_l1_loss
        boxes, target = 3 * torch.randn(200, 4), torch.randn(200, 4)
        for alpha, gamma in ((0.5, 1.5), (0.7, 1.1)):
            expected = reference(boxes, target, alpha=alpha, gamma=gamma, reduction="none")
            actual = BalancedL1Loss(alpha=alpha, gamma=gamma, reduction="none")(boxes, target)
            torch.testing.assert_close(actual, expected)

    def test_balanced_l1_with_another_beta_has_kinks_at_zero_and_beta(self) -> None:
        reference = peer("mmdet.models.losses.balanced_l1_loss").balanced_l1_loss
        d = torch.tensor([1e-9, 0.2 - 1e-6, 0.2 + 1e-6], dtype=torch.float64, requires_grad=True)
        (theirs,) = torch.autograd.grad(reference(d, 0 * d.detach(), beta=0.2, reduction="sum"), d)
        (ours,) = torch.autograd.grad(BalancedL1Loss(beta=0.2, reduction="sum")(d, 0 * d.detach()), d)
        assert theirs[0] > 1.9
        assert theirs[1] - theirs[2] > 0.05
        assert ours[0] < 1e-6
        assert abs(ours[1] - ours[2]) < 1e-4
