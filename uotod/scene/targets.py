"""Targets: a padded dict that a user passes, or a list of one dict an image, in, validated and padded values out."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from uotod.check import check_device, check_finite, check_ordered, entry, reads_values
from uotod.geometry.boxes import full_precision, largest_side
from uotod.scene.formats import BOX_FORMATS, plain_boxes
from uotod.scene.padding import COST_LABELS, MISSING, check_kind, pad_images, standard_keys
from uotod.scene.target_labels import parse_labels

TargetInput = Mapping[str, Tensor] | Sequence[Mapping[str, Tensor]]


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
        cost_labels: (B, T) integer labels, or (B, T, C) rows, that replace the labels in the cost; None if they do not.
        unchecked: (B, T) labels that are not allowed, `RIGHT` for those that are, by the key of the target, where
            values may not be looked at.
    """

    mask: Tensor
    labels: Tensor | None
    one_hot: Tensor | None
    fields: Mapping[str, Tensor]
    valid: Mapping[str, Tensor]
    ignored: Tensor | None = None
    cost_weight: Tensor | None = None
    loss_weight: Tensor | None = None
    cost_labels: Tensor | None = None
    unchecked: Mapping[str, Tensor] = dataclasses.field(default_factory=dict)

    def of_cost(self) -> "Targets":
        """Return the targets with the labels that they have in the cost."""
        labels = self.cost_labels
        if labels is None:
            return self
        if labels.dim() == 2:
            return dataclasses.replace(self, labels=labels, one_hot=None, cost_labels=None)
        return dataclasses.replace(self, labels=None, one_hot=labels, cost_labels=None)

    def all_labels(self) -> dict[str, Tensor | None]:
        """Return the integer labels (B, T), by the key of the target; None for rows."""
        cost = self.cost_labels
        found = {"labels": self.labels}
        return found if cost is None else found | {"cost_labels": cost if cost.dim() == 2 else None}

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
    box_format: str | None = None,
    option: str = "box_format",
    present: Tensor | None = None,
) -> Targets:
    """Validate the targets of the images of (B, P, C) `logits`; floating fields come out in `dtype`, boxes as xyxy.

    Args:
        target: dict of targets, or a list of one dict an image.
        logits: the logits.
        reads: fields that are read.
        dtype: dtype of floating fields.
        validate: whether values may be read on a GPU.
        box_format: "cxcywh", "xywh" or "xyxy" if the caller says that boxes are that; None for xyxy.
        option: what errors call the option by which the caller says so.
        present: (B, C) bool, which classes an image has; None for all.

    Raises:
        TypeError: an entry has the wrong type or dtype.
        ValueError: a key is missing, or a shape, a device or a value is wrong.
    """
    names = ("boxes", *(x.removeprefix("target_") for x in reads if x.startswith("target_") and x != "target_boxes"))
    valid: dict[str, Tensor] = {}
    if isinstance(target, Mapping):
        target = _without_targets(standard_keys("target", target, names), (*names, *MISSING), len(logits))
    else:
        target, valid = pad_images(target, names, box_format, option)
    labels, (images, _, num_classes) = entry("target", target, "labels"), logits.shape
    found = {key: entry("target", target, key) for key in (*names, *MISSING) if key in target}
    if "boxes" in found:
        found["boxes"] = plain_boxes("target['boxes']", found["boxes"], box_format, option)
    first = found.get("boxes", labels)
    if first.dim() < 2 or len(first) != images:
        key, rest = ("boxes", ", 4") if "boxes" in found else ("labels", "")
        raise ValueError(f"target[{key!r}] must have shape ({images}, T{rest}), got {tuple(first.shape)}")
    shape = tuple(first.shape[:2])
    given = {key: entry("target", target, key) for key in ("labels", COST_LABELS) if key in target}
    for key, tensor in given.items():
        if tensor.shape != shape and tensor.shape != (*shape, num_classes):
            raise ValueError(
                f"target[{key!r}] must have shape {shape} or {(*shape, num_classes)}, got {tuple(tensor.shape)}"
            )
    for key, tensor in found.items():
        if key in MISSING:
            found[key] = check_kind(f"target[{key!r}]", tensor, key)
        if tuple(tensor.shape if key in MISSING else tensor.shape[:2]) != shape:
            expected = shape if key in MISSING else f"{str(shape)[:-1]}, ...)"
            raise ValueError(f"target[{key!r}] must have shape {expected}, got {tuple(tensor.shape)}")
        check_device(f"target[{key!r}]", tensor, logits.device)
    for key, tensor in given.items():
        check_device(f"target[{key!r}]", tensor, logits.device)
    mask = found["mask"] if "mask" in found else labels.new_ones(shape, dtype=torch.bool)
    if "boxes" in found and box_format in BOX_FORMATS:
        found["boxes"] = BOX_FORMATS[box_format](found["boxes"])
    fields = {f"target_{key}": _parse_field(key, found[key], mask, dtype, validate) for key in names if key in found}
    ignored = found["ignore"] & mask if "ignore" in found else None
    mask = mask if ignored is None else mask & ~ignored
    unchecked: dict[str, Tensor] = {}
    parsed = {
        key: parse_labels(key, x, mask, num_classes, dtype, validate, present, unchecked) for key, x in given.items()
    }
    is_index = labels.dim() == 2
    cost_weight, loss_weight = (
        _parse_weight(key, found[key], mask, dtype, validate) if key in found else None
        for key in ("cost_weight", "loss_weight")
    )
    return Targets(
        mask,
        parsed["labels"] if is_index else None,
        None if is_index else parsed["labels"],
        fields,
        {f"target_{x}": y for x, y in valid.items()},
        ignored,
        cost_weight,
        loss_weight,
        parsed.get(COST_LABELS),
        unchecked,
    )


def _without_targets(target: Mapping[str, Tensor], names: Sequence[str], images: int) -> Mapping[str, Tensor]:
    """Return a padded dict that may hold bare empty tensors, such as `torch.tensor([])`, with those as (B, 0, ...)."""
    bare = {key: x for key in ("labels", COST_LABELS, *names) if isinstance(x := target.get(key), Tensor)}
    bare = {key: x for key, x in bare.items() if not x.numel() and x.dim() < (3 if key == "boxes" else 2)}
    shapes = {key: (images, 0, 4) if key == "boxes" else (images, 0) for key in bare}
    return {**target, **{key: x.new_zeros(shapes[key]) for key, x in bare.items()}} if bare else target


def _parse_field(key: str, value: Tensor, mask: Tensor, dtype: torch.dtype, validate: bool) -> Tensor:
    """Return a field (B, T, ...), zeros under the mask."""
    if key == "boxes" and (value.is_complex() or value.dtype == torch.bool):
        raise TypeError(f"target['boxes'] must have a real dtype, got {value.dtype}")
    value = value.to(dtype) if key == "boxes" or value.is_floating_point() else value
    safe = value.masked_fill(~mask.view(*mask.shape, *[1] * (value.dim() - 2)), 0)
    if key == "boxes" and reads_values(safe, validate):
        check_finite("target['boxes']", safe, validate, largest=largest_side(safe))
        if safe.shape[-1] == 4:
            check_ordered("target['boxes']", safe)
    return safe


def _parse_weight(key: str, value: Tensor, mask: Tensor, dtype: torch.dtype, validate: bool) -> Tensor:
    weight = full_precision(value.to(dtype)).masked_fill(~mask, 1)
    if reads_values(weight, validate) and not bool(((weight > 0) & weight.isfinite()).all()):
        raise ValueError(f"target[{key!r}] must be finite and above 0 where the mask is True, got a value outside")
    return weight
