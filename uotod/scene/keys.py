"""Keys of what users pass: those given and those read in, an error for one that looks like a mistake out."""

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

# outputs that a model hands over to be trained, under the names of several projects
OUTPUTS = re.compile(r".*_outputs$|^(dn|enc|auxiliary)(_|$).*|^auxiliary.*")
# what the field's data sets carry, near in spelling to what is read or not
HARMLESS = {"image_id", "area", "size", "orig_size", "masks", "keypoints", "boxes", "labels"}


def check_input_keys(name: str, input: Any, read: Collection[str]) -> None:
    """Raise a ValueError for a key of predictions that nobody reads, but that looks as if somebody should.

    Other keys pass: a model may return what no criterion reads. Those of earlier decoder layers are checked, too.
    """
    if not isinstance(input, Mapping):
        return
    _check(name, (key for key in input if key not in read), read, outputs=True)
    layers = input.get("aux_outputs")
    for index, layer in enumerate(layers if isinstance(layers, Sequence) else ()):
        if isinstance(layer, Mapping):
            _check(f"{name}['aux_outputs'][{index}]", (key for key in layer if key not in read), read, outputs=True)


def check_target_keys(target: Any, read: Collection[str]) -> None:
    """Raise a ValueError for a key of targets that is within a letter of one that is read."""
    if isinstance(target, Mapping):
        _check("target", (key for key in target if key not in read), read, outputs=False)
    elif isinstance(target, (list, tuple)):
        for index, image in enumerate(target):
            if isinstance(image, Mapping):
                _check(f"target[{index}]", (key for key in image if key not in read), read, outputs=False)


def _check(name: str, unread: Iterable[Any], read: Collection[str], *, outputs: bool) -> None:
    for key in unread:
        if not isinstance(key, str) or key in HARMLESS:
            continue
        near = [x for x in read if is_near(key, x)]
        if near:
            raise ValueError(f"{name} has the key {key!r}, which nothing reads: is {near[0]!r} meant?")
        if outputs and OUTPUTS.match(key):
            known = sorted(read)
            raise ValueError(
                f"{name} has the key {key!r}, which nothing reads, so that its loss would be missing: remove it, name "
                f"it as one of those that are read, {known}, or add a branch for it"
            )


def is_near(key: str, other: str) -> bool:
    """Tell whether two words are a letter or a plural apart: one inserted, left out, replaced or swapped."""
    if key in (other + "s", other + "es") or other in (key + "s", key + "es"):
        return True
    if abs(len(key) - len(other)) > 1:
        return False
    start = next((i for i, (a, b) in enumerate(zip(key, other, strict=False)) if a != b), min(len(key), len(other)))
    rest, end = key[start:], other[start:]
    return rest[1:] == end[1:] or rest[1:] == end or rest == end[1:] or (rest[:2] == end[1::-1] and rest[2:] == end[2:])
