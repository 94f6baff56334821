"""CenterRegion: it equals a loop and mmdet; and what all rules of points share."""

import math

import pytest
import torch

from tests.oracles import points as oracle
from tests.support.peers import peer
from tests.support.places import UNITS, anchors_of_cells, detect, pyramid, some_targets
from uotod.match import FCOS, CenterRegion, GridCell, Matcher
from uotod.utils import Anchors, Points


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
        matcher = CenterRegion(core=positive, ring=negative, min_iof=min_iof)
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
        assigners = peer("mmdet.models.task_modules.assigners")
        structures = peer("mmengine.structures")
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
            assert detect(CenterRegion(core=0.3, ring=0.6, min_iof=0.01), points, targets) == expected

    def test_a_core_as_large_as_the_target_is_fcos_without_a_radius(self) -> None:
        anywhere = [(0.0, math.inf)] * 3
        for seed in range(20):
            targets = some_targets(seed)
            by_range = detect(FCOS(radius=None, ranges=anywhere), pyramid(), targets)
            assert detect(CenterRegion(core=1.0), pyramid(), targets) == by_range

    def test_the_smaller_of_two_cores_wins_and_a_core_beats_the_ring_of_another(self) -> None:
        points = Points(torch.tensor([[20.0, 20], [26, 20], [32, 20]]), 8.0)
        large, small = [0.0, 0, 40, 40], [15.0, 15, 25, 25]
        matcher = CenterRegion(core=0.5, ring=0.8)
        assert detect(matcher, points, [large, small]) == [1, 0, "ignored"]
        assert detect(matcher, points, [small, large]) == [0, 1, "ignored"]
        assert detect(matcher, points, [large, [24.0, 12, 40, 28]]) == [0, 0, 1]

    def test_the_side_of_a_core_is_outside(self) -> None:
        points = Points(torch.tensor([[5.0, 20], [5.5, 20], [20, 35]]), 8.0)
        assert detect(CenterRegion(core=0.75), points, [[0.0, 0, 40, 40]]) == [None, 0, None]

    def test_a_ring_of_padding_ignores_nothing(self) -> None:
        points = Points(torch.tensor([[0.0, 0], [1, 1]]), 8.0)
        assert detect(CenterRegion(ring=0.9, min_iof=0.0), points, []) == [None, None]

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
            ({"core": 0.0}, r"core must lie in \(0.0, inf\), got 0.0"),
            ({"ring": 0.1}, r"ring must lie in \[0.2, inf\), got 0.1"),
            ({"min_iof": 1.5}, r"min_iof must lie in \[0.0, 1.0\], got 1.5"),
        ],
    )
    def test_bad_arguments_raise(self, options, message: str) -> None:
        with pytest.raises(ValueError, match=message):
            CenterRegion(**options)


@pytest.mark.parametrize("matcher", [FCOS(), CenterRegion(core=0.8)])
def test_a_propagated_prediction_is_never_matched_to_the_target_that_holds_its_point(matcher: Matcher) -> None:
    points = Points(torch.tensor([[4.0, 4], [4, 4]]), 8.0)
    pred_boxes = torch.tensor([[math.nan, 0, 8, 8], [0, 0, 8, 8]])
    matcher.nonfinite = "propagate"
    assert detect(matcher, points, [[0.0, 0, 8, 8]], pred_boxes) == [None, 0]


@pytest.mark.parametrize("matcher", [FCOS(), GridCell(), CenterRegion(core=0.8, ring=0.9)])
def test_a_rule_of_points_does_not_depend_on_the_unit(matcher: Matcher) -> None:
    """Units that are powers of two apart, so that nothing is rounded."""
    for seed in range(20):
        targets = some_targets(seed)
        scaled = [[x / 1024 for x in box] for box in targets]
        places, small = pyramid(), pyramid(1 / 1024)
        boxes = torch.cat((places.centers - 9, places.centers + 9), 1)
        assert detect(matcher, places, targets, boxes) == detect(matcher, small, scaled, boxes / 1024)
