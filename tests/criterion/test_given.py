"""A plan that is given replaces matching: denoising queries, stored plans and plans of other code."""

import re

import pytest
import torch
from torch import Tensor, nn

from tests.oracles import loss as oracle
from tests.support.matcher_cases import CASES
from tests.support.problems import random_problem
from uotod.loss import DetectionLoss, GIoULoss, PositiveNormalizer, SigmoidFocalLoss
from uotod.match import Hungarian

N = "none"
L1 = nn.L1Loss(reduction=N)


class NoMatching(Hungarian):
    """A matcher that must not be asked."""

    def plan(self, batch):
        raise AssertionError("a given plan is not matched")


def simple(matcher=None, position: str = "first", **options) -> DetectionLoss:
    cls = SigmoidFocalLoss(reduction=N) if position == "none" else nn.CrossEntropyLoss(reduction=N)
    return DetectionLoss(cls, L1, NoMatching() if matcher is None else matcher, position, **options)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("mining", [None, 1.5])
def test_the_plan_of_a_matcher_gives_what_matching_gives(name, mining) -> None:
    problem = random_problem(3, 9, 4)
    matcher = CASES[name].build()
    options = {"use_hard_negative_mining": mining is not None, "neg_to_pos_ratio": mining}
    expected = simple(matcher, **options).terms(problem.input, problem.target, problem.anchors)
    plan = matcher(problem.input, problem.target, problem.anchors)
    terms = simple(**options).terms(problem.input, problem.target, plan=plan)
    assert terms.keys() == expected.keys()
    for key, value in terms.items():
        torch.testing.assert_close(value, expected[key])


@pytest.mark.parametrize("shape", [(2, 6, 3), (1, 1, 1), (2, 5, 0), (2, 0, 2), (0, 4, 2)])
@pytest.mark.parametrize("dtype", [torch.int64, torch.int32])
def test_indices_are_the_masses_of_their_one_hot_plan(shape, dtype) -> None:
    for _ in range(20):
        problem = random_problem(*shape, full=True)
        images, preds, targets = shape
        index = torch.randint(-1, targets + 1, (images, preds))
        dense = torch.nn.functional.one_hot(index % (targets + 2), targets + 2)[..., :-1].double()
        one, other = (simple()(problem.input, problem.target, plan=x) for x in (index.to(dtype), dense))
        torch.testing.assert_close(one, other)
        inputs = list(problem.input.values())
        for a, e in zip(torch.autograd.grad(one, inputs), torch.autograd.grad(other, inputs), strict=True):
            torch.testing.assert_close(a, e)


def test_denoising_queries_have_the_loss_of_their_own_targets() -> None:
    """Groups of positive and negative queries whose target is known: the formula without any matching."""
    groups, targets = 3, 4
    for _ in range(25):
        problem = random_problem(2, groups * 2 * targets, targets, low=0)
        mask = problem.target["mask"]
        own = torch.arange(targets).where(mask, -1)  # queries of padded targets are padding, too
        background = torch.full((2, targets), targets).where(mask, -1)
        plan = torch.cat((own, background), dim=1).repeat(1, groups)
        layers = [problem.input | {"pred_logits": problem.input["pred_logits"] * i} for i in (1.0, 0.5)]
        criterion = simple(position="none", normalizer=PositiveNormalizer())
        terms = criterion.terms(layers[0] | {"aux_outputs": layers[1:]}, problem.target, plan=plan)
        expected = [
            oracle.denoising_loss(
                x["pred_logits"], x["pred_boxes"], problem.target["labels"], problem.target["boxes"], mask, groups
            )
            for x in layers
        ]
        torch.testing.assert_close(terms["loss_cls"], expected[0][0])
        torch.testing.assert_close(terms["loss_loc"], expected[0][1])
        torch.testing.assert_close(terms["loss_cls_0"], expected[1][0])
        torch.testing.assert_close(terms["loss"], sum(sum(x) for x in expected))


def test_a_plan_of_no_background_has_no_column_for_it() -> None:
    problem = random_problem(2, 6, 3, low=0)
    matcher = Hungarian(loc_match_module=L1, background=False)
    criterion = simple(matcher, "none")
    plan = matcher(problem.input, problem.target)
    assert plan.shape == (2, 6, 3)
    expected = criterion(problem.input, problem.target)
    torch.testing.assert_close(criterion(problem.input, problem.target, plan=plan), expected)


def test_a_plan_has_no_gradient_and_takes_the_dtype_of_the_boxes() -> None:
    problem = random_problem(2, 6, 3, full=True)
    plan = torch.rand(2, 6, 4, requires_grad=True)
    loss = simple()(problem.input, problem.target, plan=plan)
    assert loss.dtype == torch.float64
    loss.backward()
    assert plan.grad is None
    before = plan.detach().clone()
    simple(use_hard_negative_mining=True, neg_to_pos_ratio=1.0)(problem.input, problem.target, plan=plan)
    assert torch.equal(plan, before)


def test_the_loss_is_linear_in_the_plan() -> None:
    problem = random_problem(2, 6, 3, full=True)
    criterion = DetectionLoss(nn.CrossEntropyLoss(reduction=N), GIoULoss(reduction=N), NoMatching(), reduction="sum")
    one, other = torch.rand(2, 2, 6, 4, dtype=torch.float64)
    losses = [criterion(problem.input, problem.target, plan=x) for x in (one, other, one + 2 * other)]
    torch.testing.assert_close(losses[2], losses[0] + 2 * losses[1])


def spoil(plan: Tensor, place: tuple[int, ...], value: float) -> Tensor:
    plan = plan.clone()
    plan[place] = value
    return plan


MASSES = torch.tensor([[[0.5, 0.0, 0.5], [0.0, 0.0, 1.0]]])
INDICES = torch.tensor([[0, 2]])


@pytest.mark.parametrize(
    ("plan", "message", "error"),
    [
        ([[0, 2]], "plan must be a tensor, got list", TypeError),
        (MASSES[:, :, :2], "plan must have shape (1, 2, 3) (masses) or (1, 2) (indices), got (1, 2, 2)", ValueError),
        (INDICES[:, :1], "plan must have shape (1, 2, 3) (masses) or (1, 2) (indices), got (1, 1)", ValueError),
        (MASSES.long(), "plan of shape (1, 2, 3) must have a floating dtype, got torch.int64", TypeError),
        (INDICES.double(), "plan of shape (1, 2) must have an integer dtype, got torch.float64", TypeError),
        (INDICES.bool(), "plan of shape (1, 2) must have an integer dtype, got torch.bool", TypeError),
        (spoil(MASSES, (0, 1, 2), -0.5), "plan must not be negative, got -0.5", ValueError),
        (spoil(MASSES, (0, 1, 2), torch.nan), "plan must be finite, got 1 non-finite values in image 0", ValueError),
        (spoil(MASSES, (0, 1, 1), 0.25), "got target 1 in image 0, prediction 1", ValueError),
        (spoil(INDICES, (0, 1), 3), "plan must lie in [-1, 3) as indices, got 3", ValueError),
        (spoil(INDICES, (0, 1), -2), "plan must lie in [-1, 3) as indices, got -2", ValueError),
        (spoil(INDICES, (0, 1), 1), "got target 1 in image 0, prediction 1", ValueError),
    ],
)
def test_bad_plans_raise(plan, message, error) -> None:
    problem = random_problem(1, 2, 2, full=True)
    problem.target["mask"][0, 1] = False
    with pytest.raises(error, match=re.escape(message)):
        simple()(problem.input, problem.target, plan=plan)


def test_an_ignored_target_cannot_be_matched_by_a_given_plan() -> None:
    problem = random_problem(1, 2, 2, full=True)
    target = problem.target | {"ignore": torch.tensor([[False, True]])}
    simple()(problem.input, target, plan=INDICES)
    with pytest.raises(ValueError, match=r"plan must not match targets .* got target 1 in image 0, prediction 0"):
        simple()(problem.input, target, plan=torch.tensor([[1, 2]]))


def test_without_background_the_index_of_the_background_raises() -> None:
    problem = random_problem(1, 2, 2, full=True, low=0)
    criterion = simple(Hungarian(background=False), "none")
    with pytest.raises(ValueError, match=re.escape("plan must lie in [-1, 2) as indices, got 2")):
        criterion(problem.input, problem.target, plan=torch.tensor([[0, 2]]))
