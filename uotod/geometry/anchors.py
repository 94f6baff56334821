"""Where predictions stand in an image: anchors or points with their stride and level, one value for every matcher."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from uotod.check import (
    check_device,
    check_finite,
    check_integer,
    check_number,
    check_ordered,
    check_range,
    reads_values,
)
from uotod.geometry.boxes import box_centers, full_precision, largest_side, own_format


@dataclass(frozen=True, eq=False)
class Anchors:
    """Anchor boxes with the stride and the level of the feature map that each belongs to.

    Args:
        boxes: (P, 4) or (B, P, 4) boxes, xyxy.
        stride: pixels between neighbouring cells of the feature map, one number or (P,); None if no rule needs it.
        level: (P,) integer index of the feature map from 0; by default the rank of the stride, or 0 without strides.
        num_levels: number of feature maps, above every level; 0 to count them.

    The values of stride and level are read once, here, which synchronises with a GPU.

    Raises:
        TypeError: an argument is not a tensor of the stated kind.
        ValueError: a shape, a device or a value is wrong.

    Examples:
        >>> small, large = torch.zeros(16, 4), torch.zeros(4, 4)
        >>> Anchors.from_levels([small, large], strides=[8, 16]).num_levels
        2
    """

    boxes: Tensor
    stride: Tensor | float | None = None
    level: Tensor | None = None
    num_levels: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "boxes", _corners("anchors.boxes", self.boxes))
        _check_places("anchors.boxes", self.boxes, 4)
        _fill_levels(self)

    @classmethod
    def from_levels(cls, boxes: Sequence[Tensor], strides: Sequence[float]) -> Anchors:
        """Join the (P_l, 4) anchors of several feature maps, one stride each, in their order."""
        stride, level = _levels("boxes", [len(x) for x in boxes], strides, boxes[0] if boxes else torch.zeros(0))
        return cls(torch.cat(list(boxes)) if boxes else torch.zeros(0, 4), stride, level, len(boxes))

    @property
    def places(self) -> Tensor:
        """The `boxes`."""
        return self.boxes

    def to(self, *args: Any, **kwargs: Any) -> Anchors:
        """Return the value on another device or in another dtype; arguments as for `torch.Tensor.to`."""
        boxes: Tensor = self.boxes.to(*args, **kwargs)
        return Anchors(boxes, *_move(self, boxes), self.num_levels)


@dataclass(frozen=True, eq=False)
class Points:
    """Points of anchor-free detectors with their stride and level; each stands for the cell `stride` wide around it.

    Args:
        centers: (P, 2) or (B, P, 2) points (x, y).
        stride: pixels between neighbouring points, one number or (P,).
        level: (P,) integer index of the feature map from 0; by default the rank of the stride.
        num_levels: number of feature maps, above every level; 0 to count them.

    The values of stride and level are read once, here, which synchronises with a GPU.

    Raises:
        TypeError: an argument is not a tensor of the stated kind.
        ValueError: a shape, a device or a value is wrong.

    Examples:
        >>> points = Points.from_levels([(2, 2), (1, 1)], strides=[8, 16])
        >>> points.centers.tolist()
        [[4.0, 4.0], [12.0, 4.0], [4.0, 12.0], [12.0, 12.0], [8.0, 8.0]]
        >>> points.level.tolist()
        [0, 0, 0, 0, 1]
    """

    centers: Tensor
    stride: Tensor | float
    level: Tensor | None = None
    num_levels: int = 0

    def __post_init__(self) -> None:
        _check_places("anchors.centers", self.centers, 2)
        if self.stride is None:
            raise TypeError("anchors.stride must be a number or a tensor, got None")
        _fill_levels(self)

    @classmethod
    def from_levels(
        cls,
        shapes: Sequence[tuple[int, int]],
        strides: Sequence[float],
        *,
        offset: float = 0.5,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str | None = None,
    ) -> Points:
        """Return the points of feature maps, row by row: cell (row, column) stands at `(column + offset) * stride`.

        Args:
            shapes: (height, width) of each feature map, in cells.
            strides: stride of each feature map, in pixels.
            offset: position of a point in its cell; 0 for the upper left corner.
            dtype: dtype of the points.
            device: device of the points.
        """
        cells = [height * width for height, width in shapes]
        stride_of, level = _levels("shapes", cells, strides, torch.zeros(0, dtype=dtype, device=device))
        grids = []
        for (height, width), stride in zip(shapes, strides, strict=True):
            y, x = ((torch.arange(n, dtype=dtype, device=device) + offset) * stride for n in (height, width))
            grids.append(torch.stack((x.expand(height, -1), y[:, None].expand(-1, width)), dim=-1).flatten(0, 1))
        centers = torch.cat([torch.zeros(0, 2, dtype=dtype, device=device), *grids])
        return cls(centers, stride_of, level, len(grids))

    @property
    def places(self) -> Tensor:
        """The `centers`."""
        return self.centers

    def to(self, *args: Any, **kwargs: Any) -> Points:
        """Return the value on another device or in another dtype; arguments as for `torch.Tensor.to`."""
        centers: Tensor = self.centers.to(*args, **kwargs)
        return Points(centers, *_move(self, centers), self.num_levels)


class Locations(NamedTuple):
    """Parsed anchors or points of a batch.

    Attributes:
        boxes: (B, P, 4) anchors; the cells of points.
        centers: (B, P, 2) points; the centres of anchors.
        stride: (B, P), or None if the anchors have none.
        level: (B, P) index of the feature map.
        num_levels: number of feature maps.
    """

    boxes: Tensor
    centers: Tensor
    stride: Tensor | None
    level: Tensor
    num_levels: int

    def map(self, function: Callable[[Tensor], Tensor]) -> Locations:
        """Return the locations with a function applied to every tensor."""
        stride = None if self.stride is None else function(self.stride)
        return Locations(function(self.boxes), function(self.centers), stride, function(self.level), self.num_levels)


def parse_anchors(anchors: Tensor | Anchors | Points, like: Tensor, layers: int, validate: bool) -> Locations:
    """Validate anchors against the (B, P, ...) predictions of a decoder layer, and repeat them for each layer.

    Raises:
        TypeError: `anchors` is of another type, or not floating.
        ValueError: a shape, a device or a value is wrong.
    """
    if isinstance(anchors, Tensor):
        name, anchors = "anchors", _corners("anchors", anchors)
        if not anchors.is_floating_point():
            raise TypeError(f"anchors must have a floating dtype, got {anchors.dtype}")
    elif isinstance(anchors, (Anchors, Points)):
        name = "anchors.boxes" if isinstance(anchors, Anchors) else "anchors.centers"
    else:
        raise TypeError(f"anchors must be a tensor, Anchors or Points, got {type(anchors).__name__}")
    places = anchors if isinstance(anchors, Tensor) else anchors.places
    width = 2 if isinstance(anchors, Points) else 4
    images, preds = like.shape[:2]
    if places.shape != (preds, width) and places.shape != (images, preds, width):
        expected = f"{(preds, width)} or {(images, preds, width)}"
        raise ValueError(f"{name} must have shape {expected}, got {tuple(places.shape)}")
    check_device(name, places, like.device)
    if reads_values(places, validate):
        check_finite(name, places, validate, largest=largest_side(places))
        if width == 4:
            check_ordered(name, places)
    value = Anchors(anchors) if isinstance(anchors, Tensor) else anchors
    values = full_precision(places.to(like.dtype))
    stride = value.stride
    if stride is not None:
        stride = stride.to(values.dtype) if isinstance(stride, Tensor) else values.new_full((), stride)
    if width == 4:
        boxes, centers = values, box_centers(values)
    else:
        assert stride is not None
        half = stride.unsqueeze(-1) / 2
        boxes, centers = torch.cat((values - half, values + half), dim=-1), values
    level = torch.zeros(preds, dtype=torch.long, device=values.device) if value.level is None else value.level.long()
    batch = (images * layers, preds)

    def stack(x: Tensor) -> Tensor:
        """Return (P, n) or (B, P, n) values once for each image of each layer."""
        return x.repeat(layers, 1, 1) if x.dim() == 3 else x.expand(*batch, -1)

    of_images = None if stride is None else stride.expand(batch)
    return Locations(stack(boxes), stack(centers), of_images, level.expand(batch), value.num_levels)


def _corners(name: str, boxes: Tensor) -> Tensor:
    """Return boxes without a format of their own, which must be xyxy."""
    stated = own_format(boxes)
    if stated not in (None, "xyxy"):
        raise ValueError(f"{name} must be xyxy, got boxes that state that they are {stated}")
    return boxes if stated is None else boxes.as_subclass(Tensor)


def _check_places(name: str, places: Tensor, width: int) -> None:
    if not isinstance(places, Tensor) or not places.is_floating_point():
        found = places.dtype if isinstance(places, Tensor) else type(places).__name__
        raise TypeError(f"{name} must be a tensor of a floating dtype, got {found}")
    if places.dim() not in (2, 3) or places.shape[-1] != width:
        raise ValueError(f"{name} must have shape (P, {width}) or (B, P, {width}), got {tuple(places.shape)}")


def _fill_levels(value: Anchors | Points) -> None:
    """Check stride and level, and fill in the level and the number of levels that were not given."""
    count, device = value.places.shape[-2], value.places.device
    stride, level = value.stride, value.level
    if isinstance(stride, Tensor):
        if stride.shape != () and stride.shape != (count,):
            raise ValueError(f"anchors.stride must have shape () or ({count},), got {tuple(stride.shape)}")
        check_device("anchors.stride", stride, device)
        bad = stride[~((stride > 0) & stride.isfinite())]
        if len(bad):
            raise ValueError(f"anchors.stride must be finite and positive, got a value of {bad[0].item()}")
    elif stride is not None:
        check_number("anchors.stride", stride, low=0.0, low_open=True)
    given, found = check_integer("anchors.num_levels", value.num_levels, low=0), 1
    if level is not None:
        if not isinstance(level, Tensor) or level.is_floating_point() or level.dtype == torch.bool:
            kind = level.dtype if isinstance(level, Tensor) else type(level).__name__
            raise TypeError(f"anchors.level must be a tensor of an integer dtype, got {kind}")
        if level.shape != (count,):
            raise ValueError(f"anchors.level must have shape ({count},), got {tuple(level.shape)}")
        check_device("anchors.level", level, device)
        found = given or (int(level.max()) + 1 if count else 1)
        check_range("anchors.level", level, max(found, 1), note=", the number of levels")
    elif isinstance(stride, Tensor) and stride.dim():
        strides, level = torch.unique(stride, return_inverse=True)
        found = max(len(strides), 1)
        if given and given < found:
            raise ValueError(
                f"anchors.num_levels must be at least {found}, the number of different strides, got {given}"
            )
    object.__setattr__(value, "level", level)
    object.__setattr__(value, "num_levels", given or found)


def _levels(name: str, counts: Sequence[int], strides: Sequence[float], like: Tensor) -> tuple[Tensor, Tensor]:
    """Return stride and level of every place of feature maps with `counts` places."""
    if len(counts) != len(strides):
        raise ValueError(f"strides must hold one number for each of the {len(counts)} {name}, got {len(strides)}")
    repeats = torch.tensor(counts, dtype=torch.long)
    stride = torch.tensor(strides, dtype=like.dtype).repeat_interleave(repeats)
    level = torch.arange(len(counts)).repeat_interleave(repeats)
    return stride.to(like.device), level.to(like.device)


def _move(value: Anchors | Points, like: Tensor) -> tuple[Any, Tensor | None]:
    """Return stride and level on the device of the moved places, the stride in their dtype."""
    stride = value.stride.to(like.device, like.dtype) if isinstance(value.stride, Tensor) else value.stride
    return stride, None if value.level is None else value.level.to(like.device)
