"""Matching by IoU thresholds, as the anchor-based detectors SSD and RetinaNet do."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from torch import Tensor

from uotod._batch import Batch
from uotod._boxes import pairwise_overlap
from uotod._check import check_choice, check_number
from uotod._cost import by_blocks
from uotod._plan import AssignedPlan, Plan
from uotod.match._base import PlanMatcher
from uotod.match._checks import replace_nonfinite
from uotod.solvers.threshold import threshold_match

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from uotod.match._base import MatcherOptions


class IoUThreshold(PlanMatcher):
    """Match each prediction to the target it overlaps most, if it overlaps it enough.

    With `u` the largest IoU of a prediction (of its anchor with `is_anchor_based=True`) with a target: `u ≥ positive`
    matches, `u < negative` is background, and what lies between is ignored, a row of zeros. Without modules the cost
    is `1 - IoU`; with modules it is theirs, and `1 - cost` takes the place of the IoU. The background cost is not read.

    Args:
        positive: least IoU of a match.
        negative: IoU below which a prediction is background; None for `positive`, so that nothing is ignored.
        force_match: "best" (SSD) also gives every target its best prediction whatever the IoU, a distinct one
            wherever possible, the highest IoU first and the lowest index on ties. "low_quality" (RetinaNet, Faster
            R-CNN) makes the predictions that tie a target's best IoU positive, but leaves them their own best target;
            an IoU of 0 ties nothing, for otherwise a degenerate target would make every anchor positive.
            None forces nothing.

    The other arguments are those of `Matcher`.

    References:
        Liu et al., "SSD: single shot multibox detector", ECCV 2016, sec. 2.2; Lin et al., "Focal loss for dense object
        detection", ICCV 2017, sec. 4 (positive 0.5, negative 0.4).

    Examples:
        >>> import torch
        >>> iou = torch.tensor([[[0.9], [0.45], [0.1]]])
        >>> matcher = IoUThreshold(positive=0.5, negative=0.4, background=False)
        >>> matcher.compute_matching(1 - iou, torch.ones(1, 1, dtype=torch.bool)).flatten()
        tensor([1., 0., 0.])
    """

    def __init__(
        self,
        *,
        positive: float = 0.5,
        negative: float | None = None,
        force_match: str | None = "best",
        **matcher: Unpack[MatcherOptions],
    ) -> None:
        super().__init__(**matcher)
        check_choice("force_match", force_match, ("best", "low_quality", None))
        self.positive = check_number("positive", positive)
        self.negative = self.positive if negative is None else check_number("negative", negative, high=self.positive)
        self.force_match = force_match

    def _plan(self, batch: Batch) -> Plan:
        """Return the plan of a parsed batch; without modules from the IoU itself, for 1 - (1 - IoU) is rounded."""
        if not self._matches_by_iou() or self._target_weight(batch) is not None:
            return super()._plan(batch)
        iou = self._iou(batch)  # (B, T, P)
        if self.nonfinite == "propagate":
            iou = -replace_nonfinite(-iou, batch, background_cost=0.0)
        return self._assign(iou, batch.targets.mask)

    def _matches_by_iou(self) -> bool:
        return self.cls_match_module is None and self.loc_match_module is None

    def _iou(self, batch: Batch) -> Tensor:
        overlap = partial(pairwise_overlap, kind="iou", eps=0.0)
        return by_blocks(overlap, batch.targets.boxes, self._located_boxes(batch))

    def _pair_cost(self, batch: Batch) -> Tensor:
        return 1 - self._iou(batch) if self._matches_by_iou() else super()._pair_cost(batch)

    def _match(self, cost: Tensor, mask: Tensor) -> Plan:
        return self._assign(1 - cost[:, : mask.shape[1]], mask)

    def _assign(self, similarity: Tensor, mask: Tensor) -> Plan:
        index = threshold_match(similarity, mask, self.positive, self.negative, self.force_match)
        return AssignedPlan(index, similarity.new_ones(index.shape), mask.shape[1], self.background)
