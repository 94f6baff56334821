"""Absent classes: logits and which classes an image has in, logits that no loss sees anything of out."""

import torch
from torch import Tensor

from uotod.check import check_device, reads_values

# what stands for the logit of an absent class: a softmax and a sigmoid of it are 0, and so are their losses and
# gradients; finite, for its products with a mass of 0 must be 0, and small enough that its square is finite, too
ABSENT = -1e18


def is_present(logits: Tensor) -> Tensor:
    """Return which (..., C) logits are those of classes that the image has, bool."""
    return logits > ABSENT


def without_absent(logits: Tensor, present: Tensor) -> Tensor:
    """Return (S, P, C) logits with those of absent classes replaced, where (S, C) is False; they get no gradient."""
    return logits.masked_fill(~present.unsqueeze(1), ABSENT)


def parse_class_mask(name: str, mask: Tensor, logits: Tensor) -> Tensor:
    """Return the mask of the classes of the images of (B, P, C) logits.

    Raises:
        TypeError: it is not bool.
        ValueError: its shape or its device is wrong.
    """
    if mask.dtype != torch.bool:
        raise TypeError(f"{name} must have dtype torch.bool, True for a class that the image has, got {mask.dtype}")
    shape = (logits.shape[0], logits.shape[2])
    if tuple(mask.shape) != shape:
        raise ValueError(f"{name} must have shape {shape} to fit its logits, got {tuple(mask.shape)}")
    check_device(name, mask, logits.device)
    return mask


def check_background_present(present: Tensor, bg_class: int, validate: bool) -> None:
    """Raise a ValueError where an image lacks the class of the background, where that may be looked at."""
    if reads_values(present, validate) and not bool(present[:, bg_class].all()):
        raise ValueError(
            f"input['image_class_mask'] must be True for the background class {bg_class}, which every image has, "
            "got False"
        )
