"""Adaptive training sample selection: equal to a loop and to the reference, and what it does at its limits."""

import pytest
import torch
from torch import nn

from tests.oracles import anchors as oracle
from tests.support.anchor_problems import SIZES, assigned, grid_boxes, problem_on_a_grid
from tests.support.peers import peer
from tests.support.problems import permuted, random_boxes, random_problem
from uotod.loss import GIoULoss
from uotod.match import ATSS
from uotod.utils import Anchors, Points


class TestATSS:
    @pytest.mark.parametrize("seed", range(20))
    @pytest.mark.parametrize(("preds", "targets"), [*SIZES, (40, 6)])
    @pytest.mark.parametrize(("topk", "alpha", "margin"), [(9, 1.0, 0.0), (3, 1.0, 0.5), (1, 1.0, 0.0), (4, 0.8, 0.0)])
    def test_it_equals_a_loop(self, seed: int, preds: int, targets: int, topk: int, alpha: float, margin) -> None:
        torch.manual_seed(seed)
        problem = problem_on_a_grid(preds, targets)
        levels = torch.randint(0, 3, (preds,))
        anchors = Anchors(grid_boxes(preds), level=levels, num_levels=3)
        based = alpha == 1
        matcher = ATSS(topk=topk, alpha=alpha, margin=margin, is_anchor_based=based)
        found = assigned(matcher(problem.input, problem.target, anchors))
        for b in range(2):
            real = problem.target["mask"][b].nonzero().flatten().tolist()
            boxes, labels = (problem.target[k][b][real].tolist() for k in ("boxes", "labels"))
            located = (anchors.boxes if based else problem.input["pred_boxes"][b]).tolist()
            score = problem.input["pred_logits"][b].sigmoid().tolist()
            similarity = [
                [score[i][c] ** (1 - alpha) * oracle.iou(p, t) ** alpha for t, c in zip(boxes, labels, strict=True)]
                for i, p in enumerate(located)
            ]
            places = anchors.boxes.tolist()
            expected = oracle.atss_assignment(similarity, places, levels.tolist(), boxes, topk, margin)
            assert found[b] == [[*real, targets][j] for j in expected]

    @pytest.mark.parametrize("seed", range(100))
    @pytest.mark.parametrize("alpha", [1.0, 0.8])
    def test_it_is_the_assigner_of_mmdet(self, seed: int, alpha: float) -> None:
        assigners = peer("mmdet.models.task_modules.assigners")
        structures = peer("mmengine.structures")
        torch.manual_seed(seed)
        targets, shapes, strides = seed % 7, [(16, 16), (8, 8), (4, 4), (2, 2)], [8, 16, 32, 64]
        centers = Points.from_levels(shapes, strides, dtype=torch.float64)
        half = 4 * centers.stride.unsqueeze(-1)
        anchors = Anchors(torch.cat((centers.centers - half, centers.centers + half), -1), centers.stride)
        boxes, preds = 128 * random_boxes(targets), len(half)
        pred_boxes, logits = 128 * random_boxes(preds), torch.randn(preds, 3, dtype=torch.float64)
        labels = torch.randint(0, 3, (targets,))
        given = {"priors": anchors.boxes} | ({} if alpha == 1 else {"scores": logits, "bboxes": pred_boxes})
        result = assigners.ATSSAssigner(9, alpha=None if alpha == 1 else alpha).assign(
            structures.InstanceData(**given),
            [height * width for height, width in shapes],
            structures.InstanceData(bboxes=boxes, labels=labels),
        )
        expected = torch.where(result.gt_inds == 0, targets, result.gt_inds - 1)  # they count targets from 1
        matcher = ATSS(alpha=alpha, margin=0.01, is_anchor_based=alpha == 1)
        input = {"pred_logits": logits[None], "pred_boxes": pred_boxes[None]}
        plan = matcher(input, {"boxes": boxes[None], "labels": labels[None]}, anchors)
        assert assigned(plan)[0] == expected.tolist()
        if alpha == 1 and targets:
            assert plan[..., :-1].any()

    def test_a_single_candidate_is_positive(self) -> None:
        boxes = torch.tensor([[0.0, 0.0, 4.0, 4.0], [4.0, 0.0, 8.0, 4.0]])
        input = {"pred_logits": torch.zeros(1, 2, 2), "pred_boxes": boxes[None]}
        target = {"boxes": torch.tensor([[[0.0, 0.0, 5.0, 4.0]]]), "labels": torch.tensor([[1]])}
        assert ATSS(topk=1)(input, target, boxes)[0].tolist() == [[1, 0], [0, 1]]

    @pytest.mark.parametrize("value", [0.1, 0.3, 0.7])
    @pytest.mark.parametrize("count", [3, 7, 9])
    def test_equal_candidates_are_all_positive(self, value: float, count: int) -> None:
        """The mean of equal numbers is rounded above them if it is a plain sum over their number."""
        cost = torch.full((1, count, 1), value)
        plan = ATSS(background=False).compute_matching(cost, torch.ones(1, 1, dtype=torch.bool))
        assert (plan == 1).all()

    @pytest.mark.parametrize("scale", [1e-3, 640.0])
    def test_the_unit_of_the_boxes_does_not_matter(self, scale: float) -> None:
        problem = random_problem(2, 60, 5)
        plan = ATSS()(problem.input, problem.target, problem.anchors)
        anchors = Anchors(scale * problem.anchors.boxes, scale * problem.anchors.stride)
        scaled = problem.target | {"boxes": scale * problem.target["boxes"]}
        assert torch.equal(ATSS()(problem.input, scaled, anchors), plan)

    def test_predictions_that_are_not_finite_are_no_candidates(self) -> None:
        problem = random_problem(1, 60, 5, full=True)
        matcher = ATSS(nonfinite="propagate")
        bad = matcher(problem.input, problem.target, problem.anchors)[0, :, :-1].any(-1) & (torch.arange(60) % 2 == 0)
        assert bad.any()
        rest = permuted(problem, (~bad).nonzero().flatten(), torch.arange(5))
        expected = matcher(rest.input, rest.target, rest.anchors)
        with torch.no_grad():
            problem.input["pred_boxes"][0, bad] = torch.nan
        plan = matcher(problem.input, problem.target, problem.anchors)
        assert torch.equal(plan[:, ~bad], expected)
        assert (plan[:, bad, -1] == 1).all()

    def test_modules_take_the_place_of_the_iou(self) -> None:
        problem = random_problem(2, 60, 5)
        giou = ATSS(loc_match_module=GIoULoss(reduction="none"))
        cost = giou.compute_cost_matrix(problem.input, problem.target, problem.anchors)
        found = assigned(giou(problem.input, problem.target, problem.anchors))
        for b in range(2):
            real = problem.target["mask"][b].nonzero().flatten().tolist()
            expected = oracle.atss_assignment(
                (1 - cost[b][:, real]).tolist(),
                problem.anchors.boxes.tolist(),
                problem.anchors.level.tolist(),
                problem.target["boxes"][b][real].tolist(),
                9,
                0.0,
            )
            assert found[b] == [[*real, 5][j] for j in expected]

    def test_anchors_must_be_given(self) -> None:
        problem = random_problem(1, 3, 2)
        for based in (True, False):
            with pytest.raises(ValueError, match=r"anchors must be given to ATSS: .* got None"):
                ATSS(is_anchor_based=based)(problem.input, problem.target)

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"topk": 0}, "topk must be at least 1, got 0"),
            ({"margin": -1.0}, r"margin must lie in \[0.0, inf\), got -1.0"),
            ({"alpha": 1.5}, r"alpha must lie in \[0.0, 1.0\], got 1.5"),
            (
                {"alpha": 0.5, "loc_match_module": nn.L1Loss(reduction="none")},
                "alpha must be 1 with match modules, which bring a cost of their own, got 0.5",
            ),
        ],
    )
    def test_bad_arguments_raise(self, options, message: str) -> None:
        with pytest.raises(ValueError, match=message):
            ATSS(**options)
