"""Targets: a padded dict that a user passes, or a list of one dict an image, in, validated and padded values out."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from uotod.check import check_device, check_finite, check_ordered, check_range, entry, reads_values
from uotod.geometry.boxes import full_precision

TargetInput = Mapping[str, Tensor] | Sequence[Mapping[str, Tensor]]

# what a target without the entry has, and what the entry holds
MISSING = {"mask": True, "ignore": False, "cost_weight": 1.0, "loss_weight": 1.0}
CROWD = "iscrowd"  # read as "ignore"
_KINDS = {key: torch.bool if isinstance(value, bool) else torch.float32 for key, value in MISSING.items()}


@dataclasses.dataclass(frozen=True)
class Targets:
    """Padded targets; what lay under the mask is replaced by zeros, so that no padding is ever read.

    Attributes:
        mask: (B, T) bool, False for padding and for ignored targets.
        labels: (B, T) integer labels, or None if the labels are one-hot.
        one_hot: (B, T, C) one-hot labels, or None if the labels are integers.
        fields: what else the targets have that is read, (B, T, ...) each, that of ignored targets included; `boxes` are
            `target_boxes`.
        valid: for a field whose inner sizes differ between images, what of it is not padding.
        ignored: (B, T) bool, True for a target that no prediction may match; None if there are none.
        cost_weight: (B, T) factor of a target's cost, or None for 1.
        loss_weight: (B, T) factor of a target's loss, or None for 1.
    """

    mask: Tensor
    labels: Tensor | None
    one_hot: Tensor | None
    fields: Mapping[str, Tensor]
    valid: Mapping[str, Tensor]
    ignored: Tensor | None = None
    cost_weight: Tensor | None = None
    loss_weight: Tensor | None = None

    def class_matrix(self, num_classes: int, dtype: torch.dtype) -> Tensor:
        """Return the labels as (B, T, C) rows, one-hot or as they were given; zeros for padding."""
        if self.one_hot is not None:
            return self.one_hot.to(dtype)
        assert self.labels is not None
        classes = torch.arange(num_classes, device=self.labels.device)
        return ((self.labels.unsqueeze(-1) == classes) & self.mask.unsqueeze(-1)).to(dtype)

    def pick(self, values: Tensor) -> Tensor:
        """Return ⟨label_j, value_i⟩ for all pairs: (B, P, C) → (B, T, P)."""
        if self.one_hot is not None:
            return self.one_hot.to(values.dtype) @ values.transpose(1, 2)
        assert self.labels is not None
        image = torch.arange(len(values), device=values.device).unsqueeze(1)
        return values.transpose(1, 2)[image, self.labels]

    def repeat(self, layers: int) -> "Targets":
        """Return the targets once for each of `layers` decoder layers, stacked along the batch."""
        return self.map(lambda x: x.repeat(layers, *[1] * (x.dim() - 1)))

    def map(self, function: Callable[[Tensor], Tensor]) -> "Targets":
        """Return the targets with a function applied to every tensor."""
        changed: dict[str, Any] = {}
        for name, value in vars(self).items():
            if isinstance(value, Tensor):
                changed[name] = function(value)
            elif value:
                changed[name] = {key: function(x) for key, x in value.items()}
        return dataclasses.replace(self, **changed)


def parse_targets(
    target: TargetInput,
    logits: Tensor,
    reads: Sequence[str],
    dtype: torch.dtype,
    validate: bool,
    to_xyxy: Callable[[Tensor], Tensor] | None,
) -> Targets:
    """Validate the targets of the images of (B, P, C) `logits`; floating fields come out in `dtype`, boxes as xyxy.

    Raises:
        TypeError: an entry has the wrong type or dtype.
        ValueError: a key is missing, or a shape, a device or a value is wrong.
    """
    names = ("boxes", *(x.removeprefix("target_") for x in reads if x.startswith("target_") and x != "target_boxes"))
    valid: dict[str, Tensor] = {}
    if isinstance(target, Mapping):
        target = _standard_keys("target", target)
    else:
        target, valid = _pad(target, names)
    labels, (images, _, num_classes) = entry("target", target, "labels"), logits.shape
    found = {key: entry("target", target, key) for key in (*names, *MISSING) if key in target}
    first = found.get("boxes", labels)
    if first.dim() < 2 or len(first) != images:
        key, rest = ("boxes", ", 4") if "boxes" in found else ("labels", "")
        raise ValueError(f"target[{key!r}] must have shape ({images}, T{rest}), got {tuple(first.shape)}")
    shape = tuple(first.shape[:2])
    if tuple(labels.shape) not in (shape, (*shape, num_classes)):
        raise ValueError(
            f"target['labels'] must have shape {shape} or {(*shape, num_classes)}, got {tuple(labels.shape)}"
        )
    for key, tensor in found.items():
        if key in MISSING:
            found[key] = _check_kind(f"target[{key!r}]", tensor, key)
        if tuple(tensor.shape if key in MISSING else tensor.shape[:2]) != shape:
            expected = shape if key in MISSING else f"{str(shape)[:-1]}, ...)"
            raise ValueError(f"target[{key!r}] must have shape {expected}, got {tuple(tensor.shape)}")
        check_device(f"target[{key!r}]", tensor, logits.device)
    check_device("target['labels']", labels, logits.device)
    mask = found["mask"] if "mask" in found else labels.new_ones(shape, dtype=torch.bool)
    if to_xyxy is not None and "boxes" in found:
        found["boxes"] = to_xyxy(found["boxes"])
    fields = {f"target_{key}": _parse_field(key, found[key], mask, dtype, validate) for key in names if key in found}
    ignored = found["ignore"] & mask if "ignore" in found else None
    mask = mask if ignored is None else mask & ~ignored
    index, one_hot = _parse_labels(labels, mask, num_classes, dtype, validate)
    weights = [
        _parse_weight(key, found[key], mask, dtype, validate) if key in found else None
        for key in ("cost_weight", "loss_weight")
    ]
    return Targets(mask, index, one_hot, fields, {f"target_{x}": y for x, y in valid.items()}, ignored, *weights)


def _standard_keys(name: str, target: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """Return the targets with `iscrowd` under its own name.

    Raises:
        ValueError: both `ignore` and `iscrowd` are there and differ, or there is a `weight`.
    """
    if "weight" in target:
        raise ValueError(
            f"{name}['weight'] has two meanings: write 'cost_weight' for a factor of the target's cost and "
            "'loss_weight' for one of its loss"
        )
    if CROWD not in target:
        return target
    crowd = entry(name, target, CROWD)
    if crowd.numel() and (crowd.is_floating_point() or crowd.is_complex()):
        raise TypeError(f"{name}[{CROWD!r}] must have an integer dtype or torch.bool, got {crowd.dtype}")
    target = {key: value for key, value in target.items() if key != CROWD}
    if "ignore" in target and not torch.equal(entry(name, target, "ignore"), crowd != 0):
        raise ValueError(f"{name}['ignore'] and {name}['{CROWD}'] must be the same, got two that differ")
    return {**target, "ignore": crowd != 0}


def _parse_field(key: str, value: Tensor, mask: Tensor, dtype: torch.dtype, validate: bool) -> Tensor:
    """Return a field (B, T, ...), zeros under the mask."""
    if key == "boxes" and (value.is_complex() or value.dtype == torch.bool):
        raise TypeError(f"target['boxes'] must have a real dtype, got {value.dtype}")
    value = value.to(dtype) if key == "boxes" or value.is_floating_point() else value
    safe = value.masked_fill(~mask.view(*mask.shape, *[1] * (value.dim() - 2)), 0)
    if key == "boxes" and reads_values(safe, validate):
        check_finite("target['boxes']", safe, validate)
        if safe.shape[-1] == 4:
            check_ordered("target['boxes']", safe)
    return safe


def _parse_weight(key: str, value: Tensor, mask: Tensor, dtype: torch.dtype, validate: bool) -> Tensor:
    weight = full_precision(value.to(dtype)).masked_fill(~mask, 1)
    if reads_values(weight, validate) and not bool(((weight > 0) & weight.isfinite()).all()):
        raise ValueError(f"target[{key!r}] must be finite and above 0 where the mask is True, got a value outside")
    return weight


def _parse_labels(
    labels: Tensor, mask: Tensor, num_classes: int, dtype: torch.dtype, validate: bool
) -> tuple[Tensor | None, Tensor | None]:
    """Return integer labels (B, T) or one-hot ones (B, T, C), of which one is None; zeros under the mask."""
    if labels.dim() == 3:
        one_hot = full_precision(labels.to(dtype)).masked_fill(~mask.unsqueeze(-1), 0)
        if reads_values(labels, validate) and not ((one_hot >= 0) & (one_hot <= 1)).all():
            raise ValueError("target['labels'] must hold one-hot values in [0, 1], got a value outside")
        return None, one_hot
    if labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
        if labels.numel():  # an empty tensor has no dtype to object to
            raise TypeError(f"target['labels'] of shape (B, T) must have an integer dtype, got {labels.dtype}")
        labels = labels.long()
    index = labels.long().masked_fill(~mask, 0)
    if reads_values(labels, validate):
        check_range("target['labels']", index, num_classes, note=" where the mask is True")
    return index, None


def pad_targets(targets: Sequence[Mapping[str, Tensor]], fields: Sequence[str] = ()) -> dict[str, Tensor]:
    """Pad a list of per-image targets to one dict with a mask.

    Args:
        targets: for each image a dict with `labels`, (T_b,) integers or (T_b, C) one-hot, and `boxes` (T_b, 4), xyxy;
            optionally, all (T_b,), `mask`, bool, `ignore`, bool, `cost_weight` and `loss_weight`, which are True, False
            and 1 for images without the key. Other keys are left out. An empty list has no images, no targets, integer
            labels, and is on the CPU.
        fields: further keys (T_b, ...) to keep. Inner sizes that differ are padded at the end.

    Returns:
        `boxes` (B, T, 4), `labels` (B, T) or (B, T, C), `mask` (B, T), where T is the largest number of targets in
        an image, and the others that an image has. The mask is that of the images where they have one. Padding is zero.
        Dtypes are the widest of the images'; an empty tensor has none to object to.

    Raises:
        TypeError: `targets` is not a list of dicts of tensors.
        ValueError: a key is missing, or the shapes or devices of two images do not fit together.

    Examples:
        >>> one = {"boxes": torch.tensor([[0.0, 0.0, 2.0, 2.0]]), "labels": torch.tensor([3])}
        >>> none = {"boxes": torch.tensor([]), "labels": torch.tensor([])}
        >>> pad_targets([one, none])["mask"]
        tensor([[ True],
                [False]])
    """
    return _pad(targets, ("boxes", *fields))[0]


def _pad(targets: Sequence[Mapping[str, Tensor]], names: Sequence[str]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return padded targets, and of fields whose inner sizes differ what is not padding."""
    if isinstance(targets, (Tensor, Mapping, str)) or not isinstance(targets, Sequence):
        raise TypeError(f"targets must be a list of dicts, one an image, got {type(targets).__name__}")
    if not targets:
        empty = torch.zeros(0, 0, dtype=torch.long)
        return {"boxes": torch.zeros(0, 0, 4), "labels": empty, "mask": empty.bool()}, {}
    images = [_parse_image(f"target[{i}]", image, names) for i, image in enumerate(targets)]
    count = max(len(image["labels"]) for image in images)
    padded: dict[str, Tensor] = {}
    valid: dict[str, Tensor] = {}
    for key in dict.fromkeys(key for image in images for key in image):
        for index, image in enumerate(images):
            if key not in image and key not in MISSING:
                raise ValueError(f"target[{index}] must have the key {key!r} like other images, got {sorted(image)}")
            if key not in image:
                image[key] = image["labels"].new_full((len(image["labels"]),), MISSING[key], dtype=_KINDS[key])
        padded[key], mask = _pad_key(key, [image[key] for image in images], count)
        if mask is not None:
            valid[key] = mask
    return padded, valid


def _pad_key(key: str, values: list[Tensor], count: int) -> tuple[Tensor, Tensor | None]:
    """Return the (T_b, ...) values of the images as one (B, count, ...), and what is not padding if sizes differ."""
    # an empty tensor has no shape and no dtype to object to
    real = [x for x in values if x.numel()] or [max(values, key=Tensor.dim)]
    inner = tuple(real[0].shape[1:]) or ((4,) if key == "boxes" else ())
    dtype = real[0].dtype
    for index, x in enumerate(values):
        check_device(f"target[{index}][{key!r}]", x, values[0].device)
        if not x.numel():
            continue
        if x.dim() != real[0].dim() or (key in ("boxes", "labels") and x.shape[1:] != real[0].shape[1:]):
            expected = ", ".join(["(T_b", *map(str, inner)]) + ")"
            raise ValueError(
                f"target[{index}][{key!r}] must have shape {expected} like target[0], got {tuple(x.shape)}"
            )
        if x.is_floating_point() != real[0].is_floating_point():
            raise TypeError(f"target[{index}][{key!r}] must be {real[0].dtype} like other images, got {x.dtype}")
        inner = tuple(map(max, inner, x.shape[1:]))
        dtype = torch.promote_types(dtype, x.dtype)
    shaped = [x.to(dtype) if x.numel() else x.new_zeros(0, *inner, dtype=dtype) for x in values]
    whole = torch.stack([_pad_to(x, (count, *inner)) for x in shaped])
    if all(x.shape[1:] == inner for x in shaped):
        return whole, None
    return whole, torch.stack([_pad_to(torch.ones_like(x, dtype=torch.bool), (count, *inner)) for x in shaped])


def _pad_to(value: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Return a tensor with zeros at the end of its dimensions, so that it has a shape."""
    missing = [size - own for size, own in zip(shape, value.shape, strict=True)]
    return F.pad(value, [x for gap in reversed(missing) for x in (0, gap)]) if any(missing) else value


def _parse_image(name: str, image: Mapping[str, Tensor], names: Sequence[str]) -> dict[str, Tensor]:
    """Return the entries of one image that are read, its mask among them."""
    if not isinstance(image, Mapping):
        raise TypeError(f"{name} must be a dict of tensors, got {type(image).__name__}")
    image = _standard_keys(name, image)
    labels = entry(name, image, "labels")
    found = {key: entry(name, image, key) for key in (*names, *MISSING) if key in image}
    boxes = found.get("boxes", labels)
    if boxes.numel() and "boxes" in found and boxes.dim() != 2:
        raise ValueError(f"{name}['boxes'] must have shape (T_b, 4), got {tuple(boxes.shape)}")
    count = len(boxes) if boxes.numel() or boxes is labels else 0
    if labels.dim() not in (1, 2) or len(labels) != count:
        expected = f"({count},) or ({count}, C)"
        raise ValueError(f"{name}['labels'] must have shape {expected} like its boxes, got {tuple(labels.shape)}")
    for key, value in found.items():
        if key in MISSING:
            found[key] = _check_kind(f"{name}[{key!r}]", value, key)
            if tuple(value.shape) != (count,):
                raise ValueError(f"{name}[{key!r}] must have shape ({count},), got {tuple(value.shape)}")
        elif value.numel() and len(value) != count:
            raise ValueError(f"{name}[{key!r}] must have {count} rows like its labels, got {tuple(value.shape)}")
    mask = labels.new_ones(count, dtype=torch.bool)
    return {"labels": labels, "mask": mask, **found}


def _check_kind(name: str, tensor: Tensor, key: str) -> Tensor:
    """Return an entry of `MISSING`; one without numbers has no dtype to object to.

    Raises:
        TypeError: it is not bool, or floating, like what stands in for it.
    """
    if not tensor.numel():
        return tensor.to(_KINDS[key])
    is_flag = isinstance(MISSING[key], bool)
    if tensor.dtype == torch.bool if is_flag else tensor.is_floating_point():
        return tensor
    raise TypeError(f"{name} must have {'dtype torch.bool' if is_flag else 'a floating dtype'}, got {tensor.dtype}")
