"""Matching by thresholds on a similarity: SSD's and RetinaNet's rule for anchors."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from uotod.check import is_traced, reads_values
from uotod.cost.blocks import MAX_BLOCK_ELEMENTS, MAX_GPU_BLOCK_ELEMENTS, MAX_TARGET_ELEMENTS, slices
from uotod.geometry.boxes import pairwise_overlap
from uotod.geometry.image_iou import iou_rows
from uotod.scene.scene import Scene
from uotod.solvers.by_image import assign_by_image
from uotod.solvers.candidates import RunningMax, stable_topk
from uotod.solvers.greedy import greedy_pairs, greedy_pairs_of_image
from uotod.solvers.operator import operator

Values = TypeVar("Values", Tensor, "NDArray[Any]")

NOT_FINITE = -1.0  # the IoU of a prediction that is not finite: below any other


class ThresholdRule(NamedTuple):
    """What becomes of a prediction of a given best similarity.

    Attributes:
        positive: least similarity of a match.
        negative: half-open interval of the similarity of the background.
        force_match: "best" gives every target its best prediction (see `greedy_pairs`); "low_quality" makes the
            predictions that tie a target's best similarity, if that is above 0, positive for their own best target,
            and "all_best" for the target whose best they tie, of several the most similar one.
        floor: least best similarity of a target for which something is forced.
    """

    positive: float
    negative: tuple[float, float]
    force_match: str | None
    floor: float

    def is_background(self, nearest: Values) -> Values:
        """Tell which predictions are background by their largest similarity."""
        low, high = self.negative
        found: Values = (nearest >= low) & (nearest < high)
        return found

    def to_tie(self, best: Tensor) -> Tensor:
        """Return what (…, t, 1) predictions must reach to tie the (…, t) best similarities of targets."""
        return best.where((best > 0) & (best >= self.floor), math.inf).unsqueeze(-1)


class _Similarity(NamedTuple):
    """The similarities of the targets and the predictions of one image.

    Attributes:
        rows: function of a slice of the targets that returns their values (t, P), to be read before the next call.
        columns: function of (N,) predictions that returns their values (T, N).
    """

    rows: Callable[[slice], Tensor]
    columns: Callable[[Tensor], Tensor]


def match_by_iou(
    target_boxes: Tensor, boxes: Tensor, mask: Tensor, rule: ThresholdRule, finite: Tensor | None = None
) -> Tensor:
    """Assign each prediction by its largest IoU with a target, in bounded memory; see `match_by_similarity`.

    Args:
        target_boxes: (B, T, 4) boxes, xyxy.
        boxes: (B, P, 4) boxes, xyxy; anchors that the batch shares are prepared once.
        mask: (B, T) bool, False for padding.
        rule: thresholds and what is forced.
        finite: (B, P) bool, False for predictions that are not finite, whose IoU is `NOT_FINITE`; None if all are.
    """
    if is_traced(boxes) and boxes.device.type == "cpu":
        assigned: Tensor = _operator(target_boxes, boxes, mask, finite, rule.positive, *rule.negative, *rule[2:])
        return assigned
    if not reads_values(boxes, validate=False):

        def similarity(some: slice) -> Tensor:
            iou = pairwise_overlap(target_boxes[:, some], boxes, kind="iou", eps=0.0)
            return iou if finite is None else iou.where(finite.unsqueeze(1), NOT_FINITE)

        return _match_batch(similarity, mask, boxes.shape[1], rule)
    rows = iou_rows(boxes)

    def of_image(image: int, real: Tensor) -> Tensor:
        iou, targets = rows[image], target_boxes[image, real]
        found = _Similarity(lambda some: iou.rows(targets[some]), lambda preds: iou.columns(targets, preds))
        if finite is not None and not bool(finite[image].all()):
            known, bad = found, ~finite[image]
            found = _Similarity(
                lambda some: known.rows(some).masked_fill_(bad, NOT_FINITE),
                lambda preds: known.columns(preds).masked_fill_(bad[preds], NOT_FINITE),
            )
        return _match_image(found, len(real), boxes.shape[1], rule)

    return assign_by_image(of_image, mask, boxes.shape[1])


_operator = operator(
    "match_by_iou(Tensor target_boxes, Tensor boxes, Tensor mask, Tensor? finite, float positive, float low, "
    "float high, str? force_match, float floor) -> Tensor",
    lambda targets, boxes, mask, finite, positive, low, high, *forced: match_by_iou(
        targets, boxes, mask, ThresholdRule(positive, (low, high), *forced), finite
    ),
    lambda targets, boxes, *_: boxes.new_empty(boxes.shape[:2], dtype=torch.int64),
)


def match_by_similarity(similarity: Tensor, mask: Tensor, rule: ThresholdRule) -> Tensor:
    """Assign each prediction by its largest similarity to a target.

    A prediction goes to its best target from `positive` on, to the background in the interval `negative`, and is
    ignored elsewhere; in an image without targets all is background. The lowest index wins ties.

    Args:
        similarity: (B, T, P) values, in practice the IoU; `-inf` forbids a pair.
        mask: (B, T) bool, False for padding.
        rule: thresholds and what is forced.

    Returns:
        (B, P) index of the target, T for the background, -1 for an ignored prediction.

    References:
        Liu et al., "SSD", ECCV 2016, sec. 2.2; Lin et al., "Focal loss for dense object detection", ICCV 2017, sec. 4.
    """
    preds = similarity.shape[2]
    if not reads_values(similarity, validate=False):
        return _match_batch(lambda some: similarity[:, some], mask, preds, rule)

    def of_image(image: int, real: Tensor) -> Tensor:
        values = similarity[image] if len(real) == mask.shape[1] else similarity[image, real]
        found = _Similarity(lambda some: values[some], lambda preds: values[:, preds])
        return _match_image(found, len(real), preds, rule)

    return assign_by_image(of_image, mask, preds)


def match_of_scene(similarity: Callable[[Scene], Tensor], scene: Scene, rule: ThresholdRule) -> Tensor:
    """Do the same by a function of a scene that returns its similarities (S, T, P), in bounded memory."""
    mask, preds = scene.mask, scene.logits.shape[1]
    if mask.numel() * preds <= MAX_TARGET_ELEMENTS:
        return match_by_similarity(similarity(scene), mask, rule)
    if not reads_values(mask, validate=False):
        return _match_batch(lambda some: similarity(scene.part(targets=some)), mask, preds, rule)

    def of_image(image: int, real: Tensor) -> Tensor:
        one = scene.part(slice(image, image + 1), targets=real)
        found = _Similarity(
            lambda some: similarity(one.part(targets=some))[0], lambda preds: similarity(one.part(preds=preds))[0]
        )
        return _match_image(found, len(real), preds, rule)

    return assign_by_image(of_image, mask, preds)


def _match_batch(similarity: Callable[[slice], Tensor], mask: Tensor, preds: int, rule: ThresholdRule) -> Tensor:
    """Return the assignment (B, P) of a batch without reading a value.

    Memory: a few (B, t, P) blocks of targets and, with "best", the (B, T, min(T, P)) best of each target.
    """
    images, num_targets = mask.shape
    if not mask.numel() or not preds:
        return torch.full((images, preds), num_targets, device=mask.device)
    nearest, forced, found = RunningMax(), RunningMax(), []
    is_tied = torch.zeros(images, preds, dtype=torch.bool, device=mask.device)
    for some in slices(num_targets, images * preds, MAX_GPU_BLOCK_ELEMENTS):
        values = similarity(some).masked_fill(~mask[:, some].unsqueeze(-1), -math.inf)  # (B, t, P)
        nearest.add(values, some.start)
        if rule.force_match == "best":
            # of its `T` best predictions, at most `T - 1` can be taken from a target
            found.append(stable_topk(values, min(num_targets, preds)))
        elif rule.force_match is not None:
            ties = values == rule.to_tie(values.amax(2))
            is_tied |= ties.any(1)
            if rule.force_match == "all_best":
                forced.add(values.masked_fill(~ties, -math.inf), some.start)

    is_background = rule.is_background(nearest.value) | ~mask.any(1, keepdim=True)
    is_positive = (nearest.value >= rule.positive) | is_tied
    assigned = torch.where(is_positive, nearest.index, torch.where(is_background, num_targets, -1))
    if rule.force_match == "all_best":
        return torch.where(is_tied, forced.index, assigned)
    if rule.force_match != "best":
        return assigned
    value, index = (torch.cat(parts, dim=1) for parts in zip(*found, strict=True))  # (B, T, K)
    owner = greedy_pairs(value.masked_fill(value < rule.floor, -math.inf), index, preds)
    return torch.where(owner >= 0, owner, assigned)


def _match_image(similarity: _Similarity, count: int, preds: int, rule: ThresholdRule) -> Tensor:
    """Return the (P,) target of each prediction of an image, T for the background and -1 if it is ignored.

    The targets are visited once for the largest values. Only predictions that go to a target are looked up again, for
    which one it is, and a target that loses its best prediction for its next choices. Memory: a few blocks.
    """
    # numpy searches and compares rows in a tenth of torch's time
    best, wish = [], []
    largest: NDArray[np.floating] | None = None  # (P,)
    is_tied = np.zeros(preds, dtype=np.bool_)
    for some in slices(count, preds, MAX_BLOCK_ELEMENTS):
        values = similarity.rows(some).numpy()  # (t, P)
        largest = values.max(0) if largest is None else np.maximum(largest, values.max(0), out=largest)
        if rule.force_match is None:
            continue
        wish.append(values.argmax(1))  # the first of equal ones
        best.append(values[np.arange(len(values)), wish[-1]])
        if rule.force_match != "best":
            is_tied |= (values == rule.to_tie(torch.from_numpy(best[-1])).numpy()).any(0)
    assert largest is not None

    assigned = np.where(rule.is_background(largest), count, -1)
    for part in _parts((largest >= rule.positive) | is_tied, count):
        assigned[part] = similarity.columns(torch.from_numpy(part)).numpy().argmax(0)
    if rule.force_match == "all_best":
        tie = rule.to_tie(torch.from_numpy(np.concatenate(best)))
        for part in _parts(is_tied, count):
            found = similarity.columns(torch.from_numpy(part))
            assigned[part] = found.masked_fill(found != tie, -math.inf).max(0).indices
    if rule.force_match == "best":
        least = float(largest.dtype.type(rule.floor))  # as the values are rounded
        values, wishes = np.concatenate(best).tolist(), np.concatenate(wish).tolist()
        owner = greedy_pairs_of_image(values, wishes, lambda j: similarity.rows(slice(j, j + 1))[0], preds, least)
        assigned[list(owner)] = list(owner.values())
    return torch.from_numpy(assigned)


def _parts(mask: NDArray[np.bool_], count: int) -> list[NDArray[np.intp]]:
    """Return the positions in a (P,) mask, in parts that form blocks with `count` targets."""
    preds = np.flatnonzero(mask)
    return [preds[some] for some in slices(len(preds), count, MAX_BLOCK_ELEMENTS)]
