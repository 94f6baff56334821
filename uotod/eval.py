"""Measure detections as COCO does: predictions and targets of every image come in, average precisions go out."""

import importlib
import io
import math
from collections.abc import Mapping, Sequence
from contextlib import redirect_stdout
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from uotod.check import check_integer

# COCO's limits on a target's area, in pixels², and the index of its IoU thresholds 0.5, 0.55, ..., 0.95.
AREAS = {"": (0.0, 1e10), "_small": (0.0, 32.0**2), "_medium": (32.0**2, 96.0**2), "_large": (96.0**2, 1e10)}
THRESHOLDS = {"AP50": 0, "AP75": 5}


def coco_ap(
    predictions: Sequence[Mapping[str, object]],
    targets: Sequence[Mapping[str, object]],
    *,
    class_names: Sequence[str] | None = None,
    max_detections: int = 100,
) -> dict[str, float]:
    """Compute the average precision and recall of COCO, of boxes.

    The precision of a class is interpolated at 101 recalls; AP is its mean over recalls, over the IoU thresholds
    0.5, 0.55, …, 0.95 and over the classes that have a target. AR is the largest recall, averaged over the same
    thresholds and classes. A class without targets counts nowhere, nor do predictions of it. A mean over nothing, such
    as AP where no image has a target, is NaN. The work is done by `faster_coco_eval` if it is installed, and else by
    `pycocotools`.

    Args:
        predictions: one mapping an image with `boxes` (N, 4), xyxy in pixels, `scores` (N,), the higher the surer, and
            integer `labels` (N,). A box with a negative width or height gets none: it matches nothing.
        targets: one mapping an image, in the same order, with `boxes` (T, 4) and integer `labels` (T,); optional
            `iscrowd` (T,), where true a box around a crowd, whose detections are not counted, and `area` (T,) in
            pixels², by default that of the box. Other keys are not read. N and T may be 0.
        class_names: names of the classes, in the order of the labels; asks for one AP a class as well.
        max_detections: number of predictions that count, an image and a class, those with the highest scores.

    Returns:
        "AP", "AP50", "AP75" (at one IoU threshold), "AP_small", "AP_medium", "AP_large" (targets of less than 32²
        pixels, between, and more than 96² pixels), "AR", and with `class_names` one "AP/name" a class; all in [0, 1].

    Raises:
        ImportError: neither evaluator is installed.
        TypeError: an entry is not a mapping or not a tensor, or labels are not integers.
        ValueError: the two lists differ in length, a key is missing, or a tensor has a wrong shape or value.

    Examples:
        >>> boxes = torch.tensor([[0.0, 0.0, 40.0, 40.0], [50.0, 50.0, 90.0, 90.0]])
        >>> target = {"boxes": boxes, "labels": torch.tensor([0, 1])}
        >>> prediction = {"boxes": boxes + 5, "labels": torch.tensor([0, 1]), "scores": torch.tensor([0.9, 0.8])}
        >>> result = coco_ap([prediction], [target], class_names=["cat", "dog"])  # IoU = 35² / (2·40² − 35²) ≈ 0.62
        >>> {key: round(value, 2) for key, value in result.items() if "_" not in key}
        {'AP': 0.3, 'AP50': 1.0, 'AP75': 0.0, 'AR': 0.3, 'AP/cat': 0.3, 'AP/dog': 0.3}

    References:
        Lin et al., "Microsoft COCO: Common Objects in Context", ECCV 2014, and the evaluator of its detection task.
    """
    check_integer("max_detections", max_detections, low=1)
    if len(predictions) != len(targets):
        raise ValueError(f"predictions must have one entry a target, got {len(predictions)} for {len(targets)} targets")
    num_classes = None if class_names is None else len(class_names)
    if class_names is not None and len(set(class_names)) != num_classes:
        raise ValueError(f"class_names must differ, got {list(class_names)}")
    detected = [_parse("predictions", index, entry, num_classes) for index, entry in enumerate(predictions)]
    expected = [_parse("targets", index, entry, num_classes) for index, entry in enumerate(targets)]
    categories = sorted({label for image in expected for label in image.labels})
    if not categories:
        _import_evaluator()  # what is missing is said on every call, not only once there are targets
        precision, recall = np.zeros((10, 101, 0, 4)), np.zeros((10, 0, 4))
    else:
        precision, recall = _evaluate(detected, expected, categories, max_detections)  # (10, 101, K, 4), (10, K, 4)
    result = {"AP": _mean(precision[..., 0])}
    result |= {name: _mean(precision[threshold, ..., 0]) for name, threshold in THRESHOLDS.items()}
    result |= {f"AP{name}": _mean(precision[..., area]) for area, name in enumerate(AREAS) if name}
    result["AR"] = _mean(recall[..., 0])
    for label, name in enumerate(class_names or ()):
        column = categories.index(label) if label in categories else None
        result[f"AP/{name}"] = math.nan if column is None else _mean(precision[:, :, column, 0])
    return result


class _Image(NamedTuple):
    """The boxes of one image as Python numbers: xywh, labels, and what only one of the two sides has."""

    boxes: list[list[float]]
    labels: list[int]
    scores: list[float]
    crowds: list[bool]
    areas: list[float]


def _parse(side: str, index: int, entry: Mapping[str, object], num_classes: int | None) -> _Image:
    where = f"{side}[{index}]"
    if not isinstance(entry, Mapping):
        raise TypeError(f"{where} must be a mapping, got {type(entry).__name__}")
    boxes = _tensor(where, entry, "boxes", None)  # (N, 4)
    count = boxes.shape[0]
    labels = _tensor(where, entry, "labels", count)
    if labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
        raise TypeError(f"{where}['labels'] must be integers, got {labels.dtype}")
    high = math.inf if num_classes is None else num_classes
    if any(not 0 <= label < high for label in labels.tolist()):
        raise ValueError(f"{where}['labels'] must lie in [0, {high}), got {labels.tolist()}")
    sides = boxes[:, 2:] - boxes[:, :2]  # (N, 2)
    if side == "predictions":
        sides = sides.clamp(min=0)
        scores = _tensor(where, entry, "scores", count).tolist()
        crowds, areas = [False] * count, sides.prod(dim=1).tolist()
    else:
        if bool((sides < 0).any()):
            raise ValueError(f"{where}['boxes'] must have x2 >= x1 and y2 >= y1, got {boxes.tolist()}")
        scores = []
        crowds = _tensor(where, entry, "iscrowd", count).bool().tolist() if "iscrowd" in entry else [False] * count
        areas = (_tensor(where, entry, "area", count) if "area" in entry else sides.prod(dim=1)).tolist()
    return _Image(torch.cat((boxes[:, :2], sides), dim=1).tolist(), labels.tolist(), scores, crowds, areas)


def _tensor(where: str, entry: Mapping[str, object], key: str, count: int | None) -> Tensor:
    """Return a checked entry on the CPU, floats as float64: (N, 4) if `count` is None, else (count,)."""
    if key not in entry:
        raise ValueError(f"{where} must have the key {key!r}, got the keys {sorted(map(str, entry))}")
    value = entry[key]
    if not isinstance(value, Tensor):
        raise TypeError(f"{where}[{key!r}] must be a tensor, got {type(value).__name__}")
    fits = value.dim() == 2 and value.shape[1] == 4 if count is None else value.shape == (count,)
    if not fits:
        shape = "(N, 4)" if count is None else f"({count},), one entry a box"
        raise ValueError(f"{where}[{key!r}] must have shape {shape}, got {tuple(value.shape)}")
    value = value.detach().cpu()
    if key == "labels":
        return value
    if not bool(torch.isfinite(value).all()):
        raise ValueError(f"{where}[{key!r}] must be finite, got {int((~torch.isfinite(value)).sum())} NaN or infinite")
    return value.to(torch.float64)


def _evaluate(
    detected: list[_Image], expected: list[_Image], categories: list[int], max_detections: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return precisions (IoU, recall, class, area) and largest recalls (IoU, class, area); −1 without targets."""
    dataset_class, evaluator_class = _import_evaluator()
    with redirect_stdout(io.StringIO()):  # pycocotools prints its progress
        sides = [_dataset(dataset_class, images, categories) for images in (expected, detected)]
        evaluator = evaluator_class(*sides, iouType="bbox")
        evaluator.params.maxDets = [max_detections]
        evaluator.params.areaRng = [list(limits) for limits in AREAS.values()]
        evaluator.params.areaRngLbl = [name or "all" for name in AREAS]
        evaluator.evaluate()
        evaluator.accumulate()
    precision = np.asarray(evaluator.eval["precision"], dtype=np.float64)[..., 0]
    recall = np.asarray(evaluator.eval["recall"], dtype=np.float64)[..., 0]
    return precision, recall


def _import_evaluator() -> tuple[Any, Any]:
    """Return the classes of a COCO data set and of its evaluator, of the package that is installed."""
    try:
        faster = importlib.import_module("faster_coco_eval")
        return faster.COCO, faster.COCOeval_faster
    except ImportError:
        pass  # it is optional: pycocotools gives the same numbers
    try:
        dataset, evaluator = map(importlib.import_module, ("pycocotools.coco", "pycocotools.cocoeval"))
        return dataset.COCO, evaluator.COCOeval
    except ImportError as error:
        raise ImportError('average precision needs pycocotools: pip install "uotod[eval]"') from error


def _dataset(dataset_class: Any, images: list[_Image], categories: list[int]) -> Any:
    annotations: list[dict[str, Any]] = []
    for image_id, image in enumerate(images):
        scores = image.scores or [0.0] * len(image.labels)
        rows = zip(image.boxes, image.labels, scores, image.crowds, image.areas, strict=True)
        for box, label, score, crowd, area in rows:
            annotation = {"image_id": image_id, "category_id": label, "bbox": box, "score": score}
            # Ids start at 1: both evaluators take a match with id 0 for "no match".
            annotations.append(annotation | {"iscrowd": int(crowd), "area": area, "id": len(annotations) + 1})
    dataset = dataset_class()
    dataset.dataset = {
        "images": [{"id": image_id} for image_id in range(len(images))],
        "annotations": annotations,
        "categories": [{"id": label} for label in categories],
    }
    dataset.createIndex()
    return dataset


def _mean(values: NDArray[np.float64]) -> float:
    """Return the mean of the entries that exist (those above −1), NaN if there are none."""
    exist = values[values > -1]
    return float(exist.mean()) if exist.size else math.nan
