"""Properties of Color Boxes: what an image depends on, what its boxes surround, and what its colours mean."""

import colorsys
import hashlib
import math
import pickle

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from tests.support.samples import assert_same_sample
from uotod.datasets import ColorBoxes
from uotod.datasets._target import to_pixels
from uotod.datasets.color_boxes import _paint, _Rectangle, _sample_noise

# A worker is forked by a process that has threads; Python 3.12 warns of that, whatever the data set.
forks = pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")


def coloured(image: Tensor) -> Tensor:
    """Return where the channels of a (3, H, W) image differ, (H, W)."""
    return image.amax(0) > image.amin(0)


def bounds(mask: Tensor) -> list[float]:
    rows, columns = mask.any(1).nonzero(), mask.any(0).nonzero()
    return [float(columns.min()), float(rows.min()), float(columns.max()) + 1, float(rows.max()) + 1]


@pytest.mark.parametrize("index", [0, 1, 11])
def test_an_item_depends_only_on_the_seed_and_its_index(index):
    reference = ColorBoxes(12, size=(64, 80), max_boxes=5, seed=3)[index]
    longer = ColorBoxes(10**9, size=(64, 80), max_boxes=5, seed=3)
    longer[5]
    assert_same_sample(longer[index], reference)
    assert_same_sample(pickle.loads(pickle.dumps(longer))[index], reference)
    assert not torch.equal(ColorBoxes(12, size=(64, 80), max_boxes=5, seed=4)[index][0], reference[0])
    assert not torch.equal(longer[index + 1][0], reference[0])


def test_a_seed_names_the_same_images_on_every_platform_and_version():
    dataset = ColorBoxes(20, size=(96, 120), seed=7)
    digest = hashlib.sha256()
    for image, target in dataset:
        digest.update(to_pixels(image).tobytes())
        digest.update(repr((target["boxes"].tolist(), target["labels"].tolist())).encode())
    assert digest.hexdigest() == "a454f4e7e3401c9129e08497de2c270b6cd5899f28e5713f69cc9fd38aa8001b"


@forks
def test_worker_processes_change_nothing():
    dataset = ColorBoxes(5, size=(32, 32), max_boxes=3, box_size=(0.2, 0.5))
    loaded = list(DataLoader(dataset, batch_size=None, num_workers=2))
    assert len(loaded) == 5
    for index, (image, target) in enumerate(loaded):
        torch.testing.assert_close(image, dataset[index][0], rtol=0, atol=0)
        torch.testing.assert_close(target["boxes"], dataset[index][1]["boxes"], rtol=0, atol=0)


@pytest.mark.parametrize(("size", "max_boxes"), [((25, 40), 0), ((32, 48), 1), ((100, 60), 12), ((400, 500), 30)])
def test_samples_have_the_stated_layout(size, max_boxes):
    dataset = ColorBoxes(6, size=size, max_boxes=max_boxes)
    height, width = size
    for index, (image, target) in enumerate(dataset):
        boxes, labels = target["boxes"], target["labels"]
        assert image.shape == (3, height, width)
        assert image.dtype == torch.float32
        assert image.min() >= 0
        assert image.max() <= 1
        assert boxes.shape == (len(labels), 4)
        assert boxes.dtype == torch.float32
        assert labels.dtype == torch.int64
        assert len(labels) <= max_boxes
        assert bool(((labels >= 0) & (labels < 20)).all())
        assert bool((boxes[:, :2] >= 0).all())
        assert bool((boxes[:, 2:] > boxes[:, :2]).all())
        assert bool((boxes[:, 2:] <= torch.tensor([width, height])).all())
        assert target["image_id"] == index
        assert target["size"] == target["orig_size"] == (height, width)


def test_counts_and_labels_are_uniform():
    dataset = ColorBoxes(600, size=(40, 40), num_classes=4, max_boxes=3, box_size=(0.05, 0.06), min_visible=0.0)
    targets = [target for _, target in dataset]
    counts = torch.bincount(torch.tensor([len(target["labels"]) for target in targets]), minlength=4)
    labels = torch.bincount(torch.cat([target["labels"] for target in targets]), minlength=4)
    assert counts.sum() == 600
    assert bool(((counts / 600 - 1 / 4).abs() < 0.08).all())
    assert bool(((labels / labels.sum() - 1 / 4).abs() < 0.08).all())


def test_the_topmost_rectangle_always_shows():
    dataset = ColorBoxes(100, size=(40, 40), min_boxes=1, max_boxes=20, box_size=(0.05, 1.0), min_visible=1.0)
    assert min(len(target["labels"]) for _, target in dataset) >= 1


def test_a_box_is_tight_around_a_lone_rectangle():
    for image, target in ColorBoxes(60, size=(50, 70), min_boxes=1, max_boxes=1, box_size=(0.05, 0.9), noise=0.0):
        assert target["boxes"].tolist() == [bounds(coloured(image))]


def test_boxes_of_uncovered_rectangles_are_tight_around_their_hues():
    seen = 0
    for image, target in ColorBoxes(60, size=(90, 90), min_boxes=4, max_boxes=8, noise=0.0, min_visible=1.0):
        colors = image[:, coloured(image)].unique(dim=1).T  # (colours, 3)
        found = sorted(bounds((image == color[:, None, None]).all(0)) for color in colors)
        assert found == sorted(target["boxes"].tolist())
        seen += len(found)
    assert seen > 100


def slow_mask(rectangle: _Rectangle, height: int, width: int) -> Tensor:
    """Return (H, W): whether a pixel's centre is on the same side of all four edges, by cross products."""
    x, y, a, b, c, s = rectangle[1:]
    corners = [(x + i * a * c - j * b * s, y + i * a * s + j * b * c) for i, j in [(1, 1), (-1, 1), (-1, -1), (1, -1)]]
    mask = torch.zeros(height, width, dtype=torch.bool)
    for row in range(height):
        for column in range(width):
            point = (column + 0.5, row + 0.5)
            sides = [
                (q[0] - p[0]) * (point[1] - p[1]) - (q[1] - p[1]) * (point[0] - p[0])
                for p, q in zip(corners, corners[1:] + corners[:1], strict=True)
            ]
            mask[row, column] = min(sides) >= 0 or max(sides) <= 0
    return mask


@pytest.mark.parametrize("min_visible", [0.0, 0.1, 0.6, 1.0])
def test_painting_agrees_with_the_painters_algorithm(min_visible):
    height, width, generator = 24, 30, np.random.default_rng(5)
    for count in (0, 1, 2, 9):
        rectangles = []
        for label in range(count):
            angle, sides, centre = generator.uniform(0, math.pi), generator.uniform(1, 9, 2), generator.random(2)
            centre = centre * (width, height)
            rectangles.append(_Rectangle(label, *centre.tolist(), *sides.tolist(), math.cos(angle), math.sin(angle)))
        colors = np.arange(1, 3 * count + 1, dtype=np.int16).reshape(count, 3)
        canvas = np.zeros((3, height, width), dtype=np.int16)
        boxes, labels = _paint(canvas, rectangles, colors, min_visible)

        masks = [slow_mask(rectangle, height, width) for rectangle in rectangles]
        assert boxes == [[int(side) for side in bounds(masks[label])] for label in labels]
        painted = np.zeros_like(canvas)
        for label in labels:  # from the bottom up
            painted[:, masks[label].numpy()] = colors[label][:, None]
        np.testing.assert_array_equal(canvas, painted)
        for label in range(count):
            above = [masks[other] for other in labels if other > label]
            hidden = torch.stack(above).any(0) if above else torch.zeros(height, width, dtype=torch.bool)
            visible = (masks[label] & ~hidden).sum() / masks[label].sum()
            assert (label in labels) == (visible > 0 and visible >= min_visible)


@pytest.mark.parametrize("num_classes", [1, 3, 20])
def test_the_hue_of_the_pixels_determines_the_class(num_classes):
    settings = {"size": (60, 60), "num_classes": num_classes, "min_boxes": 1, "max_boxes": 1, "seed": 2}
    noisy, clean = ColorBoxes(40, **settings), ColorBoxes(40, noise=0.0, **settings)
    for (image, target), (mask_image, _) in zip(noisy, clean, strict=True):
        pixels = image[:, coloured(mask_image)].T.tolist()
        angles = [2 * math.pi * colorsys.rgb_to_hsv(*pixel)[0] for pixel in pixels]
        mean = math.atan2(sum(map(math.sin, angles)), sum(map(math.cos, angles)))
        assert round(mean / (2 * math.pi) * num_classes) % num_classes == target["labels"].item()


def test_the_background_is_grey_and_has_noise_of_the_stated_deviation():
    image, target = ColorBoxes(1, size=(200, 200), max_boxes=0, noise=0.08)[0]
    assert len(target["labels"]) == 0
    assert not coloured(image).any()
    assert image.std().item() == pytest.approx(0.08, rel=0.02)
    noise = _sample_noise(np.random.default_rng(0), 300, 300, 0.1) / 255
    assert noise.mean() == pytest.approx(0, abs=3e-3)
    assert np.mean(np.abs(noise) < 0.1) == pytest.approx(0.6827, abs=0.02)  # as of a normal distribution


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"length": -1}, ValueError, "length must be at least 0, got -1"),
        ({"length": 1.5}, TypeError, "length must be an integer"),
        ({"size": 128}, TypeError, r"size must be a pair \(height, width\) of integers, got 128"),
        ({"size": (128, 0)}, ValueError, "size must have sides of at least 1 pixel"),
        ({"num_classes": 21}, ValueError, "num_classes must be at most 20 .* got 21"),
        ({"num_classes": 0}, ValueError, "num_classes must be at least 1, got 0"),
        ({"min_boxes": 5, "max_boxes": 4}, ValueError, "max_boxes must be at least min_boxes=5, got 4"),
        ({"box_size": 0.1}, TypeError, "box_size must be a pair"),
        ({"box_size": (0.5, 0.2)}, ValueError, r"box_size\[1\] must lie in \[0.5, 1.0\], got 0.2"),
        ({"box_size": (0.001, 0.2)}, ValueError, r"box_size\[0\] must give sides of at least 2 pixels, got 0.001"),
        ({"noise": float("nan")}, ValueError, "noise must lie in"),
        ({"min_visible": 1.2}, ValueError, r"min_visible must lie in \[0.0, 1.0\], got 1.2"),
        ({"seed": -1}, ValueError, "seed must be at least 0, got -1"),
    ],
)
def test_wrong_arguments_are_named(arguments, error, message):
    with pytest.raises(error, match=message):
        ColorBoxes(**{"length": 2, **arguments})


def test_indices_count_from_the_end_and_end_an_iteration():
    dataset = ColorBoxes(3, size=(32, 32), box_size=(0.1, 0.2))
    assert_same_sample(dataset[-1], dataset[2])
    assert len(list(dataset)) == len(dataset) == 3
    with pytest.raises(IndexError, match=r"index must lie in \[-3, 3\), got 3"):
        dataset[3]
