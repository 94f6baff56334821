"""Properties of samples on their way: into batches, mirrored, to bytes, and to the disk, whole or not at all."""

import json
import os

import numpy as np
import pytest
import torch

from tests.support.samples import assert_same_sample
from uotod.datasets import CocoDetection, ColorBoxes, collate, write_coco
from uotod.datasets._target import flip_boxes, to_image, to_pixels


@pytest.fixture
def generated():
    return ColorBoxes(6, size=(48, 64), num_classes=5, max_boxes=4, seed=5)


@pytest.fixture
def folder(generated, tmp_path):
    write_coco(generated, tmp_path, "train")
    return tmp_path


def test_flipping_boxes_twice_is_the_identity():
    boxes = torch.randint(0, 100, (7, 4)).float()
    torch.testing.assert_close(flip_boxes(flip_boxes(boxes, 100), 100), boxes, rtol=0, atol=0)
    assert flip_boxes(torch.zeros(0, 4), 100).shape == (0, 4)


def test_bytes_survive_as_floats():
    pixels = np.arange(3 * 16 * 16, dtype=np.uint16).reshape(3, 16, 16).astype(np.uint8)
    np.testing.assert_array_equal(to_pixels(to_image(pixels)), pixels)
    with pytest.raises(ValueError, match=r"image must lie in \[0, 1\], got \[0.0, 2.0\]"):
        to_pixels(torch.tensor([0.0, 2.0]).expand(3, 1, 2))
    with pytest.raises(ValueError, match=r"image must have shape \(3, H, W\), got \(1, 2, 2\)"):
        to_pixels(torch.zeros(1, 2, 2))


def test_collate_stacks_images_and_lists_targets():
    batch = [ColorBoxes(4, size=(32, 40), box_size=(0.1, 0.2))[index] for index in range(4)]
    images, targets = collate(batch)
    assert images.shape == (4, 3, 32, 40)
    assert targets == [target for _, target in batch]
    with pytest.raises(ValueError, match="batch must hold at least one"):
        collate([])
    with pytest.raises(
        ValueError, match=r"one shape .* got \(3, 32, 40\) at position 0 and \(3, 32, 20\) at position 1"
    ):
        collate([batch[0], (batch[1][0][..., :20], batch[1][1])])


def test_a_round_trip_through_the_disk_changes_nothing(generated, folder):
    dataset = CocoDetection(folder)
    assert dataset.class_names == generated.class_names
    assert dataset.num_classes == 5
    assert len(dataset) == 6
    assert 0 in [len(target["labels"]) for _, target in dataset]
    for sample, original in zip(dataset, generated, strict=True):
        assert_same_sample(sample, original)


def test_splits_share_a_folder(generated, folder):
    write_coco(ColorBoxes(2, size=(32, 32), num_classes=2, max_boxes=1, box_size=(0.2, 0.5), seed=9), folder, "val")
    assert len(CocoDetection(folder, "val")) == 2
    assert_same_sample(CocoDetection(folder, "train")[3], generated[3])


def test_written_annotations_follow_coco(folder):
    content = json.loads((folder / "annotations" / "instances_train.json").read_text())
    assert [category["id"] for category in content["categories"]] == [1, 2, 3, 4, 5]
    assert [annotation["id"] for annotation in content["annotations"]] == [*range(1, len(content["annotations"]) + 1)]
    for annotation in content["annotations"]:
        assert annotation["area"] == annotation["bbox"][2] * annotation["bbox"][3]
        assert annotation["iscrowd"] == 0


class Interrupted(ColorBoxes):
    def __getitem__(self, index):
        if index == 2:
            raise KeyboardInterrupt
        return super().__getitem__(index)


@pytest.mark.parametrize("overwrite", [False, True])
def test_an_interrupted_write_never_looks_complete(tmp_path, overwrite):
    if overwrite:
        write_coco(ColorBoxes(2, size=(32, 32), max_boxes=0), tmp_path)
    with pytest.raises(KeyboardInterrupt):
        write_coco(Interrupted(4, size=(32, 32), max_boxes=0), tmp_path, overwrite=overwrite)
    assert list((tmp_path / "annotations").iterdir()) == []
    with pytest.raises(FileNotFoundError, match="split"):
        CocoDetection(tmp_path)


def test_a_json_that_cannot_be_put_in_place_leaves_nothing(tmp_path, monkeypatch):
    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="disk full"):
        write_coco(ColorBoxes(1, size=(32, 32), max_boxes=0), tmp_path)
    assert list((tmp_path / "annotations").iterdir()) == []


def test_an_existing_split_is_replaced_only_on_demand(folder):
    other = ColorBoxes(2, size=(32, 32), max_boxes=0)
    with pytest.raises(FileExistsError, match=r"split must name a new split .* got 'train'"):
        write_coco(other, folder, "train")
    write_coco(other, folder, "train", overwrite=True)
    assert len(CocoDetection(folder)) == 2


def test_what_cannot_be_written_is_refused(tmp_path, generated):
    with pytest.raises(ValueError, match=r"split must be a name such as 'train', got '\.\./x'"):
        write_coco(generated, tmp_path, "../x")

    class Relabelled(ColorBoxes):
        def __getitem__(self, index):
            image, target = super().__getitem__(index)
            return image, {**target, "image_id": 0, "labels": target["labels"] + self.shift}

    dataset = Relabelled(2, size=(32, 32), min_boxes=1, max_boxes=1, box_size=(0.2, 0.5))
    dataset.shift = 20
    with pytest.raises(ValueError, match=r"dataset must give labels in \[0, 20\), got \[.*\] in image 0"):
        write_coco(dataset, tmp_path)
    dataset.shift = 0
    with pytest.raises(ValueError, match="dataset must give every item its own image_id"):
        write_coco(dataset, tmp_path)
