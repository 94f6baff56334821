"""The class of the background among the logits: a batch and a position in, its index out."""

from uotod.check import reads_values
from uotod.scene.predictions import Scene


def background_class(position: str, scene: Scene, validate: bool) -> int | None:
    """Return the index of the background class at "first" or "last", None for "none".

    Raises:
        ValueError: labels are one-hot, or a target is labelled as background.
    """
    if position == "none":
        return None
    targets = scene.targets
    if targets.labels is None:
        raise ValueError(f"target['labels'] must be integers with bg_class_position={position!r}, got one-hot labels")
    bg_class = 0 if position == "first" else scene.logits.shape[-1] - 1
    if reads_values(targets.labels, validate):
        count = int(((targets.labels == bg_class) & targets.mask).sum()) // scene.layers
        if count:
            raise ValueError(
                f"target['labels'] must not hold the background class {bg_class} "
                f"(bg_class_position={position!r}), got it for {count} targets"
            )
    return bg_class
