"""What a localisation module may see of a matched row besides the two boxes: anchors, strides and other predictions."""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from uotod.scene.predictions import Scene

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


def fields_of(module: nn.Module, scene: Scene) -> dict[str, Field]:
    """Return the fields that a module declares in its attribute `needs`.

    Raises:
        ValueError: a field is unknown, or not given.
    """
    return {name: _field(name, module, scene) for name in getattr(module, "needs", ())}


def unit_box(like: Tensor) -> Tensor:
    """Return (0, 0, 1, 1), made on the device of `like`: a transfer would synchronise."""
    return (torch.arange(4, device=like.device) // 2).to(like.dtype)


def _field(name: str, module: nn.Module, scene: Scene) -> Field:
    owner = type(module).__name__
    if name not in FIELDS:
        raise ValueError(f"{owner}.needs must hold names among {list(FIELDS)}, got {name!r}")
    if name == "pred_dist":
        dist = scene.predictions.dist
        if dist is None:
            raise ValueError(f"input must have the key 'pred_dist' for {owner}")
        return Field(dist, dist.new_zeros(()))
    if scene.anchors is None:
        raise ValueError(f"anchors must be given for {owner}, got None")
    if name == "anchors":
        boxes = scene.anchors.boxes
        return Field(boxes, unit_box(boxes))
    if name == "centers":
        return Field(scene.anchors.centers, scene.anchors.centers.new_zeros(()))
    if scene.anchors.stride is None:
        raise ValueError(f"anchors must have strides (Anchors or Points) for {owner}, got none")
    return Field(scene.anchors.stride, scene.anchors.stride.new_ones(()))
