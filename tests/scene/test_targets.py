"""Targets of a list of images: how they are padded, and what does not fit together."""

import re

import pytest
import torch
from torch import nn

from tests.support.problems import random_boxes, random_problem
from uotod.match import ClosestTarget
from uotod.utils import pad_targets


def test_padding_keeps_every_target() -> None:
    images = [{"boxes": random_boxes(n), "labels": torch.arange(n)} for n in (2, 0, 3)]
    padded = pad_targets(images)
    assert padded["mask"].tolist() == [[True, True, False], [False] * 3, [True] * 3]
    for b, image in enumerate(images):
        for key, value in image.items():
            assert torch.equal(padded[key][b][padded["mask"][b]], value)


def test_padding_keeps_the_mask_of_an_image() -> None:
    one = {"boxes": random_boxes(2), "labels": torch.tensor([1, 99]), "mask": torch.tensor([True, False])}
    other = {"boxes": random_boxes(3), "labels": torch.ones(3).long()}
    padded = pad_targets([one, other])
    assert padded["mask"].tolist() == [[True, False, False], [True] * 3]
    problem = random_problem(2, 6, 3)
    matcher = ClosestTarget(loc_match_module=nn.L1Loss(reduction="none"))
    bare = {"boxes": one["boxes"][:1], "labels": one["labels"][:1]}
    assert torch.equal(matcher(problem.input, [one, other]), matcher(problem.input, [bare, other]))


@pytest.mark.parametrize("counts", [[], [0], [0, 0]])
def test_padding_without_targets_has_no_columns(counts) -> None:
    padded = pad_targets([{"boxes": torch.zeros(n, 4), "labels": torch.zeros(n, dtype=torch.long)} for n in counts])
    assert padded["boxes"].shape == (len(counts), 0, 4)
    assert padded["labels"].shape == padded["mask"].shape == (len(counts), 0)


def test_an_empty_tensor_has_no_dtype_and_no_shape_to_object_to() -> None:
    one = {"boxes": torch.zeros(1, 4, dtype=torch.float64), "labels": torch.tensor([2]), "cost_weight": torch.ones(1)}
    for images in (
        [one, {"boxes": torch.tensor([]), "labels": torch.tensor([])}],
        [{"boxes": torch.tensor([]), "labels": torch.tensor([])}, one],
    ):
        padded = pad_targets(images)
        assert padded["boxes"].shape == (2, 1, 4)
        assert padded["labels"].dtype == torch.long
        assert padded["mask"].sum() == 1


def test_real_dtypes_mix_to_the_widest() -> None:
    images = [
        {"boxes": torch.zeros(1, 4, dtype=x), "labels": torch.zeros(1, dtype=y)}
        for x, y in ((torch.float32, torch.int32), (torch.float64, torch.int64))
    ]
    padded = pad_targets(images)
    assert (padded["boxes"].dtype, padded["labels"].dtype) == (torch.float64, torch.int64)


@pytest.mark.parametrize(
    ("second", "message", "error"),
    [
        ({"boxes": torch.zeros(1, 4)}, "target[1] must have the key 'labels', got the keys ['boxes']", ValueError),
        (
            {"boxes": torch.zeros(4), "labels": torch.zeros(4).long()},
            "target[1]['boxes'] must have shape (T_b, 4), got (4,)",
            ValueError,
        ),
        (
            {"boxes": torch.zeros(1, 4), "labels": torch.zeros(2).long()},
            "target[1]['labels'] must have shape (1,) or (1, C) like its boxes, got (2,)",
            ValueError,
        ),
        (
            {"boxes": torch.zeros(1, 4), "labels": torch.zeros(1)},
            "target[1]['labels'] must be torch.int64 like other images, got torch.float32",
            TypeError,
        ),
        (
            {"boxes": torch.zeros(1, 4), "labels": torch.zeros(1, 3).long()},
            "target[1]['labels'] must have shape (T_b) like target[0], got (1, 3)",
            ValueError,
        ),
    ],
)
def test_images_that_do_not_fit_together_raise(second, message, error) -> None:
    first = {"boxes": torch.zeros(2, 4), "labels": torch.zeros(2, dtype=torch.long)}
    with pytest.raises(error, match=re.escape(message)):
        pad_targets([first, second])


@pytest.mark.parametrize(
    ("key", "values", "message"),
    [
        ("ignore", (torch.zeros(2).bool(), torch.zeros(2)), "target[1]['ignore'] must have dtype torch.bool, got"),
        (
            "cost_weight",
            (None, torch.ones(2).long()),
            "target[1]['cost_weight'] must have a floating dtype, got torch.int64",
        ),
        ("mask", (None, torch.ones(2)), "target[1]['mask'] must have dtype torch.bool, got torch.float32"),
        ("mask", (None, torch.ones(1).bool()), "target[1]['mask'] must have shape (2,), got (1,)"),
        (
            "mask",
            (None, torch.ones(2, device="meta").bool()),
            "target[1]['mask'] must be on cpu like the rest, got meta",
        ),
        (
            "cost_weight",
            (None, torch.ones(2, device="meta")),
            "target[1]['cost_weight'] must be on cpu like the rest, got meta",
        ),
    ],
)
def test_optional_entries_of_images_must_fit_together(key, values, message) -> None:
    images = [
        {"boxes": torch.zeros(2, 4), "labels": torch.zeros(2).long()} | ({} if value is None else {key: value})
        for value in values
    ]
    with pytest.raises((TypeError, ValueError), match=re.escape(message)):
        pad_targets(images)


@pytest.mark.parametrize("empty", [torch.tensor([]), torch.zeros(0, 5), torch.zeros(1, 0)])
def test_an_empty_field_is_for_images_without_targets_only(empty) -> None:
    full, none = ({"boxes": torch.zeros(n, 4), "labels": torch.zeros(n).long()} for n in (2, 0))
    first = full | {"mass": torch.ones(2, 5)}
    with pytest.raises(
        ValueError, match=re.escape(f"target[1]['mass'] must have 2 rows like its labels, got {tuple(empty.shape)}")
    ):
        pad_targets([first, full | {"mass": empty}], ["mass"])
    padded = pad_targets([first, none | {"mass": empty}], ["mass"])
    assert padded["mass"].shape == (2, 2, 5)
