"""FCOS: it equals a loop and mmdet, and the smallest target wins exactly."""

import math

import pytest
import torch

from tests.oracles import points as oracle
from tests.support.peers import peer
from tests.support.places import UNITS, detect, pyramid, some_targets
from uotod.match import FCOS
from uotod.utils import Anchors, Points


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
        heads = peer("mmdet.models.dense_heads.fcos_head")
        structures = peer("mmengine.structures")
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

    def test_the_order_in_which_levels_are_listed_changes_nothing(self) -> None:
        shapes, strides = [(8, 8), (4, 4), (2, 2)], [8.0, 16.0, 32.0]
        up = Points.from_levels(shapes, strides)
        down = Points.from_levels(shapes[::-1], strides[::-1])
        targets = [[0.0, 0, 400, 400], [20.0, 20, 26, 27], [30.0, 2, 50, 20]]
        found, reverse = (detect(FCOS(radius=None), x, targets) for x in (up, down))
        assert found == reverse[20:] + reverse[4:20] + reverse[:4]
        assert set(found[64:]) - {None}
        assert set(found[:64]) - {None}

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
