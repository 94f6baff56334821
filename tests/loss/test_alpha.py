"""An `alpha` for each class: the loss of each class with its own number, in losses, costs and criteria."""

import copy
import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tests.support.grids import grid_problem
from tests.support.problems import random_problem
from uotod import recipes
from uotod.loss import (
    DetectionLoss,
    IoUAwareBCELoss,
    MatchabilityAwareLoss,
    SigmoidFocalCost,
    SigmoidFocalLoss,
    VarifocalLoss,
)
from uotod.match import OTA, Hungarian, SoftMin

N = "none"
L1 = nn.L1Loss(reduction=N)
VALUES = [0.1, 0.25, 0.9, 0.0, 1.0]
CLASSES = len(VALUES)
ALPHA = torch.tensor(VALUES, dtype=torch.float64)
LOSSES = {
    "focal": lambda **o: SigmoidFocalLoss(gamma=1.5, **o),
    "focal-smooth": lambda **o: SigmoidFocalLoss(label_smoothing=0.1, **o),
    "iou-aware": lambda **o: IoUAwareBCELoss(gamma=1.5, **o),
    "matchability": lambda **o: MatchabilityAwareLoss(**o),
    "varifocal": lambda **o: VarifocalLoss(gamma=1.5, **o),
    "varifocal-rtdetr": lambda **o: VarifocalLoss(form="rtdetr", **o),
    "varifocal-ultralytics": lambda **o: VarifocalLoss(form="ultralytics", **o),
}
ALL = {**LOSSES, "cost": lambda **o: SigmoidFocalCost(**o)}
MATCHERS = {"one": Hungarian(loc_match_module=L1), "many": SoftMin(loc_match_module=L1, reg=0.3)}


def by_class(build, logits: Tensor, target: Tensor) -> Tensor:
    """Return the loss (N, C) whose columns are those of losses with the number of their class."""
    columns = [build(alpha=value, reduction=N)(logits, target)[..., i] for i, value in enumerate(VALUES)]
    return torch.stack(columns, dim=-1)


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("rows", [0, 1, 7])
def test_it_is_a_loop_over_the_classes(name, rows) -> None:
    logits = torch.randn(rows, CLASSES, dtype=torch.float64).requires_grad_()
    for target in (torch.randint(CLASSES, (rows,)), torch.eye(CLASSES + 1).double()[torch.arange(rows) % 6, :CLASSES]):
        ours, loop = LOSSES[name](alpha=ALPHA, reduction=N)(logits, target), by_class(LOSSES[name], logits, target)
        torch.testing.assert_close(ours, loop)
        gradients = [torch.autograd.grad(x.sum(), logits, retain_graph=True)[0] for x in (ours, loop)]
        torch.testing.assert_close(*gradients)


@pytest.mark.parametrize(
    "name", ["iou-aware", "matchability", "varifocal", "varifocal-rtdetr", "varifocal-ultralytics"]
)
def test_so_it_is_for_qualities(name) -> None:
    logits, quality = torch.randn(6, CLASSES, dtype=torch.float64), torch.rand(6, CLASSES, dtype=torch.float64)
    quality = quality * (torch.rand(6, CLASSES) > 0.4)
    torch.testing.assert_close(
        LOSSES[name](alpha=ALPHA, reduction=N)(logits, quality), by_class(LOSSES[name], logits, quality)
    )


def test_the_cost_has_the_number_of_the_label() -> None:
    logits, labels = torch.randn(20, CLASSES, dtype=torch.float64), torch.arange(20) % CLASSES
    expected = [
        SigmoidFocalCost(alpha=VALUES[y], reduction=N)(x[None], y[None]) for x, y in zip(logits, labels, strict=True)
    ]
    torch.testing.assert_close(SigmoidFocalCost(alpha=ALPHA, reduction=N)(logits, labels), torch.cat(expected))
    problem = random_problem(2, 8, 4, CLASSES, low=0, full=True)
    cost = Hungarian(cls_match_module=SigmoidFocalCost(alpha=ALPHA, reduction=N))
    found = cost.compute_cost_matrix(problem.input, problem.target)
    for image, target in ((i, j) for i in range(2) for j in range(4)):
        label = problem.target["labels"][image, target]
        alone = SigmoidFocalCost(alpha=VALUES[label], reduction=N)
        expected = alone(problem.input["pred_logits"][image], label.expand(8))
        torch.testing.assert_close(found[image, :, target], expected.detach())


@pytest.mark.parametrize("matcher", MATCHERS)
@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("value", [0.25, 0.7])
def test_a_criterion_with_equal_numbers_is_that_of_one(name, matcher, value) -> None:
    problem = random_problem(2, 9, 3, CLASSES, low=0)
    one, each = (
        DetectionLoss(LOSSES[name](alpha=x, reduction=N), L1, MATCHERS[matcher], "none")(problem.input, problem.target)
        for x in (value, torch.full((CLASSES,), value, dtype=torch.float64))
    )
    torch.testing.assert_close(each, one)
    gradients = [torch.autograd.grad(x, list(problem.input.values()), materialize_grads=True) for x in (one, each)]
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(b, a)


@pytest.mark.parametrize("matcher", MATCHERS)
def test_a_criterion_is_the_sum_of_those_of_the_classes(matcher) -> None:
    """The focal loss of each logit stands alone: that of class c alone is what the others leave."""
    problem = random_problem(2, 9, 3, CLASSES, low=0, full=True)
    plan = MATCHERS[matcher](problem.input, problem.target)
    loss = DetectionLoss(SigmoidFocalLoss(alpha=ALPHA, reduction=N), L1, MATCHERS[matcher], "none", reduction="sum")
    one_hot = nn.functional.one_hot(problem.target["labels"], CLASSES).double()
    rows = torch.cat((one_hot, torch.zeros(2, 1, CLASSES).double()), dim=1)
    expected = 0.0
    for column in range(rows.shape[1]):
        target = rows[:, column, None].expand(-1, 9, -1)
        values = by_class(lambda **o: SigmoidFocalLoss(**o), problem.input["pred_logits"], target)
        expected = expected + (plan[..., column, None] * values).sum()
    torch.testing.assert_close(loss.terms(problem.input, problem.target)["loss_cls"], expected)


@pytest.mark.parametrize("name", ALL)
def test_it_moves_with_the_module_and_is_no_state(name) -> None:
    loss = ALL[name](alpha=VALUES, reduction=N)
    assert not loss.state_dict()
    assert loss.double().alpha.dtype == torch.float64
    assert loss.to("meta").alpha.device.type == "meta"
    given = ALPHA.clone()
    loss = ALL[name](alpha=given, reduction=N)
    given.zero_()
    assert torch.equal(loss.alpha, ALPHA)
    assert repr(copy.deepcopy(loss)) == repr(loss)
    assert "alpha=[0.1, 0.25, 0.9, 0.0, 1.0]" in repr(loss)


@pytest.mark.parametrize("name", ALL)
def test_sequences_and_numbers_of_numpy_are_numbers(name) -> None:
    logits, labels = torch.randn(5, CLASSES), torch.arange(5)
    expected = ALL[name](alpha=ALPHA, reduction=N)(logits, labels)
    for given in (VALUES, tuple(VALUES), np.array(VALUES), np.array(VALUES, dtype=np.float32)):
        torch.testing.assert_close(ALL[name](alpha=given, reduction=N)(logits, labels), expected)
    for scalar in (np.float32(0.25), np.float64(0.25)):
        torch.testing.assert_close(
            ALL[name](alpha=scalar, reduction=N)(logits, labels), ALL[name](alpha=0.25, reduction=N)(logits, labels)
        )
    assert ALL[name](alpha=np.int64(1)).alpha == 1.0


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("bad", [math.nan, math.inf, -0.1])
def test_a_number_that_is_none_is_named_with_its_class(name, bad) -> None:
    with pytest.raises(ValueError, match=r"alpha\[2\] must lie in"):
        ALL[name](alpha=[0.1, 0.2, bad])
    if name != "matchability" and not name.startswith("varifocal"):
        with pytest.raises(ValueError, match=r"alpha\[0\] must lie in \[0.0, 1.0\], got 1.5"):
            ALL[name](alpha=torch.tensor([1.5, 0.5]))


@pytest.mark.parametrize("name", ALL)
def test_what_is_neither_a_number_nor_numbers_raises(name) -> None:
    for bad in ("0.25", None, True):
        with pytest.raises(TypeError, match="alpha"):
            ALL[name](alpha=bad)
    for bad in (torch.rand(2, 2), [], torch.tensor(0.25), torch.ones(3, dtype=torch.bool)):
        with pytest.raises((ValueError, TypeError), match="alpha"):
            ALL[name](alpha=bad)


@pytest.mark.parametrize("name", ALL)
def test_another_number_of_classes_raises(name) -> None:
    loss = ALL[name](alpha=[0.5, 0.5], reduction=N)
    with pytest.raises(ValueError, match=rf"alpha of {type(loss).__name__} must have one number .* 5 logits, got 2"):
        loss(torch.zeros(1, 5), torch.tensor([0]))
    problem = random_problem(2, 6, 2, CLASSES, low=0, full=True)
    reader = Hungarian(cls_match_module=loss)
    if name != "cost":
        reader = DetectionLoss(loss, L1, MATCHERS["one"], "none")
    with pytest.raises(ValueError, match=r"alpha of .* 5 logits, got 2"):
        reader(problem.input, problem.target)


def test_recipes_take_it_where_they_have_an_alpha() -> None:
    problem = random_problem(2, 12, 3, CLASSES, low=0, full=True)
    arguments = problem.input, problem.target, problem.anchors
    one, each, other = (
        recipes.retinanet(CLASSES, alpha=x)(*arguments)
        for x in (0.25, torch.full((CLASSES,), 0.25), [0.25, 0.25, 0.25, 0.25, 0.9])
    )
    torch.testing.assert_close(one, each)
    assert other != each
    by_loss = recipes.retinanet(CLASSES, losses={"cls": SigmoidFocalLoss(alpha=ALPHA, reduction=N)})(*arguments)
    torch.testing.assert_close(by_loss, recipes.retinanet(CLASSES, alpha=ALPHA)(*arguments))


def test_the_cost_of_ota_takes_the_number_of_each_class() -> None:
    problem = grid_problem(5, 4)
    arguments = problem.input, problem.target, problem.anchors
    classes = problem.input["pred_logits"].shape[-1]
    one, each = (OTA(alpha=x).compute_cost_matrix(*arguments) for x in (0.7, torch.full((classes,), 0.7).double()))
    torch.testing.assert_close(each, one)
    # a cost is the focal loss to the target of each class, and to zeros for the background
    weights = torch.linspace(0.1, 0.9, classes, dtype=torch.float64)
    found = OTA(alpha=weights, loc_weight=0.0, penalty=0.0).compute_cost_matrix(*arguments)
    logits, labels = problem.input["pred_logits"], problem.target["labels"]
    rows = torch.cat((torch.eye(classes).to(logits)[labels], logits.new_zeros(len(labels), 1, classes)), dim=1)
    loss = SigmoidFocalLoss(alpha=weights, reduction=N)
    for column in range(rows.shape[1]):
        expected = loss(logits, rows[:, column, None].expand_as(logits)).sum(-1)
        real = torch.ones(len(rows)).bool() if column == labels.shape[1] else problem.target["mask"][:, column]
        torch.testing.assert_close(found[real, :, column], expected[real])
    assert OTA(alpha=weights.tolist()).to("meta").alpha.is_meta
    with pytest.raises(ValueError, match=rf"alpha of OTA must have one number for each of the {classes} logits, got 2"):
        OTA(alpha=[0.1, 0.2])(*arguments)
    with pytest.raises(ValueError, match=r"alpha\[1\] must lie in \[0.0, 1.0\], got 1.5"):
        OTA(alpha=[0.1, 1.5])


def test_the_gradient_is_right() -> None:
    logits = torch.randn(3, CLASSES, dtype=torch.float64).requires_grad_()
    labels = torch.tensor([0, 2, 4])
    assert torch.autograd.gradcheck(lambda x: SigmoidFocalLoss(alpha=ALPHA, reduction=N)(x, labels), logits)
