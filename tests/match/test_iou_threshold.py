"""Thresholds on the IoU: equal to a loop and to the reference, in bounded memory, and what they do at their limits."""

import pytest
import torch
from torch import nn

from tests.oracles import anchors as oracle
from tests.support.anchor_problems import SIZES, assigned, problem_on_a_grid
from tests.support.guards import LargestTensor, NoSynchronisation, take_gpu_path
from tests.support.peers import peer
from tests.support.problems import Problem, random_boxes, random_problem
from uotod import recipes
from uotod.match import IoUThreshold
from uotod.solvers import threshold
from uotod.solvers.candidates import stable_topk
from uotod.utils import box_iou


class TestStableTopk:
    @pytest.mark.parametrize("seed", range(5))
    @pytest.mark.parametrize("k", [0, 1, 4, 30])
    def test_it_is_the_head_of_a_stable_sort(self, seed: int, k: int, device: torch.device) -> None:
        torch.manual_seed(seed)
        values = torch.randint(-2, 3, (3, 5, 30)).double().to(device)
        values[0, 0] = -torch.inf
        expected = values.sort(dim=-1, descending=True, stable=True)
        found = stable_topk(values, k)
        assert torch.equal(found[0], expected.values[..., :k])
        assert torch.equal(found[1], expected.indices[..., :k])

    @pytest.mark.parametrize("shape", [(2, 0, 5), (0, 3, 5)])
    def test_no_rows_give_no_rows(self, shape) -> None:
        assert stable_topk(torch.zeros(shape), 2)[1].shape == (*shape[:2], 2)


class TestIoUThreshold:
    OPTIONS = (
        {},
        {"negative": 0.25, "force_match": "low_quality"},
        {"negative": (0.1, 0.4), "force_match": "all_best"},
        {"negative": (0.2, 0.2), "min_positive": 0.4},
        {"positive": 0.3, "force_match": "low_quality", "min_positive": 0.25},
        {"positive": 0.75, "force_match": "all_best", "min_positive": 0.5},
        {"negative": (0.0, 0.3), "force_match": None},
    )

    @pytest.mark.parametrize("options", OPTIONS)
    @pytest.mark.parametrize(("preds", "targets"), SIZES)
    @pytest.mark.parametrize("block", [1, 40, 1 << 17])
    def test_it_equals_a_loop_however_many_targets_it_visits_at_a_time(
        self, options, preds: int, targets: int, block: int, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(threshold, "MAX_BLOCK_ELEMENTS", block)
        for seed in range(4):
            torch.manual_seed(seed)
            problem = problem_on_a_grid(preds, targets, images=3)
            found = assigned(IoUThreshold(**options)(problem.input, problem.target))
            rule = {"positive": 0.5, "negative": None, "force_match": "best", "min_positive": 0.0} | options
            rule["negative"] = rule["positive"] if rule["negative"] is None else rule["negative"]
            if not isinstance(rule["negative"], tuple):
                rule["negative"] = (-1.0, rule["negative"])
            for b in range(3):
                real = problem.target["mask"][b].nonzero().flatten().tolist()
                boxes = problem.target["boxes"][b][real].tolist()
                overlap = [[oracle.iou(p, t) for t in boxes] for p in problem.input["pred_boxes"][b].tolist()]
                expected = oracle.threshold_assignment(overlap, len(real), **rule)
                assert found[b] == [[*real, targets, -1][j] for j in expected]

    @pytest.mark.parametrize("force", ["best", "low_quality", "all_best", None])
    def test_chunks_change_nothing(self, force, monkeypatch: pytest.MonkeyPatch) -> None:
        problem = random_problem(3, 500, 60)
        matcher = IoUThreshold(positive=0.6, negative=0.4, force_match=force)
        plan = matcher(problem.input, problem.target)
        for block in (1, 1000, 7001):
            monkeypatch.setattr(threshold, "MAX_BLOCK_ELEMENTS", block)
            assert torch.equal(matcher(problem.input, problem.target), plan)

    @pytest.mark.parametrize("force", ["best", "low_quality", "all_best"])
    @pytest.mark.parametrize("on_host", [True, False])
    def test_no_tensor_of_all_pairs_is_held(self, force, on_host: bool, monkeypatch: pytest.MonkeyPatch) -> None:
        problem = random_problem(1, 20_000, 80, full=True, dtype=torch.float32)
        matcher = IoUThreshold(force_match=force, is_anchor_based=True)
        batch = matcher.parse(problem.input, problem.target, problem.anchors)
        if not on_host:
            take_gpu_path(monkeypatch)
        monkeypatch.setattr(threshold, "MAX_GPU_BLOCK_ELEMENTS", threshold.MAX_BLOCK_ELEMENTS)
        with LargestTensor() as held:
            matcher.scene_plan(batch)
        assert 20_000 < held.elements <= threshold.MAX_BLOCK_ELEMENTS < 80 * 20_000

    @pytest.mark.parametrize("options", OPTIONS)
    def test_a_gpu_which_must_not_read_values_finds_the_same(self, options, monkeypatch: pytest.MonkeyPatch) -> None:
        problems = [problem_on_a_grid(30, 4), *(random_problem(*x) for x in ((3, 500, 5), (2, 3, 8), (2, 5, 0)))]
        matcher = IoUThreshold(**options)
        plans = [matcher(x.input, x.target) for x in problems]
        take_gpu_path(monkeypatch)
        for problem, plan in zip(problems, plans, strict=True):
            batch = matcher.parse(problem.input, problem.target, None)
            with NoSynchronisation():
                found = matcher.scene_plan(batch)
            assert torch.equal(found.to_dense(), plan)

    @pytest.mark.parametrize("targets", [20, 60])
    def test_targets_that_compete_again_and_again_are_served_in_turn(self, targets: int) -> None:
        torch.manual_seed(targets)
        problem = random_problem(1, 50, targets, full=True)
        problem.target["boxes"][:, targets // 3 :] = problem.target["boxes"][:, :1]  # more than the first choices
        overlap = box_iou(problem.target["boxes"][0], problem.input["pred_boxes"][0]).tolist()
        pairs = sorted((-overlap[j][i], j, i) for j in range(targets) for i in range(50))
        owner: dict[int, int] = {}
        for _, target, pred in pairs:
            if pred not in owner and target not in owner.values():
                owner[pred] = target
        found = assigned(IoUThreshold(positive=1.0)(problem.input, problem.target))[0]
        assert found == [owner.get(i, targets) for i in range(50)]

    @pytest.mark.parametrize("seed", range(10))
    def test_equal_targets_share_out_their_best_anchors(self, seed: int) -> None:
        torch.manual_seed(seed)
        problem = random_problem(1, 40, 6, full=True)
        problem.target["boxes"][:] = problem.target["boxes"][:, :1]
        plan = IoUThreshold(positive=1.0)(problem.input, problem.target)[0]
        overlap = torch.tensor(
            [oracle.iou(x, problem.target["boxes"][0, 0].tolist()) for x in problem.input["pred_boxes"][0].tolist()]
        )
        assert plan[:, :6].argmax(0).tolist() == overlap.sort(descending=True, stable=True).indices[:6].tolist()

    def test_a_target_below_the_least_iou_gets_nothing(self) -> None:
        iou = torch.tensor([[[0.3, 0.0], [0.1, 0.15]]])
        mask = torch.ones(1, 2, dtype=torch.bool)
        for force in ("best", "low_quality", "all_best"):
            matcher = IoUThreshold(force_match=force, min_positive=0.2, background=False)
            assert matcher.compute_matching(1 - iou, mask)[0].tolist() == [[1, 0], [0, 0]]

    def test_all_best_gives_a_tie_to_the_target_that_it_is_the_best_of(self) -> None:
        iou = torch.tensor([[[0.6, 0.7, 0.7], [0.5, 0.8, 0.1]]])  # the first ties target 0 and, with a higher IoU, 2
        mask = torch.ones(1, 3, dtype=torch.bool)
        rules = {f: IoUThreshold(force_match=f, background=False) for f in ("all_best", "low_quality")}
        found = {f: m.compute_matching(1 - iou, mask)[0].argmax(1).tolist() for f, m in rules.items()}
        assert found == {"all_best": [2, 1], "low_quality": [1, 1]}

    def test_an_image_without_targets_is_background_whatever_the_interval(self) -> None:
        problem = random_problem(2, 6, 3)
        problem.target["mask"][0] = False
        plan = IoUThreshold(negative=(0.1, 0.3))(problem.input, problem.target)
        assert (plan[0, :, -1] == 1).all()

    def test_the_weight_of_a_target_counts(self) -> None:
        boxes = torch.tensor([[[0.0, 0.0, 2.0, 2.0], [0.0, 0.0, 2.0, 1.5]]])
        input = {"pred_logits": torch.zeros(1, 1, 2), "pred_boxes": boxes[:, :1]}
        target = {"boxes": boxes[:, 1:], "labels": torch.zeros(1, 1, dtype=torch.long)}
        matcher = IoUThreshold(positive=0.7, force_match=None)
        assert assigned(matcher(input, target)) == [[0]]  # an IoU of 0.75
        assert assigned(matcher(input, target | {"cost_weight": torch.full((1, 1), 2.0)})) == [[1]]  # 1 - 2 (1 - 0.75)

    def test_a_module_may_have_similarities_above_one(self) -> None:
        assert IoUThreshold(positive=1.5, loc_match_module=nn.L1Loss(reduction="none")).positive == 1.5

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"positive": 1.5}, "positive must be at most 1 without match modules, for it is an IoU, got 1.5"),
            ({"negative": (0.3, 0.6)}, r"negative\[1\] must lie in \(-inf, 0.5\], got 0.6"),
            ({"negative": (0.4, 0.3)}, r"negative\[0\] must lie in \(-inf, 0.3\], got 0.4"),
            ({"negative": (0.4,)}, r"negative must be a number or an interval \(low, high\), got \(0.4,\)"),
            ({"min_positive": -0.1}, r"min_positive must lie in \[0.0, 1.0\], got -0.1"),
            ({"force_match": "all"}, r"force_match must be one of \['best', 'low_quality', 'all_best', None\], got"),
        ],
    )
    def test_bad_arguments_raise(self, options, message: str) -> None:
        with pytest.raises(ValueError, match=message):
            IoUThreshold(**options)

    @pytest.mark.parametrize("seed", range(100))
    @pytest.mark.parametrize("negative", [0.4, (0.1, 0.4)])
    def test_it_is_the_max_iou_assigner_of_mmdet(self, seed: int, negative) -> None:
        """All ties of a target's best; of two targets tied by one anchor the reference takes the last, we the best."""
        assigners = peer("mmdet.models.task_modules.assigners")
        structures = peer("mmengine.structures")
        torch.manual_seed(seed)
        targets = seed % 6
        anchors, boxes = random_boxes(60), random_boxes(targets)
        boxes[: targets // 3] = anchors[5 : 5 + targets // 3]
        reference = assigners.MaxIoUAssigner(0.5, negative, min_pos_iou=0.2, gt_max_assign_all=True)
        result = reference.assign(
            structures.InstanceData(priors=anchors),
            structures.InstanceData(bboxes=boxes, labels=torch.zeros(targets, dtype=torch.long)),
        ).gt_inds
        expected = torch.where(result == 0, targets, result - 1).where(result >= 0, -1)  # they count targets from 1
        matcher = IoUThreshold(
            negative=negative, force_match="all_best", min_positive=0.2, is_anchor_based=True, nonfinite="error"
        )
        target = {"boxes": boxes[None], "labels": torch.zeros(1, targets, dtype=torch.long)}
        input = {"pred_logits": torch.zeros(1, 60, 2, dtype=torch.float64), "pred_boxes": random_boxes(1, 60)}
        found = assigned(matcher(input, target, anchors))[0]
        overlap = box_iou(anchors, boxes)
        ties = (overlap == overlap.amax(0)).sum(1).tolist()
        assert [x for x, n in zip(found, ties, strict=True) if n < 2] == expected[torch.tensor(ties) < 2].tolist()


class TestTargetsWithoutArea:
    """Such a target overlaps nothing: what it would force is refused, or left out as the caller says."""

    @pytest.fixture(params=["point", "line"])
    def problem(self, request: pytest.FixtureRequest) -> Problem:
        problem = random_problem(2, 12, 3, full=True)
        problem.target["boxes"][1, 1, 2:] = problem.target["boxes"][1, 1, :2]
        if request.param == "line":
            problem.target["boxes"][1, 1, 3] += 0.1
        return problem

    @pytest.mark.parametrize("weighted", [False, True])
    def test_a_forced_one_is_refused(self, problem: Problem, weighted: bool) -> None:
        target = problem.target | ({"cost_weight": torch.ones(2, 3)} if weighted else {})
        message = r"target\['boxes'\] must have an area, got \[.*\] for target 1 in image 1, .*'ignore'.*min_positive"
        with pytest.raises(ValueError, match=message):
            IoUThreshold()(problem.input, target)
        with pytest.raises(ValueError, match=message):
            recipes.ssd300(4)(problem.input, target, problem.anchors)

    def test_one_that_the_caller_ignores_changes_nothing_for_the_others(self, problem: Problem) -> None:
        ignore = torch.zeros(2, 3, dtype=torch.bool)
        ignore[1, 1] = True
        plan = IoUThreshold()(problem.input, problem.target | {"ignore": ignore})
        assert torch.equal(plan, IoUThreshold()(problem.input, problem.target | {"mask": ~ignore}))
        assert recipes.ssd300(4)(problem.input, problem.target | {"ignore": ignore}, problem.anchors).isfinite()

    @pytest.mark.parametrize(
        "options", [{"min_positive": 1e-3}, {"force_match": "low_quality"}, {"force_match": "all_best"}]
    )
    def test_without_force_it_matches_nothing(self, problem: Problem, options: dict) -> None:
        plan = IoUThreshold(**options)(problem.input, problem.target)
        assert (plan[1, :, 1] == 0).all()

    @pytest.mark.parametrize("weighted", [False, True])
    def test_a_gpu_does_not_force_it_either(self, problem: Problem, weighted: bool, monkeypatch) -> None:
        target = problem.target | ({"cost_weight": torch.ones(2, 3)} if weighted else {})
        mask = torch.ones(2, 3, dtype=torch.bool)
        mask[1, 1] = False
        expected = IoUThreshold()(problem.input, target | {"mask": mask})
        take_gpu_path(monkeypatch)
        assert torch.equal(IoUThreshold()(problem.input, target), expected)
        with pytest.raises(ValueError, match="must have an area"):
            IoUThreshold(validate=True)(problem.input, target)

    def test_a_cost_of_ones_own_says_what_is_close(self, problem: Problem) -> None:
        matcher = IoUThreshold(loc_match_module=torch.nn.L1Loss(reduction="none"))
        assert (matcher(problem.input, problem.target)[1, :, 1] > 0).any()
