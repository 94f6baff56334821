"""Masses: what a batch counts adds up, and with that of the whole batch its parts have its gradient."""

import re
from itertools import product

import pytest
import torch
from torch import Tensor, nn

from tests.support.problems import random_problem
from uotod.loss import (
    Branch,
    Branches,
    ByTerm,
    Classification,
    DetectionLoss,
    GIoULoss,
    ImagePositiveNormalizer,
    Localization,
    Masses,
    MassNormalizer,
    MovingAverageNormalizer,
    MultipleObjectiveLoss,
    Normalizer,
    Objectness,
    ObjectnessLoss,
    PairedTargetNormalizer,
    PerImageNormalizer,
    PositiveNormalizer,
    ScoreNormalizer,
    TargetNormalizer,
    TotalMassNormalizer,
)
from uotod.match import BalancedSinkhorn, Hungarian

N = "none"
B, P, T, C = 6, 8, 5, 4
L1 = nn.L1Loss(reduction=N)
WEIGHT = torch.tensor([0.1, 0.5, 2.0, 1.3])
NORMALIZERS = {
    "targets": TargetNormalizer,
    "mass": MassNormalizer,
    "total": TotalMassNormalizer,
    "positives": PositiveNormalizer,
    "positives of images": ImagePositiveNormalizer,
    "scores": ScoreNormalizer,
    "pairs": PairedTargetNormalizer,
    "images": PerImageNormalizer,
    "average": MovingAverageNormalizer,
    "by term": lambda: ByTerm(TargetNormalizer(), cls=MassNormalizer(), obj=PositiveNormalizer()),
}
MATCHERS = {"hard": Hungarian, "soft": BalancedSinkhorn}


def detector(normalizer: Normalizer | None = None, matcher=Hungarian, **options) -> DetectionLoss:
    """Return a criterion of class weights, qualities, a composite and objectness."""
    return DetectionLoss(
        Classification(nn.CrossEntropyLoss(WEIGHT, reduction=N), quality="iou"),
        Localization(MultipleObjectiveLoss([L1, GIoULoss(reduction=N)], [5.0, 2.0]), quality="iou"),
        matcher(loc_match_module=L1),
        extra_terms=[Objectness(ObjectnessLoss(reduction=N))],
        normalizer=normalizer,
        **options,
    )


def problem(dtype: torch.dtype = torch.float64) -> tuple[dict, dict]:
    """Return predictions of two layers, and targets of which the images have from none to all."""
    scene = random_problem(B, P, T, C, dtype=dtype, full=True)
    layer = random_problem(B, P, T, C, dtype=dtype).input
    for part in (scene.input, layer):
        part["pred_objectness"] = torch.randn(B, P, dtype=dtype).requires_grad_()
    scene.target["mask"] = torch.arange(T) < torch.tensor([0, 5, 1, 0, 4, 2]).unsqueeze(1)
    return scene.input | {"aux_outputs": [layer]}, scene.target


def leaves(value: object) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value] if value.requires_grad else []
    values = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return [leaf for x in values for leaf in leaves(x)]


def some(value: object, images: slice):
    if isinstance(value, dict):
        return {key: some(x, images) for key, x in value.items()}
    return [some(x, images) for x in value] if isinstance(value, list) else value[images]


def micro(size: int) -> list[slice]:
    return [slice(i, i + size) for i in range(0, B, size)]


def whole_masses(criterion: nn.Module, input: dict, target: dict, size: int) -> Masses:
    total: Masses | None = None
    for part in micro(size):
        found = criterion.masses(some(input, part), some(target, part))
        total = found if total is None else total + found
    assert total is not None
    return total


# --- the masses


@pytest.mark.parametrize("kind", MATCHERS)
def test_masses_have_no_gradient_and_add_up_to_those_of_the_batch(kind) -> None:
    criterion = detector(matcher=MATCHERS[kind])
    input, target = problem()
    whole = criterion.masses(input, target)
    assert not whole.rows.requires_grad
    assert whole.rows.shape[1:] == (2, 1)
    for size in (1, 2, 3, 6):
        total = whole_masses(criterion, input, target, size)
        assert total.terms == whole.terms
        torch.testing.assert_close(total.rows, whole.rows, rtol=1e-12, atol=1e-12)
    assert torch.equal(whole.of("targets"), torch.full((2, 1), 12.0, dtype=torch.float64))
    assert torch.equal(whole.of("images"), torch.full((2, 1), float(B), dtype=torch.float64))
    if kind == "hard":
        assert torch.equal(whole.of("positive"), whole.of("targets"))
        assert torch.equal(whole.of("floored"), whole.of("positive") + 2)  # two images have no target
        assert torch.equal(whole.of("background"), B * P - whole.of("positive"))


def test_masses_leave_the_mode_of_the_criterion_and_gradients_alone() -> None:
    criterion = detector()
    input, target = problem()
    criterion.masses(input, target)
    assert criterion.training
    assert torch.is_grad_enabled()
    assert all(x.grad is None for x in leaves(input))


def test_masses_of_different_terms_do_not_add_up() -> None:
    input, target = problem()
    masses = detector().masses(input, target)
    other = DetectionLoss(None, L1, Hungarian(loc_match_module=L1), N).masses(input, target)
    with pytest.raises(ValueError, match="masses must be of the same terms, got those of"):
        masses + other
    assert torch.equal((Masses.of_targets(3) + Masses.of_targets(4.0)).of("targets"), torch.tensor([[7.0]]))


def test_masses_of_the_call_change_nothing() -> None:
    input, target = problem()
    for name in NORMALIZERS:
        criterion = detector(NORMALIZERS[name]())
        expected = criterion.terms(input, target)
        terms = criterion.terms(input, target, masses=criterion.masses(input, target))
        for key, value in expected.items():
            assert torch.equal(terms[key], value)


# --- gradient accumulation


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.float64, 1e-12)])
@pytest.mark.parametrize("kind", MATCHERS)
@pytest.mark.parametrize("name", [name for name in NORMALIZERS if name != "pairs"])
def test_micro_batches_with_the_masses_of_the_batch_have_its_gradient(name, kind, dtype, tolerance) -> None:
    criterion = detector(NORMALIZERS[name](), MATCHERS[kind]).to(dtype)
    if dtype == torch.float32 and kind == "soft":
        tolerance = 2e-6  # of the plan
    input, target = problem(dtype)
    fields = leaves(input)
    assert len(fields) == 6
    loss = criterion(input, target)
    expected = torch.autograd.grad(loss, fields)
    for size in (1, 2):
        masses = whole_masses(criterion, input, target, size)
        parts = [criterion(some(input, part), some(target, part), masses=masses) for part in micro(size)]
        torch.testing.assert_close(sum(parts), loss, rtol=tolerance, atol=tolerance)
        for a, e in zip(torch.autograd.grad(sum(parts), fields), expected, strict=True):
            assert e.abs().sum() > 0
            torch.testing.assert_close(a, e, rtol=tolerance, atol=tolerance)


def test_without_them_micro_batches_of_unequal_counts_have_another_gradient() -> None:
    criterion = detector(TargetNormalizer())
    input, target = problem()
    loss = criterion(input, target)
    mean = sum(criterion(some(input, part), some(target, part)) for part in micro(2)) / 3
    assert (mean - loss).abs() > 1e-3


def family() -> Branches:
    """Return a criterion of a main loss, of proposals that count masses, and of denoising queries."""
    return Branches(
        detector(TargetNormalizer()),
        enc_outputs=Branch(detector(MassNormalizer()), 0.5),
        dn_outputs=Branch(detector(PairedTargetNormalizer()), plan="given"),
    )


def family_problem(dtype: torch.dtype = torch.float64) -> tuple[dict, dict]:
    """Return predictions of all outputs; each image has three groups of denoising queries, and a target."""
    input, target = problem(dtype)
    target["mask"][:, 0] = True
    proposals, _ = problem(dtype)
    plan = torch.arange(T).where(target["mask"], -1).repeat(1, 3)
    denoising = random_problem(B, 3 * T, T, C, dtype=dtype).input
    denoising["pred_objectness"] = torch.randn(B, 3 * T, dtype=dtype).requires_grad_()
    return input | {"enc_outputs": proposals, "dn_outputs": denoising | {"plan": plan}}, target


@pytest.mark.parametrize("size", [1, 2, 3])
def test_micro_batches_of_branches_have_the_gradient_of_the_batch(size) -> None:
    criterion, (input, target) = family(), family_problem()
    fields = leaves(input)
    assert len(fields) == 6 + 6 + 3
    loss = criterion(input, target)
    expected = torch.autograd.grad(loss, fields)
    masses = whole_masses(criterion, input, target, size)
    assert list(masses.branches) == ["enc_outputs", "dn_outputs"]
    parts = [criterion(some(input, part), some(target, part), masses=masses) for part in micro(size)]
    torch.testing.assert_close(sum(parts), loss, rtol=1e-12, atol=1e-12)
    for a, e in zip(torch.autograd.grad(sum(parts), fields), expected, strict=True):
        assert e.abs().sum() > 0
        torch.testing.assert_close(a, e, rtol=1e-12, atol=1e-12)


def test_a_branch_of_some_micro_batches_counts_there_only() -> None:
    criterion, (input, target) = family(), family_problem()
    first, rest = slice(0, 2), slice(2, B)
    here, gone = some(input, first), some(input, rest)
    gone.pop("enc_outputs")
    masses = criterion.masses(here, some(target, first)) + criterion.masses(gone, some(target, rest))
    assert torch.equal(
        masses.of_branch("enc_outputs").rows, criterion.masses(here, some(target, first)).of_branch("enc_outputs").rows
    )
    found = criterion.terms(here, some(target, first), masses=masses)
    assert torch.equal(found["loss_cls_enc"], criterion.terms(here, some(target, first))["loss_cls_enc"])
    with pytest.raises(ValueError, match=r"masses must hold the branch 'enc_outputs', got those of \['dn_outputs'\]"):
        criterion(here, some(target, first), masses=criterion.masses(gone, some(target, rest)))
    with pytest.raises(ValueError, match="masses must hold 'cls' for this normalizer, got the number of targets only"):
        criterion(here, some(target, first), masses=Masses.of_targets(5))


# --- the number of targets alone


@pytest.mark.parametrize("count", [12, 12.0, torch.tensor(12), torch.tensor(12.0)])
def test_the_number_of_targets_is_enough_for_what_counts_targets(count) -> None:
    input, target = problem()
    criterion = detector(TargetNormalizer())
    expected = criterion.terms(input, target)
    for key, value in criterion.terms(input, target, masses=Masses.of_targets(count)).items():
        torch.testing.assert_close(value, expected[key], rtol=1e-12, atol=1e-12)
    other = criterion.terms(input, target, masses=Masses.of_targets(24))
    torch.testing.assert_close(other["loss"], expected["loss"] / 2)


@pytest.mark.parametrize("name", [name for name in NORMALIZERS if name not in ("targets", "pairs")])
def test_the_number_of_targets_is_not_enough_for_what_counts_more(name) -> None:
    input, target = problem()
    message = r"masses must hold '\w+' for this normalizer, got the number of targets only: pass those of criterion"
    with pytest.raises(ValueError, match=message):
        detector(NORMALIZERS[name]())(input, target, masses=Masses.of_targets(12))


def test_masses_of_another_criterion_raise() -> None:
    input, target = problem()
    other = DetectionLoss(None, L1, Hungarian(loc_match_module=L1), N).masses(input, target)
    with pytest.raises(ValueError, match=re.escape("masses must hold the term 'cls', got ['loc']")):
        detector(PositiveNormalizer())(input, target, masses=other)


# --- weights of targets


@pytest.mark.parametrize("kind", MATCHERS)
def test_the_weight_of_a_loss_is_in_the_numerator_only(kind) -> None:
    scene = random_problem(2, P, T, C)
    weight = 0.5 + torch.rand(2, T, dtype=torch.float64)
    matcher = MATCHERS[kind](loc_match_module=L1)
    criterion = DetectionLoss(nn.CrossEntropyLoss(reduction=N), L1, matcher)
    plan = matcher(scene.input, scene.target)
    target = scene.target | {"loss_weight": weight.masked_fill(~scene.target["mask"], float("nan"))}
    assert torch.equal(matcher(scene.input, target), plan)
    loss_cls, loss_loc, mass = 0.0, 0.0, 0.0
    log = torch.log_softmax(scene.input["pred_logits"], -1)
    for b, i in product(range(2), range(P)):
        for j in range(T):
            m = float(plan[b, i, j])
            if m > 0:
                label = int(scene.target["labels"][b, j])
                loss_cls = loss_cls - m * weight[b, j] * log[b, i, label]
                distance = (scene.input["pred_boxes"][b, i] - scene.target["boxes"][b, j]).abs().sum()
                loss_loc, mass = loss_loc + m * weight[b, j] * distance, mass + m
        loss_cls = loss_cls - plan[b, i, T] * log[b, i, 0]
    terms = criterion.terms(scene.input, target)
    torch.testing.assert_close(terms["loss_loc"], loss_loc / max(mass, 1))
    torch.testing.assert_close(terms["loss_cls"], loss_cls / (mass + float(plan[..., T].sum())))
    plain = criterion.terms(scene.input, scene.target)
    for key in ("num_pos", "num_neg"):
        assert torch.equal(terms[key], plain[key])
    assert torch.equal(criterion.masses(scene.input, target).rows, criterion.masses(scene.input, scene.target).rows)


def test_the_weight_of_a_cost_is_in_the_cost_only() -> None:
    scene = random_problem(2, P, T, C)
    weight = 0.5 + torch.rand(2, T, dtype=torch.float64)
    matcher = BalancedSinkhorn(loc_match_module=L1, cls_match_module=nn.CrossEntropyLoss(reduction=N))
    target = scene.target | {"cost_weight": weight}
    cost, plain = (matcher.compute_cost_matrix(scene.input, x) for x in (target, scene.target))
    inside = scene.target["mask"].unsqueeze(1).expand(-1, P, -1)
    scaled = plain[..., :T] * weight.unsqueeze(1)
    torch.testing.assert_close(cost[..., :T][inside], scaled[inside])
    assert torch.equal(cost[..., T], plain[..., T])
    criterion = DetectionLoss(nn.CrossEntropyLoss(reduction=N), L1, matcher)
    plan = matcher(scene.input, target)
    assert not torch.equal(plan, matcher(scene.input, scene.target))
    expected = criterion.terms(scene.input, scene.target, plan=plan)
    for key, value in criterion.terms(scene.input, target).items():
        torch.testing.assert_close(value, expected[key], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("key", ["cost_weight", "loss_weight"])
@pytest.mark.parametrize("bad", [0.0, -1.0, float("nan"), float("inf")])
def test_weights_must_be_above_0(key, bad) -> None:
    scene = random_problem(2, P, T, C, full=True)
    weight = torch.ones(2, T).index_fill(1, torch.tensor([2]), bad)
    with pytest.raises(ValueError, match=rf"target\['{key}'\] must be finite and above 0"):
        detector()(scene.input | {"pred_objectness": torch.zeros(2, P)}, scene.target | {key: weight})


def test_the_weight_of_a_loss_weighs_both_layers_and_every_part() -> None:
    input, target = problem()
    criterion = detector()
    half = criterion.terms(input, target | {"loss_weight": torch.full((B, T), 0.5)})
    plain = criterion.terms(input, target)
    for key in ("loss_loc", "loss_loc_0", "loss_loc_l1", "loss_loc_giou", "loss_loc_giou_0"):
        torch.testing.assert_close(half[key], plain[key] / 2)


# --- the least divisor


@pytest.mark.parametrize("least", [0.0, 1.0, 3.0, 100.0])
@pytest.mark.parametrize("name", ["targets", "mass", "positives", "scores"])
def test_the_least_divisor_applies_to_the_sum(name, least) -> None:
    criterion = detector(NORMALIZERS[name](least=least))
    exact = detector(NORMALIZERS[name](least=1e-3))
    input, target = problem()
    input = {key: x for key, x in input.items() if key != "aux_outputs"}
    masses = criterion.masses(input, target)
    for term, key in (("cls", "loss_cls"), ("obj", "loss_obj"), ("loc", "loss_loc_l1")):
        divisor = exact.normalizer(term, masses, masses, masses).flatten()[0]
        ratio = divisor / divisor.clamp(min=least)
        expected = exact.terms(input, target)[key] * ratio
        torch.testing.assert_close(criterion.terms(input, target)[key], expected)


def test_the_least_divisor_applies_after_micro_batches_have_been_added() -> None:
    scene = random_problem(4, P, 1, C, full=True)
    scene.target["mask"] = torch.tensor([[True], [False], [False], [True]])
    criterion = DetectionLoss(None, L1, Hungarian(loc_match_module=L1), N, normalizer=TargetNormalizer(least=1.5))
    expected = criterion(scene.input, scene.target)
    total = DetectionLoss(None, L1, Hungarian(loc_match_module=L1), N, reduction="sum")(scene.input, scene.target)
    torch.testing.assert_close(expected, total / 2)  # two targets: had it come first, it were four images of 1.5
    masses = Masses.of_targets(0)
    for b in range(4):
        masses = masses + Masses.of_targets(scene.target["mask"][b].sum())
    parts = [
        criterion(some(scene.input, slice(b, b + 1)), some(scene.target, slice(b, b + 1)), masses=masses)
        for b in range(4)
    ]
    torch.testing.assert_close(sum(parts), expected)
    torch.testing.assert_close(criterion(scene.input, scene.target, masses=Masses.of_targets(1)), total / 1.5)


def test_groups_of_queries_come_before_the_least() -> None:
    normalizer = TargetNormalizer(groups=3, least=4.0)
    for count, expected in ((0, 4.0), (1, 4.0), (2, 6.0)):
        masses = Masses.of_targets(count)
        assert normalizer("cls", masses, masses, masses).item() == expected
