"""Moving averages follow the training steps of loops that know nothing of them."""

import pytest
import torch

from tests.support.recipe_cases import CLASSES, problem_for
from uotod import recipes
from uotod.integrations.averages import update_averages
from uotod.loss import Branches, ByTerm, MovingAverageNormalizer, PositiveNormalizer


@pytest.mark.parametrize("by_term", [False, True])
def test_an_average_moves_with_each_step_and_not_in_validation(by_term: bool) -> None:
    average = MovingAverageNormalizer(momentum=0.5, initial=100.0)
    normalizer = ByTerm(PositiveNormalizer(), loc=average) if by_term else average
    problem, criterion = problem_for("retinanet"), recipes.retinanet(CLASSES, normalizer=normalizer)
    terms = criterion.terms(problem.input, problem.target, problem.anchors)
    with torch.no_grad():
        update_averages(criterion, terms)
    update_averages(criterion.eval(), terms)
    assert average.average == 100
    criterion.train()
    update_averages(criterion, terms)
    torch.testing.assert_close(average.average, (100 + terms["num_pos"].float()) / 2)


def test_those_of_branches_count_what_is_theirs() -> None:
    criterion, problem = recipes.yolo26(CLASSES), problem_for("yolo26")
    averages = [MovingAverageNormalizer(momentum=0.0) for _ in range(2)]
    criterion.main.normalizer, many = averages[0], criterion.branches["one2many_outputs"]
    many.loss.normalizer = averages[1]
    terms = criterion.terms(problem.input, problem.target, problem.anchors)
    update_averages(criterion, terms)  # the branch is not in the input
    assert averages[1].average == 100
    problem.input["one2many_outputs"] = problem_for("yolo26").input  # type: ignore[assignment]
    assert isinstance(criterion, Branches)
    terms = criterion.terms(problem.input, problem.target, problem.anchors)
    update_averages(criterion, terms)
    for average, name in zip(averages, ("num_pos", "num_pos_one2many"), strict=True):
        torch.testing.assert_close(average.average, terms[name].float().clamp(min=1))
