"""A compiled criterion computes what it computed before."""

import copy

import pytest
import torch
from torch import nn

import uotod
from tests.problems import random_problem
from uotod import recipes
from uotod.loss import DetectionLoss, GIoULoss, SigmoidFocalLoss
from uotod.match import Hungarian

C = 5


class Plain(nn.Module):
    """A module of a user."""

    def forward(self, input: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        return (input - target).abs().sum(-1)

    def _of_pair(self, box, target):
        raise AssertionError("not asked for")


class Graphs:
    """A backend of `torch.compile` that runs what it is given, and counts it."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self, graph, inputs):
        self.count += 1
        return graph.forward


@pytest.mark.filterwarnings("ignore:The .grad attribute:UserWarning")  # torch's own, of tensors that are not leaves
@pytest.mark.parametrize("recipe", ["detr", "deformable_detr", "rt_detr"])
def test_the_loss_and_its_gradient_stay(recipe) -> None:
    criterion, backend = recipes.ALL_RECIPES[recipe](C), Graphs()
    compiled = uotod.compile(criterion, backend=backend)
    losses = []
    for targets in (3, 4):  # another shape
        problem = random_problem(2, 9, targets, C + (recipe == "detr"), low=0)
        problem.target["labels"].clamp_(max=C - 1)
        for each in (criterion, compiled):
            input = {key: x.detach().clone().requires_grad_() for key, x in problem.input.items()}
            loss = each(input, problem.target)
            loss.backward()
            losses.append((loss.detach(), input["pred_logits"].grad, input["pred_boxes"].grad))
    for expected, actual in zip(losses[::2], losses[1::2], strict=True):
        for x, y in zip(expected, actual, strict=True):
            torch.testing.assert_close(y, x)
    assert backend.count > 0


def test_modules_of_a_user_stay_as_they_are() -> None:
    matcher = Hungarian(loc_match_module=GIoULoss(reduction="none"))
    criterion = DetectionLoss(SigmoidFocalLoss(reduction="none"), Plain(), matcher, "none")
    compiled = uotod.compile(criterion, backend="eager")
    assert "_of_pair" not in vars(compiled.loc_loss_module)
    assert "_of_pair" in vars(compiled.matching_method.loc_match_module)
    assert "_of_pair" not in vars(criterion.matching_method.loc_match_module)  # a copy was compiled


def test_a_copy_of_what_is_compiled_is_refused() -> None:
    compiled = uotod.compile(recipes.detr(C), backend="eager")
    with pytest.raises(TypeError, match="cannot be copied: copy it before it is compiled"):
        copy.deepcopy(compiled)
    assert list(copy.copy(compiled).state_dict()) == list(compiled.state_dict())


def test_what_is_no_module_is_named() -> None:
    with pytest.raises(TypeError, match=r"module must be a torch\.nn\.Module, got 3 of type int"):
        uotod.compile(3)
