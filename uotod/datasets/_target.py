"""What every dataset yields, an image with its target, and the few operations that all of them need."""

import importlib
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import TypedDict

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


class _TargetFields(TypedDict):
    boxes: Tensor
    labels: Tensor
    image_id: int
    size: tuple[int, int]
    orig_size: tuple[int, int]


class TargetDict(_TargetFields, total=False):
    """Targets of one image.

    Attributes:
        boxes: (T, 4) float32 boxes, xyxy, in pixels of the returned image; T may be 0.
        labels: (T,) int64 class indices in [0, num_classes).
        image_id: the image's number in its dataset.
        size: (height, width) of the returned image, in pixels.
        orig_size: (height, width) of the image before it was resized, in pixels.
        iscrowd: (T,) bool, True for a box around a crowd; only where a dataset was asked to mark crowds.

    Examples:
        >>> from uotod.datasets import ColorBoxes
        >>> sorted(ColorBoxes(1)[0][1])
        ['boxes', 'image_id', 'labels', 'orig_size', 'size']
    """

    iscrowd: Tensor


Sample = tuple[Tensor, TargetDict]
Pixels = NDArray[np.uint8]


def collate(batch: Sequence[Sample]) -> tuple[Tensor, list[TargetDict]]:
    """Stack the images of a batch and list its targets: the `collate_fn` of a `torch.utils.data.DataLoader`.

    Args:
        batch: B pairs of a (3, H, W) image and its target; all images have the same size.

    Returns:
        (B, 3, H, W) images and the B targets, unpadded.

    Raises:
        ValueError: `batch` is empty, or its images differ in shape.

    Examples:
        >>> from torch.utils.data import DataLoader
        >>> from uotod.datasets import ColorBoxes
        >>> images, targets = next(iter(DataLoader(ColorBoxes(8), batch_size=2, collate_fn=collate)))
        >>> images.shape, len(targets)
        (torch.Size([2, 3, 400, 500]), 2)
    """
    if len(batch) == 0:
        raise ValueError("batch must hold at least one (image, target) pair, got none")
    shape = batch[0][0].shape
    for position, (image, _) in enumerate(batch):
        if image.shape != shape:
            raise ValueError(
                f"batch must hold images of one shape (give the dataset a size), got {tuple(shape)} at position 0 "
                f"and {tuple(image.shape)} at position {position}"
            )
    return torch.stack([image for image, _ in batch]), [target for _, target in batch]


def flip_boxes(boxes: Tensor, width: float) -> Tensor:
    """Mirror boxes left to right: `x ↦ width − x`, with the two sides exchanged.

    Args:
        boxes: (..., 4) boxes, xyxy.
        width: width of the image, in the unit of the boxes.

    Returns:
        (..., 4) boxes, xyxy.

    Examples:
        >>> flip_boxes(torch.tensor([1.0, 2.0, 4.0, 6.0]), width=10)
        tensor([6., 2., 9., 6.])
    """
    left, top, right, bottom = boxes.unbind(-1)
    return torch.stack((width - right, top, width - left, bottom), dim=-1)


def to_image(pixels: Pixels) -> Tensor:
    """Convert (3, H, W) bytes to a float32 image in [0, 1]: `v ↦ v / 255`."""
    return torch.from_numpy(pixels).to(torch.float32).div_(255)


def to_pixels(image: Tensor) -> Pixels:
    """Convert a (3, H, W) image in [0, 1] to the nearest bytes; the inverse of `to_image`.

    Raises:
        ValueError: `image` does not have three channels, or leaves [0, 1].
    """
    if image.dim() != 3 or image.shape[0] != 3:
        raise ValueError(f"image must have shape (3, H, W), got {tuple(image.shape)}")
    if not bool(((image >= 0) & (image <= 1)).all()):
        raise ValueError(f"image must lie in [0, 1], got [{float(image.min())}, {float(image.max())}]")
    pixels: Pixels = image.detach().cpu().mul(255).round().to(torch.uint8).numpy()
    return pixels


def check_index(index: int, length: int) -> int:
    """Return the position in [0, length) that `index` means; a negative one counts from the end, as in a list.

    Raises:
        IndexError: `index` is outside [−length, length).
    """
    if not -length <= index < length:
        raise IndexError(f"index must lie in [{-length}, {length}), got {index}")
    return int(index) % length


def check_size(name: str, size: tuple[int, int]) -> tuple[int, int]:
    """Return `size` as (height, width) if it is a pair of positive integers.

    Raises:
        TypeError: `size` is not a pair of integers.
        ValueError: a side is below 1.
    """
    if (
        not isinstance(size, Sequence)
        or len(size) != 2
        or any(isinstance(side, bool) or not isinstance(side, int) for side in size)
    ):
        raise TypeError(f"{name} must be a pair (height, width) of integers, got {size!r}")
    if min(size) < 1:
        raise ValueError(f"{name} must have sides of at least 1 pixel, got {size!r}")
    return size[0], size[1]


def annotation_file(folder: Path, split: str) -> Path:
    """Return where the annotations of a split lie in a folder of the COCO layout.

    Raises:
        ValueError: `split` cannot be part of a file's name.
    """
    if not isinstance(split, str) or split == "" or Path(split).name != split:
        raise ValueError(f"split must be a name such as 'train', got {split!r}")
    return folder / "annotations" / f"instances_{split}.json"


def import_pillow() -> ModuleType:
    """Return `PIL.Image`.

    Raises:
        ImportError: Pillow is not installed.
    """
    try:
        return importlib.import_module("PIL.Image")
    except ImportError as error:
        raise ImportError('image files need Pillow: pip install "uotod[examples]"') from error
