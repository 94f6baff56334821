"""A part of a batch: some of its images, targets and predictions, as a batch."""

from dataclasses import fields, replace
from typing import Any

from torch import Tensor

from uotod._batch import Batch

Index = slice | Tensor  # of (N,) positions

EVERYTHING = slice(None)


def part_of(batch: Batch, images: int | slice, targets: Index, preds: Index = EVERYTHING) -> Batch:
    """Return the batch of some images (of one, if it is a number), targets and predictions."""
    rows = slice(images, images + 1) if isinstance(images, int) else images

    def cut(value: Any, index: Index) -> Any:
        if not isinstance(value, Tensor):
            return value
        value = value[rows]
        return value[:, index] if isinstance(index, slice) else value.index_select(1, index)

    predictions, anchors = batch.predictions, batch.anchors
    if isinstance(images, int):
        predictions = replace(predictions, layers=1, dist_layers=None)
    return Batch(
        replace(predictions, **{x.name: cut(getattr(predictions, x.name), preds) for x in fields(predictions)}),
        replace(batch.targets, **{x.name: cut(getattr(batch.targets, x.name), targets) for x in fields(batch.targets)}),
        None if anchors is None else anchors._replace(**{k: cut(v, preds) for k, v in anchors._asdict().items()}),
    )
