"""A plan is what it says, whatever its slots: one, a few or one for each target."""

import dataclasses
from itertools import product

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from tests.support.problems import random_problem
from uotod.cost.labels import fold
from uotod.loss import (
    Classification,
    DetectionLoss,
    GIoULoss,
    Localization,
    NegativeProbLoss,
    Objectness,
    ObjectnessLoss,
    PositiveNormalizer,
    QualityFocalLoss,
    ScoreNormalizer,
    SigmoidFocalLoss,
)
from uotod.match import Hungarian
from uotod.plan import Plan
from uotod.scene.scene import parse_scene

N = "none"
B, P, T, C = 3, 9, 4, 5
SHAPES = [(3, 9, 4), (1, 1, 1), (2, 3, 6), (2, 5, 0), (2, 0, 3), (0, 4, 2)]


def random_index(images: int, preds: int, targets: int, mask: Tensor | None = None) -> Tensor:
    """Return the target of each prediction, `targets` for the background and -1 for an ignored one."""
    index = torch.randint(-1, targets + 1, (images, preds))
    if mask is not None and targets:
        padded = ~mask.gather(1, index.clamp(0, targets - 1)) & (index >= 0) & (index < targets)
        index = index.masked_fill(padded, targets)
    return index


def hard(images: int, preds: int, targets: int, mask: Tensor | None = None, *, background: bool = True) -> Plan:
    """Return a plan of one slot, of masses in (0, 1)."""
    mass = 0.1 + 0.8 * torch.rand(images, preds, dtype=torch.float64)
    index = random_index(images, preds, targets, mask)
    return Plan.from_index(index, targets, background, torch.float64, mass)


def two_slots(plan: Plan) -> Plan:
    """Return the plan with a second slot: some of the predictions are in it, and the first of those is empty."""
    assert plan.target is not None
    second = torch.rand(plan.mass.shape, dtype=torch.float64) < 0.5
    mass = torch.cat((plan.mass * ~second, plan.mass * second), dim=1)
    target = torch.cat((plan.target * ~second, plan.target * second), dim=1)
    return dataclasses.replace(plan, mass=mass, target=target)


def split(plan: Plan, mask: Tensor) -> Plan:
    """Return a plan of two slots that gives what a prediction has in part to the next target that is there."""
    assert plan.target is not None
    index, mass = plan.target[:, 0], plan.mass[:, 0]
    other = index.clone()
    for b, p in product(range(len(index)), range(index.shape[1])):
        there = [t for t in range(plan.num_targets) if mask[b, t] and t != int(index[b, p])]
        other[b, p] = there[(b + p) % len(there)] if there else index[b, p]
    share = torch.where(other == index, 0.0, 0.3).to(mass)
    some = (mass > 0) & (share > 0)
    second = torch.where(some, mass * share, 0)
    masses = torch.stack((mass - second, second), dim=1)
    return dataclasses.replace(plan, mass=masses, target=torch.stack((index, other.where(some, 0)), dim=1))


def dense(plan: Plan) -> Plan:
    """Return the plan with a slot for each target."""
    masses = plan.to_dense().transpose(1, 2)
    found = Plan.from_columns(masses, plan.num_targets)
    assert (found.background is None) == (plan.background is None)
    return found


def by_loop(plan: Plan) -> Tensor:
    """Return the public layout of a plan."""
    images, slots, preds = plan.mass.shape
    out = torch.zeros(images, preds, plan.num_targets + (plan.background is not None), dtype=plan.mass.dtype)
    for b, k, p in product(range(images), range(slots), range(preds)):
        if plan.mass[b, k, p] > 0:
            out[b, p, k if plan.target is None else int(plan.target[b, k, p])] += plan.mass[b, k, p]
    if plan.background is not None:
        out[:, :, plan.num_targets] = plan.background
    return out


@pytest.mark.parametrize("background", [True, False])
@pytest.mark.parametrize("shape", SHAPES)
def test_the_public_layout_of_an_index_is_one_hot(shape, background) -> None:
    images, preds, targets = shape
    index = random_index(*shape)
    plan = Plan.from_index(index, targets, background, torch.float32)
    expected = torch.zeros(images, preds, targets + background)
    for b, p in product(range(images), range(preds)):
        if 0 <= int(index[b, p]) < targets + background:
            expected[b, p, index[b, p]] = 1
    assert torch.equal(plan.to_dense(), expected)
    assert plan.mass.shape == (images, 1 if targets else 0, preds)
    assert (plan.background is None) == (not background)


@pytest.mark.parametrize("background", [True, False])
@pytest.mark.parametrize("shape", SHAPES)
def test_masses_come_back_as_they_were_given(shape, background) -> None:
    images, preds, targets = shape
    masses = torch.rand(images, preds, targets + background)
    plan = Plan.from_columns(masses.transpose(1, 2), targets)
    assert torch.equal(plan.to_dense(), masses)
    assert plan.to_dense().is_contiguous()
    assert plan.mass.shape == (images, targets, preds)


@pytest.mark.parametrize("background", [True, False])
@pytest.mark.parametrize("shape", SHAPES)
def test_mass_below_one_leaves_the_rest_to_the_background(shape, background) -> None:
    plan = hard(*shape, background=background)
    assert torch.equal(plan.to_dense(), by_loop(plan))
    if background:
        total = plan.to_dense().sum(-1)
        assert ((total - 1).abs() < 1e-12).logical_or(total == 0).all()


def test_the_public_layout_is_the_same_however_many_slots_there_are() -> None:
    plan = hard(B, P, T)
    for twin in (two_slots(plan), dense(plan), split(plan, torch.ones(B, T, dtype=torch.bool))):
        torch.testing.assert_close(twin.to_dense(), by_loop(twin), rtol=0, atol=0)
        torch.testing.assert_close(twin.positive, plan.positive)
    assert torch.equal(two_slots(plan).to_dense(), plan.to_dense())


@pytest.mark.parametrize("background", [True, False])
def test_no_targets_is_no_slot(background) -> None:
    index = torch.tensor([[0, -1, 0]])
    plan = Plan.from_index(index, 0, background, torch.float32)
    assert plan.mass.shape == (1, 0, 3)
    assert torch.equal(plan.positive, torch.zeros(1, 3))
    expected = torch.tensor([[1.0, 0.0, 1.0]]) if background else torch.zeros(1, 3)
    assert torch.equal(plan.background_mass(), expected)
    assert plan.to_dense().shape == (1, 3, int(background))
    assert len(plan.pairs(static=False).mass) == len(plan.pairs(static=True).mass) == 0
    assert plan.repeat(2).mass.shape == (2, 0, 3)
    weight = torch.ones(1, 0)
    assert torch.equal(plan.weighted(weight).to_dense(), plan.to_dense())


# --- what a plan becomes


@pytest.mark.parametrize("make", [lambda x: x, two_slots, dense], ids=["one", "few", "dense"])
def test_pairs_are_the_masses(make) -> None:
    plan = make(hard(B, P, T))
    expected = by_loop(plan)[..., :T]
    for static in (False, True):
        pairs = plan.pairs(static)
        found = torch.zeros(B, P, T, dtype=torch.float64)
        found.index_put_((pairs.image, pairs.pred, pairs.target), pairs.mass, accumulate=True)
        torch.testing.assert_close(found, expected, rtol=0, atol=0)
        assert (plan.mass[pairs.image, pairs.slot, pairs.pred] == pairs.mass).all()
    assert (plan.pairs(static=False).mass > 0).all()


@pytest.mark.parametrize("limit", [1, P, 2 * P + 1, 10**6])
@pytest.mark.parametrize("make", [lambda x: x, two_slots, dense], ids=["one", "few", "dense"])
def test_blocks_have_every_pair_once(make, limit) -> None:
    plan = make(hard(B, P, T))
    found = [plan.pairs(False, block) for block in plan.blocks(limit)]
    keys = sorted(key for x in found for key in zip(*(part.tolist() for part in x), strict=True))
    whole = plan.pairs(False)
    assert keys == sorted(zip(*(part.tolist() for part in whole), strict=True))


def test_an_ignored_prediction_loses_its_background_unless_that_is_the_quality_of_its_pair() -> None:
    plan = hard(B, P, T)
    dropped = torch.rand(B, P) < 0.5
    expected = plan.background.masked_fill(dropped & (plan.positive <= 0), 0)
    for twin in (plan, two_slots(plan)):
        found = twin.ignoring(dropped)
        assert torch.equal(found.background, expected)
        assert torch.equal(found.mass, twin.mass)
    found = dense(plan).ignoring(dropped)  # of a dense plan, whose mass is split, every dropped one
    assert torch.equal(found.background, plan.background.masked_fill(dropped, 0))
    without = hard(B, P, T, background=False)
    assert without.ignoring(dropped) is without


def test_weights_multiply_the_mass_of_their_targets() -> None:
    plan = hard(B, P, T)
    weight = 0.5 + torch.rand(B, T, dtype=torch.float64)
    for twin in (plan, two_slots(plan), dense(plan)):
        found = twin.weighted(weight).to_dense()[..., :T]
        torch.testing.assert_close(found, plan.to_dense()[..., :T] * weight.unsqueeze(1), rtol=1e-12, atol=0)
    background = plan.weighted(weight).background
    factor = torch.where(plan.positive > 0, weight.gather(1, plan.target.squeeze(1)), 1)
    torch.testing.assert_close(background, plan.background * factor, rtol=1e-12, atol=0)


@pytest.mark.parametrize("background", [True, False])
def test_quality_scales_masses_and_may_leave_the_rest_to_the_background(background) -> None:
    plan = hard(B, P, T, background=background)
    for twin in (plan, two_slots(plan), dense(plan)):
        quality = torch.rand_like(twin.mass)
        lost, kept = twin.scaled(quality), twin.scaled(quality, rest_to_background=True)
        for found in (lost, kept):
            assert torch.equal(found.mass, twin.mass * quality)
            assert torch.equal(found.unscaled, twin.mass)
        assert lost.background is twin.background
        total = twin.positive + twin.background_mass()
        torch.testing.assert_close(kept.positive + kept.background, total, rtol=1e-12, atol=1e-15)


def test_layers_are_repeated_one_after_the_other() -> None:
    plan = hard(B, P, T)
    for twin in (plan, two_slots(plan), dense(plan)):
        assert torch.equal(twin.repeat(2).to_dense(), torch.cat([twin.to_dense()] * 2))
        assert twin.repeat(1) is twin


# --- what a criterion makes of it

LOSSES = {
    "cross-entropy": lambda: (nn.CrossEntropyLoss(torch.rand(C).double() + 0.5, reduction=N), "first"),
    "smoothed": lambda: (nn.CrossEntropyLoss(label_smoothing=0.1, reduction=N), "last"),
    "bce": lambda: (nn.BCEWithLogitsLoss(reduction=N), N),
    "focal": lambda: (SigmoidFocalLoss(alpha=0.25, reduction=N), N),
    "quality focal": lambda: (Classification(QualityFocalLoss(reduction=N), quality="iou"), N),
    "rows": lambda: (Classification(Rows(), quality="score"), N),
}


class Rows(nn.Module):
    """A module of which nothing is known."""

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        return (input.sigmoid() - target).square().sum(1)


CASES = {
    "plain": {},
    "quality": {"quality": "iou"},
    "weight": {"weight": True},
    "weight and quality": {"quality": "iou", "weight": True},
    "positives": {"normalizer": PositiveNormalizer()},
    "scores": {"normalizer": ScoreNormalizer()},
    "mining": {"use_hard_negative_mining": True, "neg_to_pos_ratio": 0.5},
    "mining of few": {"use_hard_negative_mining": True, "neg_to_pos_ratio": 1.0, "min_negatives": 2.5},
    "sum": {"reduction": "sum"},
}


def results(plan: Plan, problem, loss: str, options: dict) -> tuple[dict[str, Tensor], list[Tensor]]:
    options = dict(options)
    quality, weighted = options.pop("quality", None), options.pop("weight", False)
    torch.manual_seed(1)
    module, position = LOSSES[loss]()
    target = dict(problem.target)
    if position == "last":
        target["labels"] = target["labels"] - 1
    if weighted:
        target["loss_weight"] = 0.5 + torch.rand(B, T, dtype=torch.float64)
    criterion = DetectionLoss(
        module,
        Localization(GIoULoss(reduction=N), quality=quality),
        Hungarian(loc_match_module=nn.L1Loss(reduction=N)),
        position,
        extra_terms=[Objectness(ObjectnessLoss(reduction=N))],
        **options,
    )
    leaves = {key: value.detach().clone().requires_grad_() for key, value in problem.input.items()}
    terms = criterion.terms(leaves, target, plan=plan)
    return terms, list(torch.autograd.grad(terms["loss"], list(leaves.values())))


def scene_problem():
    problem = random_problem(B, P, T, C)
    problem.input["pred_objectness"] = torch.randn(B, P, dtype=torch.float64)
    return problem


@pytest.mark.parametrize("options", CASES.values(), ids=list(CASES))
@pytest.mark.parametrize("loss", LOSSES)
def test_one_slot_few_and_all_have_the_same_losses_and_gradients(loss, options) -> None:
    problem = scene_problem()
    mask = problem.target["mask"]
    plan = hard(B, P, T, mask)
    if "weight" in options:  # of a split prediction the background has the weight of no target
        plan = Plan.from_index(random_index(B, P, T, mask), T, True, torch.float64)
    assert (plan.positive > 0).any()
    expected, gradients = results(plan, problem, loss, options)
    for twin in (two_slots(plan), dense(plan)):
        terms, found = results(twin, problem, loss, options)
        assert terms.keys() == expected.keys()
        for key, value in terms.items():
            torch.testing.assert_close(
                value, expected[key], rtol=1e-10, atol=1e-12, msg=lambda m, key=key: f"{key}: {m}"
            )
        for a, e in zip(found, gradients, strict=True):
            torch.testing.assert_close(a, e, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("options", CASES.values(), ids=list(CASES))
@pytest.mark.parametrize("loss", LOSSES)
def test_a_prediction_of_two_targets_has_the_same_losses_in_two_slots_and_in_all(loss, options) -> None:
    problem = scene_problem()
    mask = problem.target["mask"]
    plan = split(hard(B, P, T, mask), mask)
    assert ((plan.mass > 0).sum(1) > 1).any()
    expected, gradients = results(dense(plan), problem, loss, options)
    terms, found = results(plan, problem, loss, options)
    for key, value in terms.items():
        torch.testing.assert_close(value, expected[key], rtol=1e-10, atol=1e-12, msg=lambda m, key=key: f"{key}: {m}")
    for a, e in zip(found, gradients, strict=True):
        torch.testing.assert_close(a, e, rtol=1e-10, atol=1e-12)


def test_a_batch_without_targets_has_the_losses_of_its_background() -> None:
    problem = random_problem(B, P, 0, C)
    criterion = DetectionLoss(
        nn.CrossEntropyLoss(reduction=N),
        GIoULoss(reduction=N),
        Hungarian(cls_match_module=NegativeProbLoss(reduction=N)),
    )
    index = torch.zeros(B, P, dtype=torch.long)  # T = 0 is the background
    found = [
        criterion(problem.input, problem.target, plan=plan)
        for plan in (None, index, index.new_ones(B, P, 1).double(), Plan.from_index(index, 0, True, torch.float64))
    ]
    logits = problem.input["pred_logits"].flatten(0, 1)
    expected = nn.functional.cross_entropy(logits, torch.zeros(B * P, dtype=torch.long))
    for value in found:
        torch.testing.assert_close(value, expected)


# --- one slot stays one slot


class Sizes(TorchDispatchMode):
    """Record the sizes of what operations return."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes: list[int] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        self.sizes += [x.numel() for x in (out if isinstance(out, (tuple, list)) else (out,)) if isinstance(x, Tensor)]
        return out


MANY = 37  # classes
PREDS = 53


@pytest.mark.parametrize("scaled", [False, True])
@pytest.mark.parametrize("position", ["first", "none"])
def test_one_slot_is_folded_onto_classes_without_a_tensor_of_all_classes(position, scaled) -> None:
    problem = random_problem(2, PREDS, 7, MANY)
    scene = parse_scene(problem.input, problem.target, None).with_background(position, False)
    plan = hard(2, PREDS, 7, problem.target["mask"])
    if scaled:
        plan = plan.scaled(torch.rand_like(plan.mass), rest_to_background=True)
    with Sizes() as seen:
        labels = fold(plan, scene.targets, MANY, scene.bg_class)
    assert seen.sizes
    assert max(seen.sizes) < 2 * PREDS * MANY
    assert labels.soft is None
    with Sizes() as seen:
        fold(dense(plan), scene.targets, MANY, scene.bg_class)
    assert max(seen.sizes) >= 2 * PREDS * MANY  # that of many slots is what the other is not


def test_a_hard_plan_of_a_matcher_has_one_slot() -> None:
    problem = random_problem(2, PREDS, 7, MANY)
    matcher = Hungarian(loc_match_module=nn.L1Loss(reduction=N))
    plan = matcher.scene_plan(matcher.parse(problem.input, problem.target, None))
    assert plan.mass.shape == (2, 1, PREDS)
    assert torch.equal(plan.to_dense(), matcher(problem.input, problem.target))


@pytest.mark.parametrize(
    ("module", "position"),
    [
        (nn.CrossEntropyLoss(reduction=N), "first"),
        (SigmoidFocalLoss(reduction=N), N),
        (nn.BCEWithLogitsLoss(reduction=N), N),
    ],
    ids=["cross-entropy", "focal", "bce"],
)
def test_targets_of_one_slot_add_no_tensor_of_all_classes_to_the_loss(module, position) -> None:
    counts = []
    for targets in (1, 11):
        problem = random_problem(2, PREDS, targets, MANY, full=True)
        matcher = Hungarian(cls_match_module=NegativeProbLoss(reduction=N))
        criterion = DetectionLoss(module, GIoULoss(reduction=N), matcher, position)
        index = torch.arange(PREDS).expand(2, -1).clamp(max=targets)
        with Sizes() as seen:
            criterion(problem.input, problem.target, plan=index)
        counts.append(sum(size >= 2 * PREDS * MANY for size in seen.sizes))
    assert counts[0] == counts[1] > 0
