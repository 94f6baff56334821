"""How work is divided on the host: image by image, without padding."""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor


def assign_by_image(match: Callable[[int, Tensor], Tensor], mask: Tensor, preds: int) -> Tensor:
    """Return the assignment (B, P) of a batch on the CPU, image by image.

    Args:
        match: function of an image and the (T_b,) indices of its targets, of which there are some. It returns the (P,)
            target of each prediction, counted among these: T_b for the background, -1 for an ignored prediction.
        mask: (B, T) bool, False for padding.
        preds: P.

    Returns:
        (B, P) index of the target, T for the background, -1 for an ignored prediction.
    """
    images, num_targets = mask.shape
    index, real = np.full((images, preds), num_targets), mask.numpy()
    for image in range(images if preds else 0):
        targets = np.flatnonzero(real[image])
        if len(targets):
            # the background comes after the last target, and -1 counts from the end
            names = np.append(targets, (num_targets, -1))
            index[image] = names[match(image, torch.from_numpy(targets)).numpy()]
    return torch.from_numpy(index)
