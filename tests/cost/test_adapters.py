"""Adapters: known when a module is assigned, its own in every copy, and rows where nothing is known."""

import copy
import pickle
from itertools import product

import pytest
import torch
from torch import Tensor, nn

from tests.support.problems import random_problem
from uotod.cost import blocks
from uotod.cost.adapters import adapt
from uotod.cost.kinds import Adapter, Affine, ClassTerms, Pair, RowLoss
from uotod.loss import (
    Classification,
    DetectionLoss,
    GIoULoss,
    IoULoss,
    Localization,
    MultipleObjectiveLoss,
    NegativeProbLoss,
    PositiveNormalizer,
    QualityFocalLoss,
    SigmoidFocalLoss,
)
from uotod.match import ClosestTarget, Hungarian, IoUThreshold

N = "none"
B, P, T, C = 2, 7, 3, 4
L1 = nn.L1Loss(reduction=N)


def problem():
    return random_problem(B, P, T, C, full=True)


def detector(cls: nn.Module | None = None, loc: nn.Module | None = None, **options) -> DetectionLoss:
    matcher = Hungarian(cls_match_module=NegativeProbLoss(reduction=N), loc_match_module=L1)
    cls = nn.CrossEntropyLoss(reduction=N) if cls is None else cls
    return DetectionLoss(cls, L1 if loc is None else loc, matcher, **options)


def assert_same(actual: DetectionLoss, expected: DetectionLoss, **call) -> None:
    scene = problem()
    ours, theirs = (x.terms(scene.input, scene.target, scene.anchors, **call) for x in (actual, expected))
    assert ours.keys() == theirs.keys()
    for key, value in theirs.items():
        assert torch.equal(ours[key], value)


class Learned(nn.Module):
    """A localisation that learns a factor a coordinate, on rows."""

    def __init__(self) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.ones(4, dtype=torch.float64))

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        return (self.factor * (input - target)).abs().sum(1)


class LearnedAffine(nn.Module):
    """A classification that learns a temperature, known by its affine form."""

    def __init__(self) -> None:
        super().__init__()
        self.heat = nn.Parameter(torch.ones((), dtype=torch.float64))

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        return nn.functional.cross_entropy(input * self.heat, target, reduction=N)

    def adapter(self) -> Affine:
        return Affine(self, lambda x: ClassTerms(-torch.log_softmax(x * self.heat, -1), None))


class LearnedTerms(nn.Module):
    """The same, picklable."""

    def __init__(self) -> None:
        super().__init__()
        self.heat = nn.Parameter(torch.ones((), dtype=torch.float64))

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        return nn.functional.cross_entropy(input * self.heat, target, reduction=N)

    def adapter(self) -> Affine:
        return Affine(self, self.terms)

    def terms(self, logits: Tensor) -> ClassTerms:
        return ClassTerms(-torch.log_softmax(logits * self.heat, -1), None)


# --- assignment


def test_an_assigned_classification_is_the_one_that_is_used() -> None:
    criterion = detector()
    criterion.cls_loss_module = SigmoidFocalLoss(reduction=N)
    assert_same(criterion, detector(SigmoidFocalLoss(reduction=N)))
    criterion.cls_loss_module = Classification(nn.CrossEntropyLoss(reduction=N), quality="iou")
    assert_same(criterion, detector(Classification(nn.CrossEntropyLoss(reduction=N), quality="iou")))
    criterion.cls_loss_module = None
    assert "loss_cls" not in criterion.terms(problem().input, problem().target)


def test_an_assigned_localisation_is_the_one_that_is_used() -> None:
    criterion = detector()
    criterion.loc_loss_module = Localization(GIoULoss(reduction=N), quality="iou")
    assert_same(criterion, detector(loc=Localization(GIoULoss(reduction=N), quality="iou")))
    both = MultipleObjectiveLoss([L1, GIoULoss(reduction=N)], [5.0, 2.0])
    criterion.loc_loss_module = both
    assert_same(criterion, detector(loc=both))
    criterion.loc_loss_module = None
    assert "loss_loc" not in criterion.terms(problem().input, problem().target)


def test_a_module_assigned_to_a_term_is_the_one_that_is_used() -> None:
    criterion = detector(loc=Localization(L1))
    criterion.loc_loss_module.module = GIoULoss(reduction=N)
    assert_same(criterion, detector(loc=GIoULoss(reduction=N)))


def test_an_assigned_matcher_and_its_assigned_costs_are_those_that_are_used() -> None:
    scene = problem()
    criterion = detector()
    criterion.matching_method = ClosestTarget(loc_match_module=L1, background_cost=0.3)
    expected = ClosestTarget(loc_match_module=L1, background_cost=0.3)
    assert_same(criterion, DetectionLoss(nn.CrossEntropyLoss(reduction=N), L1, expected))
    matcher = criterion.matching_method
    for name, module in (("loc", GIoULoss(reduction=N)), ("cls", NegativeProbLoss(reduction=N)), ("loc", None)):
        setattr(matcher, f"{name}_match_module", module)
        twin = ClosestTarget(
            cls_match_module=matcher.cls_match_module, loc_match_module=matcher.loc_match_module, background_cost=0.3
        )
        cost = matcher.compute_cost_matrix(scene.input, scene.target)
        assert torch.equal(cost, twin.compute_cost_matrix(scene.input, scene.target))
        assert torch.equal(matcher(scene.input, scene.target), twin(scene.input, scene.target))
    matcher.cls_match_module = None
    with pytest.raises(ValueError, match="needs cls_match_module or loc_match_module"):
        matcher(scene.input, scene.target)


def test_fields_that_an_assigned_module_needs_are_read() -> None:
    class Strided(nn.Module):
        needs = ("stride",)

        def forward(self, input: Tensor, target: Tensor, *, stride: Tensor) -> Tensor:
            return (input - target).abs().sum(1) / stride

    scene = problem()
    criterion = detector()
    assert criterion(scene.input, scene.target).isfinite()
    criterion.loc_loss_module = Strided()
    with pytest.raises(ValueError, match="anchors must be given for Strided"):
        criterion(scene.input, scene.target)
    assert_same(criterion, detector(loc=Strided()))
    criterion.loc_loss_module = L1
    assert criterion(scene.input, scene.target).isfinite()


def test_an_assigned_module_is_a_part_of_the_criterion() -> None:
    criterion = detector()
    criterion.loc_loss_module = Learned()
    criterion.cls_loss_module = Classification(LearnedAffine())
    assert {name for name, _ in criterion.named_parameters()} == {
        "loc_loss_module.factor",
        "cls_loss_module.module.heat",
    }


# --- copies


@pytest.mark.parametrize("clone", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))], ids=["deepcopy", "pickle"])
@pytest.mark.parametrize("wrapped", [False, True])
def test_the_gradient_of_a_copy_is_that_of_its_own_parameters(clone, wrapped) -> None:
    loc, cls = Learned(), LearnedTerms()
    criterion = detector(Classification(cls), Localization(loc)) if wrapped else detector(cls, loc)
    twin = clone(criterion)
    names = [name for name, _ in criterion.named_parameters()]
    assert len(names) == 2
    assert names == [name for name, _ in twin.named_parameters()]
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.mul_(2)
    scene = problem()
    ours, theirs = criterion(scene.input, scene.target), twin(scene.input, scene.target)
    assert ours != theirs
    theirs.backward()
    assert all(x.grad is not None and x.grad.abs().sum() > 0 for x in twin.parameters())
    assert all(x.grad is None for x in criterion.parameters())
    expected = detector(LearnedTerms(), Learned())
    with torch.no_grad():
        for parameter in expected.parameters():
            parameter.mul_(2)
    torch.testing.assert_close(theirs, expected(scene.input, scene.target))


@pytest.mark.parametrize("clone", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))], ids=["deepcopy", "pickle"])
def test_a_module_that_cost_and_loss_share_is_shared_in_a_copy(clone) -> None:
    loc = Learned()
    criterion = DetectionLoss(nn.CrossEntropyLoss(reduction=N), loc, Hungarian(loc_match_module=loc))
    twin = clone(criterion)
    assert len(list(twin.parameters())) == 1
    shared = twin.loc_loss_module
    assert shared is twin.matching_method.loc_match_module
    assert shared is not loc
    with torch.no_grad():
        shared.factor.mul_(3)
    scene = problem()
    cost = twin.matching_method.compute_cost_matrix(scene.input, scene.target)[..., :T]
    expected = criterion.matching_method.compute_cost_matrix(scene.input, scene.target)[..., :T]
    torch.testing.assert_close(cost, 3 * expected)


def test_state_that_is_loaded_reaches_the_loss() -> None:
    scene = problem()
    criterion, other = detector(LearnedTerms(), Learned()), detector(LearnedTerms(), Learned())
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.mul_(2)
    criterion.load_state_dict(other.state_dict())
    assert torch.equal(criterion(scene.input, scene.target), other(scene.input, scene.target))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_criterion_that_is_cast_computes_with_what_it_was_cast_to(dtype) -> None:
    weight = torch.tensor([0.1, 0.7, 1.3, 2.0], dtype=torch.float64)
    criterion = detector(nn.CrossEntropyLoss(weight, reduction=N), Learned()).to(dtype)
    scene = problem()
    input = {key: value.detach().to(dtype) for key, value in scene.input.items()}
    terms = criterion.terms(input, scene.target)
    assert all(value.dtype == dtype for value in terms.values())
    expected = detector(nn.CrossEntropyLoss(weight.to(dtype), reduction=N), L1).terms(input, scene.target)
    for key in ("loss", "loss_cls", "loss_loc"):
        torch.testing.assert_close(terms[key], expected[key])
    terms["loss"].backward()
    (parameter,) = criterion.parameters()
    assert parameter.grad.dtype == dtype
    assert parameter.grad.abs().sum() > 0


# --- what is known


class SignedFocal(SigmoidFocalLoss):
    """A known loss with a new formula."""

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        return 2 * super().forward(input, target)


class HalfL1(nn.L1Loss):
    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        return super().forward(input, target) / 2


class SquaredIoU(IoULoss):
    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        return super().forward(input, target).square()


class SquaredGIoU(GIoULoss):
    """A new formula that says how it takes part."""

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        return super().forward(input, target).square()

    def adapter(self) -> Pair:
        return Pair(self, lambda boxes, targets: self.pairwise(boxes, targets).square())


class Renamed(GIoULoss):
    """The formula of its parent."""


@pytest.mark.parametrize(
    ("module", "kind"),
    [
        (SigmoidFocalLoss(reduction=N), RowLoss),
        (QualityFocalLoss(reduction=N), RowLoss),
        (nn.CrossEntropyLoss(reduction=N), RowLoss),
        (nn.BCEWithLogitsLoss(reduction=N), RowLoss),
        (GIoULoss(reduction=N), Pair),
        (Renamed(reduction=N), Pair),
        (SquaredGIoU(reduction=N), Pair),
        (L1, Pair),
    ],
    ids=lambda x: type(x).__name__,
)
def test_known_losses_are_known(module, kind) -> None:
    (part,) = adapt(module)
    assert isinstance(part.adapter, kind)
    assert part.module is module


@pytest.mark.parametrize(
    "module",
    [SignedFocal(reduction=N), HalfL1(reduction=N), SquaredIoU(reduction=N), Learned(), nn.PoissonNLLLoss(reduction=N)],
    ids=lambda x: type(x).__name__,
)
def test_a_new_forward_is_rows(module) -> None:
    (part,) = adapt(module)
    assert type(part.adapter) is Adapter


def test_a_forward_that_is_assigned_to_a_subclass_of_a_composite_is_rows() -> None:
    class Largest(MultipleObjectiveLoss):
        def forward(self, input: Tensor, target: Tensor) -> Tensor:
            return torch.stack([loss(input, target).flatten(1).sum(1) for loss in self.losses]).amax(0)

    losses = [L1, nn.MSELoss(reduction=N)]
    (part,) = adapt(Largest(losses))
    assert type(part.adapter) is Adapter
    assert len(adapt(MultipleObjectiveLoss(losses))) == 2


@pytest.mark.parametrize("module", [HalfL1(reduction=N), SquaredIoU(reduction=N), SquaredGIoU(reduction=N)])
def test_what_is_known_or_not_the_formula_is_that_of_forward(module) -> None:
    scene = problem()
    matcher = Hungarian(loc_match_module=module)
    cost = matcher.compute_cost_matrix(scene.input, scene.target)
    for b, i, j in product(range(B), range(P), range(T)):
        row = module(scene.input["pred_boxes"][b, i : i + 1], scene.target["boxes"][b, j : j + 1]).sum()
        torch.testing.assert_close(cost[b, i, j], row.detach())
    terms = DetectionLoss(None, module, matcher, N).terms(scene.input, scene.target)
    plan = matcher(scene.input, scene.target)[..., :T]
    total = sum(
        module(scene.input["pred_boxes"][b, i : i + 1], scene.target["boxes"][b, j : j + 1]).sum()
        for b, i, j in plan.nonzero().tolist()
    )
    torch.testing.assert_close(terms["loss_loc"], total / (B * T))


def test_a_new_forward_of_a_classification_is_that_of_its_loss() -> None:
    scene = problem()
    matcher = Hungarian(loc_match_module=L1)
    losses = [
        DetectionLoss(module, None, matcher, N)(scene.input, scene.target)
        for module in (SignedFocal(reduction=N), SigmoidFocalLoss(reduction=N))
    ]
    torch.testing.assert_close(losses[0], 2 * losses[1])


# --- settings that change later


def test_weights_that_are_set_later_are_those_that_count() -> None:
    scene = problem()
    weight = torch.tensor([0.2, 1.0, 3.0, 0.5], dtype=torch.float64)
    module = nn.CrossEntropyLoss(reduction=N)
    criterion = detector(module)
    before = criterion.terms(scene.input, scene.target)["loss_cls"]
    module.weight = weight
    after = criterion.terms(scene.input, scene.target)["loss_cls"]
    expected = detector(nn.CrossEntropyLoss(weight, reduction=N)).terms(scene.input, scene.target)["loss_cls"]
    assert torch.equal(after, expected)
    assert after != before
    module.label_smoothing = 0.1
    smoothed = nn.CrossEntropyLoss(weight, reduction=N, label_smoothing=0.1)
    expected = detector(smoothed).terms(scene.input, scene.target)["loss_cls"]
    assert torch.equal(criterion.terms(scene.input, scene.target)["loss_cls"], expected)
    module.weight = None
    module.label_smoothing = 0.0
    assert torch.equal(criterion.terms(scene.input, scene.target)["loss_cls"], before)


def test_weights_of_a_binary_cross_entropy_that_are_set_later_count() -> None:
    scene = problem()
    weight = torch.tensor([0.2, 1.0, 3.0, 0.5], dtype=torch.float64)
    module = nn.BCEWithLogitsLoss(reduction=N)
    criterion = detector(module, bg_class_position=N)
    cost = Hungarian(cls_match_module=module)
    module.pos_weight, module.weight = weight, weight.flip(0)
    fresh = nn.BCEWithLogitsLoss(weight.flip(0), pos_weight=weight, reduction=N)
    expected = detector(fresh, bg_class_position=N)
    assert torch.equal(criterion(scene.input, scene.target), expected(scene.input, scene.target))
    twin = Hungarian(cls_match_module=fresh)
    assert torch.equal(
        cost.compute_cost_matrix(scene.input, scene.target), twin.compute_cost_matrix(scene.input, scene.target)
    )


# --- a cost of one's own


class Centers(nn.Module):
    """The distance of the centres: rows, and all pairs at once."""

    needs = ("pred_boxes", "target_boxes")

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[str] = []

    def forward(self, pred_boxes: Tensor, target_boxes: Tensor) -> Tensor:
        self.calls.append("rows")
        return ((pred_boxes - target_boxes)[:, :2] + (pred_boxes - target_boxes)[:, 2:]).norm(dim=1)

    def pairwise(self, **fields: Tensor) -> Tensor:
        self.calls.append("pairs")
        assert sorted(fields) == ["pred_boxes", "target_boxes"]
        difference = fields["pred_boxes"].unsqueeze(1) - fields["target_boxes"].unsqueeze(2)  # (S, T, P, 4)
        return (difference[..., :2] + difference[..., 2:]).norm(dim=-1)


class CenterRows(nn.Module):
    """The same with boxes that it does not declare, and no more than rows."""

    def forward(self, boxes: Tensor, target_boxes: Tensor) -> Tensor:
        return ((boxes - target_boxes)[:, :2] + (boxes - target_boxes)[:, 2:]).norm(dim=1)


@pytest.mark.parametrize("anchors", [False, True])
def test_a_cost_of_pairs_is_that_of_its_rows(anchors) -> None:
    scene = problem()
    module = Centers()
    costs = [
        Hungarian(loc_match_module=x, is_anchor_based=anchors).compute_cost_matrix(
            scene.input, scene.target, scene.anchors
        )
        for x in (module, CenterRows())
    ]
    torch.testing.assert_close(*costs)
    assert module.calls == ["pairs"]
    loss = DetectionLoss(None, module, Hungarian(loc_match_module=CenterRows()), N)
    expected = DetectionLoss(None, CenterRows(), Hungarian(loc_match_module=CenterRows()), N)
    assert_same(loss, expected)
    assert module.calls[1:] == ["rows"]


def test_a_weighted_sum_of_costs_asks_each_for_its_pairs() -> None:
    scene = problem()
    module = Centers()
    both = MultipleObjectiveLoss([module, L1], [3.0, 2.0])
    cost = Hungarian(loc_match_module=both).compute_cost_matrix(scene.input, scene.target)[..., :T]
    alone = [
        Hungarian(loc_match_module=x).compute_cost_matrix(scene.input, scene.target)[..., :T] for x in (module, L1)
    ]
    torch.testing.assert_close(cost, 3 * alone[0] + 2 * alone[1])
    assert set(module.calls) == {"pairs"}


def test_the_rows_of_a_cost_are_bounded_by_the_widest_field(monkeypatch) -> None:
    class Prototypes(nn.Module):
        needs = ("pred_coefficients", "image_prototypes", "target_masks")

        def __init__(self) -> None:
            super().__init__()
            self.rows: list[int] = []

        def forward(self, pred_coefficients: Tensor, image_prototypes: Tensor, target_masks: Tensor) -> Tensor:
            self.rows.append(len(image_prototypes))
            masks = torch.einsum("nm,nmhw->nhw", pred_coefficients, image_prototypes)
            return (masks - target_masks).abs().flatten(1).sum(1)

    scene = problem()
    scene.input |= {"pred_coefficients": torch.randn(B, P, 3), "image_prototypes": torch.randn(B, 3, 4, 5)}
    scene.target |= {"masks": torch.rand(B, T, 4, 5)}
    module = Prototypes()
    matcher = Hungarian(loc_match_module=module)
    whole = matcher.compute_cost_matrix(scene.input, scene.target)
    assert module.rows == [B * P * T]
    monkeypatch.setattr(blocks, "MAX_COST_ROW_ELEMENTS", 5 * 3 * 4 * 5)
    torch.testing.assert_close(matcher.compute_cost_matrix(scene.input, scene.target), whole)
    assert max(module.rows[1:]) == 5


def test_an_adapter_holds_no_values_of_a_call() -> None:
    scene = problem()
    criterion = detector(loc=MultipleObjectiveLoss([L1, GIoULoss(reduction=N)]), normalizer=PositiveNormalizer())
    before = pickle.dumps(criterion)
    criterion(scene.input, scene.target).backward()
    assert pickle.dumps(criterion) == before


def test_a_matcher_without_modules_adapts_them_once_they_come() -> None:
    scene = problem()
    matcher = IoUThreshold()
    assert matcher.needs == ()
    matcher.loc_match_module = Centers()
    assert matcher.needs == ("pred_boxes", "target_boxes")
    plan = matcher(scene.input, scene.target)
    assert plan.shape == (B, P, T + 1)
