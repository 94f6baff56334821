"""GridCell: it equals a loop and mmdet, and every target in the image has a cell."""

import math

import pytest
import torch

from tests.oracles import points as oracle
from tests.support.peers import peer
from tests.support.places import UNITS, anchors_of_cells, detect, some_targets
from tests.support.problems import random_boxes
from uotod.match import GridCell
from uotod.utils import Anchors, Points


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
        matcher = GridCell(choose=choose, positive=positive, negative=ignore, is_anchor_based=by_anchor)
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
        assigners = peer("mmdet.models.task_modules.assigners")
        structures = peer("mmengine.structures")
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
            found = detect(GridCell(negative=None), anchors_of_cells(), [target])
            assert found.count(0) == 1
            assert anchors_of_cells().level[found.index(0)] == [7.0, 17.0, 40.0].index(size)

    def test_a_target_that_loses_its_choice_takes_the_next_best_of_its_cell(self) -> None:
        anchors = Anchors(torch.tensor([[0.0, 1, 8, 7], [1, 0, 7, 8], [9, 1, 15, 7]]), 8.0)
        targets = [[0.0, 1, 8, 6], [0.0, 1, 8, 7], [2.0, 2, 6, 6]]  # the second fits the first anchor exactly
        assert detect(GridCell(negative=None), anchors, targets) == [1, 0, None]
        assert detect(GridCell(negative=None), anchors, [targets[0]] * 2) == [0, 1, None]

    @pytest.mark.parametrize("positive", [0.3, 0.5, 0.75])
    def test_an_iou_equal_to_the_threshold_matches(self, positive: float) -> None:
        anchors = Anchors(torch.tensor([[0.0, 0, 8, 8], [0, 0, 8, 8 * positive]], dtype=torch.float64), 8.0)
        target = [[0.0, 0, 8, 8]]
        assert detect(GridCell(positive=positive, negative=None), anchors, target) == [0, 0]
        assert detect(GridCell(positive=None, negative=None), anchors, target) == [0, None]

    def test_a_prediction_of_another_cell_is_ignored_if_it_overlaps_and_background_otherwise(self) -> None:
        points, target = Points.from_levels([(1, 3)], [8]), [[0.0, 0, 8, 8]]
        pred_boxes = torch.tensor([[0.0, 0, 8, 8], [0, 0, 8, 6], [0, 0, 8, 4]])  # an IoU of 1, 0.75 and 0.5
        assert detect(GridCell(), points, target, pred_boxes) == [0, "ignored", None]
        assert detect(GridCell(is_anchor_based=True), points, target, pred_boxes) == [0, None, None]

    def test_a_propagated_prediction_is_the_last_choice_of_its_cell(self) -> None:
        points = Points(torch.tensor([[4.0, 4], [4, 4], [12, 4]]), 8.0)
        pred_boxes = torch.tensor([[math.nan, 0, 8, 8], [0, 0, 1, 1], [0, 0, 8, 8]])
        for choose in ("shape", "anchor", "prediction"):
            matcher = GridCell(choose=choose, negative=None, nonfinite="propagate")
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
            ({"negative": -0.5}, r"negative must lie in \[0.0, 1.0\], got -0.5"),
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
