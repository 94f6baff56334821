"""SimOTA and DynamicSoftLabel against loops and against mmdetection, and what they promise beyond both."""

import math

import pytest
import torch
from torch import Tensor, nn

from tests.oracles import dynamic as oracle
from tests.support.grids import GridProblem, assigned, expected, grid_problem, images_of
from tests.support.peers import peer
from uotod.match import DynamicSoftLabel, Matcher, SimOTA
from uotod.solvers.dynamic_k import dynamic_k_match

SIZES = [0, 1, 2, 5, 9]
MMDET = {"region": "box_and_center", "radius": 2.5, "penalty": 1e5, "eps": 1e-7}


def plan_of(matcher: Matcher, problem: GridProblem) -> Tensor:
    return assigned(matcher(problem.input, problem.target, problem.anchors))


def loop(problem: GridProblem, rule) -> Tensor:
    images = images_of(problem)
    results = [rule(image) for image, _ in images]
    return expected(results, [columns for _, columns in images], problem.target["mask"].shape[1])


class TestDynamicK:
    @pytest.mark.parametrize("contested", ["all", "takers"])
    @pytest.mark.parametrize("seed", range(40))
    def test_it_equals_a_loop(self, seed: int, contested: str) -> None:
        """Costs are small integers, so that ties abound; some pairs and some targets are forbidden."""
        torch.manual_seed(seed)
        for targets, preds, topk in [(4, 9, 3), (1, 1, 10), (3, 4, 10), (6, 20, 5), (5, 2, 1)]:
            cost = torch.randint(4, (2, targets, preds)).double()
            cost[torch.rand(cost.shape) < 0.3] = math.inf
            cost[:, -1] = math.inf
            overlap = torch.rand(cost.shape, dtype=torch.float64)
            index = dynamic_k_match(cost, overlap, topk, contested)
            bare = dynamic_k_match(cost, None, topk, contested)
            for b in range(2):
                everywhere = [True] * preds
                for found, u in ((index, overlap[b].tolist()), (bare, None)):
                    rows = oracle.dynamic_k(cost[b].tolist(), u, everywhere, topk, contested == "takers")
                    assert found[b].tolist() == [targets if j is None else j for j in rows]

    @pytest.mark.parametrize("shape", [(0, 2, 3), (2, 0, 3), (2, 3, 0)])
    def test_nothing_to_match_is_background(self, shape: tuple[int, int, int]) -> None:
        index = dynamic_k_match(torch.zeros(shape), torch.zeros(shape), 10)
        assert index.shape == (shape[0], shape[2])
        assert (index == shape[1]).all()

    def test_a_contested_prediction_may_go_to_a_target_that_did_not_take_it(self) -> None:
        """Predictions 0 and 1 are the cheapest of the first two targets, and prediction 1 suits the third even more."""
        cost = torch.tensor([[[9.0, 5.0], [9.0, 4.0], [1.0, 2.0]]])
        assert dynamic_k_match(cost, None, 1, "all").tolist() == [[2, 2]]
        assert dynamic_k_match(cost, None, 1, "takers").tolist() == [[2, 1]]


class TestSimOTA:
    @pytest.mark.parametrize("seed", range(5))
    @pytest.mark.parametrize("targets", SIZES)
    def test_the_default_equals_a_loop_of_yolox(self, targets: int, seed: int) -> None:
        torch.manual_seed(seed)
        problem = grid_problem(6, targets)
        assert torch.equal(plan_of(SimOTA(), problem), loop(problem, oracle.sim_ota))

    @pytest.mark.parametrize("targets", SIZES)
    def test_region_and_rivals_are_those_of_the_loop(self, targets: int) -> None:
        problem = grid_problem(20, targets)
        del problem.input["pred_objectness"]
        options = {"radius": 2.5, "penalty": 1e5, "eps": 1e-7, "topk": 4}
        matcher = SimOTA(region="box_and_center", contested="takers", **options)
        rule = lambda image: oracle.sim_ota(image, both=True, takers_only=True, **options)  # noqa: E731
        assert torch.equal(plan_of(matcher, problem), loop(problem, rule))

    @pytest.mark.filterwarnings("ignore:.*autocast:FutureWarning")
    @pytest.mark.parametrize("with_objectness", [False, True])
    @pytest.mark.parametrize("targets", SIZES)
    def test_it_equals_mmdetection(self, targets: int, with_objectness: bool) -> None:
        assigner = mmdet_assigner("SimOTAAssigner")
        problem = grid_problem(30, targets, ties=False)
        scores = problem.input["pred_logits"].sigmoid()
        if with_objectness:
            scores = scores * problem.input["pred_objectness"].sigmoid().unsqueeze(-1)
        else:
            del problem.input["pred_objectness"]
        reference = mmdet_assignments(assigner, problem, scores.sqrt())  # its head takes the root
        assert torch.equal(plan_of(SimOTA(**MMDET), problem), reference)

    def test_an_image_without_candidates_is_all_background(self) -> None:
        problem = grid_problem(1, 2)
        problem.target["boxes"] = torch.tensor([[[500.0, 500.0, 501.0, 501.0]] * 2])
        problem.target["mask"][:] = True
        assert (plan_of(SimOTA(), problem) == 2).all()
        assert (plan_of(DynamicSoftLabel(), problem) == 2).all()

    def test_probabilities_near_one_keep_their_cost_finite_and_ordered(self) -> None:
        logits = torch.tensor([[[10.0], [30.0], [60.0], [200.0], [-200.0]]])
        problem = grid_problem(1, 1)
        cost = SimOTA(loc_weight=0.0, penalty=0.0, radius=99.0).compute_cost_matrix(
            {"pred_logits": torch.cat((logits, -logits), -1), "pred_boxes": torch.zeros(1, 5, 4)},
            {"labels": torch.tensor([[1]]), "boxes": torch.tensor([[[0.0, 0.0, 9.0, 9.0]]])},
            type(problem.anchors)(problem.anchors.centers[:5].float(), 8.0),
        )[0, :, 0]
        assert cost.isfinite().all()
        assert (cost[:4].diff() > 0).all()

    def test_an_infinite_penalty_forbids_what_lies_outside_the_region(self) -> None:
        problem = grid_problem(20, 5)
        plan = SimOTA(penalty=math.inf)(problem.input, problem.target, problem.anchors)
        for b, (image, columns) in enumerate(images_of(problem)):
            for i, j in plan[b, :, :-1].nonzero().tolist():
                assert oracle.in_center(image.points[i], image.strides[i], image.targets[columns.index(j)], 1.5)

    def test_one_hot_labels_equal_integer_labels(self) -> None:
        problem = grid_problem(4, 5)
        one_hot = problem.target | {"labels": nn.functional.one_hot(problem.target["labels"], 4)}
        for matcher in (SimOTA(), DynamicSoftLabel()):
            cost = matcher.compute_cost_matrix(problem.input, problem.target, problem.anchors)
            torch.testing.assert_close(matcher.compute_cost_matrix(problem.input, one_hot, problem.anchors), cost)

    def test_modules_replace_the_terms_of_the_cost(self) -> None:
        problem = grid_problem(3, 4)
        arguments = problem.input, problem.target, problem.anchors
        cost = SimOTA(loc_weight=0.0, penalty=0.0).compute_cost_matrix(*arguments)
        del problem.input["pred_objectness"]
        module = nn.BCEWithLogitsLoss(reduction="none")
        matcher = SimOTA(cls_match_module=module, loc_match_module=nn.L1Loss(reduction="none"), penalty=0.0)
        replaced = matcher.compute_cost_matrix(*arguments)
        bare = SimOTA(cls_match_module=module, loc_weight=0.0, penalty=0.0).compute_cost_matrix(*arguments)
        distance = torch.cdist(problem.input["pred_boxes"], problem.target["boxes"].nan_to_num(), p=1.0)
        allowed = cost[..., :-1] < math.inf
        torch.testing.assert_close((replaced - bare)[..., :-1][allowed], 3 * distance[allowed])

    @pytest.mark.parametrize("matcher", [SimOTA(), DynamicSoftLabel()])
    def test_points_with_strides_are_needed(self, matcher: Matcher) -> None:
        problem = grid_problem(1, 2)
        name = type(matcher).__name__
        with pytest.raises(ValueError, match=f"anchors must be given to {name}: boxes, Anchors or Points, got None"):
            matcher(problem.input, problem.target)
        with pytest.raises(ValueError, match=f"anchors must have a stride, which {name} needs"):
            matcher(problem.input, problem.target, torch.zeros(84, 4))

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ({"radius": 0.0}, r"radius must lie in \(0.0, inf\), got 0.0"),
            ({"topk": 0}, "topk must be at least 1, got 0"),
            ({"penalty": -1.0}, r"penalty must lie in \[0.0, inf\], got -1.0"),
            ({"region": "box"}, r"region must be one of \['center', 'box_and_center'\], got 'box'"),
            ({"contested": "none"}, r"contested must be one of \['all', 'takers'\], got 'none'"),
            ({"eps": 0.0}, r"eps must lie in \(0.0, inf\), got 0.0"),
        ],
    )
    def test_bad_arguments_raise(self, arguments, message) -> None:
        with pytest.raises(ValueError, match=message):
            SimOTA(**arguments)


class TestDynamicSoftLabel:
    @pytest.mark.parametrize("seed", range(5))
    @pytest.mark.parametrize("targets", SIZES)
    def test_it_equals_a_loop(self, targets: int, seed: int) -> None:
        torch.manual_seed(seed)
        problem = grid_problem(6, targets)
        rule = lambda image: oracle.dynamic_k(*oracle.soft_label_cost(image), topk=13)  # noqa: E731
        assert torch.equal(plan_of(DynamicSoftLabel(), problem), loop(problem, rule))

    def test_its_cost_is_that_of_the_loop(self) -> None:
        problem = grid_problem(5, 5)
        cost = DynamicSoftLabel(radius=2.0, loc_weight=1.0).compute_cost_matrix(
            problem.input, problem.target, problem.anchors
        )
        for b, (image, columns) in enumerate(images_of(problem)):
            wanted, _, candidate = oracle.soft_label_cost(image, radius=2.0, loc_weight=1.0)
            wanted = torch.tensor(wanted, dtype=torch.float64).view(len(columns), -1).T
            wanted[~torch.tensor(candidate)] = math.inf
            torch.testing.assert_close(cost[b][:, columns], wanted, rtol=1e-9, atol=1e-9)

    @pytest.mark.parametrize("targets", SIZES)
    def test_it_equals_mmdetection(self, targets: int) -> None:
        assigner = mmdet_assigner("DynamicSoftLabelAssigner", topk=13)
        problem = grid_problem(30, targets, ties=False)
        reference = mmdet_assignments(assigner, problem, problem.input["pred_logits"])
        assert torch.equal(plan_of(DynamicSoftLabel(), problem), reference)

    def test_a_far_point_of_a_large_target_keeps_a_finite_cost(self) -> None:
        problem = grid_problem(1, 1)
        target = {"boxes": torch.tensor([[[-1e5, -1e5, 1e5, 1.1e5]]]), "labels": torch.zeros(1, 1, dtype=torch.long)}
        problem.input = {k: v.float() for k, v in problem.input.items()}
        cost = DynamicSoftLabel().compute_cost_matrix(problem.input, target, problem.anchors)
        assert cost.isfinite().all()

    def test_soft_labels_of_several_classes_are_those_of_the_formula(self) -> None:
        problem = grid_problem(1, 1)
        target = {"boxes": torch.tensor([[[0.0, 0.0, 64.0, 64.0]]]), "labels": torch.tensor([[[0.25, 1.0, 0.0, 0.5]]])}
        cost = DynamicSoftLabel().compute_cost_matrix(problem.input, target, problem.anchors)[0, :, 0]
        bare = DynamicSoftLabel(cls_weight=0.0).compute_cost_matrix(problem.input, target, problem.anchors)[0, :, 0]
        for i, (x, box) in enumerate(zip(problem.input["pred_logits"][0], problem.input["pred_boxes"][0], strict=True)):
            soft = oracle.iou(box.tolist(), [0, 0, 64, 64]) * target["labels"][0, 0].double()
            loss = nn.functional.binary_cross_entropy_with_logits(x, soft, reduction="none")
            torch.testing.assert_close(cost[i] - bare[i], (loss * (soft - x.sigmoid()) ** 2).sum())


def mmdet_assigner(name: str, **options):
    """Return an assigner of mmdetection that takes float64: it writes the overlaps into float32."""
    assigners = peer("mmdet.models.task_modules.assigners")
    parent = getattr(assigners, name)

    class Double(parent):
        def dynamic_k_matching(self, *args):
            overlap, index = super().dynamic_k_matching(*args)
            return overlap.float(), index

    return Double(**options)


def mmdet_assignments(assigner, problem: GridProblem, scores: Tensor) -> Tensor:
    """Return mmdetection's assignment of each image as columns of the padded plan."""
    structures = peer("mmengine.structures")
    stride = problem.anchors.stride
    assert isinstance(stride, Tensor)
    priors = torch.cat((problem.anchors.centers, stride[:, None].expand(-1, 2)), dim=1)
    num_targets = problem.target["mask"].shape[1]
    rows = []
    for b, mask in enumerate(problem.target["mask"]):
        preds = structures.InstanceData(bboxes=problem.input["pred_boxes"][b], scores=scores[b].clone(), priors=priors)
        targets = structures.InstanceData(
            bboxes=problem.target["boxes"][b, mask], labels=problem.target["labels"][b, mask]
        )
        index = assigner.assign(preds, targets).gt_inds  # 0 is the background, targets count from 1
        columns = torch.cat((torch.tensor([num_targets]), mask.nonzero().squeeze(1)))
        rows.append(columns[index])
    return torch.stack(rows)
