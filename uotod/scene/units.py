"""Units of boxes: a scene in, an error out where its targets plainly have another unit than is expected."""

import torch
from torch import Tensor

from uotod.check import reads_values
from uotod.scene.scene import Scene

UNIT = 2.0  # no coordinate of a target is farther out in units of the image, even before boxes are clipped to it
PIXELS = 32.0  # images are at least as wide in pixels
SPECK = 16.0  # and few batches have only targets that end before


def check_units(scene: Scene, unit_boxes: bool) -> None:
    """Check that target boxes lie in the unit square, if they must, and that anchors have their unit.

    Only what is plain raises: coordinates a little outside pass, and so do pixels if all targets of the batch lie in
    the first few. Values are looked at where that does not synchronise, or if the scene says so.

    Raises:
        ValueError: targets are plainly pixels where fractions of the image are expected, or the other way round.
    """
    boxes = scene.targets.fields.get("target_boxes")
    if boxes is None or boxes.shape[-1] != 4 or not boxes.numel() or not reads_values(boxes, scene.validate):
        return
    reach = _reach(boxes)
    if unit_boxes and reach > UNIT:
        raise ValueError(
            f"target['boxes'] must be fractions of the image, in the unit square, got {_farthest(boxes)}: pixels? "
            "Divide them by its width and height; a DetectionLoss for pixels has unit_boxes=False"
        )
    if scene.anchors is None or not scene.anchors.boxes.numel():
        return
    place = _reach(scene.anchors.centers[0])
    if 0 < reach <= UNIT and place >= PIXELS:
        found = "are the anchors pixels and the targets fractions of the image?"
    elif reach >= SPECK and place <= UNIT:
        found = "are the targets pixels and the anchors fractions of the image?"
    else:
        return
    anchors = scene.anchors.boxes[0]
    sides = anchors[:, 2:] - anchors[:, :2]
    smallest, largest = float(sides.min()), float(sides.max())
    if smallest > UNIT if place >= PIXELS else largest <= SPECK / 2:
        raise ValueError(
            f"target['boxes'] must have the unit of the anchors, got {_farthest(boxes)} beside anchors of sides from "
            f"{smallest:g} to {largest:g}: {found}"
        )


def _reach(values: Tensor) -> float:
    """Return the largest absolute value."""
    low, high = (float(x) for x in torch.aminmax(values))
    return max(-low, high)


def _farthest(boxes: Tensor) -> str:
    """Return the box with the largest coordinate, and its image, in words."""
    image, target = divmod(int(boxes.abs().amax(-1).argmax()), boxes.shape[1])
    return f"{[round(float(x), 4) for x in boxes[image, target]]} in image {image}"
