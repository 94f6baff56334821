"""Parse what a user passes (dicts of tensors) into validated, padded values: predictions, targets and anchors."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from uotod._boxes import full_precision

PredictionDict = Mapping[str, Any]
TargetInput = Mapping[str, Tensor] | Sequence[Mapping[str, Tensor]]


@dataclass(frozen=True)
class Predictions:
    """Predictions of `layers` decoder layers, stacked along the batch (the final layer comes last).

    Attributes:
        logits: (layers * images, P, C) class scores before softmax or sigmoid.
        boxes: (layers * images, P, 4) boxes, xyxy.
        layers: number of stacked decoder layers.
    """

    logits: Tensor
    boxes: Tensor
    layers: int


@dataclass(frozen=True)
class Targets:
    """Padded targets; what lay under the mask is replaced by zeros, so that no padding is ever read.

    Attributes:
        boxes: (B, T, 4) boxes, xyxy.
        mask: (B, T) bool, False for padding.
        labels: (B, T) integer labels, or None if the labels are one-hot.
        one_hot: (B, T, C) one-hot labels, or None if the labels are integers.
    """

    boxes: Tensor
    mask: Tensor
    labels: Tensor | None
    one_hot: Tensor | None

    def class_matrix(self, num_classes: int, dtype: torch.dtype) -> Tensor:
        """Return the labels as (B, T, C) rows, one-hot or as they were given; zeros for padding."""
        if self.one_hot is not None:
            return self.one_hot.to(dtype)
        assert self.labels is not None
        classes = torch.arange(num_classes, device=self.labels.device)
        return ((self.labels.unsqueeze(-1) == classes) & self.mask.unsqueeze(-1)).to(dtype)


@dataclass(frozen=True)
class Batch:
    """Everything that a matcher reads: predictions, targets of the same images and, if given, (B, P, 4) anchors."""

    predictions: Predictions
    targets: Targets
    anchors: Tensor | None


def parse_batch(
    input: PredictionDict,
    target: TargetInput,
    anchors: Tensor | None,
    *,
    nonfinite: str = "error",
    validate: bool = False,
    auxiliary: bool = False,
) -> Batch:
    """Validate `input`, `target` and `anchors`, and stack the decoder layers along the batch.

    Shapes, types and devices are always checked. Values are checked where that does not synchronise: on the CPU, or
    if `validate` asks for it. With `auxiliary` the layers in `input["aux_outputs"]` are stacked before the final one.

    Raises:
        TypeError: an argument or an entry has the wrong type or dtype.
        ValueError: a key is missing, or a shape, a device or a value is wrong.
    """
    if not isinstance(input, Mapping):
        raise TypeError(f"input must be a dict of tensors, got {type(input).__name__}")
    final = _parse_layer("input", input, None, nonfinite, validate)
    layers = [final]
    aux = input.get("aux_outputs") if auxiliary else None
    if aux is not None:
        if not isinstance(aux, Sequence):
            raise TypeError(f"input['aux_outputs'] must be a list of dicts, got {type(aux).__name__}")
        earlier = [_parse_layer(f"input['aux_outputs'][{i}]", x, final, nonfinite, validate) for i, x in enumerate(aux)]
        layers = [*earlier, final]

    targets = _parse_targets(target, final, validate)
    stacked_anchors = None if anchors is None else _parse_anchors(anchors, final, validate)
    if len(layers) == 1:
        return Batch(final, targets, stacked_anchors)
    count = len(layers)
    predictions = Predictions(torch.cat([x.logits for x in layers]), torch.cat([x.boxes for x in layers]), count)
    targets = Targets(
        targets.boxes.repeat(count, 1, 1),
        targets.mask.repeat(count, 1),
        None if targets.labels is None else targets.labels.repeat(count, 1),
        None if targets.one_hot is None else targets.one_hot.repeat(count, 1, 1),
    )
    if stacked_anchors is not None:
        stacked_anchors = stacked_anchors.repeat(count, 1, 1)
    return Batch(predictions, targets, stacked_anchors)


def pad_targets(targets: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Pad a list of per-image targets to one dict with a mask.

    Args:
        targets: for each image a dict with `boxes` (T_b, 4), xyxy, and `labels`, (T_b,) integers or (T_b, C) one-hot.
            Other keys are left out.

    Returns:
        `boxes` (B, T, 4), `labels` (B, T) or (B, T, C) and `mask` (B, T), where T is the largest number of targets in
        an image. Padding is zero.

    Raises:
        TypeError: `targets` is not a list of dicts of tensors, or the dtypes of two images differ.
        ValueError: a key is missing, or the shapes or devices of two images do not fit together.

    Examples:
        >>> one = {"boxes": torch.tensor([[0.0, 0.0, 2.0, 2.0]]), "labels": torch.tensor([3])}
        >>> none = {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.long)}
        >>> pad_targets([one, none])["mask"]
        tensor([[ True],
                [False]])
    """
    if isinstance(targets, (Tensor, Mapping, str)) or not isinstance(targets, Sequence):
        raise TypeError(f"targets must be a list of dicts, one an image, got {type(targets).__name__}")
    if not targets:
        empty = torch.zeros(0, 0, dtype=torch.long)
        return {"boxes": torch.zeros(0, 0, 4), "labels": empty, "mask": empty.bool()}
    for index, image in enumerate(targets):
        _check_image(f"target[{index}]", image)
        if image["labels"].shape[1:] != targets[0]["labels"].shape[1:]:
            expected = ", ".join(["(T_b", *map(str, targets[0]["labels"].shape[1:])]) + ")"
            found = tuple(image["labels"].shape)
            raise ValueError(f"target[{index}]['labels'] must have shape {expected} like target[0], got {found}")
        for key in ("boxes", "labels"):
            name, dtype = f"target[{index}][{key!r}]", targets[0][key].dtype
            if image[key].dtype != dtype:
                raise TypeError(f"{name} must be {dtype} like target[0], got {image[key].dtype}")
            _check_device(name, image[key], targets[0][key].device)
    counts = [len(image["boxes"]) for image in targets]
    width = max(counts)
    mask = torch.arange(width)[None, :] < torch.tensor(counts)[:, None]  # (B, T)
    return {
        "boxes": torch.nn.utils.rnn.pad_sequence([x["boxes"] for x in targets], batch_first=True),
        "labels": torch.nn.utils.rnn.pad_sequence([x["labels"] for x in targets], batch_first=True),
        "mask": mask.to(targets[0]["boxes"].device),
    }


def reads_values(tensor: Tensor, validate: bool) -> bool:
    """Tell whether values of `tensor` may be looked at: on a GPU that synchronises, so only on request."""
    return validate or tensor.device.type == "cpu"


def _check_image(name: str, image: Mapping[str, Tensor]) -> None:
    if not isinstance(image, Mapping):
        raise TypeError(f"{name} must be a dict of tensors, got {type(image).__name__}")
    boxes, labels = _entry(name, image, "boxes"), _entry(name, image, "labels")
    if boxes.dim() != 2 or boxes.shape[-1] != 4:
        raise ValueError(f"{name}['boxes'] must have shape (T_b, 4), got {tuple(boxes.shape)}")
    if labels.dim() not in (1, 2) or len(labels) != len(boxes):
        expected = f"({len(boxes)},) or ({len(boxes)}, C)"
        raise ValueError(f"{name}['labels'] must have shape {expected} like its boxes, got {tuple(labels.shape)}")


def _entry(name: str, values: Mapping[str, Any], key: str) -> Tensor:
    if key not in values:
        raise ValueError(f"{name} must have the key {key!r}, got the keys {sorted(map(str, values))}")
    if not isinstance(values[key], Tensor):
        raise TypeError(f"{name}[{key!r}] must be a tensor, got {type(values[key]).__name__}")
    tensor: Tensor = values[key]
    return tensor


def _parse_layer(
    name: str, layer: PredictionDict, like: Predictions | None, nonfinite: str, validate: bool
) -> Predictions:
    if not isinstance(layer, Mapping):
        raise TypeError(f"{name} must be a dict of tensors, got {type(layer).__name__}")
    logits, boxes = _entry(name, layer, "pred_logits"), _entry(name, layer, "pred_boxes")
    for key, tensor in (("pred_logits", logits), ("pred_boxes", boxes)):
        if not tensor.is_floating_point():
            raise TypeError(f"{name}[{key!r}] must have a floating dtype, got {tensor.dtype}")
    if logits.dim() != 3 or not logits.shape[-1]:
        raise ValueError(f"{name}['pred_logits'] must have shape (B, P, C) with C >= 1, got {tuple(logits.shape)}")
    if boxes.shape != (*logits.shape[:2], 4):
        raise ValueError(
            f"{name}['pred_boxes'] must have shape {(*logits.shape[:2], 4)} to fit its logits, got {tuple(boxes.shape)}"
        )
    _check_device(f"{name}['pred_boxes']", boxes, logits.device)
    if like is not None:
        if logits.shape != like.logits.shape:
            raise ValueError(
                f"{name}['pred_logits'] must have shape {tuple(like.logits.shape)} like the final layer, "
                f"got {tuple(logits.shape)}"
            )
        _check_device(f"{name}['pred_logits']", logits, like.logits.device)
    if nonfinite == "error":
        _check_finite(f"{name}['pred_logits']", logits, validate, hint=' (nonfinite="propagate" lets them through)')
        _check_finite(f"{name}['pred_boxes']", boxes, validate, hint=' (nonfinite="propagate" lets them through)')
    return Predictions(full_precision(logits), full_precision(boxes), layers=1)


def _parse_targets(target: TargetInput, predictions: Predictions, validate: bool) -> Targets:
    if not isinstance(target, Mapping):
        target = pad_targets(target)
    boxes, labels = _entry("target", target, "boxes"), _entry("target", target, "labels")
    images, _, num_classes = predictions.logits.shape
    device = predictions.logits.device
    if boxes.dim() != 3 or boxes.shape[-1] != 4 or len(boxes) != images:
        raise ValueError(f"target['boxes'] must have shape ({images}, T, 4), got {tuple(boxes.shape)}")
    if boxes.is_complex() or boxes.dtype == torch.bool:
        raise TypeError(f"target['boxes'] must have a real dtype, got {boxes.dtype}")
    shape = tuple(boxes.shape[:2])
    mask = _entry("target", target, "mask") if "mask" in target else torch.ones(shape, dtype=torch.bool, device=device)
    if mask.dtype != torch.bool:
        raise TypeError(f"target['mask'] must have dtype torch.bool, got {mask.dtype}")
    for key, tensor, expected in (("mask", mask, shape), ("labels", labels, (*shape, num_classes))):
        if tuple(tensor.shape) not in (shape, expected):
            text = f"{shape} or {expected}" if key == "labels" else f"{shape}"
            raise ValueError(f"target[{key!r}] must have shape {text}, got {tuple(tensor.shape)}")
    for key, tensor in (("boxes", boxes), ("labels", labels), ("mask", mask)):
        _check_device(f"target[{key!r}]", tensor, device)

    safe = boxes.to(predictions.boxes.dtype).masked_fill(~mask.unsqueeze(-1), 0)
    if reads_values(boxes, validate):
        _check_finite("target['boxes']", safe, validate)
        _check_ordered("target['boxes']", safe)
    if labels.dim() == 3:
        one_hot = full_precision(labels.to(predictions.logits.dtype)).masked_fill(~mask.unsqueeze(-1), 0)
        if reads_values(labels, validate) and not ((one_hot >= 0) & (one_hot <= 1)).all():
            raise ValueError("target['labels'] must hold one-hot values in [0, 1], got a value outside")
        return Targets(safe, mask, None, one_hot)
    if labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
        raise TypeError(f"target['labels'] of shape (B, T) must have an integer dtype, got {labels.dtype}")
    index = labels.long().masked_fill(~mask, 0)
    if reads_values(labels, validate) and index.numel():
        low, high = (int(x) for x in torch.aminmax(index))
        if low < 0 or high >= num_classes:
            value = low if low < 0 else high
            raise ValueError(f"target['labels'] must lie in [0, {num_classes}) where the mask is True, got {value}")
    return Targets(safe, mask, index, None)


def _parse_anchors(anchors: Tensor, predictions: Predictions, validate: bool) -> Tensor:
    images, count = predictions.logits.shape[:2]
    if not isinstance(anchors, Tensor):
        raise TypeError(f"anchors must be a tensor, got {type(anchors).__name__}")
    if not anchors.is_floating_point():
        raise TypeError(f"anchors must have a floating dtype, got {anchors.dtype}")
    if tuple(anchors.shape) not in ((count, 4), (images, count, 4)):
        raise ValueError(f"anchors must have shape {(count, 4)} or {(images, count, 4)}, got {tuple(anchors.shape)}")
    _check_device("anchors", anchors, predictions.boxes.device)
    if reads_values(anchors, validate):
        _check_finite("anchors", anchors, validate)
        _check_ordered("anchors", anchors)
    return full_precision(anchors.to(predictions.boxes.dtype)).expand(images, count, 4)


def _check_device(name: str, tensor: Tensor, device: torch.device) -> None:
    if tensor.device != device:
        raise ValueError(f"{name} must be on {device} like the rest, got {tensor.device}")


def _check_finite(name: str, tensor: Tensor, validate: bool, hint: str = "") -> None:
    """Raise a ValueError that names the first image with a non-finite value and how many it has."""
    if not tensor.numel() or not reads_values(tensor, validate):
        return
    low, high = torch.aminmax(tensor.detach())  # NaN comes through both: one pass
    if bool(torch.isfinite(high - low)):
        return
    bad = ~torch.isfinite(tensor.detach())
    if not bool(bad.any()):  # the range of finite numbers may overflow
        return
    if tensor.dim() == 2:
        raise ValueError(f"{name} must be finite, got {int(bad.sum())} non-finite values{hint}")
    per_image = bad.flatten(1).sum(1)
    image = int(per_image.ne(0).nonzero()[0])
    raise ValueError(f"{name} must be finite, got {int(per_image[image])} non-finite values in image {image}{hint}")


def _check_ordered(name: str, boxes: Tensor) -> None:
    inverted = (boxes[..., 2:] < boxes[..., :2]).any(-1)
    if bool(inverted.any()):
        first = tuple(int(x) for x in inverted.nonzero()[0])
        values = [float(x) for x in boxes[first]]
        raise ValueError(f"{name} must have x1 <= x2 and y1 <= y2 (xyxy), got {values} at index {first}")
