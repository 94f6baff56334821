"""Uniform matching: equal to a loop and to the reference, and what it does at its limits."""

import pytest
import torch

from tests.oracles import anchors as oracle
from tests.support.anchor_problems import SIZES, assigned, grid_boxes, problem_on_a_grid
from tests.support.peers import peer
from tests.support.problems import permuted, random_boxes, random_problem
from uotod.loss import GIoULoss
from uotod.match import Uniform


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize(("preds", "targets"), [*SIZES, (40, 6)])
@pytest.mark.parametrize(("k", "positive", "negative"), [(4, 0.15, 0.7), (1, 0.5, 0.3), (2, 0.0, 1.0)])
@pytest.mark.parametrize("based", [False, True])
def test_it_equals_a_loop(seed: int, preds: int, targets: int, k: int, positive, negative, based: bool) -> None:
    torch.manual_seed(seed)
    problem, anchors = problem_on_a_grid(preds, targets), grid_boxes(preds)
    matcher = Uniform(topk=k, positive=positive, negative=negative, is_anchor_based=based)
    found = assigned(matcher(problem.input, problem.target, anchors))
    for b in range(2):
        real = problem.target["mask"][b].nonzero().flatten().tolist()
        located = (anchors if based else problem.input["pred_boxes"][b]).tolist()
        boxes = problem.target["boxes"][b][real].tolist()
        expected = oracle.uniform_assignment(located, anchors.tolist(), boxes, k, positive, negative)
        assert found[b] == [[*real, targets, -1][j] for j in expected]


@pytest.mark.parametrize("seed", range(100))
@pytest.mark.parametrize("spread", [1.0, 4.0])
def test_it_is_the_assigner_of_mmdet_where_one_target_chooses(seed: int, spread: float) -> None:
    """A prediction that several choose goes to the last one there, and to the nearest one here."""
    assigners = peer("mmdet.models.task_modules.assigners")
    structures = peer("mmengine.structures")
    torch.manual_seed(seed)
    targets = seed % 7
    anchors, boxes = random_boxes(80), random_boxes(targets)
    pred_boxes = random_boxes(80)
    pred_boxes[::2] = anchors[::2] + 0.02 * torch.randn(40, 4, dtype=torch.float64) / spread
    if targets:
        pred_boxes[1::4] = boxes[torch.randint(0, targets, (20,))] + 0.01 * torch.rand(20, 4, dtype=torch.float64)
    result = assigners.UniformAssigner(0.15, 0.7, 4).assign(
        structures.InstanceData(priors=anchors, decoder_priors=pred_boxes),
        structures.InstanceData(bboxes=boxes, labels=torch.zeros(targets, dtype=torch.long)),
    )
    expected = torch.where(result.gt_inds == 0, targets, result.gt_inds - 1).where(result.gt_inds >= 0, -1).tolist()
    input = {"pred_logits": torch.zeros(1, 80, 2, dtype=torch.float64), "pred_boxes": pred_boxes[None]}
    target = {"boxes": boxes[None], "labels": torch.zeros(1, targets, dtype=torch.long)}
    found = assigned(Uniform()(input, target, anchors))[0]
    choices = oracle.uniform_choices(pred_boxes.tolist(), anchors.tolist(), boxes.tolist(), 4)
    alone = [i for i in range(80) if len(choices[i]) < 2]
    assert len(alone) > 40
    assert [found[i] for i in alone] == [expected[i] for i in alone]


def test_a_target_has_as_many_predictions_whatever_its_size() -> None:
    problem, anchors = random_problem(1, 400, 2, full=True), random_boxes(400)
    problem.target["boxes"] = torch.tensor([[[0.0, 0.0, 0.02, 0.02], [0.2, 0.2, 1.0, 1.0]]], dtype=torch.float64)
    plan = Uniform(positive=0.0)(problem.input, problem.target, anchors)[0]
    assert plan[:, :2].sum(0).tolist() == [8, 8]


def test_the_unit_of_the_boxes_does_not_matter() -> None:
    problem = random_problem(2, 60, 5)
    plan = Uniform()(problem.input, problem.target, problem.anchors)
    scaled = problem.target | {"boxes": 640 * problem.target["boxes"]}
    input = problem.input | {"pred_boxes": 640 * problem.input["pred_boxes"].detach()}
    assert torch.equal(Uniform()(input, scaled, 640 * problem.anchors.boxes), plan)


def test_predictions_that_are_not_finite_are_not_chosen() -> None:
    problem = random_problem(1, 60, 5, full=True)
    matcher = Uniform(nonfinite="propagate")
    bad = matcher(problem.input, problem.target, problem.anchors)[0, :, :-1].any(-1) & (torch.arange(60) % 2 == 0)
    assert bad.any()
    rest = permuted(problem, (~bad).nonzero().flatten(), torch.arange(5))
    expected = matcher(rest.input, rest.target, rest.anchors)
    with torch.no_grad():
        problem.input["pred_boxes"][0, bad] = torch.nan
    plan = matcher(problem.input, problem.target, problem.anchors)
    assert torch.equal(plan[:, ~bad], expected)
    assert (plan[:, bad, -1] == 1).all()


def test_modules_take_the_place_of_the_distance_of_predictions() -> None:
    problem = random_problem(2, 40, 3, full=True)
    matcher = Uniform(topk=1, positive=0.0, loc_match_module=GIoULoss(reduction="none"))
    cost = matcher.compute_cost_matrix(problem.input, problem.target, problem.anchors)[..., :3]
    found = assigned(matcher(problem.input, problem.target, problem.anchors))
    for b in range(2):
        chosen: list[set[int]] = [set() for _ in range(40)]
        for j, box in enumerate(problem.target["boxes"][b].tolist()):
            distance = [oracle.l1(x, box) for x in problem.anchors.boxes.tolist()]
            for i in (int(cost[b, :, j].argmin()), distance.index(min(distance))):
                chosen[i].add(j)
        for i in range(40):
            if chosen[i]:
                assert found[b][i] == min(chosen[i], key=cost[b, i].tolist().__getitem__)
        assert sum(x in range(3) for x in found[b]) == sum(map(bool, chosen))


def test_a_bare_cost_is_matched_to_the_cheapest_of_each_target() -> None:
    cost = torch.tensor([[[0.1, 0.2], [0.3, 0.1], [0.2, 0.9], [0.9, 0.8]]])
    plan = Uniform(topk=2, background=False).compute_matching(cost, torch.ones(1, 2, dtype=torch.bool))
    assert plan[0].tolist() == [[1, 0], [0, 1], [1, 0], [0, 0]]


def test_anchors_must_be_given() -> None:
    problem = random_problem(1, 3, 2)
    with pytest.raises(ValueError, match=r"anchors must be given to Uniform: .* got None"):
        Uniform()(problem.input, problem.target)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"topk": 0}, "topk must be at least 1, got 0"),
        ({"positive": -0.1}, r"positive must lie in \[0.0, 1.0\], got -0.1"),
        ({"negative": 1.1}, r"negative must lie in \[0.0, 1.0\], got 1.1"),
    ],
)
def test_bad_arguments_raise(options, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Uniform(**options)
