"""The MPDIoU loss: the IoU less the distances of two corners, measured in the image's diagonal."""

from collections.abc import Sequence

from torch import Tensor

from uotod.check import check_number
from uotod.geometry.overlap import Coordinates, overlap
from uotod.loss.box_pair import BoxPairLoss


class MPDIoULoss(BoxPairLoss):
    r"""Penalise a small IoU `u` and the distances of the upper left and of the lower right corners.

    .. math:: L = 1 - u + \frac{d_1^2 + d_2^2}{w^2 + h^2}

    Args:
        image_size: width `w` and height `h` of the image in the units of the boxes, `(1, 1)` for normalised boxes.
        eps: added to the union, in squared units of the boxes; 0 leaves the value without a unit.
        reduction: "none", "mean" or "sum".

    Shape:
        input and target: (..., 4) boxes, xyxy. Inverted boxes have area 0. Output: (...) or ().

    Raises:
        ValueError: `image_size` does not hold two positive numbers.

    References:
        Ma and Xu, "MPDIoU: a loss for efficient and accurate bounding box regression", 2023, algorithm 1.

    Examples:
        >>> import torch
        >>> boxes = torch.tensor([[0.0, 0.0, 4.0, 4.0]]), torch.tensor([[0.0, 0.0, 2.0, 4.0]])
        >>> MPDIoULoss(image_size=(16, 12))(*boxes)
        tensor(0.5100)
    """

    def __init__(self, *, image_size: Sequence[float], eps: float = 0.0, reduction: str = "mean") -> None:
        super().__init__(eps=eps, reduction=reduction)
        if len(image_size) != 2:
            raise ValueError(f"image_size must hold width and height, got {image_size!r}")
        width, height = (check_number(f"image_size[{i}]", x, low=0.0, low_open=True) for i, x in enumerate(image_size))
        self.image_size = (width, height)

    def _of_pair(self, box: Coordinates, target: Coordinates) -> Tensor:
        loss = 1 - overlap(box, target, "iou", self.eps)
        width, height = self.image_size
        for a, b in zip(box, target, strict=True):
            loss = loss + (a - b) ** 2 / (width**2 + height**2)
        return loss
