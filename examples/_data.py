"""The data of a training program: options come in; images to train on, to watch and to test on go out."""

from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np
import torch
from _options import Options, fail
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader, Sampler, Subset

from uotod.datasets import CocoDetection, ColorBoxes, TargetDict, collate
from uotod.utils import box_area, pad_targets

Sample = tuple[Tensor, TargetDict]
Images = CocoDetection | ColorBoxes | Subset[Sample]
WATCHED_IMAGES = 200  # AP is measured on no more of them during training
# `augment`: largest zoom, shift as a fraction of the image, change of brightness, least visible fraction of a target
ZOOM, SHIFT, TINT, VISIBLE = 1.4, 0.15, 0.15, 0.4


class Data(NamedTuple):
    """Three data sets of the same classes, and the name of the split that `test` is."""

    train: Images
    watch: Images
    test: Images
    test_split: str
    class_names: tuple[str, ...]


def load_data(options: Options) -> Data:
    """Generate Color Boxes, or read the splits `train` and `val` or `test` of a COCO folder."""
    if options.data is None:
        train, watch, test = (
            ColorBoxes(length, size=options.size, num_classes=8, max_boxes=6, seed=3 * options.seed + part)
            for part, length in enumerate((2000, WATCHED_IMAGES, 500))
        )
        return Data(train, watch, test, "test", train.class_names)
    try:
        return _load_folder(options)
    except (OSError, ValueError) as error:
        fail(f"--data {options.data}: {error}")


def _load_folder(options: Options) -> Data:
    assert options.data is not None
    folder, size, cache = options.data, options.size, options.cache
    train = CocoDetection(folder, "train", size=size, flip=options.augment, seed=options.seed, cache=cache)
    held_out = {
        split: CocoDetection(folder, split, size=size, cache=cache, crowd="mark")
        for split in ("val", "test")
        if (folder / "annotations" / f"instances_{split}.json").is_file()
    }
    if not held_out:
        raise ValueError("there must be a split val or test to evaluate on, got neither")
    for split, dataset in {"train": train, **held_out}.items():
        if not len(dataset):
            raise ValueError(f"split {split} must hold images, got none")
        if dataset.class_names != train.class_names:
            raise ValueError(f"split {split} must have the classes of train, got {dataset.class_names}")
    test_split, test = list(held_out.items())[-1]
    watched = held_out.get("val", test)
    watch = Subset(watched, range(min(len(watched), WATCHED_IMAGES)))
    return Data(train, watch, test, test_split, train.class_names)


def epoch_generator(seed: int, epoch: int) -> torch.Generator:
    """Return the random numbers of an epoch, which do not depend on what was drawn before."""
    state = np.random.SeedSequence((seed, epoch)).generate_state(1)  # torch's generator reads 32 bits of a seed
    return torch.Generator().manual_seed(int(state[0]))


class EpochBatches(Sampler[list[int]]):
    """Batches of indices in an order that depends on `(seed, epoch)` only, so that a resumed run sees the same."""

    def __init__(self, length: int, batch_size: int, seed: int) -> None:
        self.length, self.batch_size, self.seed, self.epoch = length, batch_size, seed, 0

    def __len__(self) -> int:
        return -(-self.length // self.batch_size)

    def __iter__(self) -> Iterator[list[int]]:
        order: list[int] = torch.randperm(self.length, generator=epoch_generator(self.seed, self.epoch)).tolist()
        return iter([order[start : start + self.batch_size] for start in range(0, self.length, self.batch_size)])


def make_loader(dataset: Images, batches: Iterable[list[int]], options: Options) -> DataLoader[Sample]:
    """Return a loader of `(images, targets)` that leaves the global random state alone."""
    return DataLoader(
        dataset,
        batch_sampler=batches,
        num_workers=options.workers,
        persistent_workers=options.workers > 0,
        collate_fn=collate,
        pin_memory=options.device.startswith("cuda"),
        generator=torch.Generator().manual_seed(options.seed),
    )


def pad_fractions(targets: list[TargetDict]) -> dict[str, Tensor]:
    """Pad the targets of a batch, with boxes as fractions of the image."""
    padded = pad_targets([{"boxes": target["boxes"], "labels": target["labels"]} for target in targets])
    height, width = targets[0]["size"]
    return {**padded, "boxes": padded["boxes"] / torch.tensor([width, height, width, height])}


def augment(images: Tensor, targets: dict[str, Tensor], generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
    """Zoom, shift and tint each image of a batch at random, and mask the targets that leave it.

    A point `p` of an image, as a fraction of its sides, goes to `zoom · (p − 1/2 − shift) + 1/2`.

    Args:
        images: (B, 3, H, W) in [0, 1].
        targets: padded targets, boxes as fractions of the image.
        generator: where random numbers come from.
    """
    B = len(images)
    uniform = 2 * torch.rand(B, 7, 1, 1, generator=generator) - 1  # in [-1, 1)
    zoom, shift = ZOOM ** uniform[:, 0], SHIFT * uniform[:, 1:3, 0]  # (B, 1, 1), (B, 2, 1)
    theta = torch.cat((torch.eye(2) / zoom, 2 * shift), dim=-1)  # (B, 2, 3), from output to input, both in [-1, 1]
    grid = F.affine_grid(theta, list(images.shape), align_corners=False)
    moved = F.grid_sample(images, grid, padding_mode="border", align_corners=False)
    gain, contrast = 1 + TINT * uniform[:, 3:6], 1 + TINT * uniform[:, 6:]  # (B, 3, 1, 1), (B, 1, 1, 1)
    mean = moved.mean((2, 3), keepdim=True)
    tinted = (gain * (contrast * (moved - mean) + mean)).clamp(0, 1)

    boxes = zoom * (targets["boxes"] - 0.5 - shift.transpose(1, 2).repeat(1, 1, 2)) + 0.5  # (B, T, 4)
    inside = boxes.clamp(0, 1)
    mask = targets["mask"] & (box_area(inside) > VISIBLE * box_area(boxes))
    return tinted, {**targets, "boxes": inside, "mask": mask}
