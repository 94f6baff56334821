"""Read a data set in the COCO layout: a folder with `annotations/instances_{split}.json` and `images/` comes in."""

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from uotod.check import check_choice, check_flag, check_integer
from uotod.datasets._target import (
    Pixels,
    Sample,
    TargetDict,
    annotation_file,
    check_index,
    check_size,
    flip_boxes,
    import_pillow,
    to_image,
)


class CocoDetection(Dataset[Sample]):
    """Read one split of a COCO data set, resized to one size and mirrored at random where asked for.

    A box is scaled by `W / W_orig` and `H / H_orig`, after it was cut to the image; one without width or height is
    dropped. Labels are the positions of the categories in the order of their ids. Images without boxes are kept.
    The whole json is checked when the data set is built; the images are only decoded when they are asked for.

    Args:
        folder: folder with `annotations/instances_{split}.json` and `images/`.
        split: which annotation file to read.
        size: (height, width) in pixels to resize to, bilinear and antialiased; None keeps each image's own.
        flip: mirror an image left to right with probability 1/2, decided by `(seed, epoch, index)` alone.
        seed: non-negative integer that names the sequence of flips.
        cache: keep every image, decoded and resized, in memory as bytes (3·H·W of them); each worker process of a
            `DataLoader` keeps its own.
        crowd: "drop" leaves out boxes around crowds, as training wants it; "mark" keeps them and adds `iscrowd` to the
            target, as evaluation wants it.

    Attributes:
        class_names: the names of the categories, in the order of the labels.
        category_ids: their ids in the json, in the same order.

    Raises:
        FileNotFoundError: the folder, the split or an image is missing.
        ValueError: the json is not what COCO prescribes, or an image does not have the size that it states.

    Examples:
        >>> import tempfile
        >>> from uotod.datasets import ColorBoxes, write_coco
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     _ = write_coco(ColorBoxes(3, size=(96, 96), min_boxes=2, max_boxes=2, seed=4), folder, "val")
        ...     dataset = CocoDetection(folder, "val", size=(48, 64))
        ...     image, target = dataset[0]
        >>> image.shape, target["orig_size"], target["boxes"].shape
        (torch.Size([3, 48, 64]), (96, 96), torch.Size([2, 4]))
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        split: str = "train",
        *,
        size: tuple[int, int] | None = None,
        flip: bool = False,
        seed: int = 0,
        cache: bool = False,
        crowd: Literal["drop", "mark"] = "drop",
    ) -> None:
        self.folder = Path(folder)
        self.split = split
        self.size = None if size is None else check_size("size", size)
        self.flip = check_flag("flip", flip)
        self.seed = check_integer("seed", seed, low=0)
        self.cache = check_flag("cache", cache)
        self.crowd = check_choice("crowd", crowd, ("drop", "mark"))
        content = _read_json(self.folder, split)
        try:
            self.category_ids, self.class_names = _parse_categories(content)
            self._entries = _parse_entries(content, self.category_ids, keep_crowds=crowd == "mark")
        except (KeyError, TypeError, ValueError) as error:
            source = annotation_file(self.folder, split)
            raise ValueError(f"folder must hold COCO annotations, but in {source}: {_reason(error)}") from error
        for entry in self._entries:
            if not (self.folder / "images" / entry.file_name).is_file():
                raise FileNotFoundError(f"folder must hold images/{entry.file_name}, got none in {self.folder}")
        self._cached: dict[int, Pixels] = {}
        # Shared memory: `set_epoch` also reaches the persistent workers of a DataLoader.
        self._epoch: Tensor = torch.zeros((), dtype=torch.int64).share_memory_()  # type: ignore[no-untyped-call]

    @property
    def num_classes(self) -> int:
        """Number of categories."""
        return len(self.class_names)

    def set_epoch(self, epoch: int) -> None:
        """Choose the flips of an epoch; call it before iterating, also with worker processes."""
        self._epoch.fill_(check_integer("epoch", epoch, low=0))

    def __len__(self) -> int:
        return len(self._entries)

    def __getitem__(self, index: int) -> Sample:
        index = check_index(index, len(self))
        entry = self._entries[index]
        image = to_image(self._pixels(index))  # (3, H, W)
        height, width = image.shape[1], image.shape[2]
        scale = np.array([width / entry.width, height / entry.height] * 2)
        boxes = torch.from_numpy(entry.boxes * scale).to(torch.float32)  # (T, 4)
        if self.flip and np.random.default_rng([self.seed, int(self._epoch), index]).random() < 0.5:
            image, boxes = image.flip(-1), flip_boxes(boxes, width)
        target: TargetDict = {
            "boxes": boxes,
            "labels": torch.from_numpy(entry.labels.copy()),
            "image_id": entry.image_id,
            "size": (height, width),
            "orig_size": (entry.height, entry.width),
        }
        if self.crowd == "mark":
            target["iscrowd"] = torch.from_numpy(entry.iscrowd.copy())
        return image, target

    def _pixels(self, index: int) -> Pixels:
        if index in self._cached:
            return self._cached[index]
        pixels = _decode(self.folder / "images" / self._entries[index].file_name, self._entries[index], self.size)
        if self.cache:
            self._cached[index] = pixels
        return pixels


class _Entry(NamedTuple):
    """One image of the json; boxes are (T, 4) xyxy in pixels of the original image, cut to it.

    These are arrays because a worker that is spawned would get every tensor through a file descriptor of its own.
    """

    image_id: int
    file_name: str
    height: int
    width: int
    boxes: NDArray[np.float64]
    labels: NDArray[np.int64]
    iscrowd: NDArray[np.bool_]


def _read_json(folder: Path, split: str) -> Mapping[str, Any]:
    path = annotation_file(folder, split)
    if not folder.is_dir():
        raise FileNotFoundError(f"folder must be a folder with annotations/ and images/, got {str(folder)!r}")
    if not path.is_file():
        known = sorted(file.stem.removeprefix("instances_") for file in path.parent.glob("instances_*.json"))
        raise FileNotFoundError(f"split must be one of {known}, the splits in {path.parent}, got {split!r}")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:  # not json, or not even text
        raise ValueError(f"folder must hold COCO annotations, but {path} is not json: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(
            f"folder must hold COCO annotations, but {path} holds a {type(content).__name__}, not an object"
        )
    return content


def _parse_categories(content: Mapping[str, Any]) -> tuple[tuple[int, ...], tuple[str, ...]]:
    names = {int(category["id"]): str(category["name"]) for category in content["categories"]}
    if len(names) != len(content["categories"]):
        raise ValueError("'categories' must have different ids, got some twice")
    return tuple(sorted(names)), tuple(names[category_id] for category_id in sorted(names))


def _parse_entries(content: Mapping[str, Any], category_ids: tuple[int, ...], *, keep_crowds: bool) -> list[_Entry]:
    label_of = {category_id: label for label, category_id in enumerate(category_ids)}
    rows: dict[int, list[tuple[list[float], int, bool]]] = {int(image["id"]): [] for image in content["images"]}
    if len(rows) != len(content["images"]):
        raise ValueError("'images' must have different ids, got some twice")
    for annotation in content["annotations"]:
        image_id, category_id, box = annotation["image_id"], annotation["category_id"], annotation["bbox"]
        if image_id not in rows or category_id not in label_of:
            found = f"image_id={image_id}, category_id={category_id}"
            raise ValueError(f"annotation {annotation.get('id')} must name a known image and category, got {found}")
        box = [float(side) for side in box]
        if len(box) != 4 or not all(map(math.isfinite, box)):
            raise ValueError(f"annotation {annotation.get('id')} must have a bbox of 4 finite numbers, got {box}")
        crowd = bool(annotation.get("iscrowd", 0))
        if keep_crowds or not crowd:
            rows[image_id].append((box, label_of[category_id], crowd))
    return [_entry(image, rows[int(image["id"])]) for image in content["images"]]


def _entry(image: Mapping[str, Any], rows: list[tuple[list[float], int, bool]]) -> _Entry:
    height, width = int(image["height"]), int(image["width"])
    low, sides = np.split(np.array([row[0] for row in rows], dtype=np.float64).reshape(-1, 4), 2, axis=1)
    corners = np.stack((low, low + sides), axis=1).clip(0, (width, height))  # (T, 2, 2)
    kept = (corners[:, 1] > corners[:, 0]).all(axis=1)  # (T,)
    labels = np.array([row[1] for row in rows], dtype=np.int64)[kept]
    iscrowd = np.array([row[2] for row in rows], dtype=np.bool_)[kept]
    boxes = corners[kept].reshape(-1, 4)
    return _Entry(int(image["id"]), str(image["file_name"]), height, width, boxes, labels, iscrowd)


def _reason(error: Exception) -> str:
    return f"the key {error} is missing" if isinstance(error, KeyError) else str(error)


def _decode(path: Path, entry: _Entry, size: tuple[int, int] | None) -> Pixels:
    """Return the (3, H, W) bytes of an image, resized to `size`."""
    pillow = import_pillow()
    try:
        with pillow.open(path) as file:
            picture = file.convert("RGB")
    except FileNotFoundError as error:
        raise FileNotFoundError(f"folder must hold images/{entry.file_name}, got none at {path}") from error
    except OSError as error:
        raise ValueError(f"folder must hold readable images, but {path} is not: {error}") from error
    if picture.size != (entry.width, entry.height):
        stated = (entry.width, entry.height)
        raise ValueError(f"folder must hold images of the stated size, but {path} is {picture.size}, not {stated}")
    if size is not None and size != (entry.height, entry.width):
        # Pillow widens the filter where it shrinks an image: that is the antialiasing.
        picture = picture.resize((size[1], size[0]), pillow.Resampling.BILINEAR)
    pixels: Pixels = np.array(picture, dtype=np.uint8).transpose(2, 0, 1).copy()
    return pixels
