"""Write a data set to disk in the COCO layout: samples come in, PNG images and an annotation file go out."""

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from uotod.check import check_flag
from uotod.datasets._target import Sample, TargetDict, annotation_file, import_pillow, to_pixels


class LabelledDataset(Protocol):
    """What `write_coco` can write: a finite data set of samples whose classes have names."""

    @property
    def class_names(self) -> Sequence[str]:
        """One name a class."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Sample: ...


def write_coco(
    dataset: LabelledDataset, folder: str | os.PathLike[str], split: str = "train", *, overwrite: bool = False
) -> Path:
    """Write a data set to disk in the COCO layout: lossless images first, then the json, in one atomic step.

    A split is there once its json is: an interrupted call leaves images, but no annotation file. Several splits may
    share a folder. Class `c` becomes category `c + 1`; areas are those of the boxes.

    Args:
        dataset: what to write, such as `ColorBoxes`; each `image_id` is kept and they must differ.
        folder: where to write, created if missing.
        split: name of the split, part of the names of all files written.
        overwrite: replace a split that exists; its json is then removed before anything is written.

    Returns:
        The path of the annotation file.

    Raises:
        FileExistsError: the split exists and `overwrite` is False.
        ValueError: an item's image, labels or `image_id` cannot be written.

    Examples:
        >>> import tempfile
        >>> from uotod.datasets import ColorBoxes
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = write_coco(ColorBoxes(2, size=(64, 64), max_boxes=3), folder, "train")
        ...     path.name, sorted(image.name for image in (path.parents[1] / "images").iterdir())
        ('instances_train.json', ['train_000000.png', 'train_000001.png'])
    """
    path = annotation_file(Path(folder), split)
    check_flag("overwrite", overwrite)
    if path.exists() and not overwrite:
        raise FileExistsError(f"split must name a new split (or give overwrite=True), got {split!r}: {path} exists")
    pillow = import_pillow()
    path.unlink(missing_ok=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    (Path(folder) / "images").mkdir(exist_ok=True)

    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for index in range(len(dataset)):
        image, target = dataset[index]
        height, width = image.shape[-2:]
        file_name = f"{split}_{index:06d}.png"
        pixels = to_pixels(image).transpose(1, 2, 0)  # (H, W, 3)
        pillow.fromarray(np.ascontiguousarray(pixels)).save(Path(folder) / "images" / file_name, compress_level=1)
        images.append({"id": target["image_id"], "file_name": file_name, "width": width, "height": height})
        # Ids start at 1: the evaluators of COCO take an annotation of id 0 for "no match".
        annotations += _annotations(target, len(dataset.class_names), first_id=len(annotations) + 1)
    if len({image["id"] for image in images}) != len(images):
        raise ValueError("dataset must give every item its own image_id, got some twice")
    categories = [{"id": label + 1, "name": name} for label, name in enumerate(dataset.class_names)]
    content = {"images": images, "annotations": annotations, "categories": categories}
    _write_atomically(path, json.dumps(content))
    return path


def _annotations(target: TargetDict, num_classes: int, *, first_id: int) -> list[dict[str, Any]]:
    labels, iscrowd = target["labels"].tolist(), target.get("iscrowd")
    if any(not 0 <= label < num_classes for label in labels):
        raise ValueError(f"dataset must give labels in [0, {num_classes}), got {labels} in image {target['image_id']}")
    crowds = [0] * len(labels) if iscrowd is None else [int(crowd) for crowd in iscrowd.tolist()]
    rows = zip(target["boxes"].tolist(), labels, crowds, strict=True)
    return [
        {
            "id": first_id + position,
            "image_id": target["image_id"],
            "category_id": label + 1,
            "bbox": [left, top, right - left, bottom - top],
            "area": (right - left) * (bottom - top),
            "iscrowd": crowd,
        }
        for position, ((left, top, right, bottom), label, crowd) in enumerate(rows)
    ]


def _write_atomically(path: Path, text: str) -> None:
    """Put a whole file at `path` or none: the text is on the disk before the name is."""
    partial = path.with_name(f"{path.name}.partial")
    try:
        with partial.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
