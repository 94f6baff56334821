"""Anchors and points: what they hold, what they refuse, and that they serve wherever plain anchors do."""

import math
import re

import pytest
import torch

from tests.support.problems import random_boxes, random_problem
from uotod.match import IoUThreshold
from uotod.scene.scene import parse_scene
from uotod.utils import Anchors, Points


def test_points_of_feature_maps_lie_row_by_row_in_the_middle_of_their_cells() -> None:
    points = Points.from_levels([(1, 2), (1, 1)], [8, 32])
    assert points.centers.tolist() == [[4, 4], [12, 4], [16, 16]]
    assert points.stride.tolist() == [8, 8, 32]
    assert points.level.tolist() == [0, 0, 1]
    corners = Points.from_levels([(2, 1)], [8], offset=0.0, dtype=torch.float64)
    assert corners.centers.tolist() == [[0, 0], [0, 8]]
    assert corners.centers.dtype == torch.float64


def test_an_empty_feature_map_keeps_its_level() -> None:
    points = Points.from_levels([(2, 2), (0, 3), (1, 1)], [4, 8, 16])
    assert points.num_levels == 3
    assert points.level.tolist() == [0, 0, 0, 0, 2]


def test_levels_default_to_the_rank_of_the_stride() -> None:
    anchors = Anchors(torch.zeros(3, 4), torch.tensor([32.0, 8.0, 32.0]))
    assert anchors.level.tolist() == [1, 0, 1]
    assert anchors.num_levels == 2
    assert Anchors(torch.zeros(3, 4)).num_levels == 1
    assert Points(torch.zeros(3, 2), 8).num_levels == 1


def test_a_given_number_of_levels_is_kept() -> None:
    stride, level = torch.tensor([8.0, 8.0, 32.0]), torch.tensor([0, 0, 2])
    assert Anchors(torch.zeros(3, 4), stride, level, 5).num_levels == 5
    assert Anchors(torch.zeros(3, 4), stride, num_levels=4).num_levels == 4
    assert Anchors(torch.zeros(3, 4), num_levels=2).num_levels == 2
    assert Points(torch.zeros(3, 2), 8.0, num_levels=2).to(torch.float64).num_levels == 2


def test_no_feature_map_has_no_places() -> None:
    for value in (Anchors.from_levels([], []), Points.from_levels([], [])):
        assert len(value.places) == len(value.stride) == len(value.level) == 0
        assert value.num_levels == 1
    problem = random_problem(2, 0, 3)
    assert IoUThreshold(is_anchor_based=True)(problem.input, problem.target, Anchors.from_levels([], [])).numel() == 0


def test_a_point_stands_for_its_cell() -> None:
    problem = random_problem(2, 3, 2)
    points = Points(torch.tensor([[4.0, 4.0], [12.0, 4.0], [16.0, 16.0]]), torch.tensor([8.0, 8.0, 32.0]))
    found = parse_scene(problem.input, problem.target, points).anchors
    assert found.boxes[1].tolist() == [[0, 0, 8, 8], [8, 0, 16, 8], [0, 0, 32, 32]]
    assert found.centers.shape == (2, 3, 2)
    assert found.stride.tolist() == [[8, 8, 32]] * 2
    assert found.boxes.dtype == found.stride.dtype == torch.float64


@pytest.mark.parametrize("batched", [False, True])
def test_a_value_is_as_good_as_its_boxes(batched: bool) -> None:
    problem = random_problem(3, 12, 4)
    boxes = random_boxes(3, 12) if batched else random_boxes(12)
    matcher = IoUThreshold(is_anchor_based=True)
    plan = matcher(problem.input, problem.target, boxes)
    assert torch.equal(matcher(problem.input, problem.target, Anchors(boxes, 8.0)), plan)


def test_anchors_are_stacked_with_the_decoder_layers() -> None:
    problem = random_problem(2, 5, 3)
    anchors = Anchors(random_boxes(2, 5), torch.tensor([1.0, 1, 1, 2, 2]))
    both = parse_scene(
        problem.input | {"aux_outputs": [problem.input]}, problem.target, anchors, auxiliary=True
    ).anchors
    assert torch.equal(both.boxes, anchors.boxes.repeat(2, 1, 1))
    assert both.level.shape == both.stride.shape == (4, 5)


def test_moving_keeps_stride_and_level() -> None:
    for value in (
        Anchors(random_boxes(3), torch.tensor([1.0, 2, 2])),
        Points(torch.rand(3, 2), torch.tensor([1, 2, 2])),
    ):
        moved = value.to(torch.float16)
        assert moved.places.dtype == moved.stride.dtype == torch.float16
        assert moved.level.tolist() == [0, 1, 1]
        assert moved.num_levels == 2


@pytest.mark.parametrize(
    ("build", "message", "error"),
    [
        (
            lambda: Anchors(torch.zeros(3, 2)),
            "anchors.boxes must have shape (P, 4) or (B, P, 4), got (3, 2)",
            ValueError,
        ),
        (lambda: Anchors([1]), "anchors.boxes must be a tensor of a floating dtype, got list", TypeError),
        (lambda: Points(torch.zeros(3, 2), torch.ones(2)), "stride must have shape () or (3,), got (2,)", ValueError),
        (
            lambda: Points(torch.zeros(3, 2), None),
            "anchors.stride must be a number or a tensor, got None",
            TypeError,
        ),
        (lambda: Points(torch.zeros(3, 2), 0.0), "anchors.stride must lie in (0.0, inf), got 0.0", ValueError),
        (lambda: Points(torch.zeros(3, 2), math.inf), "stride must lie in (0.0, inf), got inf", ValueError),
        (
            lambda: Anchors(torch.zeros(2, 4), torch.tensor([1.0, math.inf])),
            "stride must be finite and positive, got a value of inf",
            ValueError,
        ),
        (
            lambda: Anchors(torch.zeros(2, 4), torch.tensor([math.nan, 1.0])),
            "stride must be finite and positive, got a value of nan",
            ValueError,
        ),
        (
            lambda: Anchors(torch.zeros(3, 4), 1.0, torch.tensor([0, 2, 1]), 2),
            "anchors.level must lie in [0, 2), the number of levels, got 2",
            ValueError,
        ),
        (
            lambda: Anchors(torch.zeros(3, 4), 1.0, torch.tensor([0, -1, 1]), 2),
            "anchors.level must lie in [0, 2), the number of levels, got -1",
            ValueError,
        ),
        (
            lambda: Anchors(torch.zeros(2, 4), torch.tensor([8.0, 16.0]), num_levels=1),
            "num_levels must be at least 2, the number of different strides, got 1",
            ValueError,
        ),
        (lambda: Anchors(torch.zeros(3, 4), num_levels=-1), "num_levels must be at least 0, got -1", ValueError),
        (lambda: Anchors(torch.zeros(3, 4), num_levels=2.0), "num_levels must be an integer, got 2.0", TypeError),
        (
            lambda: Anchors(torch.zeros(3, 4), 1.0, torch.ones(3)),
            "level must be a tensor of an integer dtype",
            TypeError,
        ),
        (lambda: Anchors(torch.zeros(3, 4), 1.0, torch.ones(2).long()), "level must have shape (3,), got", ValueError),
        (
            lambda: Anchors(torch.zeros(3, 4), 1.0, -torch.ones(3).long()),
            "anchors.level must lie in [0, 1), the number of levels, got -1",
            ValueError,
        ),
        (lambda: Points.from_levels([(1, 1)], [8, 16]), "one number for each of the 1 shapes, got 2", ValueError),
    ],
)
def test_bad_values_raise(build, message, error) -> None:
    with pytest.raises(error, match=re.escape(message)):
        build()
