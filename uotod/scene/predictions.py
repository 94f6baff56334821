"""Predictions: a dict of tensors that a user passes in, validated values of stacked decoder layers out."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from uotod.check import check_device, check_finite, entry, is_finite, reads_values
from uotod.geometry.boxes import largest_side
from uotod.scene.absent import parse_class_mask, without_absent
from uotod.scene.formats import plain_boxes

PredictionDict = Mapping[str, Any]

# read where they are given
STANDARD = ("pred_boxes", "pred_objectness", "pred_dist", "pred_valid", "image_class_mask")
INPUT_KEYS = ("pred_logits", "aux_outputs", "anchors", "plan", *STANDARD)  # what a criterion knows


class Predictions(NamedTuple):
    """Predictions of `layers` decoder layers, stacked along the batch (the final layer comes last).

    Attributes:
        logits: (S, P, C) class scores before softmax or sigmoid; `ABSENT` of classes that the image does not have.
        fields: what else the predictions have that is read, (S, P, ...) each, zeros for layers without, and for
            predictions that `pred_valid` (S, P) calls padding; those of images, (S, ...), are named `image_...`.
        layers: number of stacked decoder layers.
        absent: for a field that a layer lacks, which layers have it.
    """

    logits: Tensor
    fields: dict[str, Tensor]
    layers: int
    absent: dict[str, tuple[bool, ...]]


def parse_predictions(
    input: PredictionDict,
    reads: Sequence[str],
    nonfinite: str,
    validate: bool,
    auxiliary: bool,
    box_format: str | None = None,
) -> Predictions:
    """Validate `input`, and stack its decoder layers along the batch, in at least float32, boxes as xyxy.

    With `auxiliary` the layers in `input["aux_outputs"]` are stacked before the final one. What is padding, or belongs
    to an absent class, is replaced first, so that it is never read.

    Raises:
        TypeError: the input or an entry has the wrong type or dtype.
        ValueError: a key is missing, or a shape, a device or a value is wrong.
    """
    if not isinstance(input, Mapping):
        raise TypeError(f"input must be a dict of tensors, got {type(input).__name__}")
    names = dict.fromkeys((*STANDARD, *(x for x in reads if x.startswith(("pred_", "image_")))))
    final = _parse_layer("input", input, names, None, box_format)
    layers = [final]
    aux = input.get("aux_outputs") if auxiliary else None
    if aux is not None:
        if not isinstance(aux, Sequence):
            raise TypeError(f"input['aux_outputs'] must be a list of dicts, got {type(aux).__name__}")
        earlier = (_parse_layer(f"input['aux_outputs'][{i}]", x, names, final, box_format) for i, x in enumerate(aux))
        layers = [*earlier, final]
    dtype = torch.float32
    for value in final.values():
        if value.is_floating_point() and value.dtype != dtype:
            dtype = torch.promote_types(dtype, value.dtype)
    fields: dict[str, Tensor] = {}
    absent: dict[str, tuple[bool, ...]] = {}
    for name, last in final.items():
        # what images have they have in all layers, and a query that is padding is so in all that do not say otherwise
        whole = last if name.startswith("image_") or name == "pred_valid" else None
        found = [layer.get(name, whole) for layer in layers]
        given = tuple(x is not None for x in found)
        if not all(given):
            absent[name] = given
        value = last if len(found) == 1 else torch.cat([torch.zeros_like(last) if x is None else x for x in found])
        fields[name] = value.to(dtype) if value.is_floating_point() else value
    _hide_padding(fields)
    if nonfinite == "error" and reads_values(final["pred_logits"], validate):
        check_values(fields, len(layers))
    return Predictions(fields.pop("pred_logits"), fields, len(layers), absent)


def _hide_padding(fields: dict[str, Tensor]) -> None:
    """Replace everything of padded predictions, and the logits of absent classes, which get no gradient then."""
    if "pred_valid" in fields:
        padding = ~fields["pred_valid"]
        for name, value in fields.items():
            if name.startswith("pred_") and name != "pred_valid":
                fields[name] = value.masked_fill(padding.view(*padding.shape, *[1] * (value.dim() - 2)), 0)
    if "image_class_mask" in fields:
        fields["pred_logits"] = without_absent(fields["pred_logits"], fields["image_class_mask"])


def check_values(fields: Mapping[str, Tensor], layers: int) -> None:
    """Raise a ValueError that names the layer, unless all predictions are finite; on a GPU that synchronises."""
    for key, tensor in fields.items():
        largest = largest_side(tensor) if key == "pred_boxes" else math.inf
        if not tensor.is_floating_point() or is_finite(tensor, largest):
            continue
        for layer, part in enumerate(tensor.chunk(layers)):
            name = "input" if layer == layers - 1 else f"input['aux_outputs'][{layer}]"
            hint = ' (nonfinite="propagate" lets them through)'
            check_finite(f"{name}[{key!r}]", part, True, hint=hint, largest=largest)


def _parse_layer(
    name: str,
    layer: PredictionDict,
    names: Mapping[str, None],
    like: Mapping[str, Tensor] | None,
    box_format: str | None,
) -> dict[str, Tensor]:
    """Return the logits and the named fields of a decoder layer; `like` is the final one."""
    if not isinstance(layer, Mapping):
        raise TypeError(f"{name} must be a dict of tensors, got {type(layer).__name__}")
    logits = entry(name, layer, "pred_logits")
    if not logits.is_floating_point():
        raise TypeError(f"{name}['pred_logits'] must have a floating dtype, got {logits.dtype}")
    if logits.dim() != 3 or not logits.shape[-1]:
        raise ValueError(f"{name}['pred_logits'] must have shape (B, P, C) with C >= 1, got {tuple(logits.shape)}")
    found = {"pred_logits": logits}
    for key in names:
        if key in layer and not (key.startswith("image_") and like is not None):
            found[key] = _parse_field(name, layer, key, logits)
    if "pred_boxes" in found:
        found["pred_boxes"] = plain_boxes(f"{name}['pred_boxes']", found["pred_boxes"], box_format)
    if like is None:
        return found
    for key, value in found.items():
        if key not in like:
            raise ValueError(f"{name} must have the key {key!r} only if the final layer has it")
        if value.shape != like[key].shape:
            raise ValueError(
                f"{name}[{key!r}] must have shape {tuple(like[key].shape)} like the final layer, "
                f"got {tuple(value.shape)}"
            )
        check_device(f"{name}[{key!r}]", value, like[key].device)
    return found


def _parse_field(name: str, layer: PredictionDict, key: str, logits: Tensor) -> Tensor:
    """Return a field (B, P, ...), or of images (B, ...), after a check of its shape."""
    value = entry(name, layer, key)
    if key == "image_class_mask":
        return parse_class_mask(f"{name}[{key!r}]", value, logits)
    if key == "pred_valid" and value.dtype != torch.bool:
        raise TypeError(f"{name}[{key!r}] must have dtype torch.bool, False for padding, got {value.dtype}")
    lead = tuple(logits.shape[: 1 if key.startswith("image_") else 2])
    fits, rest = _SHAPES.get(key, (_any, ", ...)"))
    if key in _SHAPES and key != "pred_valid" and not value.is_floating_point():
        raise TypeError(f"{name}[{key!r}] must have a floating dtype, got {value.dtype}")
    if tuple(value.shape[: len(lead)]) != lead or not fits(value.shape[len(lead) :]):
        expected = f"({', '.join(map(str, lead))}{rest}"
        raise ValueError(f"{name}[{key!r}] must have shape {expected} to fit its logits, got {tuple(value.shape)}")
    check_device(f"{name}[{key!r}]", value, logits.device)
    return value


def _any(shape: Sequence[int]) -> bool:
    return True


# of the fields whose meaning is known: whether the rest of a shape fits, and what is expected
_SHAPES: dict[str, tuple[Callable[[Sequence[int]], bool], str]] = {
    "pred_boxes": (lambda rest: len(rest) == 1 and rest[0] > 0, ", 4)"),
    "pred_objectness": (lambda rest: not len(rest), ")"),
    "pred_valid": (lambda rest: not len(rest), ")"),
    "pred_dist": (lambda rest: len(rest) == 2 and rest[0] == 4 and rest[1] > 1, ", 4, K + 1) with K >= 1"),
}


def check_num_classes(logits: Tensor, num_classes: int, background: bool) -> None:
    """Raise a ValueError unless (…, C) logits have one value a class, and one for a `background`."""
    expected, found = num_classes + int(background), logits.shape[-1]
    if found != expected:
        raise ValueError(
            f"input['pred_logits'] must have {expected} logits for num_classes={num_classes} and "
            f"{'one' if background else 'none'} for the background, got {found}: num_classes counts the classes "
            "without the background, and the head of the model must fit"
        )
