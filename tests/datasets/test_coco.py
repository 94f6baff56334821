"""Properties of a data set that is read from disk: what resizing, mirroring and caching change, and what is refused."""

import json
import pickle
import sys
from pathlib import Path

import pytest
import torch
from torch.utils.data import DataLoader

from tests.conftest import BCCD
from tests.support.samples import assert_same_sample
from uotod.datasets import CocoDetection, ColorBoxes, write_coco
from uotod.datasets._target import flip_boxes

needs_bccd = pytest.mark.skipif(not BCCD.is_dir(), reason="the blood-cell photographs are not beside this checkout")
# A worker is forked by a process that has threads; Python 3.12 warns of that, whatever the data set.
forks = pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")


@pytest.fixture
def generated():
    return ColorBoxes(6, size=(48, 64), num_classes=5, max_boxes=4, seed=5)


@pytest.fixture
def folder(generated, tmp_path):
    write_coco(generated, tmp_path, "train")
    return tmp_path


def test_a_copy_through_pickle_reads_the_same(folder):
    dataset = CocoDetection(folder, flip=True)
    assert_same_sample(pickle.loads(pickle.dumps(dataset))[2], dataset[2])


def test_resizing_scales_boxes_and_antialiases(generated, folder):
    dataset = CocoDetection(folder, size=(24, 16))
    for (image, target), (large, original) in zip(dataset, generated, strict=True):
        assert target["size"] == (24, 16)
        assert target["orig_size"] == (48, 64)
        torch.testing.assert_close(target["boxes"], original["boxes"] * torch.tensor([1 / 4, 1 / 2, 1 / 4, 1 / 2]))
        options = {"size": (24, 16), "mode": "bilinear", "antialias": True, "align_corners": False}
        expected = torch.nn.functional.interpolate(large[None], **options)[0]
        torch.testing.assert_close(image, expected, rtol=0, atol=1.6 / 255)  # both passes round to bytes


@pytest.mark.parametrize("size", [None, (24, 40)])
def test_a_cache_changes_nothing(folder, size):
    plain, cached = (CocoDetection(folder, size=size, cache=cache) for cache in (False, True))
    for _ in range(2):
        for index in range(len(plain)):
            sample = cached[index]
            assert_same_sample(sample, plain[index])
            sample[0].zero_()
            sample[1]["boxes"].zero_()
            sample[1]["labels"].zero_()
    (folder / "images" / "train_000000.png").unlink()
    cached[0]
    with pytest.raises(FileNotFoundError, match=r"images/train_000000\.png"):
        plain[0]


def test_flips_mirror_image_and_boxes_and_depend_only_on_seed_epoch_and_index(folder):
    plain, flipped = CocoDetection(folder), CocoDetection(folder, flip=True, seed=3)
    decisions = []
    for epoch in range(8):
        flipped.set_epoch(epoch)
        for index in range(len(plain)):
            image, target = flipped[index]
            mirrored = not torch.equal(image, plain[index][0])
            if mirrored:
                image, boxes = image.flip(-1), flip_boxes(target["boxes"], image.shape[-1])
                target = {**target, "boxes": boxes}
            assert_same_sample((image, target), plain[index])
            decisions.append(mirrored)
    assert 0.25 < sum(decisions) / len(decisions) < 0.75
    again = CocoDetection(folder, flip=True, seed=3)
    again.set_epoch(7)
    for index in reversed(range(len(plain))):
        assert_same_sample(again[index], flipped[index])


@forks
def test_persistent_workers_see_the_epoch(folder):
    dataset = CocoDetection(folder, flip=True)
    loader = DataLoader(dataset, batch_size=None, num_workers=1, persistent_workers=True)
    for epoch in range(3):
        dataset.set_epoch(epoch)
        for index, (image, _) in enumerate(loader):
            assert torch.equal(image, dataset[index][0])


def edit(folder: Path, change) -> None:
    path = folder / "annotations" / "instances_train.json"
    content = json.loads(path.read_text())
    path.write_text(json.dumps(change(content) or content))


def annotate(folder: Path, *rows: dict) -> None:
    """Replace the annotations by these, of the first image."""
    defaults = {"image_id": 0, "category_id": 1, "bbox": [1, 2, 3, 4], "area": 12}
    annotations = [{"id": position + 1, **defaults, **row} for position, row in enumerate(rows)]
    edit(folder, lambda content: content.update(annotations=annotations))


def test_crowds_are_dropped_or_marked(folder):
    annotate(folder, {"iscrowd": 1}, {"category_id": 2, "iscrowd": 0}, {"category_id": 3})
    _, dropped = CocoDetection(folder)[0]
    _, marked = CocoDetection(folder, crowd="mark")[0]
    assert dropped["labels"].tolist() == [1, 2]
    assert "iscrowd" not in dropped
    assert marked["labels"].tolist() == [0, 1, 2]
    assert marked["iscrowd"].tolist() == [True, False, False]
    with pytest.raises(ValueError, match=r"crowd must be one of \['drop', 'mark'\], got 'keep'"):
        CocoDetection(folder, crowd="keep")


def test_boxes_are_cut_to_the_image_and_degenerate_ones_dropped(folder):
    boxes = [[60, 40, 10, 10], [-5, -5, 7, 8], [3, 3, 0, 5], [3, 3, 5, -1], [64, 0, 5, 5], [-9, 0, 9, 9]]
    annotate(folder, *({"bbox": box} for box in boxes))
    _, target = CocoDetection(folder)[0]
    assert target["boxes"].tolist() == [[60, 40, 64, 48], [0, 0, 2, 3]]


def test_labels_are_contiguous_in_the_order_of_category_ids(folder):
    categories = [{"id": 90, "name": "last"}, {"id": 3, "name": "first"}, {"id": 17, "name": "middle"}]
    annotate(folder, {"category_id": 17}, {"category_id": 90}, {"category_id": 3})
    edit(folder, lambda content: content.update(categories=categories))
    dataset = CocoDetection(folder)
    assert dataset.category_ids == (3, 17, 90)
    assert dataset.class_names == ("first", "middle", "last")
    assert dataset[0][1]["labels"].tolist() == [1, 2, 0]


def test_missing_folders_splits_and_images_are_named(folder, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"folder must be a folder with annotations/ and images/, got '.*none'"):
        CocoDetection(tmp_path / "none")
    with pytest.raises(FileNotFoundError, match=r"split must be one of \['train'\].* got 'test'"):
        CocoDetection(folder, "test")
    (folder / "images" / "train_000004.png").unlink()
    with pytest.raises(FileNotFoundError, match=r"folder must hold images/train_000004\.png"):
        CocoDetection(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda content: [1], "holds a list, not an object"),
        (lambda content: {"images": []}, "the key 'categories' is missing"),
        (
            lambda content: content["categories"].append({"id": 1, "name": "again"}),
            "'categories' must have different ids",
        ),
        (lambda content: content["images"].append(content["images"][0]), "'images' must have different ids"),
        (lambda content: content["images"][1].pop("width"), "the key 'width' is missing"),
        (
            lambda content: content["annotations"][0].update(image_id=77),
            "annotation 1 must name a known image .* image_id=77",
        ),
        (lambda content: content["annotations"][0].update(category_id=77), "must name a known image and category"),
        (lambda content: content["annotations"][0].update(bbox=[1, 2, 3]), "annotation 1 must have a bbox of 4 finite"),
        (lambda content: content["annotations"][0].update(bbox=[1, 2, 3, float("nan")]), "4 finite numbers"),
        (lambda content: content["annotations"][0].update(bbox=None), "folder must hold COCO annotations"),
    ],
)
def test_malformed_annotations_are_refused(folder, change, message):
    def apply(content):
        result = change(content)
        return result if isinstance(result, list) or (isinstance(result, dict) and "images" in result) else None

    edit(folder, apply)
    with pytest.raises(ValueError, match=message):
        CocoDetection(folder)


def test_files_that_are_not_what_they_should_be_are_refused(folder):
    (folder / "images" / "train_000001.png").write_bytes(b"no picture")
    with pytest.raises(ValueError, match=r"folder must hold readable images, but .*train_000001\.png is not"):
        CocoDetection(folder)[1]
    edit(folder, lambda content: content["images"][2].update(width=65))
    with pytest.raises(ValueError, match=r"stated size, but .* is \(64, 48\), not \(65, 48\)"):
        CocoDetection(folder)[2]
    (folder / "annotations" / "instances_train.json").write_text("{")
    with pytest.raises(ValueError, match=r"instances_train\.json is not json"):
        CocoDetection(folder)


def test_without_pillow_streaming_works_and_files_say_what_to_install(folder, monkeypatch):
    dataset = CocoDetection(folder)
    monkeypatch.setitem(sys.modules, "PIL.Image", None)
    ColorBoxes(1)[0]
    with pytest.raises(ImportError, match=r'pip install "uotod\[examples\]"'):
        dataset[0]
    with pytest.raises(ImportError, match=r'pip install "uotod\[examples\]"'):
        write_coco(ColorBoxes(1), folder, "val")


@needs_bccd
@pytest.mark.parametrize(("split", "images", "boxes"), [("train", 205, 2804), ("val", 87, 1137), ("test", 72, 945)])
def test_blood_cells_are_read_whole(split, images, boxes):
    dataset = CocoDetection(BCCD, split, size=(96, 128))
    assert dataset.class_names == ("WBC", "RBC", "Platelets")
    assert len(dataset) == images
    assert sum(len(entry.labels) for entry in dataset._entries) == boxes
    image, target = dataset[0]
    assert image.shape == (3, 96, 128)
    assert target["orig_size"] == (480, 640)
    assert bool((target["boxes"] <= torch.tensor([128.0, 96.0, 128.0, 96.0])).all())


@needs_bccd
def test_a_blood_cell_is_darker_than_what_surrounds_it():
    dataset = CocoDetection(BCCD, "val")
    inside, outside = [], []
    for index in range(10):
        image, target = dataset[index]
        mask = torch.zeros(image.shape[1:], dtype=torch.bool)
        for left, top, right, bottom in target["boxes"].int().tolist():
            mask[top:bottom, left:right] = True
        inside.append(image[1][mask].mean())
        outside.append(image[1][~mask].mean())
    assert sum(i < o for i, o in zip(inside, outside, strict=True)) >= 9
