"""What a localisation module may see of a matched row besides the two boxes: anchors, strides and other predictions."""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from uotod.scene.predictions import Batch

FIELDS = ("anchors", "centers", "stride", "pred_dist")


class Field(NamedTuple):
    """The (B, P, ...) values of a field, and the harmless one (...) of a row that stands for no pair."""

    values: Tensor
    neutral: Tensor

    def rows(self, image: Tensor, pred: Tensor, matched: Tensor | None) -> Tensor:
        """Return the values of (N,) predictions, the harmless one where they are not `matched`."""
        rows = self.values[image, pred]
        if matched is None:
            return rows
        return torch.where(matched.view(-1, *[1] * (rows.dim() - 1)), rows, self.neutral)


def fields_of(module: nn.Module, batch: Batch) -> dict[str, Field]:
    """Return the fields that a module declares in its attribute `needs`.

    Raises:
        ValueError: a field is unknown, or not given.
    """
    return {name: _field(name, module, batch) for name in getattr(module, "needs", ())}


def unit_box(like: Tensor) -> Tensor:
    """Return (0, 0, 1, 1), made on the device of `like`: a transfer would synchronise."""
    return (torch.arange(4, device=like.device) // 2).to(like.dtype)


def _field(name: str, module: nn.Module, batch: Batch) -> Field:
    owner = type(module).__name__
    if name not in FIELDS:
        raise ValueError(f"{owner}.needs must hold names among {list(FIELDS)}, got {name!r}")
    if name == "pred_dist":
        dist = batch.predictions.dist
        if dist is None:
            raise ValueError(f"input must have the key 'pred_dist' for {owner}")
        return Field(dist, dist.new_zeros(()))
    if batch.anchors is None:
        raise ValueError(f"anchors must be given for {owner}, got None")
    if name == "anchors":
        boxes = batch.anchors.boxes
        return Field(boxes, unit_box(boxes))
    if name == "centers":
        return Field(batch.anchors.centers, batch.anchors.centers.new_zeros(()))
    if batch.anchors.stride is None:
        raise ValueError(f"anchors must have strides (Anchors or Points) for {owner}, got none")
    return Field(batch.anchors.stride, batch.anchors.stride.new_ones(()))
