"""Keys of what users pass: those given and those read in, an error for one that looks like a mistake out."""

import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any

# outputs that a model hands over to be trained, under the names of several projects
OUTPUTS = re.compile(r".*_outputs$|^(dn|enc)(_|$).*|^auxiliary.*")
# what the field's data sets carry, near in spelling to what is read or not
HARMLESS = {"image_id", "area", "size", "orig_size", "masks", "keypoints", "boxes", "labels"}
# what others call a key that is read; it passes beside the key itself, as a data set may carry both
SYNONYMS = {
    "labels": ("class_labels", "class_ids", "classes", "categories", "category_ids", "category_id", "gt_labels"),
    "boxes": ("bbox", "gt_boxes", "gt_bboxes", "xyxy"),
    "mask": ("valid", "valid_mask", "padding_mask", "pad_mask", "target_mask"),
    "ignore": ("crowd", "crowds", "is_ignored", "ignore_mask", "gt_ignore", "gt_crowd"),
    "pred_logits": ("logits", "pred_scores", "pred_class_logits", "cls_logits"),
    "pred_valid": ("valid", "valid_mask", "valid_preds", "pred_padding_mask", "query_mask"),
    "image_class_mask": ("class_mask", "pred_class_mask", "target_class_mask"),
}


def check_input_keys(name: str, input: Any, read: Collection[str]) -> None:
    """Raise a ValueError for a key of predictions that nobody reads, but that looks as if somebody should.

    Other keys pass: a model may return what no criterion reads. Those of earlier decoder layers are checked, too.
    """
    if not isinstance(input, Mapping):
        return
    _check(name, input, read, outputs=True)
    layers = input.get("aux_outputs")
    for index, layer in enumerate(layers if isinstance(layers, Sequence) else ()):
        if isinstance(layer, Mapping):
            _check(f"{name}['aux_outputs'][{index}]", layer, read, outputs=True)


def check_target_keys(target: Any, read: Collection[str]) -> None:
    """Raise a ValueError for a key of targets that is within a letter of one that is read, or another word for it."""
    if isinstance(target, Mapping):
        _check("target", target, read, outputs=False)
    elif isinstance(target, (list, tuple)):
        for index, image in enumerate(target):
            if isinstance(image, Mapping):
                _check(f"target[{index}]", image, read, outputs=False)


def _check(name: str, given: Mapping[Any, Any], read: Collection[str], *, outputs: bool) -> None:
    for key in given:
        if not isinstance(key, str) or key in read or key in HARMLESS:
            continue
        near = [x for x in read if is_near(key, x)]
        near += [x for x, others in SYNONYMS.items() if key in others and x in read and not _is_given(x, given)]
        if near:
            raise ValueError(f"{name} has the key {key!r}, which nothing reads: is {near[0]!r} meant?")
        if outputs and OUTPUTS.match(key):
            known = sorted(read)
            raise ValueError(
                f"{name} has the key {key!r}, which nothing reads, so that its loss would be missing: remove it, name "
                f"it as one of those that are read, {known}, or add a branch for it"
            )


def _is_given(key: str, given: Mapping[Any, Any]) -> bool:
    return key in given or (key == "ignore" and "iscrowd" in given)


def is_near(key: str, other: str) -> bool:
    """Tell whether two words are a letter or a plural apart: one inserted, left out, replaced or swapped."""
    if key in (other + "s", other + "es") or other in (key + "s", key + "es"):
        return True
    if abs(len(key) - len(other)) > 1:
        return False
    start = next((i for i, (a, b) in enumerate(zip(key, other, strict=False)) if a != b), min(len(key), len(other)))
    rest, end = key[start:], other[start:]
    return rest[1:] == end[1:] or rest[1:] == end or rest == end[1:] or (rest[:2] == end[1::-1] and rest[2:] == end[2:])
