"""Parse the targets that a user passes, a padded dict or a list of one dict an image, into validated, padded values."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from uotod.check import check_device, check_finite, check_ordered, entry, reads_values
from uotod.geometry.boxes import full_precision

TargetInput = Mapping[str, Tensor] | Sequence[Mapping[str, Tensor]]

_OPTIONAL = ("mask", "ignore", "weight")


@dataclasses.dataclass(frozen=True)
class Targets:
    """Padded targets; what lay under the mask is replaced by zeros, so that no padding is ever read.

    Attributes:
        boxes: (B, T, 4) boxes, xyxy, those of ignored targets included.
        mask: (B, T) bool, False for padding and for ignored targets.
        labels: (B, T) integer labels, or None if the labels are one-hot.
        one_hot: (B, T, C) one-hot labels, or None if the labels are integers.
        ignored: (B, T) bool, True for a target that no prediction may match; None if there are none.
        weight: (B, T) factor of a target's cost, or None for 1.
    """

    boxes: Tensor
    mask: Tensor
    labels: Tensor | None
    one_hot: Tensor | None
    ignored: Tensor | None = None
    weight: Tensor | None = None

    def class_matrix(self, num_classes: int, dtype: torch.dtype) -> Tensor:
        """Return the labels as (B, T, C) rows, one-hot or as they were given; zeros for padding."""
        if self.one_hot is not None:
            return self.one_hot.to(dtype)
        assert self.labels is not None
        classes = torch.arange(num_classes, device=self.labels.device)
        return ((self.labels.unsqueeze(-1) == classes) & self.mask.unsqueeze(-1)).to(dtype)

    def repeat(self, layers: int) -> "Targets":
        """Return the targets once for each of `layers` decoder layers, stacked along the batch."""
        return self.map(lambda x: x.repeat(layers, *[1] * (x.dim() - 1)))

    def map(self, function: Callable[[Tensor], Tensor]) -> "Targets":
        """Return the targets with a function applied to every tensor."""
        fields: dict[str, Any] = {name: None if x is None else function(x) for name, x in vars(self).items()}
        return dataclasses.replace(self, **fields)


def parse_targets(target: TargetInput, logits: Tensor, dtype: torch.dtype, validate: bool) -> Targets:
    """Validate the targets of the images of (B, P, C) `logits`; boxes come out in `dtype`.

    Raises:
        TypeError: an entry has the wrong type or dtype.
        ValueError: a key is missing, or a shape, a device or a value is wrong.
    """
    if not isinstance(target, Mapping):
        target = pad_targets(target)
    boxes, labels = entry("target", target, "boxes"), entry("target", target, "labels")
    images, _, num_classes = logits.shape
    device = logits.device
    if boxes.dim() != 3 or boxes.shape[-1] != 4 or len(boxes) != images:
        raise ValueError(f"target['boxes'] must have shape ({images}, T, 4), got {tuple(boxes.shape)}")
    if boxes.is_complex() or boxes.dtype == torch.bool:
        raise TypeError(f"target['boxes'] must have a real dtype, got {boxes.dtype}")
    shape = tuple(boxes.shape[:2])
    mask = entry("target", target, "mask") if "mask" in target else torch.ones(shape, dtype=torch.bool, device=device)
    given = {key: entry("target", target, key) for key in ("ignore", "weight") if key in target}
    for key, tensor in ({"mask": mask} | given).items():
        _check_dtype(f"target[{key!r}]", tensor, floating=key == "weight")
    if tuple(labels.shape) not in (shape, (*shape, num_classes)):
        raise ValueError(
            f"target['labels'] must have shape {shape} or {(*shape, num_classes)}, got {tuple(labels.shape)}"
        )
    for key, tensor in ({"mask": mask} | given).items():
        if tuple(tensor.shape) != shape:
            raise ValueError(f"target[{key!r}] must have shape {shape}, got {tuple(tensor.shape)}")
    for key, tensor in ({"boxes": boxes, "labels": labels, "mask": mask} | given).items():
        check_device(f"target[{key!r}]", tensor, device)

    safe = boxes.to(dtype).masked_fill(~mask.unsqueeze(-1), 0)
    if reads_values(boxes, validate):
        check_finite("target['boxes']", safe, validate)
        check_ordered("target['boxes']", safe)
    ignored = given["ignore"] & mask if "ignore" in given else None
    mask = mask if ignored is None else mask & ~ignored
    weight = full_precision(given["weight"].to(logits.dtype)).masked_fill(~mask, 1) if "weight" in given else None
    if weight is not None and reads_values(weight, validate) and not bool(((weight > 0) & weight.isfinite()).all()):
        raise ValueError("target['weight'] must be finite and above 0 where the mask is True, got a value outside")
    if labels.dim() == 3:
        one_hot = full_precision(labels.to(logits.dtype)).masked_fill(~mask.unsqueeze(-1), 0)
        if reads_values(labels, validate) and not ((one_hot >= 0) & (one_hot <= 1)).all():
            raise ValueError("target['labels'] must hold one-hot values in [0, 1], got a value outside")
        return Targets(safe, mask, None, one_hot, ignored, weight)
    if labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
        raise TypeError(f"target['labels'] of shape (B, T) must have an integer dtype, got {labels.dtype}")
    index = labels.long().masked_fill(~mask, 0)
    if reads_values(labels, validate) and index.numel():
        low, high = (int(x) for x in torch.aminmax(index))
        if low < 0 or high >= num_classes:
            value = low if low < 0 else high
            raise ValueError(f"target['labels'] must lie in [0, {num_classes}) where the mask is True, got {value}")
    return Targets(safe, mask, index, None, ignored, weight)


def pad_targets(targets: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Pad a list of per-image targets to one dict with a mask.

    Args:
        targets: for each image a dict with `boxes` (T_b, 4), xyxy, and `labels`, (T_b,) integers or (T_b, C) one-hot;
            optionally, all (T_b,), `mask`, bool, `ignore`, bool, and `weight`, which are True, False and 1 for images
            without the key. Other keys are left out. An empty list has no images, no targets, integer labels, and
            is on the CPU.

    Returns:
        `boxes` (B, T, 4), `labels` (B, T) or (B, T, C), `mask` (B, T), where T is the largest number of targets in
        an image, and `ignore` and `weight` (B, T) if an image has them. The mask is that of the images where they
        have one. Padding is zero.

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
        for key in image.keys() & {"boxes", *_OPTIONAL, "labels"}:
            check_device(f"target[{index}][{key!r}]", image[key], targets[0]["boxes"].device)
    padded = {key: pad_sequence([x[key] for x in targets], batch_first=True) for key in ("boxes", "labels")}
    padded["mask"] = _pad_optional(targets, "mask", 1, torch.bool)
    if any("ignore" in image for image in targets):
        padded["ignore"] = _pad_optional(targets, "ignore", 0, torch.bool)
    weights = [image["weight"] for image in targets if "weight" in image]
    if weights:
        padded["weight"] = _pad_optional(targets, "weight", 1, weights[0].dtype)
    return padded


def _pad_optional(targets: Sequence[Mapping[str, Tensor]], key: str, missing: int, dtype: torch.dtype) -> Tensor:
    """Return the padded (B, T) entry of checked images, which is `missing` for those without it."""
    values = []
    for index, image in enumerate(targets):
        if key in image and image[key].dtype != dtype:
            raise TypeError(
                f"target[{index}][{key!r}] must be {dtype} like that of other images, got {image[key].dtype}"
            )
        boxes = image["boxes"]
        values.append(image[key] if key in image else boxes.new_full((len(boxes),), missing, dtype=dtype))
    return pad_sequence(values, batch_first=True)


def _check_dtype(name: str, tensor: Tensor, *, floating: bool) -> None:
    if tensor.is_floating_point() if floating else tensor.dtype == torch.bool:
        return
    raise TypeError(f"{name} must have {'a floating dtype' if floating else 'dtype torch.bool'}, got {tensor.dtype}")


def _check_image(name: str, image: Mapping[str, Tensor]) -> None:
    if not isinstance(image, Mapping):
        raise TypeError(f"{name} must be a dict of tensors, got {type(image).__name__}")
    boxes, labels = entry(name, image, "boxes"), entry(name, image, "labels")
    if boxes.dim() != 2 or boxes.shape[-1] != 4:
        raise ValueError(f"{name}['boxes'] must have shape (T_b, 4), got {tuple(boxes.shape)}")
    if labels.dim() not in (1, 2) or len(labels) != len(boxes):
        expected = f"({len(boxes)},) or ({len(boxes)}, C)"
        raise ValueError(f"{name}['labels'] must have shape {expected} like its boxes, got {tuple(labels.shape)}")
    for key in _OPTIONAL:
        if key not in image:
            continue
        value = entry(name, image, key)
        _check_dtype(f"{name}[{key!r}]", value, floating=key == "weight")
        if value.shape != labels.shape[:1]:
            raise ValueError(f"{name}[{key!r}] must have shape ({len(boxes)},), got {tuple(value.shape)}")
