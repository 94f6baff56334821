"""Box coders: boxes relative to anchors or points, and back."""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from uotod.check import check_flag, check_number
from uotod.geometry.boxes import box_centers, box_cxcywh_to_xyxy, box_xyxy_to_cxcywh, full_precision


class BoxCoder(ABC):
    """Express boxes relative to their anchors; the base class of every coder."""

    @property
    def needs(self) -> tuple[str, ...]:
        """Return what `encode` and `decode` take besides the boxes, among "anchors" and "stride"."""
        return ("anchors",)

    @abstractmethod
    def encode(self, boxes: Tensor, anchors: Tensor, stride: Tensor | None = None) -> Tensor:
        """Return the (..., 4) values of (..., 4) boxes, xyxy, relative to the anchors in the same rows."""

    @abstractmethod
    def decode(self, values: Tensor, anchors: Tensor, stride: Tensor | None = None) -> Tensor:
        """Return the (..., 4) boxes, xyxy, whose values are given: the inverse of `encode`."""


@dataclass(frozen=True)
class DeltaCoder(BoxCoder):
    r"""Encode a box as the shift of its centre and the logarithm of its size, both in sizes of its anchor.

    .. math:: \left( w_x \frac{x - x_a}{w_a},\ w_y \frac{y - y_a}{h_a},\ w_w \ln \frac{w}{w_a},\
        w_h \ln \frac{h}{h_a} \right)

    Below `eps` anchor sizes the logarithm continues as its tangent, so that a zero-area or inverted box has finite
    values and a gradient that makes it grow. An anchor without extent counts as one of extent 1.

    Args:
        weights: positive factors of the four values: `(10, 10, 5, 5)`, the inverse of the variances 0.1 and 0.2, in SSD
            and Fast R-CNN; `(1, 1, 1, 1)` in region proposal networks and RetinaNet.
        eps: relative size from which on the logarithm is exact.
        max_scale: largest relative size that `decode` returns, which bounds its exponential.

    Raises:
        ValueError: an argument is out of its range.

    References:
        Girshick et al., "Rich feature hierarchies for accurate object detection", CVPR 2014, appendix C; Liu et al.,
        "SSD", ECCV 2016, eq. 2.

    Examples:
        >>> anchors = torch.tensor([[0.0, 0.0, 10.0, 10.0]])
        >>> values = DeltaCoder().encode(torch.tensor([[5.0, 0.0, 15.0, 20.0]]), anchors)
        >>> values
        tensor([[5.0000, 5.0000, 0.0000, 3.4657]])
        >>> DeltaCoder().decode(values, anchors)
        tensor([[ 5.,  0., 15., 20.]])
    """

    weights: tuple[float, float, float, float] = (10.0, 10.0, 5.0, 5.0)
    eps: float = 1e-3
    max_scale: float = 1000 / 16

    def __post_init__(self) -> None:
        if len(self.weights) != 4:
            raise ValueError(f"weights must hold four numbers, got {self.weights!r}")
        weights = tuple(check_number(f"weights[{i}]", w, low=0.0, low_open=True) for i, w in enumerate(self.weights))
        object.__setattr__(self, "weights", weights)
        check_number("eps", self.eps, low=0.0, high=1.0, low_open=True)
        check_number("max_scale", self.max_scale, low=1.0)

    def encode(self, boxes: Tensor, anchors: Tensor, stride: Tensor | None = None) -> Tensor:
        """Return the (..., 4) deltas of (..., 4) boxes, xyxy, from the anchors in the same rows."""
        values, (center, size) = box_xyxy_to_cxcywh(full_precision(boxes)), center_and_size(anchors)
        shift, log = (values[..., :2] - center) / size, bounded_log(values[..., 2:] / size, self.eps)
        # number by number: a tensor of the weights would be a transfer that synchronises with a GPU
        deltas = torch.cat((shift, log), dim=-1).unbind(-1)
        return torch.stack([x * w for x, w in zip(deltas, self.weights, strict=True)], dim=-1)

    def decode(self, values: Tensor, anchors: Tensor, stride: Tensor | None = None) -> Tensor:
        """Return the (..., 4) boxes, xyxy, with (..., 4) deltas from the anchors in the same rows."""
        center, size = center_and_size(anchors)
        deltas = full_precision(values).unbind(-1)
        values = torch.stack([x / w for x, w in zip(deltas, self.weights, strict=True)], dim=-1)
        scale = values[..., 2:].clamp(max=math.log(self.max_scale)).exp()
        return box_cxcywh_to_xyxy(torch.cat((center + values[..., :2] * size, scale * size), dim=-1))


@dataclass(frozen=True)
class DistanceCoder(BoxCoder):
    r"""Encode a box as the distances of its left, upper, right and lower side from a point.

    .. math:: (x - x_1,\ y - y_1,\ x_2 - x,\ y_2 - y)

    The point `(x, y)` is the centre of the anchor. A side beyond the point has a negative distance.

    Args:
        by_stride: measure in strides of the feature map instead of in the unit of the boxes.

    References:
        Tian et al., "FCOS", ICCV 2019, eq. 1; Li et al., "Generalized focal loss", NeurIPS 2020 (in strides).

    Examples:
        >>> coder, point = DistanceCoder(by_stride=True), torch.tensor([[4.0, 4.0]])
        >>> values = coder.encode(torch.tensor([[0.0, 2.0, 12.0, 20.0]]), point, torch.tensor([8.0]))
        >>> values
        tensor([[0.5000, 0.2500, 1.0000, 2.0000]])
        >>> coder.decode(values, point, torch.tensor([8.0]))
        tensor([[ 0.,  2., 12., 20.]])
    """

    by_stride: bool = False

    def __post_init__(self) -> None:
        check_flag("by_stride", self.by_stride)

    @property
    def needs(self) -> tuple[str, ...]:
        """Return what `encode` and `decode` take besides the boxes."""
        return ("anchors", "stride") if self.by_stride else ("anchors",)

    def encode(self, boxes: Tensor, anchors: Tensor, stride: Tensor | None = None) -> Tensor:
        """Return the (..., 4) distances of (..., 4) boxes, xyxy.

        Args:
            boxes: (..., 4) boxes.
            anchors: (..., 4) anchors, xyxy, or (..., 2) points in the same rows.
            stride: (...) strides, needed with `by_stride=True`.
        """
        boxes, point = full_precision(boxes), points_of(anchors)
        values = torch.cat((point - boxes[..., :2], boxes[..., 2:] - point), dim=-1)
        return values / self._unit(stride) if self.by_stride else values

    def decode(self, values: Tensor, anchors: Tensor, stride: Tensor | None = None) -> Tensor:
        """Return the (..., 4) boxes, xyxy, with (..., 4) distances. Arguments as in `encode`."""
        values, point = full_precision(values), points_of(anchors)
        values = values * self._unit(stride) if self.by_stride else values
        return torch.cat((point - values[..., :2], point + values[..., 2:]), dim=-1)

    def _unit(self, stride: Tensor | None) -> Tensor:
        if stride is None:
            raise ValueError("stride must be given with by_stride=True, got None")
        return stride.unsqueeze(-1)


def points_of(anchors: Tensor) -> Tensor:
    """Return (..., 2) points, or the centres of (..., 4) anchors."""
    anchors = full_precision(anchors)
    return anchors if anchors.shape[-1] == 2 else box_centers(anchors)


def center_and_size(anchors: Tensor) -> tuple[Tensor, Tensor]:
    """Return the centres (..., 2) and sizes (..., 2) of (..., 4) anchors, 1 for a size that is not above 0."""
    values = box_xyxy_to_cxcywh(full_precision(anchors))
    size = values[..., 2:]
    return values[..., :2], torch.where(size > 0, size, 1.0)


def bounded_log(size: Tensor, eps: float) -> Tensor:
    """Return the logarithm of sizes, below `eps` its tangent there."""
    return torch.where(size > eps, size.clamp(min=eps).log(), math.log(eps) + size / eps - 1)
