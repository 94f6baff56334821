"""Check what is to be plotted: tensors come in, arrays go out, with a name and a colour for each target."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from uotod.check import check_integer, check_number

Array = NDArray[np.float64]
# six colours of Okabe and Ito's palette, which colour-blind readers can tell apart
PALETTE = np.array([(0, 114, 178), (213, 94, 0), (0, 158, 115), (204, 121, 167), (230, 159, 0), (86, 180, 233)]) / 255
GREY = np.array([0.4, 0.4, 0.4])


class Columns(NamedTuple):
    """Targets that are not padding, then the background: which columns they are, their names and their colours."""

    kept: NDArray[np.int64]
    names: list[str]
    colors: Array


class Scene(NamedTuple):
    """An image (H, W, 3) or none, its boxes, and what of them to show; `extent` is left, right, bottom, top."""

    image: Array | None
    preds: Array
    targets: Array
    columns: Columns
    min_mass: float
    max_preds: int
    extent: tuple[float, float, float, float]


def read_scene(
    image: Tensor | None,
    pred_boxes: Tensor,
    target_boxes: Tensor,
    mask: Tensor | None,
    labels: Tensor | None,
    class_names: Sequence[str] | None,
    min_mass: float,
    max_preds: int,
) -> Scene:
    """Check an image and the boxes in it, and find out what to show of them."""
    preds, targets = _read("pred_boxes", pred_boxes, "P", 4), _read("target_boxes", target_boxes, "T", 4)
    columns = _read_columns(len(targets), mask, labels, class_names)
    targets = targets[columns.kept[:-1]]
    _require("pred_boxes", preds, np.isfinite(preds), "finite")
    _require("target_boxes", targets, np.isfinite(targets), "finite")
    check_number("min_mass", min_mass, low=0.0, low_open=True)
    check_integer("max_preds", max_preds, low=0)
    if image is None:
        ends = np.concatenate([preds, targets]).reshape(-1, 2)  # (2 (P + T), 2)
        low, high = (ends.min(0), ends.max(0)) if len(ends) else (np.zeros(2), np.ones(2))
        margin = 0.05 * max(*(high - low), 1e-3)
        (left, top), (right, bottom) = low - margin, high + margin
        return Scene(None, preds, targets, columns, min_mass, max_preds, (left, right, bottom, top))
    color = isinstance(image, Tensor) and image.dim() == 3
    pixels = _read("image", image, *((3, "H", "W") if color else ("H", "W")))
    if not pixels.size:
        raise ValueError(f"image must have at least one pixel, got shape {tuple(image.shape)}")
    pixels = pixels / 255 if image.dtype == torch.uint8 else pixels
    _require("image", pixels, (pixels >= 0) & (pixels <= 1), "in [0, 1] or of dtype uint8")
    pixels = np.moveaxis(pixels, 0, -1) if color else np.repeat(pixels[..., None], 3, axis=-1)  # (H, W, 3)
    extent = (0.0, float(pixels.shape[1]), float(pixels.shape[0]), 0.0)
    return Scene(pixels, preds, targets, columns, min_mass, max_preds, extent)


def read_matrix(
    name: str, value: Tensor, mask: Tensor | None = None, scene: Scene | None = None
) -> tuple[Array, Columns]:
    """Return what is to be shown of a cost or plan (P, T + 1), which belongs to a scene or has a mask."""
    matrix = _read(name, value, "P" if scene is None else len(scene.preds), "T + 1")
    columns = _read_columns(max(matrix.shape[1] - 1, 0), mask) if scene is None else scene.columns
    T = int(columns.kept[-1])
    if scene is not None and name == "plan" and matrix.shape[1] == T:
        matrix = np.pad(matrix, ((0, 0), (0, 1)))  # no background
    if matrix.shape[1] != T + 1:
        raise ValueError(f"{name} must have shape (P, T + 1) = ({len(matrix)}, {T + 1}), got {tuple(value.shape)}")
    matrix = matrix[:, columns.kept]
    if name == "cost":
        _require(name, matrix, matrix > -math.inf, "above -inf and not NaN")
    else:
        _require(name, matrix, (matrix >= 0) & (matrix < math.inf), "finite and at least 0")
    return matrix, columns


def _read_columns(
    T: int, mask: Tensor | None, labels: Tensor | None = None, class_names: Sequence[str] | None = None
) -> Columns:
    """Choose, name and colour the columns of `T` targets and the background."""
    keep = np.arange(T)
    if mask is not None:
        if not isinstance(mask, Tensor) or mask.dtype != torch.bool:
            found = mask.dtype if isinstance(mask, Tensor) else type(mask).__name__
            raise TypeError(f"mask must be a tensor of dtype torch.bool, got {found}")
        if mask.shape != (T,):
            raise ValueError(f"mask must have shape (T,) = ({T},), got {tuple(mask.shape)}")
        keep = np.flatnonzero(mask.cpu().numpy())
    numbers = keep.astype(np.float64)
    if labels is not None:
        numbers = _read("target_labels", labels, T)[keep]
        if labels.is_floating_point():
            raise TypeError(f"target_labels must be a tensor of integers, got {labels.dtype}")
        limit = math.inf if class_names is None else len(class_names)
        _require("target_labels", numbers, (numbers >= 0) & (numbers < limit), f"in [0, {limit})")
    elif class_names is not None:
        raise ValueError("target_labels must be given with class_names, got None")
    names = [str(int(n)) if class_names is None else str(class_names[int(n)]) for n in numbers]
    base, shade = PALETTE[keep % len(PALETTE)], (keep // len(PALETTE) % 3)[:, None]
    colors = np.select([shade == 1, shade == 2], [0.55 * base, 0.35 + 0.65 * base], base)  # plain, dark, light
    return Columns(np.append(keep, T), [*names, "∅"], np.vstack([colors, GREY]))


def _read(name: str, value: Tensor, *shape: int | str) -> Array:
    """Return a tensor of real numbers as an array, not to be written to; a size that is a word may have any value."""
    if not isinstance(value, Tensor) or value.dtype == torch.bool or value.is_complex():
        found = value.dtype if isinstance(value, Tensor) else type(value).__name__
        raise TypeError(f"{name} must be a tensor of real numbers, got {found}")
    sizes = zip(shape, value.shape, strict=False)
    if value.dim() != len(shape) or any(want != size for want, size in sizes if not isinstance(want, str)):
        expected = ", ".join(map(str, shape)) + "," * (len(shape) == 1)
        raise ValueError(f"{name} must have shape ({expected}), got {tuple(value.shape)}")
    return value.detach().cpu().double().numpy()


def _require(name: str, array: Array, valid: NDArray[np.bool_], expected: str) -> None:
    """Raise a ValueError that shows the first value that is not valid."""
    if not valid.all():
        where = tuple(int(x) for x in np.argwhere(~valid)[0])
        raise ValueError(f"{name} must be {expected}, got {array[where]:g} at {where}")
