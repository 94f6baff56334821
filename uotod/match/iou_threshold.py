"""Matching by IoU thresholds, as the anchor-based detectors SSD and RetinaNet do."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from uotod._batch import Batch
from uotod._blocks import MAX_BLOCK_ELEMENTS
from uotod._boxes import pairwise_overlap
from uotod._check import check_choice, check_number
from uotod._plan import Plan
from uotod.match._assigned import assigned_plan
from uotod.match._checks import finite_predictions
from uotod.match._overlap import OverlapMatcher
from uotod.solvers.threshold import ThresholdRule, threshold_match

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from uotod.match._base import MatcherOptions

MAX_GPU_BLOCK_ELEMENTS = 1 << 24  # of a (B, t, P) block: large enough to keep a GPU busy


class IoUThreshold(OverlapMatcher):
    """Match each prediction to the target it overlaps most, if it overlaps it enough.

    With `u` the largest IoU of a prediction (of its anchor with `is_anchor_based=True`) with a target: `u ≥ positive`
    matches, `u < negative` is background, and what lies between is ignored, a row of zeros. Without modules the cost
    is `1 - IoU`; with modules it is theirs, and `1 - cost` takes the place of the IoU. The background cost is not read.
    In an image without targets all is background.

    Without modules it takes O(B·P·T) time but no (B, T, P) tensor: targets are visited a few at a time. Besides, if
    targets compete for a prediction with `force_match="best"`, (B, T, min(T, P)) candidates are kept, over which
    pairs that are best for both sides are fixed in rounds. On the CPU these end with the last pair, after one or two
    as a rule; on a GPU, where asking would synchronise, all min(T, P) are run, O(B·T·min(T, P)) each.

    Args:
        positive: least IoU of a match; at most 1 without modules.
        negative: IoU below which a prediction is background; or an interval `(low, high)`, which makes it background
            if `low ≤ u < high` and ignores it below `low`; None for `positive`, so that nothing is ignored.
        force_match: "best" (SSD) also gives every target its best prediction whatever the IoU, a distinct one
            wherever possible, the highest IoU first and the lowest index on ties. "low_quality" (RetinaNet, Faster
            R-CNN) makes the predictions that tie a target's best IoU positive, but leaves them their own best target;
            "all_best" gives them to the target whose best IoU they tie, of several such targets to the one with the
            highest IoU, then the lowest index. With these two an IoU of 0 ties nothing, for otherwise a degenerate
            target would make every anchor positive. None forces nothing.
        min_positive: least IoU with which a target's best prediction is forced; 0 for no limit.

    The other arguments are those of `Matcher`.

    Raises:
        ValueError: the thresholds are not in order, or `positive` is no IoU and there are no modules.

    References:
        Liu et al., "SSD: single shot multibox detector", ECCV 2016, sec. 2.2; Lin et al., "Focal loss for dense object
        detection", ICCV 2017, sec. 4 (positive 0.5, negative 0.4); Ren et al., "Faster R-CNN", NeurIPS 2015, sec. 3.1.2
        (positive 0.7, negative 0.3, low quality).

    Examples:
        >>> iou = torch.tensor([[[0.9], [0.45], [0.1]]])
        >>> matcher = IoUThreshold(positive=0.5, negative=0.4, background=False)
        >>> matcher.compute_matching(1 - iou, torch.ones(1, 1, dtype=torch.bool)).flatten()
        tensor([1., 0., 0.])
    """

    def __init__(
        self,
        *,
        positive: float = 0.5,
        negative: float | tuple[float, float] | None = None,
        force_match: str | None = "best",
        min_positive: float = 0.0,
        **matcher: Unpack[MatcherOptions],
    ) -> None:
        super().__init__(**matcher)
        check_choice("force_match", force_match, ("best", "low_quality", "all_best", None))
        self.positive = check_number("positive", positive)
        if self.positive > 1 and not self._has_modules():
            raise ValueError(f"positive must be at most 1 without match modules, for it is an IoU, got {positive!r}")
        self.negative = self.positive if negative is None else _check_negative(negative, self.positive)
        self.force_match = force_match
        self.min_positive = check_number("min_positive", min_positive, low=0.0, high=1.0)

    def _plan(self, batch: Batch) -> Plan:
        """Return the plan of a parsed batch; without modules from the IoU itself, for 1 - (1 - IoU) is rounded."""
        if self._reads_cost(batch):
            return super()._plan(batch)
        boxes, targets = self._located_boxes(batch), batch.targets
        finite = finite_predictions(batch) if self.nonfinite == "propagate" else None
        images, num_targets, preds = len(boxes), targets.mask.shape[1], boxes.shape[1]
        size, limit = images, MAX_GPU_BLOCK_ELEMENTS
        if boxes.device.type == "cpu":  # blocks that stay in its cache
            limit = MAX_BLOCK_ELEMENTS
            size = max(limit // max(num_targets * preds, 1), 1)
        chunk = max(limit // max(size * preds, 1), 1)

        def match(part: slice) -> Tensor:
            def similarity(some: slice) -> Tensor:
                iou = pairwise_overlap(targets.boxes[part, some], boxes[part], kind="iou", eps=0.0)
                return iou if finite is None else iou.where(finite[part].unsqueeze(1), -1.0)  # below any IoU

            return threshold_match(similarity, targets.mask[part], preds, self._rule(), chunk)

        starts = range(0, max(images, 1), max(size, 1))  # one empty part if there are no images
        index = torch.cat([match(slice(i, i + size)) for i in starts])
        return assigned_plan(index, boxes, num_targets, self.background)

    def _match(self, cost: Tensor, mask: Tensor) -> Plan:
        num_targets, preds = mask.shape[1], cost.shape[2]
        similarity = 1 - cost[:, :num_targets]
        index = threshold_match(lambda some: similarity[:, some], mask, preds, self._rule(), max(num_targets, 1))
        return assigned_plan(index, cost, num_targets, self.background)

    def _rule(self) -> ThresholdRule:
        negative = self.negative if isinstance(self.negative, tuple) else (-math.inf, self.negative)
        return ThresholdRule(self.positive, negative, self.force_match, self.min_positive or -math.inf)


def _check_negative(negative: float | tuple[float, float], positive: float) -> float | tuple[float, float]:
    if not isinstance(negative, (tuple, list)):
        return check_number("negative", negative, high=positive)
    if len(negative) != 2:
        raise ValueError(f"negative must be a number or an interval (low, high), got {negative!r}")
    high = check_number("negative[1]", negative[1], high=positive)
    return check_number("negative[0]", negative[0], high=high), high
