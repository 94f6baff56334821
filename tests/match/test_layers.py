"""Matchers for stacked decoder layers: one matching for all of them, and the union of theirs."""

import itertools
import re

import pytest
import torch
from torch import Tensor, nn

from tests.oracles import sets as oracle
from tests.support.matcher_cases import CASES, COSTS
from tests.support.problems import random_boxes, random_problem
from uotod.loss import DetectionLoss, GIoULoss, Localization, PositiveNormalizer
from uotod.match import BalancedSinkhorn, Hungarian, IoUThreshold, SharedLayers, SoftMin, UnionVote, WeightedSum
from uotod.scene.scene import parse_scene
from uotod.solvers.vote import union_vote
from uotod.utils import Anchors


def layers_problem(layers: int, images: int = 3, preds: int = 12, targets: int = 4):
    """Return the inputs of the layers, the final one last, with a target and anchors for each image."""
    inputs = [random_problem(images, preds, targets).input for _ in range(layers)]
    target = random_problem(images, preds, targets).target
    target |= {"ignore": torch.rand(images, targets) < 0.2, "cost_weight": 0.5 + torch.rand(images, targets)}
    return inputs, target, Anchors(random_boxes(images, preds), 0.1)


def stacked(inputs):
    return inputs[-1] | {"aux_outputs": inputs[:-1]}


def plans(matcher, inputs, target, anchors=None) -> Tensor:
    """Return the plans (L, B, P, K) of all layers."""
    batch = parse_scene(stacked(inputs), target, anchors, auxiliary=True)
    plan = matcher.scene_plan(batch).to_dense()
    return plan.view(len(inputs), len(plan) // len(inputs), *plan.shape[1:])


@pytest.mark.parametrize("size", [(3, 12, 4), (2, 5, 0), (0, 5, 3), (2, 3, 6), (1, 1, 1)])
@pytest.mark.parametrize("layers", [1, 2, 4])
def test_all_layers_share_the_plan_of_one(size, layers) -> None:
    inputs, target, _ = layers_problem(layers, *size)
    for layer in range(-layers, layers):
        found = plans(SharedLayers(Hungarian(**COSTS), layer=layer), inputs, target)
        expected = Hungarian(**COSTS)(inputs[layer], target)
        assert torch.equal(found, expected.expand_as(found))


@pytest.mark.parametrize("name", CASES)
def test_every_matcher_can_be_shared(name) -> None:
    inputs, target, anchors = layers_problem(3, preds=20)
    matcher = CASES[name].build()
    found = plans(SharedLayers(matcher, layer=1), inputs, target, anchors)
    expected = matcher(inputs[1], target, anchors)
    torch.testing.assert_close(found, expected.expand_as(found), rtol=0, atol=0)


@pytest.mark.parametrize("targets", [1, 3])
@pytest.mark.parametrize("layers", [1, 2, 5])
def test_the_vote_equals_a_loop(targets, layers) -> None:
    for _ in range(20):
        index = torch.randint(-1, targets + 1, (layers, 3, 8))
        mass = (index.unsqueeze(2) == torch.arange(targets)[:, None]).float()  # (L, B, T, P)
        agreed, found = union_vote(mass)
        for b in range(3):
            expected = oracle.union_vote(index[:, b].tolist(), targets)
            for i in range(8):
                voted = [row[i] for row in expected if row[i] not in (-1, targets)]
                assert bool(agreed[b, i]) == bool(voted)
                assert not voted or found[b, i] == voted[0]


def test_votes_are_mass_and_the_winner_has_their_mean_weighted_by_themselves() -> None:
    mass = torch.rand(4, 2, 3, 8) * (torch.rand(4, 2, 3, 8) < 0.5)
    agreed, found = union_vote(mass)
    for b, i in itertools.product(range(2), range(8)):
        votes = mass[:, b, :, i].sum(0).tolist()
        winner = votes.index(max(votes))
        given = [float(x) for x in mass[:, b, winner, i] if x > 0]
        assert int(found[b, i]) == (winner if given else 0)
        assert float(agreed[b, i]) == pytest.approx(sum(x * x for x in given) / (sum(given) or 1))


def test_a_trace_of_mass_is_no_vote() -> None:
    mass = torch.rand(3, 2, 4, 8) * (torch.rand(3, 2, 4, 8) < 0.3)
    for x, y in zip(union_vote(mass), union_vote(mass + 1e-9), strict=True):
        where = union_vote(mass)[0] > 0
        torch.testing.assert_close(x[where], y[where])


@pytest.mark.parametrize("size", [(3, 12, 4), (2, 5, 0), (0, 5, 3), (2, 0, 3), (2, 3, 6), (1, 1, 1)])
@pytest.mark.parametrize(
    "rule", [Hungarian, lambda **o: Hungarian(copies=2, **o), lambda **o: IoUThreshold(negative=0.1)]
)
def test_the_union_of_the_layers_equals_a_loop(size, rule) -> None:
    matcher = rule(**COSTS)
    for _ in range(10):
        inputs, target, _ = layers_problem(4, *size)
        targets, found = size[2], plans(UnionVote(matcher), inputs, target)
        own = [matcher(input, target) for input in inputs]
        for b in range(size[0]):
            index = [[row.argmax().item() if row.sum() else -1 for row in plan[b]] for plan in own]
            expected = oracle.union_vote(index, targets)
            assert [[row.argmax().item() if row.sum() else -1 for row in plan[b]] for plan in found] == expected
        assert ((found.sum(-1) == 1) | (found.sum(-1) == 0)).all()


def test_layers_that_agree_are_their_own_union() -> None:
    inputs, target, _ = layers_problem(3)
    matcher = Hungarian(**COSTS)
    same = [inputs[0]] * 3
    assert torch.equal(plans(UnionVote(matcher), same, target), plans(matcher, same, target))
    shared = SharedLayers(matcher)
    target = {k: v for k, v in target.items() if k != "ignore"}
    assert torch.equal(plans(UnionVote(shared), inputs, target), plans(shared, inputs, target))


def test_the_vote_does_not_depend_on_the_order_of_the_layers() -> None:
    inputs, target, _ = layers_problem(4)
    target = {k: v for k, v in target.items() if k != "ignore"}
    matcher = UnionVote(Hungarian(**COSTS))
    assert torch.equal(plans(matcher, inputs[::-1], target), plans(matcher, inputs, target))


@pytest.mark.parametrize(("wrap", "crossing"), [(SharedLayers, (3, 4, 12)), (UnionVote, (12, 4, 12))])
def test_all_layers_cross_to_the_host_once(monkeypatch, wrap, crossing) -> None:
    crossings, to_host = [], Tensor.cpu
    monkeypatch.setattr(Tensor, "cpu", lambda self: crossings.append(tuple(self.shape)) or to_host(self))
    inputs, target, _ = layers_problem(4)
    plans(wrap(Hungarian(**COSTS)), inputs, target)
    assert crossings == [crossing]


@pytest.mark.parametrize("wrap", [SharedLayers, UnionVote])
def test_the_loss_of_a_layer_is_that_of_its_row_of_the_plan(wrap) -> None:
    inputs, target, _ = layers_problem(3)
    target = {k: v for k, v in target.items() if k != "ignore"}
    cls, loc = nn.CrossEntropyLoss(reduction="none"), GIoULoss(reduction="none")
    criterion = DetectionLoss(cls, loc, wrap(Hungarian(**COSTS)), reduction="sum")
    terms = criterion.terms(stacked(inputs), target)
    terms["loss"].backward()
    assert inputs[0]["pred_boxes"].grad.abs().sum() > 0
    plan = plans(criterion.matching_method, inputs, target)
    for layer, suffix in ((0, "_0"), (1, "_1"), (2, "")):
        expected = torch.zeros((), dtype=torch.float64)
        for b, i, j in plan[layer, ..., :-1].nonzero().tolist():
            expected += loc(inputs[layer]["pred_boxes"][b, i : i + 1], target["boxes"][b, j : j + 1]).sum()
        torch.testing.assert_close(terms[f"loss_loc{suffix}"], expected)


def test_groups_are_switched_off_through_the_wrapper() -> None:
    problem = random_problem(2, 12, 3)
    for wrap in (SharedLayers, UnionVote):
        matcher = wrap(Hungarian(**COSTS, groups=2))
        assert matcher(problem.input, problem.target)[..., :-1].sum() == 2 * problem.target["mask"].sum()
        assert matcher.eval()(problem.input, problem.target)[..., :-1].sum() == problem.target["mask"].sum()


def schedule(step: int) -> float:
    return 0.1 / (step + 1)


@pytest.mark.parametrize(
    "wrap",
    [SharedLayers, UnionVote, lambda m: WeightedSum([Hungarian(), m]), lambda m: SharedLayers(WeightedSum([m, m]))],
)
def test_a_wrapper_hands_the_step_to_its_matchers(wrap) -> None:
    inner = BalancedSinkhorn(reg=schedule)
    matcher = wrap(inner)
    matcher.set_step(4)
    assert inner.step == 4
    with pytest.raises(ValueError, match="step must be at least 0, got -1"):
        matcher.set_step(-1)


@pytest.mark.parametrize("name", CASES)
def test_every_matcher_takes_a_step(name) -> None:
    matcher = CASES[name].build()
    matcher.set_step(3)
    with pytest.raises(TypeError, match="step must be an integer, got 1"):
        matcher.set_step(1.0)


@pytest.mark.parametrize(
    "wrap", [SharedLayers, UnionVote, lambda m: WeightedSum([m]), lambda m: SharedLayers(UnionVote(m))]
)
def test_a_wrapper_sees_when_an_option_of_its_member_changes(wrap) -> None:
    member = Hungarian(**COSTS)
    matcher = wrap(member)
    member.background, member.nonfinite, member.box_format = False, "propagate", "cxcywh"
    assert (matcher.background, matcher.nonfinite, matcher.box_format) == (False, "propagate", "cxcywh")
    member.validate = True
    assert matcher.validate or isinstance(matcher, WeightedSum)  # whose own argument it is


@pytest.mark.parametrize("wrap", [SharedLayers, UnionVote, lambda m: WeightedSum([m])])
def test_a_wrapper_has_no_option_that_only_its_matchers_read(wrap) -> None:
    matcher = wrap(Hungarian(**COSTS, nonfinite="propagate", background=False, class_weight=[1.0, 2.0]))
    assert matcher.nonfinite == "propagate"
    assert not matcher.background
    for option in ("background_cost", "ignore_threshold", "class_weight", "is_anchor_based", "cls_match_module"):
        assert not hasattr(matcher, option)
    assert matcher.half().double().state_dict() == {}


def test_bad_arguments_raise() -> None:
    inputs, target, _ = layers_problem(2)
    with pytest.raises(TypeError, match="matcher must be a Matcher, got 1 of type int"):
        SharedLayers(1)
    with pytest.raises(TypeError, match=re.escape("layer must be an integer, got 1.0 of type float")):
        SharedLayers(Hungarian(), layer=1.0)
    for layer in (2, -3):
        message = f"layer must lie in [-2, 2) for 2 decoder layers, got {layer}"
        with pytest.raises(ValueError, match=re.escape(message)):
            plans(SharedLayers(Hungarian(**COSTS), layer=layer), inputs, target)


@pytest.mark.parametrize(("preds", "targets"), [(9, 4), (5, 1), (6, 0), (3, 6)])
def test_localisation_alone_may_learn_from_the_union(preds, targets) -> None:
    cls_loss, l1 = nn.BCEWithLogitsLoss(reduction="none"), nn.L1Loss(reduction="none")
    own = Hungarian(loc_match_module=l1)
    parts = {"bg_class_position": "none", "normalizer": PositiveNormalizer()}
    for _ in range(20):
        problem = random_problem(2, preds, targets, low=0)
        layers = [random_problem(2, preds, targets).input for _ in range(3)]
        input = problem.input | {"aux_outputs": layers}
        both = DetectionLoss(cls_loss, Localization(l1, union=True), own, **parts).terms(input, problem.target)
        alone = DetectionLoss(cls_loss, l1, own, **parts).terms(input, problem.target)
        union = DetectionLoss(cls_loss, l1, UnionVote(own), **parts).terms(input, problem.target)
        for suffix in ("", "_0", "_1", "_2"):
            torch.testing.assert_close(both[f"loss_cls{suffix}"], alone[f"loss_cls{suffix}"])
            torch.testing.assert_close(both[f"loss_loc{suffix}"], union[f"loss_loc{suffix}"])


def test_a_union_of_soft_plans_keeps_the_heaviest_target() -> None:
    l1 = nn.L1Loss(reduction="none")
    matcher = SoftMin(loc_match_module=l1, reg=0.3)
    problem, earlier = random_problem(2, 5, 3, low=0), random_problem(2, 5, 3).input
    layers = [matcher(x, problem.target) for x in (earlier, problem.input)]
    scene = parse_scene(problem.input | {"aux_outputs": [earlier]}, problem.target, None, auxiliary=True)
    plan = UnionVote(matcher).scene_plan(scene).to_dense()
    for image, pred in itertools.product(range(2), range(5)):
        votes = sum(plan_of[image, pred, :-1] for plan_of in layers)
        winner = int(votes.argmax())
        mass = float(sum(x[image, pred, winner] ** 2 for x in layers) / (votes[winner] or 1))
        for index, own in enumerate(layers):
            expected = torch.zeros(4, dtype=plan.dtype)
            expected[winner] = mass
            rest = float(own[image, pred].sum()) - mass
            expected[-1] = max(rest, 0.0) if mass > 0 else own[image, pred, -1]
            torch.testing.assert_close(plan[2 * index + image, pred], expected)
