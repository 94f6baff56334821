"""Targets of single images: a list of one dict an image in, one padded dict out; and what keys such a dict has."""

from collections.abc import Collection, Mapping, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence

from uotod.check import check_device, entry
from uotod.scene.formats import plain_boxes

# what a target without the entry has, and what the entry holds
MISSING = {"mask": True, "ignore": False, "cost_weight": 1.0, "loss_weight": 1.0}
CROWD = "iscrowd"  # read as "ignore"
WEIGHTS = ("weight", "weights", "sample_weight", "sample_weights", "target_weight", "target_weights")  # of what?
COST_LABELS = "cost_labels"  # replaces the labels in the cost
_KINDS = {key: torch.bool if isinstance(value, bool) else torch.float32 for key, value in MISSING.items()}


def pad_targets(targets: Sequence[Mapping[str, Tensor]], fields: Sequence[str] = ()) -> dict[str, Tensor]:
    """Pad a list of per-image targets to one dict with a mask.

    Args:
        targets: for each image a dict with `labels`, (T_b,) integers or (T_b, C) one-hot, and `boxes` (T_b, 4), xyxy;
            optionally, all (T_b,), `mask`, bool, `ignore`, bool, `cost_weight` and `loss_weight`, which are True, False
            and 1 for images without the key; and `cost_labels`, like labels. Other keys are left out. An empty list has
            no images, no targets, integer labels, and is on the CPU.
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
    return pad_images(targets, ("boxes", *fields), None, "box_format")[0]


def pad_images(
    targets: Sequence[Mapping[str, Tensor]], names: Sequence[str], box_format: str | None, option: str
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return padded targets, and of fields whose inner sizes differ what is not padding."""
    if isinstance(targets, (Tensor, Mapping, str)) or not isinstance(targets, Sequence):
        raise TypeError(f"targets must be a list of dicts, one an image, got {type(targets).__name__}")
    if not targets:
        empty = torch.zeros(0, 0, dtype=torch.long)
        return {"boxes": torch.zeros(0, 0, 4), "labels": empty, "mask": empty.bool()}, {}
    images = [_parse_image(f"target[{i}]", image, names, box_format, option) for i, image in enumerate(targets)]
    padded: dict[str, Tensor] = {}
    valid: dict[str, Tensor] = {}
    for key in dict.fromkeys(key for image in images for key in image):
        for index, image in enumerate(images):
            if key not in image and key not in MISSING:
                raise ValueError(f"target[{index}] must have the key {key!r} like other images, got {sorted(image)}")
            if key not in image:
                image[key] = image["labels"].new_full((len(image["labels"]),), MISSING[key], dtype=_KINDS[key])
        padded[key], mask = _pad_key(key, [image[key] for image in images], [len(image["labels"]) for image in images])
        if mask is not None:
            valid[key] = mask
    return padded, valid


def _pad_key(key: str, values: list[Tensor], counts: list[int]) -> tuple[Tensor, Tensor | None]:
    """Return the (T_b, ...) values of the images as one (B, T, ...), and what is not padding if inner sizes differ."""
    # an empty tensor has no shape and no dtype to object to
    real = [x for x in values if x.numel()] or [max(values, key=Tensor.dim)]
    inner = tuple(real[0].shape[1:]) or ((4,) if key == "boxes" else ())
    dtype = real[0].dtype
    for index, x in enumerate(values):
        check_device(f"target[{index}][{key!r}]", x, values[0].device)
        if not x.numel():
            continue
        if x.dim() != real[0].dim() or (key in ("boxes", "labels", COST_LABELS) and x.shape[1:] != real[0].shape[1:]):
            expected = ", ".join(["(T_b", *map(str, inner)]) + ")"
            raise ValueError(
                f"target[{index}][{key!r}] must have shape {expected} like target[0], got {tuple(x.shape)}"
            )
        if x.is_floating_point() != real[0].is_floating_point():
            raise TypeError(f"target[{index}][{key!r}] must be {real[0].dtype} like other images, got {x.dtype}")
        inner = tuple(map(max, inner, x.shape[1:]))
        dtype = dtype if x.dtype == dtype else torch.promote_types(dtype, x.dtype)
    shaped = [
        x.to(dtype) if x.numel() else x.new_zeros(n, *inner, dtype=dtype) for x, n in zip(values, counts, strict=True)
    ]
    if all(x.shape[1:] == inner for x in shaped):
        return pad_sequence(shaped, batch_first=True), None
    valid = [_fill(torch.ones_like(x, dtype=torch.bool), inner) for x in shaped]
    return pad_sequence([_fill(x, inner) for x in shaped], batch_first=True), pad_sequence(valid, batch_first=True)


def _fill(value: Tensor, inner: tuple[int, ...]) -> Tensor:
    """Return (T_b, ...) values with zeros at the end of their inner dimensions, so that these have a size."""
    missing = [size - own for size, own in zip(inner, value.shape[1:], strict=True)]
    return F.pad(value, [x for gap in reversed(missing) for x in (0, gap)])


def _parse_image(
    name: str, image: Mapping[str, Tensor], names: Sequence[str], box_format: str | None, option: str
) -> dict[str, Tensor]:
    """Return the entries of one image that are read, its mask among them."""
    if not isinstance(image, Mapping):
        raise TypeError(f"{name} must be a dict of tensors, got {type(image).__name__}")
    image = standard_keys(name, image, names)
    labels = entry(name, image, "labels")
    found = {key: entry(name, image, key) for key in (*names, *MISSING, COST_LABELS) if key in image}
    if "boxes" in found:
        found["boxes"] = plain_boxes(f"{name}['boxes']", found["boxes"], box_format, option)
    boxes = found.get("boxes", labels)
    if boxes.numel() and "boxes" in found and boxes.dim() != 2:
        raise ValueError(f"{name}['boxes'] must have shape (T_b, 4), got {tuple(boxes.shape)}")
    count = len(boxes) if boxes.numel() or boxes is labels else 0
    if labels.dim() not in (1, 2) or len(labels) != count:
        expected = f"({count},) or ({count}, C)"
        raise ValueError(f"{name}['labels'] must have shape {expected} like its boxes, got {tuple(labels.shape)}")
    for key, value in found.items():
        if key in MISSING:
            found[key] = check_kind(f"{name}[{key!r}]", value, key)
            if tuple(value.shape) != (count,):
                raise ValueError(f"{name}[{key!r}] must have shape ({count},), got {tuple(value.shape)}")
        elif value.shape[:1] != (count,) and (count or value.numel()):  # without targets a bare empty tensor will do
            raise ValueError(f"{name}[{key!r}] must have {count} rows like its labels, got {tuple(value.shape)}")
    mask = labels.new_ones(count, dtype=torch.bool)
    return {"labels": labels, "mask": mask, **found}


def check_kind(name: str, tensor: Tensor, key: str) -> Tensor:
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


def standard_keys(name: str, target: Mapping[str, Tensor], read: Collection[str]) -> Mapping[str, Tensor]:
    """Return the targets with `iscrowd` under its own name; `read` are the fields that are read.

    Raises:
        ValueError: both `ignore` and `iscrowd` are there and differ, or there is a `weight` or the like.
    """
    for key in WEIGHTS:
        if key in target and key not in read:
            raise ValueError(
                f"{name}[{key!r}] has two meanings: write 'cost_weight' for a factor of the target's cost and "
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
