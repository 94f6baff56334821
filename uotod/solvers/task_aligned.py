"""Task-aligned matching: logits and boxes in, how well pairs are aligned, the assignment and its scores out."""

import math
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from uotod.check import reads_values
from uotod.cost.blocks import MAX_BLOCK_ELEMENTS, MAX_GPU_BLOCK_ELEMENTS, slices
from uotod.geometry.overlap import Coordinates, OverlapKind, overlap
from uotod.geometry.region import contains
from uotod.solvers.aligned import (
    Array,
    Block,
    Index,
    PairList,
    align,
    align_image,
    best_of_target,
    keep_best,
    relative_scores,
)
from uotod.solvers.by_image import assign_by_image

Mask = NDArray[np.bool_]


class PairMeasure:
    r"""The logarithm of the metric, without weights, and the overlap of pairs of a batch.

    .. math:: \alpha \ln \sigma(\hat c_i)_{c_j} + \beta \ln u(\hat b_i, b_j)

    Args:
        logits: (B, P, C) class scores before the sigmoid.
        labels: (B, T) integer labels, or None.
        one_hot: (B, T, C) labels where they are rows, or None.
        target_boxes: (B, T, 4) boxes, xyxy.
        boxes: (B, P, 4) boxes, xyxy, whose overlap counts.
        alpha: exponent of the score.
        beta: exponent of the overlap.
        kind: the overlap `u`, of which negative values become 0.
        cost: (B, T, P), the negative logarithm that takes the place of the metric, `inf` for forbidden pairs; or None.
    """

    def __init__(
        self,
        logits: Tensor,
        labels: Tensor | None,
        one_hot: Tensor | None,
        target_boxes: Tensor,
        boxes: Tensor,
        alpha: float,
        beta: float,
        kind: OverlapKind,
        cost: Tensor | None,
    ) -> None:
        self.alpha, self.beta, self.kind, self.cost = alpha, beta, kind, cost
        self.logits = logits.detach().contiguous()
        self.labels, self.one_hot = (labels, one_hot) if alpha > 0 else (None, None)
        self.width = 1 if self.one_hot is None else logits.shape[2]  # numbers that a pair takes
        self.targets, self.boxes = (x.detach().movedim(2, 0).contiguous() for x in (target_boxes, boxes))  # (4, B, N)

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


class AlignedPairs(NamedTuple):
    """What decides which prediction a target takes.

    Attributes:
        measure: metric and overlap of pairs.
        grown: (B, T, 4) boxes that the points of candidates lie strictly inside.
        centers: (B, P, 2) points.
        mask: (B, T) bool, False for padding.
        finite: (B, P) bool, False for a prediction that no target may take; None if all are.
        weight: (B, T) factors of the metric, or None for 1.
        inside_first: whether a pair has a metric only if its point lies inside; see `TaskAligned`.
    """

    measure: PairMeasure
    grown: Tensor
    centers: Tensor
    mask: Tensor
    finite: Tensor | None
    weight: Tensor | None
    inside_first: bool


def align_pairs(pairs: AlignedPairs, topk: int) -> Tensor:
    """Return the (B, P) target of each prediction, T for none: each target takes `topk` at most; see `align`."""
    (images, num_targets), preds = pairs.mask.shape, pairs.centers.shape[1]
    if not pairs.mask.numel() or not preds:
        return torch.full((images, preds), num_targets, device=pairs.mask.device)
    if not reads_values(pairs.centers, validate=False):
        return align(_blocks(pairs), preds, topk, among_all=pairs.inside_first)

    def of_image(image: int, real: Tensor) -> Tensor:
        own = _ImagePairs(pairs, image, real)
        found = align_image(own.rows, own.columns, len(real), preds, topk, among_all=pairs.inside_first)
        return torch.from_numpy(found)

    return assign_by_image(of_image, pairs.mask, preds)


def score_pairs(pairs: AlignedPairs, index: Tensor, topk2: int | None, eps: float) -> tuple[Tensor, Tensor]:
    """Return the (B, P) assignment without what a target does not keep, and its scores, 0 for what has no target.

    Args:
        pairs: the pairs.
        index: (B, P) target of each prediction, T for none.
        topk2: number of predictions that a target keeps; None for all.
        eps: see `relative_scores`.
    """
    (images, num_targets), preds = pairs.mask.shape, index.shape[1]
    if not num_targets:
        return index, torch.zeros_like(pairs.centers[..., 0])
    target = torch.arange(images, device=index.device).unsqueeze(1) * num_targets + index.clamp(max=num_targets - 1)
    pred = torch.arange(images * preds, device=index.device).view(images, preds)
    group, count = index, num_targets
    chosen = (index < num_targets).nonzero(as_tuple=True) if reads_values(index, validate=False) else None
    if chosen is not None:  # the matched ones of all images in one row
        target, pred = target[chosen].unsqueeze(0), pred[chosen].unsqueeze(0)
        group, count = target, images * num_targets
    metric, overlap = (x.view_as(target) for x in pairs.measure.pairs(target.flatten(), pred.flatten()))
    power = None if pairs.weight is None else pairs.weight.flatten()[target]
    if topk2 is not None:
        group = keep_best(group, metric if power is None else metric * power, count, topk2)
    score = relative_scores(group, metric, count, eps, power)
    score = (score * best_of_target(overlap, group, count)).clamp(max=1).masked_fill(group == count, 0)
    if chosen is None:
        return group, score
    index = index.index_put(chosen, torch.where(group[0] < count, index[chosen], num_targets))
    return index, torch.zeros_like(index, dtype=score.dtype).index_put_(chosen, score[0])


def _blocks(pairs: AlignedPairs) -> Iterator[Block]:
    """Yield the blocks of `align`, a few of the targets at a time."""
    measure, grown, centers, mask, finite, weight, inside_first = pairs
    for some in slices(mask.shape[1], centers[..., 0].numel(), MAX_GPU_BLOCK_ELEMENTS):
        metric, overlap = measure.block(some)
        inside, valid = contains(grown[:, some], centers), mask[:, some, None]
        if finite is not None:
            valid = valid & finite.unsqueeze(1)
        if weight is not None:
            metric = metric * weight[:, some, None]
        if inside_first:
            yield Block(metric.masked_fill(~(inside & valid), -math.inf), overlap)
        else:
            yield Block(metric.masked_fill(~valid, -math.inf), overlap, inside)


class _ImagePairs:
    """The pairs of one image on the host that may have a metric, listed."""

    def __init__(self, pairs: AlignedPairs, image: int, real: Tensor) -> None:
        finite, weight = pairs.finite, pairs.weight
        self._measure, self._inside_first = pairs.measure, pairs.inside_first
        self._weight = None if weight is None else weight[image, real]
        self._finite = None if finite is None or bool(finite[image].all()) else finite[image].numpy()
        self._targets, self._first_pred = image * pairs.mask.shape[1] + real, image * pairs.centers.shape[1]
        self._grown = pairs.grown[image, real].t().numpy()  # (4, T_b)
        self._centers = pairs.centers[image].t().contiguous().numpy()  # (2, P)
        self._target_boxes = pairs.measure.targets[:, image, real].numpy()
        self._boxes = pairs.measure.boxes[:, image].numpy()

    def rows(self, targets: slice) -> PairList:
        """Return the pairs of a few targets."""
        mask = self._counts(targets, slice(None))  # (t, P)
        flat = np.flatnonzero(mask)
        bounds = np.searchsorted(flat, np.arange(len(mask) + 1) * mask.shape[1])
        target = np.repeat(np.arange(len(mask)) + targets.start, np.diff(bounds))
        pred = flat - (target - targets.start) * mask.shape[1]
        metric, overlap = self._values(target, pred)
        inside = None if self._inside_first else _within(self._grown[:, target], self._centers[:, pred])
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
            mask = _within(self._grown[:, targets, None], self._centers[:, preds])
        elif self._measure.cost is None and self._measure.beta > 0:  # an overlap of 0 has no metric
            mask = _meet(self._target_boxes[:, targets, None], self._boxes[:, preds])
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


# by numpy, which compares in a seventh of torch's time


def _within(boxes: Array, points: Array) -> Mask:
    """Tell which (2, …) points lie inside, not on a side of, which (4, …) boxes, as `contains` does."""
    x1, y1, x2, y2 = boxes
    x, y = points
    return _all(x > x1, x < x2, y > y1, y < y2)


def _meet(boxes: Array, others: Array) -> Mask:
    """Tell which (4, …) boxes may share an area with which others."""
    x1, y1, x2, y2 = boxes
    a1, b1, a2, b2 = others
    return _all(a1 < x2, a2 > x1, b1 < y2, b2 > y1)


def _all(mask: Mask, *others: Mask) -> Mask:
    for other in others:
        mask &= other
    return mask
