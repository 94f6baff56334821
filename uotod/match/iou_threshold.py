"""Matching by IoU thresholds, as the anchor-based detectors SSD and RetinaNet do."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor, nn

from uotod.check import check_area, check_choice, check_number
from uotod.geometry.boxes import box_area
from uotod.match.base import Matcher, shared
from uotod.match.schedule import Schedule
from uotod.match.similarity import OverlapMatcher
from uotod.plan import Plan
from uotod.scene.scene import Scene
from uotod.solvers.threshold import ThresholdRule, match_by_iou, match_by_similarity


class IoUThreshold(OverlapMatcher):
    """Match each prediction to the target it overlaps most, if it overlaps it enough.

    With `u` the largest IoU of a prediction (of its anchor with `is_anchor_based=True`) with a target: `u ≥ positive`
    matches, `u < negative` is background, and what lies between is ignored, a row of zeros. Without modules the cost
    is `1 - IoU`; with modules it is theirs, and `1 - cost` takes the place of the IoU. The background cost is not read.
    In an image without targets all is background.

    Without modules it takes O(B·P·T) time but no (B, T, P) tensor: targets are visited a few at a time, on the CPU
    image by image without padding. With `force_match="best"` a GPU, where asking which targets compete would
    synchronise, also keeps the (B, T, min(T, P)) best of each target and runs min(T, P) rounds over them.

    Args:
        positive: least IoU of a match; at most 1 without modules.
        negative: IoU below which a prediction is background; or an interval `(low, high)`, which makes it background
            if `low ≤ u < high` and ignores it below `low`; None for `positive`, so that nothing is ignored.
        force_match: "best" (SSD) also gives every target its best prediction whatever the IoU, a distinct one
            wherever possible, the highest IoU first and the lowest index on ties; a target without area, whose IoU is
            0 with all of them, is refused, for it would take the first one. "low_quality" (RetinaNet, Faster
            R-CNN) makes the predictions that tie a target's best IoU positive, but leaves them their own best target;
            "all_best" gives them to the target whose best IoU they tie, of several such targets to the one with the
            highest IoU, then the lowest index. With these two an IoU of 0 ties nothing, for otherwise a degenerate
            target would make every anchor positive. None forces nothing.
        min_positive: least IoU with which a target's best prediction is forced; 0 for no limit. Above 0 nothing is
            forced on a target without area either. One that is to be neither matched nor trained as background is
            marked in `target["ignore"]`.

    The other arguments are those of `Matcher`.

    Raises:
        ValueError: the thresholds are not in order, or `positive` is no IoU and there are no modules; at the call, a
            target has no area and something would be forced on it (on a GPU it gets nothing, unless `validate` is set).

    References:
        Liu et al., "SSD: single shot multibox detector", ECCV 2016, sec. 2.2; Lin et al., "Focal loss for dense object
        detection", ICCV 2017, sec. 4 (positive 0.5, negative 0.4); Ren et al., "Faster R-CNN", NeurIPS 2015, sec. 3.1.2
        (positive 0.7, negative 0.3, low quality).

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
        negative: float | tuple[float, float] | None = None,
        force_match: str | None = "best",
        min_positive: float = 0.0,
        cls_match_module: nn.Module | None = None,
        loc_match_module: nn.Module | None = None,
        background: bool = True,
        background_cost: float | Schedule = 10.0,
        is_anchor_based: bool = False,
        nonfinite: str = "error",
        ignore_threshold: float = 0.5,
        class_weight: Sequence[float] | Tensor | None = None,
        validate: bool = False,
        box_format: str | None = None,
    ) -> None:
        super().__init__(**shared(Matcher, locals()))
        self.positive = check_number("positive", positive)
        if self.positive > 1 and not self._has_modules():
            raise ValueError(f"positive must be at most 1 without match modules, for it is an IoU, got {positive!r}")
        self.negative = self.positive if negative is None else _check_negative(negative, self.positive)
        self.force_match = check_choice("force_match", force_match, ("best", "low_quality", "all_best", None))
        self.min_positive = check_number("min_positive", min_positive, low=0.0, high=1.0)

    def plan(self, scene: Scene) -> Plan:
        """Return the plan of a parsed batch; without modules from the IoU itself, for 1 - (1 - IoU) is rounded."""
        scene = self._with_area(scene)
        if self._reads_cost(scene):
            return super().plan(scene)
        boxes, finite = self._located_boxes(scene), scene.finite if self.nonfinite == "propagate" else None
        index = match_by_iou(scene.target_boxes, boxes, scene.mask, self._rule(), finite)
        return Plan.from_index(index, scene.mask.shape[1], self.background, boxes.dtype)

    def _with_area(self, scene: Scene) -> Scene:
        """Return the scene without the targets that would force a prediction that they cannot overlap."""
        if self.force_match != "best" or self.min_positive or self._has_modules():
            return scene
        check_area("target['boxes']", scene.target_boxes, scene.mask, scene.validate, _REMEDY)
        return scene.only_targets(box_area(scene.target_boxes) > 0)

    def match(self, cost: Tensor, mask: Tensor) -> Plan:
        index = match_by_similarity(1 - cost[:, : mask.shape[1]], mask, self._rule())
        return Plan.from_index(index, mask.shape[1], self.background, cost.dtype)

    def _rule(self) -> ThresholdRule:
        negative = self.negative if isinstance(self.negative, tuple) else (-math.inf, self.negative)
        return ThresholdRule(self.positive, negative, self.force_match, self.min_positive or -math.inf)


_REMEDY = (
    "whose IoU is 0 with every prediction, so that the first one would be forced on it: leave it out, mark it in "
    "target['ignore'], or set min_positive above 0, so that nothing is forced on it"
)


def _check_negative(negative: float | tuple[float, float], positive: float) -> float | tuple[float, float]:
    if not isinstance(negative, (tuple, list)):
        return check_number("negative", negative, high=positive)
    if len(negative) != 2:
        raise ValueError(f"negative must be a number or an interval (low, high), got {negative!r}")
    high = check_number("negative[1]", negative[1], high=positive)
    return check_number("negative[0]", negative[0], high=high), high
