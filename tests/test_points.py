"""The rules of points and cells: each equals a loop and, where it is installed, the published implementation."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.oracles import points as oracle
from tests.problems import random_boxes
from uotod.match import FCOS, CenterRegion, GridCell, Matcher
from uotod.utils import Anchors, Points

UNITS = [1.0, 1 / 64]  # pixels, and the unit square
SHAPES, STRIDES = [(8, 8), (4, 4), (2, 2)], [8.0, 16.0, 32.0]  # an image of 64 x 64


def pyramid(unit: float = 1.0, dtype: torch.dtype = torch.float64) -> Points:
    return Points.from_levels(SHAPES, [s * unit for s in STRIDES], dtype=dtype)


def some_targets(seed: int, unit: float = 1.0) -> list[list[float]]:
    """Return 0 to 5 targets: whole pixels, which tie, in one half of the problems; duplicates; tiny ones."""
    torch.manual_seed(seed)
    boxes = 64 * random_boxes(seed % 6)
    boxes = boxes.round() if seed % 2 else boxes
    if seed % 5 == 4:
        boxes = torch.cat((boxes[-1:], boxes, boxes[:1], boxes[:1] / 64))
    return (boxes * unit).tolist()


def detect(matcher: Matcher, places: Any, targets: list[list[float]], pred_boxes: Tensor | None = None) -> list[Any]:
    """Return the target of each prediction of an image: a number, None for the background, "ignored" for neither."""
    preds = places.places.shape[-2]
    dtype = places.places.dtype
    if pred_boxes is None:
        pred_boxes = torch.zeros(preds, 4, dtype=dtype)
    input = {"pred_logits": torch.zeros(1, preds, 2, dtype=dtype), "pred_boxes": pred_boxes[None]}
    boxes = torch.tensor(targets, dtype=torch.float64).view(1, -1, 4)
    padding = torch.full((1, 1, 4), math.nan, dtype=torch.float64)
    mask = torch.ones(1, len(targets) + 1, dtype=torch.bool)
    mask[:, -1] = False
    target = {"boxes": torch.cat((boxes, padding), 1), "labels": torch.ones(mask.shape).long(), "mask": mask}
    plan = matcher(input, target, places)[0]
    assert ((plan == 0) | (plan == 1)).all()
    assert (plan.sum(1) <= 1).all()
    result = plan.argmax(1).tolist()
    rows = plan.sum(1).tolist()
    return ["ignored" if not row else None if j > len(targets) else j for j, row in zip(result, rows, strict=True)]


class TestFCOS:
    @pytest.mark.parametrize("unit", UNITS)
    @pytest.mark.parametrize("radius", [1.5, 0.8, None])
    def test_it_equals_a_loop(self, unit: float, radius: float | None) -> None:
        places, matched = pyramid(unit), 0
        strides, levels = places.stride.tolist(), places.level.tolist()
        ranges = oracle.default_ranges(strides, levels, 3)
        reach = [math.inf if radius is None else radius * s for s in strides]
        for seed in range(120):
            targets = some_targets(seed, unit)
            expected = oracle.fcos(places.centers.tolist(), reach, ranges, targets)
            assert detect(FCOS(radius=radius), places, targets) == expected
            matched += sum(j is not None for j in expected)
        assert matched > 500

    @pytest.mark.parametrize("radius", [1.5, None])
    def test_given_ranges_take_the_place_of_strides(self, radius: float | None) -> None:
        places, given = pyramid(), [(0.0, 20.0), (20.0, 35.0), (35.0, math.inf)]
        ranges = [given[level] for level in places.level.tolist()]
        reach = [math.inf if radius is None else radius * s for s in places.stride.tolist()]
        matcher = FCOS(radius=radius, ranges=given)
        anchors = Anchors(
            torch.cat((places.centers - 3, places.centers + 3), 1),
            None if radius is None else places.stride,
            places.level,
        )
        for seed in range(120):
            targets = some_targets(seed)
            expected = oracle.fcos(places.centers.tolist(), reach, ranges, targets)
            assert detect(matcher, places, targets) == expected
            assert detect(matcher, anchors, targets) == expected

    def test_it_is_torchvisions_rule_but_for_ties_and_bounds(self) -> None:
        places = pyramid()
        ranges = oracle.default_ranges(places.stride.tolist(), places.level.tolist(), 3)
        for seed in range(0, 200, 2):
            targets = some_targets(seed)
            if len({tuple(box) for box in targets}) < len(targets):
                continue
            expected = oracle.torchvision_fcos(places.centers.tolist(), places.stride.tolist(), ranges, targets)
            assert detect(FCOS(), places, targets) == expected

    @pytest.mark.parametrize("radius", [1.5, None])
    def test_it_equals_mmdet(self, radius: float | None) -> None:
        heads = pytest.importorskip("mmdet.models.dense_heads.fcos_head")
        structures = pytest.importorskip("mmengine.structures")
        ranges = [(0.0, 20.0), (20.0, 35.0), (35.0, math.inf)]
        places = pyramid(dtype=torch.float32)
        head = heads.FCOSHead(
            9, 4, feat_channels=4, stacked_convs=1, strides=[8, 16, 32], regress_ranges=ranges,
            center_sampling=radius is not None, center_sample_radius=radius or 1.5, norm_cfg=None,
        )  # fmt: skip
        for seed in range(120):
            targets = some_targets(seed)
            instances = structures.InstanceData(
                bboxes=torch.tensor(targets).view(-1, 4), labels=torch.arange(len(targets))
            )
            labels, _ = head.get_targets(list(places.centers.split([64, 16, 4])), [instances])
            theirs = [j if j < 9 else None for j in torch.cat(labels).tolist()]
            assert detect(FCOS(radius=radius, ranges=ranges), places, targets) == theirs

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    @pytest.mark.parametrize("order", [1, -1])
    def test_the_smaller_of_two_tiny_targets_wins_exactly(self, dtype: torch.dtype, order: int) -> None:
        """In float32 a score of 1e8 - area is the same for areas of 1 and 3."""
        targets = [[3.5, 2.5, 4.5, 5.5], [3.5, 3.5, 4.5, 4.5]][::order]
        small = 1 if order == 1 else 0
        assert detect(FCOS(), pyramid(dtype=dtype), targets)[0] == small

    def test_a_distance_on_the_bound_of_two_levels_is_on_both(self) -> None:
        places = Points(torch.tensor([[100.0, 100], [100, 100]]), torch.tensor([8.0, 16.0]))
        found = detect(FCOS(), places, [[36.0, 36, 164, 164]])
        assert found == [0, 0]

    def test_the_side_of_a_box_and_the_edge_of_its_centre_are_outside(self) -> None:
        places = Points(torch.tensor([[0.0, 5], [0.5, 5], [5, 10]]), 100.0)
        assert detect(FCOS(), places, [[0.0, 0, 10, 10]]) == [None, 0, None]
        places = Points(torch.tensor([[8.0, 20], [9, 20], [20, 32]]), 8.0)
        assert detect(FCOS(), places, [[0.0, 0, 40, 40]]) == [None, 0, None]

    def test_a_single_level_takes_targets_of_all_sizes(self) -> None:
        places = Points(torch.tensor([[500.0, 500]]), 8.0)
        for half in (0.1, 10, 499):
            assert detect(FCOS(), places, [[500 - half, 500 - half, 500 + half, 500 + half]]) == [0]

    def test_match_modules_choose_among_the_candidates(self) -> None:
        targets = [[0.0, 0, 40, 40], [4.0, 4, 36, 36]]
        pred_boxes = torch.tensor(targets[:1], dtype=torch.float64).expand(84, 4)
        by_area = detect(FCOS(), pyramid(), targets)
        by_cost = detect(FCOS(loc_match_module=torch.nn.L1Loss(reduction="none")), pyramid(), targets, pred_boxes)
        held = [a is not None for a in by_area]
        assert by_area.count(1) > 0
        assert [b is not None for b in by_cost] == held
        assert by_cost.count(0) > by_area.count(0)

    @pytest.mark.parametrize(
        ("matcher", "places", "message"),
        [
            (FCOS(), None, "anchors must be given to FCOS: boxes, Anchors or Points, got None"),
            (FCOS(), torch.zeros(2, 4), r"stride, which FCOS needs for radius=1.5: pass Anchors\(boxes, stride\)"),
            (FCOS(radius=None), torch.zeros(2, 4), "stride, which FCOS needs for ranges=None"),
            (
                FCOS(radius=None, ranges=[(0, 1), (1, 2)]),
                torch.zeros(2, 4),
                r"one \(low, high\) for each of the 1 levels of the anchors, got 2",
            ),
        ],
    )
    def test_what_is_missing_is_named(self, matcher: FCOS, places, message: str) -> None:
        input = {"pred_logits": torch.zeros(1, 2, 2), "pred_boxes": torch.zeros(1, 2, 4)}
        target = {"labels": torch.ones(1, 1).long(), "boxes": torch.zeros(1, 1, 4)}
        with pytest.raises(ValueError, match=message):
            matcher(input, target, places)

    @pytest.mark.parametrize(
        ("options", "message", "error"),
        [
            ({"radius": 0.0}, r"radius must lie in \(0.0, inf\), got 0.0", ValueError),
            ({"ranges": 3}, r"ranges must be a list of \(low, high\), got 3 of type int", TypeError),
            ({"ranges": [1]}, r"ranges\[0\] must be a pair \(low, high\), got 1", TypeError),
            ({"ranges": [(0, 1), (2, 1)]}, r"ranges\[1\]\[1\] must lie in \[2.0, inf\], got 1", ValueError),
        ],
    )
    def test_bad_arguments_raise(self, options, message: str, error) -> None:
        with pytest.raises(error, match=message):
            FCOS(**options)


SIZES = [[(6.0, 9.0), (10.0, 6.0)], [(20.0, 14.0), (15.0, 24.0)], [(50.0, 30.0), (32.0, 45.0)]]


def anchors_of_cells(unit: float = 1.0, dtype: torch.dtype = torch.float64) -> Anchors:
    """Return two anchors at each cell of the pyramid."""
    levels = []
    points = pyramid(unit, dtype)
    for centers, sizes in zip(points.centers.split([64, 16, 4]), SIZES, strict=True):
        half = torch.tensor(sizes, dtype=dtype) * unit / 2
        boxes = torch.cat((centers[:, None] - half, centers[:, None] + half), dim=-1)  # (cells, 2, 4)
        levels.append(boxes.flatten(0, 1))
    return Anchors.from_levels(levels, [s * unit for s in STRIDES])


def pairs_in_cells(anchors: Anchors, targets: list[list[float]]) -> set[tuple[int, int]]:
    centers = ((anchors.boxes[:, :2] + anchors.boxes[:, 2:]) / 2).tolist()
    return oracle.responsible(centers, anchors.stride.tolist(), anchors.level.tolist(), targets)


class TestGridCell:
    @pytest.mark.parametrize("unit", UNITS)
    @pytest.mark.parametrize("choose", ["shape", "anchor", "prediction"])
    @pytest.mark.parametrize(
        ("positive", "ignore", "by_anchor"), [(None, 0.5, False), (0.3, None, True), (0.5, 0.4, True)]
    )
    def test_it_equals_a_loop(self, unit: float, choose: str, positive, ignore, by_anchor: bool) -> None:
        anchors, matched, ignored = anchors_of_cells(unit), 0, 0
        matcher = GridCell(choose=choose, positive=positive, ignore=ignore, is_anchor_based=by_anchor)
        for seed in range(100):
            targets = some_targets(seed, unit)
            pred_boxes = anchors.boxes + 3 * unit * torch.rand_like(anchors.boxes)
            boxes = pred_boxes if choose == "prediction" else anchors.boxes
            measure = oracle.shape_iou if choose == "shape" else oracle.iou
            similarity = [[measure(box, other) for other in targets] for box in boxes.tolist()]
            located = anchors.boxes if by_anchor else pred_boxes
            overlap = [[oracle.iou(box, other) for other in targets] for box in located.tolist()]
            expected = oracle.grid_cell(pairs_in_cells(anchors, targets), similarity, overlap, positive, ignore)
            assert detect(matcher, anchors, targets, pred_boxes) == expected
            matched += sum(isinstance(j, int) for j in expected)
            ignored += expected.count("ignored")
        assert matched > 200
        assert (ignored > 0) == (ignore is not None)

    @pytest.mark.parametrize("several", [False, True])
    def test_it_equals_mmdet_where_each_target_has_its_cells_to_itself(self, several: bool) -> None:
        """A prediction that is responsible for one target may there be matched to another one, and the last wins."""
        assigners = pytest.importorskip("mmdet.models.task_modules.assigners")
        structures = pytest.importorskip("mmengine.structures")
        theirs = assigners.GridAssigner(pos_iou_thr=0.5, neg_iou_thr=0.5, min_pos_iou=0.0, gt_max_assign_all=False)
        matcher = GridCell(choose="anchor", positive=0.5, is_anchor_based=True)
        anchors, compared = anchors_of_cells(dtype=torch.float32), 0
        for seed in range(400):
            torch.manual_seed(seed)
            targets = (64 * random_boxes(3 if several else seed % 2, dtype=torch.float32)).tolist()
            pairs = pairs_in_cells(anchors, targets)
            owner = [[j for j in range(len(targets)) if (i, j) in pairs] for i in range(len(anchors.boxes))]
            if several and not _same_best(anchors, targets, owner):
                continue
            flags = torch.tensor([bool(own) for own in owner])
            result = theirs.assign(
                structures.InstanceData(priors=anchors.boxes, responsible_flags=flags.to(torch.uint8)),
                structures.InstanceData(
                    bboxes=torch.tensor(targets).view(-1, 4), labels=torch.zeros(len(targets), dtype=torch.long)
                ),
            )
            expected = [{0: None, -1: "ignored"}.get(k, k - 1) for k in result.gt_inds.tolist()]
            assert detect(matcher, anchors, targets) == expected
            compared += 1
        assert compared >= 100

    @pytest.mark.parametrize("unit", UNITS)
    def test_every_target_in_the_image_has_a_cell(self, unit: float) -> None:
        for x in (0.0, 7.999, 8.0, 16.0, 31.5, 32.0, 64.0):
            for y in (0.0, 40.0, 64.0):
                target = [(x - 2) * unit, (y - 2) * unit, (x + 2) * unit, (y + 2) * unit]
                assert detect(GridCell(), anchors_of_cells(unit), [target]).count(0) == 1

    def test_a_border_belongs_to_the_cell_on_the_right_and_below(self) -> None:
        points = Points.from_levels([(3, 3)], [8])
        for centre, cell in (((8, 8), 4), ((7.5, 8), 3), ((8, 7.5), 1), ((24, 24), 8), ((0, 24), 6), ((99, -5), 2)):
            target = [centre[0] - 1.0, centre[1] - 1.0, centre[0] + 1.0, centre[1] + 1.0]
            found = detect(GridCell(), points, [target])
            assert [i for i, j in enumerate(found) if j == 0] == [cell]

    def test_the_choice_is_made_over_all_levels(self) -> None:
        for size in (7.0, 17.0, 40.0):
            target = [20 - size / 2, 20 - size / 2, 20 + size / 2, 20 + size / 2]
            found = detect(GridCell(ignore=None), anchors_of_cells(), [target])
            assert found.count(0) == 1
            assert anchors_of_cells().level[found.index(0)] == [7.0, 17.0, 40.0].index(size)

    def test_a_target_that_loses_its_choice_takes_the_next_best_of_its_cell(self) -> None:
        anchors = Anchors(torch.tensor([[0.0, 1, 8, 7], [1, 0, 7, 8], [9, 1, 15, 7]]), 8.0)
        targets = [[0.0, 1, 8, 6], [0.0, 1, 8, 7], [2.0, 2, 6, 6]]  # the second fits the first anchor exactly
        assert detect(GridCell(ignore=None), anchors, targets) == [1, 0, None]
        assert detect(GridCell(ignore=None), anchors, [targets[0]] * 2) == [0, 1, None]

    @pytest.mark.parametrize("positive", [0.3, 0.5, 0.75])
    def test_an_iou_equal_to_the_threshold_matches(self, positive: float) -> None:
        anchors = Anchors(torch.tensor([[0.0, 0, 8, 8], [0, 0, 8, 8 * positive]], dtype=torch.float64), 8.0)
        target = [[0.0, 0, 8, 8]]
        assert detect(GridCell(positive=positive, ignore=None), anchors, target) == [0, 0]
        assert detect(GridCell(positive=None, ignore=None), anchors, target) == [0, None]

    def test_a_prediction_of_another_cell_is_ignored_if_it_overlaps_and_background_otherwise(self) -> None:
        points, target = Points.from_levels([(1, 3)], [8]), [[0.0, 0, 8, 8]]
        pred_boxes = torch.tensor([[0.0, 0, 8, 8], [0, 0, 8, 6], [0, 0, 8, 4]])  # an IoU of 1, 0.75 and 0.5
        assert detect(GridCell(), points, target, pred_boxes) == [0, "ignored", None]
        assert detect(GridCell(is_anchor_based=True), points, target, pred_boxes) == [0, None, None]

    def test_a_propagated_prediction_is_the_last_choice_of_its_cell(self) -> None:
        points = Points(torch.tensor([[4.0, 4], [4, 4], [12, 4]]), 8.0)
        pred_boxes = torch.tensor([[math.nan, 0, 8, 8], [0, 0, 1, 1], [0, 0, 8, 8]])
        for choose in ("shape", "anchor", "prediction"):
            matcher = GridCell(choose=choose, ignore=None, nonfinite="propagate")
            assert detect(matcher, points, [[0.0, 0, 8, 8]], pred_boxes) == [None, 0, None]
            assert detect(matcher, points, [[0.0, 0, 8, 8]] * 2, pred_boxes) == [1, 0, None]

    @pytest.mark.parametrize("places", [None, torch.zeros(2, 4), Anchors(torch.zeros(2, 4))])
    def test_what_is_missing_is_named(self, places) -> None:
        input = {"pred_logits": torch.zeros(1, 2, 2), "pred_boxes": torch.zeros(1, 2, 4)}
        target = {"labels": torch.ones(1, 1).long(), "boxes": torch.zeros(1, 1, 4)}
        message = "must have a stride, which GridCell needs for its cells" if places is not None else "must be given to"
        with pytest.raises(ValueError, match=f"anchors {message}"):
            GridCell()(input, target, places)

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"choose": "best"}, r"choose must be one of \['shape', 'anchor', 'prediction'\], got 'best'"),
            ({"positive": 1.5}, r"positive must lie in \[0.0, 1.0\], got 1.5"),
            ({"ignore": -0.5}, r"ignore must lie in \[0.0, 1.0\], got -0.5"),
        ],
    )
    def test_bad_arguments_raise(self, options, message: str) -> None:
        with pytest.raises(ValueError, match=message):
            GridCell(**options)


def _same_best(anchors: Anchors, targets: list[list[float]], owner: list[list[int]]) -> bool:
    """Tell whether all responsible anchors and all targets prefer a partner of the same cell, and each another one."""
    boxes, wishes = anchors.boxes.tolist(), []
    for target in targets:
        wishes.append(max((i for i, own in enumerate(owner) if own), key=lambda i: (oracle.iou(boxes[i], target), -i)))
    own_best = all(
        max(range(len(targets)), key=lambda j: oracle.iou(boxes[i], targets[j])) in own
        for i, own in enumerate(owner)
        if own
    )
    return own_best and len(set(wishes)) == len(wishes) and all(j in owner[i] for j, i in enumerate(wishes))


class TestCenterRegion:
    @pytest.mark.parametrize("unit", UNITS)
    @pytest.mark.parametrize("min_iof", [None, 0.01, 0.3])
    @pytest.mark.parametrize(("positive", "negative"), [(0.2, None), (0.2, 0.5), (0.4, 0.4), (1.0, 1.2)])
    def test_it_equals_a_loop(
        self, unit: float, min_iof: float | None, positive: float, negative: float | None
    ) -> None:
        anchors, points, matched, ignored = anchors_of_cells(unit), pyramid(unit), 0, 0
        half = points.stride[:, None] / 2
        own_cells = torch.cat((points.centers - half, points.centers + half), 1)
        centers = (anchors.boxes[:, :2] + anchors.boxes[:, 2:]) / 2
        matcher = CenterRegion(positive=positive, negative=negative, min_iof=min_iof)
        for seed in range(120):
            targets = some_targets(seed, unit)
            for places, at, cells in ((points, points.centers, own_cells), (anchors, centers, anchors.boxes)):
                expected = oracle.center_region(at.tolist(), cells.tolist(), targets, positive, negative, min_iof)
                assert detect(matcher, places, targets) == expected
                matched += sum(isinstance(j, int) for j in expected)
                ignored += expected.count("ignored")
        assert matched > 50
        if negative is None or min_iof is None:
            assert (ignored > 50) == (negative not in (None, positive))

    @pytest.mark.parametrize("stride", [8, 16])
    def test_it_equals_mmdet(self, stride: int) -> None:
        """There a cell of the ring is background but for the class of its target, which `shadowed_labels` names."""
        assigners = pytest.importorskip("mmdet.models.task_modules.assigners")
        structures = pytest.importorskip("mmengine.structures")
        theirs = assigners.CenterRegionAssigner(0.3, 0.6, 0.01)
        points = Points.from_levels([(64 // stride, 64 // stride)], [stride])
        cells = torch.cat((points.centers - stride / 2, points.centers + stride / 2), 1)
        for seed in range(150):
            targets = some_targets(seed)
            if len({oracle.area(box) for box in targets}) < len(targets):
                continue  # it breaks ties otherwise
            result = theirs.assign(
                structures.InstanceData(priors=cells),
                structures.InstanceData(bboxes=torch.tensor(targets).view(-1, 4), labels=torch.arange(len(targets))),
            )
            shadow = result.get_extra_property("shadowed_labels")
            ring = set() if shadow is None else set(shadow[:, 0].tolist())
            matches = result.gt_inds.tolist()
            expected = [k - 1 if k > 0 else "ignored" if i in ring else None for i, k in enumerate(matches)]
            assert detect(CenterRegion(positive=0.3, negative=0.6, min_iof=0.01), points, targets) == expected

    def test_a_core_as_large_as_the_target_is_fcos_without_a_radius(self) -> None:
        anywhere = [(0.0, math.inf)] * 3
        for seed in range(20):
            targets = some_targets(seed)
            by_range = detect(FCOS(radius=None, ranges=anywhere), pyramid(), targets)
            assert detect(CenterRegion(positive=1.0), pyramid(), targets) == by_range

    def test_the_smaller_of_two_cores_wins_and_a_core_beats_the_ring_of_another(self) -> None:
        points = Points(torch.tensor([[20.0, 20], [26, 20], [32, 20]]), 8.0)
        large, small = [0.0, 0, 40, 40], [15.0, 15, 25, 25]
        matcher = CenterRegion(positive=0.5, negative=0.8)
        assert detect(matcher, points, [large, small]) == [1, 0, "ignored"]
        assert detect(matcher, points, [small, large]) == [0, 1, "ignored"]
        assert detect(matcher, points, [large, [24.0, 12, 40, 28]]) == [0, 0, 1]

    def test_the_side_of_a_core_is_outside(self) -> None:
        points = Points(torch.tensor([[5.0, 20], [5.5, 20], [20, 35]]), 8.0)
        assert detect(CenterRegion(positive=0.75), points, [[0.0, 0, 40, 40]]) == [None, 0, None]

    def test_a_ring_of_padding_ignores_nothing(self) -> None:
        points = Points(torch.tensor([[0.0, 0], [1, 1]]), 8.0)
        assert detect(CenterRegion(negative=0.9, min_iof=0.0), points, []) == [None, None]

    def test_anchors_need_no_stride_but_must_be_there(self) -> None:
        assert detect(CenterRegion(), Anchors(torch.tensor([[3.0, 3, 5, 5]])), [[0.0, 0, 8, 8]]) == [0]
        input = {"pred_logits": torch.zeros(1, 2, 2), "pred_boxes": torch.zeros(1, 2, 4)}
        target = {"labels": torch.ones(1, 1).long(), "boxes": torch.zeros(1, 1, 4)}
        with pytest.raises(
            ValueError, match="anchors must be given to CenterRegion: boxes, Anchors or Points, got None"
        ):
            CenterRegion()(input, target)

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"positive": 0.0}, r"positive must lie in \(0.0, inf\), got 0.0"),
            ({"negative": 0.1}, r"negative must lie in \[0.2, inf\), got 0.1"),
            ({"min_iof": 1.5}, r"min_iof must lie in \[0.0, 1.0\], got 1.5"),
        ],
    )
    def test_bad_arguments_raise(self, options, message: str) -> None:
        with pytest.raises(ValueError, match=message):
            CenterRegion(**options)


@pytest.mark.parametrize("matcher", [FCOS(), CenterRegion(positive=0.8)])
def test_a_propagated_prediction_is_never_matched_to_the_target_that_holds_its_point(matcher: Matcher) -> None:
    points = Points(torch.tensor([[4.0, 4], [4, 4]]), 8.0)
    pred_boxes = torch.tensor([[math.nan, 0, 8, 8], [0, 0, 8, 8]])
    matcher.nonfinite = "propagate"
    assert detect(matcher, points, [[0.0, 0, 8, 8]], pred_boxes) == [None, 0]


@pytest.mark.parametrize("matcher", [FCOS(), GridCell(), CenterRegion(positive=0.8, negative=0.9)])
def test_a_rule_of_points_does_not_depend_on_the_unit(matcher: Matcher) -> None:
    """Units that are powers of two apart, so that nothing is rounded."""
    for seed in range(20):
        targets = some_targets(seed)
        scaled = [[x / 1024 for x in box] for box in targets]
        places, small = pyramid(), pyramid(1 / 1024)
        boxes = torch.cat((places.centers - 9, places.centers + 9), 1)
        assert detect(matcher, places, targets, boxes) == detect(matcher, small, scaled, boxes / 1024)
