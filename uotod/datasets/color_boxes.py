"""Generate Color Boxes: a seed and an index come in, a noisy image of coloured rectangles and its target go out."""

import math
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import Dataset

from uotod.check import check_integer, check_number
from uotod.datasets._target import Pixels, Sample, TargetDict, check_index, check_size, to_image

MAX_CLASSES = 20


class ColorBoxes(Dataset[Sample]):
    """Stream noisy grey images of rotated, overlapping, saturated rectangles whose hue is their class.

    Item `i` depends on `(seed, i)` and on the arguments below, on nothing else: not on `length`, not on the items read
    before, not on the worker or the platform. Two seeds give two independent data sets, such as one to train on and one
    to validate on.

    Rectangles are drawn one over the other. A box is the smallest one around the pixels that its rectangle would have
    in the image if nothing lay over it; its coordinates are integers. A rectangle of which less than `min_visible`
    stays visible is left out of both image and target, so that every coloured pixel belongs to a target. The
    topmost rectangle is always kept, so `min_boxes=1` leaves no image empty.

    Class `c` of `C` has the hue `360° · c / C`; saturation and brightness vary freely. The noise is the same in the
    three channels, so that it does not change a hue unless a channel is clipped.

    This follows what the paper's main text says (0–30 boxes, 20 colours; 500 × 400 images); rectangle sizes, noise and
    visibility are our own choice.

    Args:
        length: number of images.
        size: (height, width) of the images, in pixels.
        num_classes: number of hues, 1 to 20.
        min_boxes: smallest number of rectangles drawn on an image.
        max_boxes: largest number of rectangles drawn on an image; the numbers between are equally likely.
        box_size: smallest and largest side of a rectangle, as a fraction of the image's shorter side; the two sides
            are drawn independently, uniformly in between.
        noise: standard deviation of the noise, in units of the full range of intensities.
        min_visible: least fraction of a rectangle's pixels in the image that nothing may cover, in [0, 1].
        seed: non-negative integer that names the data set.

    Attributes:
        class_names: the classes' hues in degrees.

    Raises:
        TypeError: an argument is not a number where one is expected.
        ValueError: an argument is out of its range, or the smallest rectangle's side is below 2 pixels.

    Examples:
        >>> dataset = ColorBoxes(1000, size=(128, 128), num_classes=6, max_boxes=6, seed=1)
        >>> image, target = dataset[7]
        >>> image.shape, target["boxes"].shape, target["labels"]
        (torch.Size([3, 128, 128]), torch.Size([5, 4]), tensor([3, 3, 3, 3, 4]))

    References:
        De Plaen et al., "Unbalanced Optimal Transport: A Unified Framework for Object Detection", CVPR 2023.
    """

    def __init__(
        self,
        length: int,
        *,
        size: tuple[int, int] = (400, 500),
        num_classes: int = MAX_CLASSES,
        min_boxes: int = 0,
        max_boxes: int = 30,
        box_size: tuple[float, float] = (0.08, 0.35),
        noise: float = 0.1,
        min_visible: float = 0.1,
        seed: int = 0,
    ) -> None:
        self.length = check_integer("length", length, low=0)
        self.size = check_size("size", size)
        self.num_classes = check_integer("num_classes", num_classes, low=1)
        if num_classes > MAX_CLASSES:
            raise ValueError(f"num_classes must be at most {MAX_CLASSES} to keep hues apart, got {num_classes}")
        self.min_boxes = check_integer("min_boxes", min_boxes, low=0)
        self.max_boxes = check_integer("max_boxes", max_boxes, low=0)
        if min_boxes > max_boxes:
            raise ValueError(f"max_boxes must be at least min_boxes={min_boxes}, got {max_boxes}")
        self.box_size = _check_box_size(box_size, self.size)
        self.noise = check_number("noise", noise, low=0.0, high=1.0)
        self.min_visible = check_number("min_visible", min_visible, low=0.0, high=1.0)
        self.seed = check_integer("seed", seed, low=0)
        self.class_names = tuple(f"hue_{round(360 * label / num_classes):03d}" for label in range(num_classes))

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> Sample:
        index = check_index(index, self.length)
        generator = np.random.default_rng([self.seed, index])
        pixels, boxes, labels = self._draw(generator)
        target: TargetDict = {
            "boxes": torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
            "labels": torch.tensor(labels, dtype=torch.int64),
            "image_id": index,
            "size": self.size,
            "orig_size": self.size,
        }
        return to_image(pixels), target

    def _draw(self, generator: np.random.Generator) -> tuple[Pixels, list[list[int]], list[int]]:
        height, width = self.size
        count = int(generator.integers(self.min_boxes, self.max_boxes + 1))
        grey = int(generator.integers(90, 166))  # a middle grey leaves the noise room on both sides
        rectangles = _sample_rectangles(generator, count, self.size, self.box_size, self.num_classes)
        colors = _sample_colors(generator, [rectangle.label for rectangle in rectangles], self.num_classes)
        canvas = np.full((3, height, width), grey, dtype=np.int16)
        boxes, labels = _paint(canvas, rectangles, colors, self.min_visible)
        if self.noise > 0:
            canvas += _sample_noise(generator, height, width, self.noise)
        return canvas.clip(0, 255).astype(np.uint8), boxes, labels


class _Rectangle(NamedTuple):
    """A rotated rectangle: centre and half sides in pixels, and the unit vector along its first side."""

    label: int
    x: float
    y: float
    half_length: float
    half_breadth: float
    cosine: float
    sine: float


def _check_box_size(box_size: tuple[float, float], size: tuple[int, int]) -> tuple[float, float]:
    if not isinstance(box_size, (tuple, list)) or len(box_size) != 2:
        raise TypeError(f"box_size must be a pair (smallest, largest) of fractions, got {box_size!r}")
    low = check_number("box_size[0]", box_size[0], low=0.0, high=1.0)
    high = check_number("box_size[1]", box_size[1], low=low, high=1.0)
    # Two pixels: such a rectangle holds a disc of radius 1 and so, wherever its centre is in the image, a pixel centre.
    if low * min(size) < 2:
        raise ValueError(
            f"box_size[0] must give sides of at least 2 pixels, got {low} of {min(size)} pixels (image size {size})"
        )
    return low, high


def _sample_rectangles(
    generator: np.random.Generator, count: int, size: tuple[int, int], box_size: tuple[float, float], num_classes: int
) -> list[_Rectangle]:
    height, width = size
    low, high = (fraction * min(size) for fraction in box_size)
    labels = generator.integers(num_classes, size=count)  # (T,)
    uniform = generator.random((count, 5))  # (T, 5)
    angle = math.pi * uniform[:, 4]
    # Cosines differ in their last bit between mathematical libraries: rounded, they are the same on every platform.
    direction = np.rint(np.stack((np.cos(angle), np.sin(angle)), axis=1) * 2**16) / 2**16  # (T, 2)
    centre = uniform[:, :2] * (width, height)
    half = (low + (high - low) * uniform[:, 2:4]) / 2
    rows = np.concatenate((centre, half, direction), axis=1).tolist()
    return [_Rectangle(label, *row) for label, row in zip(labels.tolist(), rows, strict=True)]


def _sample_colors(generator: np.random.Generator, labels: list[int], num_classes: int) -> NDArray[np.int16]:
    """Return (T, 3) colours in 0..255 of the labels' hues, with saturation and brightness in [0.7, 0.95]."""
    saturation, value = 0.7 + 0.25 * generator.random((2, len(labels), 1))
    # HSV to RGB: channel n of (5, 3, 1) is V − V·S·max(0, min(k, 4 − k, 1)) with k = (n + hue / 60°) mod 6.
    sector = (np.array([5.0, 3.0, 1.0]) + 6 * np.array(labels, dtype=np.float64)[:, None] / num_classes) % 6  # (T, 3)
    shade = np.clip(np.minimum(sector, 4 - sector), 0, 1)
    colors: NDArray[np.int16] = np.rint(255 * value * (1 - saturation * shade)).astype(np.int16)
    return colors


def _sample_noise(generator: np.random.Generator, height: int, width: int, deviation: float) -> NDArray[np.int16]:
    """Return (H, W) noise in units of 1/255: nearly normal, exact on every platform.

    The sum of four random bytes has mean 510 and variance 4·(256² − 1)/12; integers are scaled by a 16-bit fraction.
    """
    planes = np.frombuffer(generator.bytes(4 * height * width), dtype=np.uint8).reshape(2, 2, height, width)
    pairs = np.add(planes[0], planes[1], dtype=np.int32)  # (2, H, W)
    scale = round(255 * deviation / math.sqrt((256**2 - 1) / 3) * 2**16)
    noise: NDArray[np.int16] = ((pairs[0] + pairs[1] - 510) * np.int32(scale) >> 16).astype(np.int16)
    return noise


def _paint(
    canvas: NDArray[np.int16], rectangles: list[_Rectangle], colors: NDArray[np.int16], min_visible: float
) -> tuple[list[list[int]], list[int]]:
    """Paint the rectangles on the (3, H, W) canvas, the last one on top; return boxes and labels of those that show.

    They are visited from the top down: whether a rectangle shows is then known before it covers anything.
    """
    _, height, width = canvas.shape
    free = np.ones((height, width), dtype=bool)
    columns = np.arange(width, dtype=np.float64) + 0.5
    rows = np.arange(height, dtype=np.float64)[:, None] + 0.5
    boxes: list[list[int]] = []
    labels: list[int] = []
    for rectangle, color in zip(reversed(rectangles), colors[::-1], strict=True):
        down, across = _window(rectangle, height, width)
        covered = _covered(rectangle, columns[across], rows[down])  # (h, w)
        seen = covered & free[down, across]
        if np.count_nonzero(seen) < max(1.0, min_visible * np.count_nonzero(covered)):
            continue
        free[down, across] &= ~covered
        np.copyto(canvas[:, down, across], color[:, None, None], where=seen)
        x, y = covered.any(axis=0).nonzero()[0] + across.start, covered.any(axis=1).nonzero()[0] + down.start
        boxes.append([int(x[0]), int(y[0]), int(x[-1]) + 1, int(y[-1]) + 1])
        labels.append(rectangle.label)
    return boxes[::-1], labels[::-1]


def _window(rectangle: _Rectangle, height: int, width: int) -> tuple[slice, slice]:
    """Return the rows and the columns of the image that hold a rectangle."""
    cosine, sine = abs(rectangle.cosine), abs(rectangle.sine)
    reach_x = rectangle.half_length * cosine + rectangle.half_breadth * sine
    reach_y = rectangle.half_length * sine + rectangle.half_breadth * cosine
    left, right = max(0, math.floor(rectangle.x - reach_x)), min(width, math.ceil(rectangle.x + reach_x))
    top, bottom = max(0, math.floor(rectangle.y - reach_y)), min(height, math.ceil(rectangle.y + reach_y))
    return slice(top, bottom), slice(left, right)


def _covered(rectangle: _Rectangle, columns: NDArray[np.floating], rows: NDArray[np.floating]) -> NDArray[np.bool_]:
    """Return where the pixel centres at columns (w,) and rows (h, 1) lie inside the rectangle, (h, w)."""
    x, y = columns - rectangle.x, rows - rectangle.y
    along = x * rectangle.cosine + y * rectangle.sine
    across = y * rectangle.cosine - x * rectangle.sine
    inside: NDArray[np.bool_] = np.abs(along) <= rectangle.half_length
    inside &= np.abs(across) <= rectangle.half_breadth
    return inside
