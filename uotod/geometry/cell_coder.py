"""Boxes as YOLO states them, an offset in a cell of a grid and a compressed size: boxes in, values out, and back."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from uotod.check import check_choice, check_number
from uotod.geometry.boxes import box_cxcywh_to_xyxy, box_xyxy_to_cxcywh, full_precision
from uotod.geometry.coders import BoxCoder, bounded_log, center_and_size, points_of

SIZES = ("sqrt", "log", "linear")


@dataclass(frozen=True)
class CellCoder(BoxCoder):
    r"""Encode a box as the offset of its centre in a cell of a grid, and its size.

    .. math:: \left( \frac{x}{s} - \left\lfloor \frac{x_a}{s} \right\rfloor,\
        \frac{y}{s} - \left\lfloor \frac{y_a}{s} \right\rfloor,\ \varphi(w),\ \varphi(h) \right)

    The cell is that of the point or of the centre of the anchor, :math:`(x_a, y_a)`, in a grid of stride `s`; a centre
    inside of it has an offset in [0, 1]. Below `eps` the root and the logarithm continue as their tangents, so that a
    zero-area or inverted box has finite values and a gradient that makes it grow.

    Args:
        size: :math:`\varphi`: "sqrt" is the root of the size (YOLO v1), for which boxes must be fractions of the image;
            "log" the logarithm of the size over that of the anchor (YOLO v2 and v3); "linear" the size.
        eps: size, for "log" relative to the anchor, from which on root and logarithm are exact.
        max_scale: largest relative size that `decode` returns for "log", which bounds its exponential.

    Raises:
        ValueError: an argument is out of its range.

    References:
        Redmon et al., "You only look once", CVPR 2016, sec. 2.2; Redmon and Farhadi, "YOLO9000", CVPR 2017, sec. 2.

    Examples:
        >>> cell, stride = torch.tensor([[0.25, 0.0, 0.5, 0.25]]), torch.tensor([0.25])
        >>> values = CellCoder().encode(torch.tensor([[0.28, 0.08, 0.44, 0.17]]), cell, stride)
        >>> values
        tensor([[0.4400, 0.5000, 0.4000, 0.3000]])
        >>> CellCoder().decode(values, cell, stride)
        tensor([[0.2800, 0.0800, 0.4400, 0.1700]])
    """

    size: str = "sqrt"
    eps: float = 1e-6
    max_scale: float = 1000 / 16

    def __post_init__(self) -> None:
        check_choice("size", self.size, SIZES)
        check_number("eps", self.eps, low=0.0, low_open=True)
        check_number("max_scale", self.max_scale, low=1.0)

    @property
    def needs(self) -> tuple[str, ...]:
        """Return what `encode` and `decode` take besides the boxes."""
        return ("anchors", "stride")

    def encode(self, boxes: Tensor, anchors: Tensor, stride: Tensor | None = None) -> Tensor:
        """Return the (..., 4) values of (..., 4) boxes, xyxy.

        Args:
            boxes: (..., 4) boxes.
            anchors: (..., 4) anchors, xyxy, or (..., 2) points in the same rows, which "log" does not take.
            stride: (...) strides, in the unit of the boxes.

        Raises:
            ValueError: the stride, or with "log" the anchors' size, is missing.
        """
        values = box_xyxy_to_cxcywh(full_precision(boxes))
        corner, unit = self._cell(anchors, stride)
        size = values[..., 2:]
        if self.size == "log":
            size = size / self._anchor_size(anchors)
        return torch.cat((values[..., :2] / unit - corner, compress_size(size, self.size, self.eps)), dim=-1)

    def decode(self, values: Tensor, anchors: Tensor, stride: Tensor | None = None) -> Tensor:
        """Return the (..., 4) boxes, xyxy, with (..., 4) values. Arguments as in `encode`."""
        values = full_precision(values)
        corner, unit = self._cell(anchors, stride)
        size = values[..., 2:]
        if self.size == "sqrt":
            size = size.clamp(min=0) ** 2
        elif self.size == "log":
            size = size.clamp(max=math.log(self.max_scale)).exp() * self._anchor_size(anchors)
        return box_cxcywh_to_xyxy(torch.cat(((values[..., :2] + corner) * unit, size), dim=-1))

    def _cell(self, anchors: Tensor, stride: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return the (..., 2) upper left corner of the cell, in cells, and the (..., 1) stride."""
        if stride is None:
            raise ValueError("stride must be given to a CellCoder, got None")
        unit = stride.unsqueeze(-1)
        return (points_of(anchors) / unit).floor(), unit

    def _anchor_size(self, anchors: Tensor) -> Tensor:
        if anchors.shape[-1] != 4:
            raise ValueError(f'anchors must have shape (..., 4) with size="log", got {tuple(anchors.shape)}')
        return center_and_size(anchors)[1]


def compress_size(size: Tensor, kind: str, eps: float) -> Tensor:
    """Return the root ("sqrt") or the logarithm ("log") of sizes, below `eps` its tangent there; or the size itself."""
    if kind == "log":
        return bounded_log(size, eps)
    if kind == "sqrt":
        return torch.where(size > eps, size.clamp(min=eps).sqrt(), (eps + size) / (2 * math.sqrt(eps)))
    return size
