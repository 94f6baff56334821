"""The pairs of task-aligned matching: how well a prediction and a target are aligned, in blocks or in lists."""

import math
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from uotod.cost.blocks import MAX_BLOCK_ELEMENTS, MAX_GPU_BLOCK_ELEMENTS
from uotod.geometry.overlap import Coordinates, OverlapKind, overlap
from uotod.geometry.region import contains
from uotod.scene.scene import Scene
from uotod.solvers.aligned import Block
from uotod.solvers.aligned_image import PairList, align_image

MAX_MASK_ELEMENTS = 1 << 20  # of a (t, P) mask of pairs, a byte each, of which few are listed

Array = NDArray[np.floating]
Index = NDArray[np.int64]
Mask = NDArray[np.bool_]


class PairMeasure:
    r"""The logarithm of the metric, without weights, and the overlap of pairs of a batch.

    .. math:: \alpha \ln \sigma(\hat c_i)_{c_j} + \beta \ln u(\hat b_i, b_j)

    Args:
        batch: predictions and targets.
        boxes: (B, P, 4) boxes whose overlap counts.
        alpha: exponent of the score.
        beta: exponent of the overlap.
        kind: the overlap `u`, of which negative values become 0.
        cost: (B, T, P), the negative logarithm that takes the place of the metric, `inf` for forbidden pairs; or None.
    """

    def __init__(
        self, scene: Scene, boxes: Tensor, alpha: float, beta: float, kind: OverlapKind, cost: Tensor | None
    ) -> None:
        targets, logits = scene.targets, scene.logits.detach()
        self.alpha, self.beta, self.kind, self.cost = alpha, beta, kind, cost
        self.logits = logits.contiguous()
        self.labels, self.one_hot = (targets.labels, targets.one_hot) if alpha > 0 else (None, None)
        self.width = 1 if self.one_hot is None else logits.shape[2]  # numbers that a pair takes
        self.targets, self.boxes = (
            x.detach().movedim(2, 0).contiguous() for x in (scene.target_boxes, boxes)
        )  # (4, B, N)

    def block(self, targets: slice) -> tuple[Tensor, Tensor]:
        """Return metric and overlap (B, t, P) of a few targets with all predictions."""
        score = None  # logarithm of the score
        if self.cost is not None:
            score = -self.cost[:, targets]
        elif self.one_hot is not None:
            score = (self.one_hot[:, targets] @ self.logits.sigmoid().transpose(1, 2)).log()
        elif self.labels is not None:
            label = self.labels[:, targets, None].expand(-1, -1, self.logits.shape[1])
            score = F.logsigmoid(self.logits.transpose(1, 2).gather(1, label))
        x1, y1, x2, y2 = self.targets[:, :, targets, None].unbind(0)
        a1, b1, a2, b2 = self.boxes.unsqueeze(2).unbind(0)
        return self._measure((x1, y1, x2, y2), (a1, b1, a2, b2), score)

    def pairs(self, target: Tensor, pred: Tensor) -> tuple[Tensor, Tensor]:
        """Return metric and overlap (N,) of pairs of `image · T + target` and `image · P + prediction`."""
        preds, num_classes = self.logits.shape[1:]
        score = None
        if self.cost is not None:
            score = -self.cost.flatten().take(target * preds + pred % preds)
        elif self.one_hot is not None:
            score = (self.one_hot.flatten(0, 1)[target] * self.logits.flatten(0, 1)[pred].sigmoid()).sum(-1).log()
        elif self.labels is not None:
            label = self.labels.flatten().index_select(0, target)
            score = F.logsigmoid(self.logits.flatten().index_select(0, pred * num_classes + label))
        x1, y1, x2, y2 = self.targets.flatten(1).index_select(1, target).unbind(0)
        a1, b1, a2, b2 = self.boxes.flatten(1).index_select(1, pred).unbind(0)
        return self._measure((x1, y1, x2, y2), (a1, b1, a2, b2), score)

    def _measure(self, box: Coordinates, other: Coordinates, score: Tensor | None) -> tuple[Tensor, Tensor]:
        u = overlap(box, other, self.kind, eps=0.0).clamp(min=0)
        if self.cost is not None:
            assert score is not None
            return score, u
        metric = self.beta * u.log() if self.beta > 0 else torch.zeros_like(u)  # the power 0 of 0 is 1
        return metric if score is None else metric + self.alpha * score, u


class AlignedValues(NamedTuple):
    """What decides which prediction a target takes.

    Attributes:
        measure: metric and overlap of pairs.
        grown: (B, T, 4) boxes that the points of candidates lie strictly inside.
        centers: (B, P, 2) points.
        finite: (B, P) bool, False for a prediction that no target may take; None if all are.
        weight: (B, T) factors of the metric, or None for 1.
        inside_first: whether a pair has a metric only if its point lies inside; see `TaskAligned`.
    """

    measure: PairMeasure
    grown: Tensor
    centers: Tensor
    finite: Tensor | None
    weight: Tensor | None
    inside_first: bool

    def blocks(self, mask: Tensor) -> Iterator[Block]:
        """Yield the blocks of `align`, a few of the targets at a time; `mask` (B, T) is False for padding."""
        size = max(MAX_GPU_BLOCK_ELEMENTS // self.centers[..., 0].numel(), 1)
        for start in range(0, mask.shape[1], size):
            some = slice(start, start + size)
            metric, overlap = self.measure.block(some)
            inside, valid = contains(self.grown[:, some], self.centers), mask[:, some, None]
            if self.finite is not None:
                valid = valid & self.finite.unsqueeze(1)
            if self.weight is not None:
                metric = metric * self.weight[:, some, None]
            if self.inside_first:
                yield Block(metric.masked_fill(~(inside & valid), -math.inf), overlap)
            else:
                yield Block(metric.masked_fill(~valid, -math.inf), overlap, inside)


def align_images(values: AlignedValues, mask: Tensor, topk: int) -> Tensor:
    """Return what `align` returns for the (B, T) targets of a mask, image by image without padding, on the CPU."""
    (images, num_targets), preds = mask.shape, values.centers.shape[1]
    result = torch.full((images, preds), num_targets)
    for image in range(images):
        real = mask[image].nonzero().squeeze(1)
        if len(real):
            pairs = _ImagePairs(values, image, real)
            found = align_image(pairs, len(real), preds, topk, MAX_MASK_ELEMENTS, among_all=values.inside_first)
            result[image] = torch.cat((real, real.new_full((1,), num_targets)))[torch.from_numpy(found)]
    return result


class _ImagePairs:
    """The pairs of one image on the CPU that may have a metric, a `solvers.aligned_image.Pairs`."""

    def __init__(self, values: AlignedValues, image: int, real: Tensor) -> None:
        measure, finite, weight = values.measure, values.finite, values.weight
        self._measure, self._inside_first = measure, values.inside_first
        self._weight = None if weight is None else weight[image, real]
        self._finite = None if finite is None or bool(finite[image].all()) else finite[image].numpy()
        self._targets, self._first_pred = image * measure.targets.shape[2] + real, image * values.centers.shape[1]
        self._grown = values.grown[image, real].t().numpy()
        self._centers = values.centers[image].t().contiguous().numpy()
        self._target_boxes = measure.targets[:, image, real].numpy()
        self._boxes = measure.boxes[:, image].numpy()

    def rows(self, targets: slice) -> PairList:
        """Return the pairs of a few targets."""
        mask = self._counts(targets, slice(None))  # (t, P)
        flat = np.flatnonzero(mask)
        bounds = np.searchsorted(flat, np.arange(len(mask) + 1) * mask.shape[1])
        target = np.repeat(np.arange(len(mask)) + targets.start, np.diff(bounds))
        pred = flat - (target - targets.start) * mask.shape[1]
        metric, overlap = self._values(target, pred)
        inside = None
        if not self._inside_first:
            x1, y1, x2, y2 = self._grown[:, target]
            x, y = self._centers[:, pred]
            inside = (x > x1) & (x < x2) & (y > y1) & (y < y2)
        return PairList(bounds, pred, metric, overlap, inside)

    def columns(self, preds: Index) -> Array:
        """Return the overlap (T_b, N) with predictions of (N,) indices, `-inf` for pairs that have no metric."""
        mask = self._counts(slice(None), preds)
        target, column = mask.nonzero()
        metric, overlap = self._values(target, preds[column])
        value = np.full(mask.shape, -np.inf, dtype=overlap.dtype)
        value[target, column] = np.where(metric > -np.inf, overlap, -np.inf)
        return value

    def _counts(self, targets: slice, preds: slice | Index) -> Mask:
        """Return which pairs (t, N) are listed: those without a metric may be."""
        if self._inside_first:
            mask = _within(self._grown[:, targets], self._centers[:, preds])
        elif self._measure.cost is None and self._measure.beta > 0:  # an overlap of 0 has no metric
            mask = _meet(self._target_boxes[:, targets], self._boxes[:, preds])
        else:
            mask = np.ones((len(self._targets[targets]), self._centers[0, preds].size), dtype=bool)
        if self._finite is not None:
            mask &= self._finite[preds]
        return mask

    def _values(self, target: Index, pred: Index) -> tuple[Array, Array]:
        """Return metric and overlap (N,) of pairs, a block of them at a time."""
        rows, preds = torch.from_numpy(target), torch.from_numpy(pred) + self._first_pred
        size = max(MAX_BLOCK_ELEMENTS // self._measure.width, 1)
        blocks = zip(torch.split(self._targets[rows], size), torch.split(preds, size), strict=True)
        parts = [self._measure.pairs(*x) for x in blocks]
        metric, overlap = (torch.cat(x) for x in zip(*parts, strict=True))
        return (metric if self._weight is None else metric * self._weight[rows]).numpy(), overlap.numpy()


def _within(boxes: Array, points: Array) -> Mask:
    """Tell which (2, N) points lie inside, not on a side of, which (4, t) boxes: (t, N)."""
    x1, y1, x2, y2 = boxes[:, :, None]
    x, y = points
    mask: Mask = x > x1
    for side in (x < x2, y > y1, y < y2):
        mask &= side
    return mask


def _meet(boxes: Array, others: Array) -> Mask:
    """Tell which (4, N) boxes may share an area with which (4, t) boxes: (t, N)."""
    x1, y1, x2, y2 = boxes[:, :, None]
    a1, b1, a2, b2 = others
    mask: Mask = a1 < x2
    for side in (a2 > x1, b1 < y2, b2 > y1):
        mask &= side
    return mask
