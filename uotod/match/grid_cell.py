"""The rule of YOLO v1 to v4: the cell that holds a target's centre is responsible, by one of its predictions."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from uotod.check import check_choice, check_number
from uotod.cost.pairwise import replace_nonfinite
from uotod.geometry.region import cells, in_cell
from uotod.match.base import Matcher, shared
from uotod.match.point_region import RegionMatcher
from uotod.match.schedule import Schedule
from uotod.plan import Plan
from uotod.scene.scene import Scene
from uotod.solvers.overlaps import largest_iou, pairwise, pairwise_iou
from uotod.solvers.threshold import ThresholdRule, match_by_similarity, match_of_scene


class GridCell(RegionMatcher):
    r"""Match each target to the best prediction of the cells that hold its centre, one for all levels together.

    Prediction `i`, whose anchor or point is centred on :math:`a_i` at stride :math:`s_i`, is responsible for target
    `j`, centred on :math:`c_j`, if both are in the same cell of the level's grid:

    .. math:: \lfloor a_i / s_i \rfloor = \lfloor c_j / s_i \rfloor \quad \text{in both axes.}

    Among the predictions that are responsible for it, a target takes the one of the largest IoU, whatever it is. A
    prediction serves one target: pairs are fixed in the order of decreasing IoU, the lowest target and then the lowest
    prediction first on ties, and a target that loses its choice takes its next best responsible prediction, or none
    if there is no other. The rest is background, or ignored if it overlaps a target anyway.

    * YOLO v1: `choose="prediction", negative=None`, with several `Points` at each cell;
    * YOLO v2: `choose="shape", negative=0.6`, with `Anchors` of one stride;
    * YOLO v3: the defaults, with `Anchors` of three strides;
    * YOLO v4: `choose="shape", positive=0.213, negative=0.7`, as its authors' program is configured;
    * mmdet's YOLO v3: `choose="anchor", positive=0.5, negative=0.5, is_anchor_based=True`.

    A centre on the border of two cells belongs to the cell on the right or below, and one outside the grid, such as on
    the right border of the image, to the nearest cell: in a complete grid every target has a cell on every level.
    Anchors must be centred inside their cells, as those of `Points.from_levels` are by default; cells are square in
    the unit of the boxes. Without modules the cost of a responsible pair is `1 - IoU`; with modules it is theirs, and
    `1 - cost` takes the place of the IoU. Every other pair costs `inf`. The background cost is not read.
    `compute_matching` takes the pairs that a cost does not forbid for responsible ones, and ignores nothing.

    Time O(B·P·T) a round, a few rounds on the CPU and min(T, P) on a GPU, where none is waited for; (B, T, P) floats.

    Args:
        choose: what is compared with the target: "shape", the anchor moved to the target's centre; "anchor", the
            anchor where it is; "prediction", the predicted box. A point is the cell around it.
        positive: IoU (that of `choose`) from which every other responsible prediction is matched too, to the best of
            its targets; None for one prediction a target.
        negative: IoU of a prediction with any target above which it is ignored, a row of zeros, if it is not matched;
            None to ignore nothing. It is the predicted box that counts, or the anchor with `is_anchor_based=True`.

    The other arguments are those of `Matcher`.

    Raises:
        TypeError: an argument has the wrong type.
        ValueError: an argument is out of its range; in a call: anchors or their stride are missing.

    References:
        Redmon et al., "You only look once", CVPR 2016, sec. 2; Redmon and Farhadi, "YOLO9000", CVPR 2017, sec. 2;
        "YOLOv3: an incremental improvement", 2018, sec. 2.1 (one prior a target, threshold 0.5); Bochkovskiy et al.,
        "YOLOv4", 2020, sec. 3.4 (several anchors for a target).

    Examples:
        >>> from uotod.utils import Anchors
        >>> wide, high = [0.0, 2.0, 8.0, 6.0], [2.0, 0.0, 6.0, 8.0]  # of the cell of 8 x 8
        >>> anchors = Anchors(torch.tensor([wide, high]), stride=8)
        >>> input = {"pred_logits": torch.zeros(1, 2, 2), "pred_boxes": anchors.boxes[None]}
        >>> target = {"labels": torch.ones(1, 1).long(), "boxes": torch.tensor([[[0.0, 0.0, 4.0, 7.0]]])}
        >>> GridCell()(input, target, anchors)
        tensor([[[0., 1.],
                 [1., 0.]]])
    """

    def __init__(
        self,
        *,
        choose: str = "shape",
        positive: float | None = None,
        negative: float | None = 0.5,
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
        self.choose = check_choice("choose", choose, ("shape", "anchor", "prediction"))
        self.positive = None if positive is None else check_number("positive", positive, low=0.0, high=1.0)
        self.negative = None if negative is None else check_number("negative", negative, low=0.0, high=1.0)

    def plan(self, scene: Scene) -> Plan:
        """Return the plan of a parsed batch; without modules from the IoU itself, for 1 - (1 - IoU) is rounded."""
        index = match_of_scene(self._responsibility, scene, self._rule())
        plan = Plan.from_index(index, scene.mask.shape[1], self.background, scene.logits.dtype)
        if self.negative is None or not plan.num_targets:
            return plan
        return plan.ignoring(largest_iou(scene.target_boxes, scene.mask, self._located_boxes(scene)) > self.negative)

    def match(self, cost: Tensor, mask: Tensor) -> Plan:
        index = match_by_similarity(1 - cost[:, : mask.shape[1]], mask, self._rule())
        return Plan.from_index(index, mask.shape[1], self.background, cost.dtype)

    def _rule(self) -> ThresholdRule:
        positive = math.inf if self.positive is None else self.positive
        return ThresholdRule(positive, (-math.inf, math.inf), "best", -math.inf)

    def _responsibility(self, scene: Scene) -> Tensor:
        """Return how well (S, T, P) predictions suit the targets in their cells, `-inf` for those of other cells."""
        if self._has_modules() or self.costs.target_weight(scene) is not None:
            return 1 - self.cost(scene)[:, : scene.mask.shape[1]]
        similarity = self._similarity(scene)
        if self.nonfinite == "propagate":
            similarity = -replace_nonfinite(-similarity, scene, background_cost=0.0)
        return similarity.masked_fill(~self._candidates(scene), -math.inf)

    def _candidates(self, scene: Scene) -> Tensor:
        places, stride = self._locations(scene), self._strides(scene, "its cells")
        grid = cells(places.centers, stride, places.level, places.num_levels)
        return pairwise(in_cell, scene.target_boxes, grid)

    def own_pair_cost(self, scene: Scene) -> Tensor:
        return 1 - self._similarity(scene)

    def _similarity(self, scene: Scene) -> Tensor:
        boxes = scene.pred_boxes if self.choose == "prediction" else self._locations(scene).boxes
        targets = scene.target_boxes
        if self.choose == "shape":
            boxes, targets = _centered(boxes), _centered(targets)
        return pairwise_iou(targets, boxes)


def _centered(boxes: Tensor) -> Tensor:
    """Return boxes of the same size around the origin."""
    half = (boxes[..., 2:] - boxes[..., :2]) / 2
    return torch.cat((-half, half), dim=-1)
