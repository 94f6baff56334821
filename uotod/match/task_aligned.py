"""Task-aligned matching: each target takes the predictions that both classify and locate it best."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn

from uotod.check import check_choice, check_integer, check_number
from uotod.cost.pairwise import check_cost_values
from uotod.geometry.anchors import Locations
from uotod.geometry.boxes import box_centers
from uotod.geometry.overlap import OverlapKind
from uotod.geometry.region import contains
from uotod.match.base import Matcher, shared
from uotod.match.schedule import Schedule
from uotod.plan import Plan
from uotod.scene.scene import Scene
from uotod.solvers.aligned import Block, align, keep_best, pick, relative_scores
from uotod.solvers.overlaps import pairwise
from uotod.solvers.task_aligned import AlignedPairs, PairMeasure, align_pairs, score_pairs


class TaskAligned(Matcher):
    r"""Match each target to the predictions inside it that are best at classifying and locating it together.

    .. math:: t_{ij} = \sigma(\hat c_i)_{c_j}^\alpha \, u(\hat b_i, b_j)^\beta, \qquad
        \hat s_{ij} = t_{ij} \, \frac{\max_k u_{kj}}{\max_k t_{kj} + \text{eps}}

    with the overlap `u`, and the maxima over the predictions that target `j` got. A target takes the `topk`
    predictions of largest `t > 0` whose points, the centres of the anchors, lie strictly inside it. A prediction taken
    by several goes to the target of largest `u`; the lowest index wins ties. What is left is background.

    The plan's mass is quality: `ŝ` on the target and `1 - ŝ` on the background. With it,
    `DetectionLoss(BCEWithLogitsLoss(reduction="none"), …, bg_class_position="none")` is the criterion of YOLOv8: binary
    cross-entropy to the soft target `ŝ`, and localisation weighted by `ŝ`, both divided by `max(Σ ŝ, 1)`.

    The defaults are those of YOLOv8's loss; YOLO26's one-to-one head has `topk=7, topk2=1`. TOOD is
    `TaskAligned(topk=13, alpha=1.0, overlap="iou", candidates="all", min_size=None, eps=1e-7)`; it trains the first
    four epochs with another matcher (ATSS), which is exchanged by writing `criterion.matching_method`.

    Anchors or points must be given. With match modules `exp(-cost)` takes the place of `t`, and `eps`, whose unit is
    that of the published `t`, is left out. A target's weight is an exponent of its `t`, or of `t / (max t + eps)` in
    its scores. Metrics are logarithms throughout, so that none is too small or too large. The background cost is not
    read. A target that no point lies inside, or without area, gets nothing. A non-finite prediction under
    `nonfinite="propagate"` has no metric and is background.

    O(B·P·T) time, without match modules in bounded memory: targets are visited a few at a time, on the CPU image by
    image without padding, where only the pairs that may have a metric (those inside, or that overlap) are evaluated.

    Args:
        topk: number of predictions that a target takes.
        alpha: exponent of the score of the target's class, its sigmoid.
        beta: exponent of the overlap.
        overlap: "ciou", negative values becoming 0, or "iou": the overlap of the predicted box (of the anchor with
            `is_anchor_based=True`) and the target.
        candidates: "inside" takes the `topk` among the points inside the target, and a conflict goes to the largest
            overlap among all targets that the point lies inside of (YOLOv8). "all" takes them among all points, then
            drops those outside, and only the targets that took the point share a conflict (TOOD).
        topk2: number of predictions that a target keeps of those that conflicts left to it, by `t`; None for all.
        scores: "normalized" for the mass `ŝ`, None for the mass 1.
        min_size: least side of a target for the test whether a point lies inside it, in units of the boxes; smaller
            sides are grown about their centre. "stride" for the stride of the second-finest level (or the only one),
            which needs anchors with strides. None for no growth.
        eps: added to the largest metric; YOLOv8 has 1e-9 and TOOD 1e-7.

    The other arguments are those of `Matcher`.

    Raises:
        ValueError: an argument is out of its range; in `forward`, anchors or strides are missing.

    References:
        Feng et al., "TOOD: task-aligned one-stage object detection", ICCV 2021, sec. 3.2 (eqs. 4-7); Jocher et al.,
        "Ultralytics YOLO", 2023, for the form with CIoU.

    Examples:
        >>> from uotod.utils import Points
        >>> points = Points(torch.tensor([[2.0, 2.0], [6.0, 6.0], [9.0, 9.0]]), stride=4)
        >>> boxes = torch.tensor([[[0.0, 0.0, 8.0, 8.0], [0.0, 0.0, 8.0, 4.0], [8.0, 8.0, 10.0, 10.0]]])
        >>> target = {"boxes": boxes[:, :1], "labels": torch.tensor([[0]])}
        >>> matcher = TaskAligned(overlap="iou", beta=1.0)
        >>> matcher({"pred_logits": torch.zeros(1, 3, 1), "pred_boxes": boxes}, target, points)
        tensor([[[1.0000, 0.0000],
                 [0.5000, 0.5000],
                 [0.0000, 1.0000]]])
    """

    def __init__(
        self,
        *,
        topk: int = 10,
        alpha: float = 0.5,
        beta: float = 6.0,
        overlap: str = "ciou",
        candidates: str = "inside",
        topk2: int | None = None,
        scores: str | None = "normalized",
        min_size: float | str | None = "stride",
        eps: float = 1e-9,
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
        check_choice("overlap", overlap, ("ciou", "iou"))
        if isinstance(min_size, str):
            check_choice("min_size", min_size, ("stride", None))
        elif min_size is not None:
            min_size = check_number("min_size", min_size, low=0.0)
        self.topk = check_integer("topk", topk, low=1)
        self.alpha = check_number("alpha", alpha, low=0.0)
        self.beta = check_number("beta", beta, low=0.0)
        self.overlap = cast(OverlapKind, overlap)
        self.candidates = check_choice("candidates", candidates, ("inside", "all"))
        self.topk2 = None if topk2 is None else check_integer("topk2", topk2, low=1)
        self.scores = check_choice("scores", scores, ("normalized", None))
        self.min_size = min_size
        self.eps = check_number("eps", eps, low=0.0)

    @torch.no_grad()
    def compute_matching(self, cost_matrix: Tensor, target_mask: Tensor) -> Tensor:
        """Return the plan of a cost matrix; see `Matcher.compute_matching`.

        A bare cost has no geometry: `exp(-cost)` is metric and overlap, every pair of finite cost counts as inside,
        and scores are relative to the best of each target, whose mass is 1.
        """
        return super().compute_matching(cost_matrix, target_mask)

    def plan(self, scene: Scene) -> Plan:
        measure, grown, centers = self._measure(scene), self._grown(scene), self._locations(scene).centers
        finite = scene.finite if self.nonfinite == "propagate" else None
        weight, inside_first = self.costs.target_weight(scene), self.candidates == "inside"
        pairs = AlignedPairs(measure, grown, centers, scene.mask, finite, weight, inside_first)
        index = align_pairs(pairs, self.topk)
        if self.topk2 is None and self.scores is None:
            return Plan.from_index(index, scene.mask.shape[1], self.background, scene.pred_boxes.dtype)
        index, score = score_pairs(pairs, index, self.topk2, 0.0 if self._has_modules() else self.eps)
        return self._weigh(index, score, scene.mask)

    def match(self, cost: Tensor, mask: Tensor) -> Plan:
        num_targets, preds = mask.shape[1], cost.shape[2]
        metric = -cost[:, :num_targets]
        if not metric.numel():
            index = torch.full((len(cost), preds), num_targets, device=cost.device)
            return Plan.from_index(index, num_targets, self.background, cost.dtype)
        among_all = self.candidates == "inside"
        index = align([Block(metric, metric)], preds, self.topk, among_all=among_all)
        own = pick(metric, index, -math.inf)
        if self.topk2 is not None:
            index = keep_best(index, own, num_targets, self.topk2)
        return self._weigh(index, relative_scores(index, own, num_targets), mask)

    def _weigh(self, index: Tensor, score: Tensor, mask: Tensor) -> Plan:
        """Return the plan of an assignment (B, P) and its scores."""
        num_targets = mask.shape[1]
        if self.scores is None:
            return Plan.from_index(index, num_targets, self.background, score.dtype)
        return Plan.from_index(index, num_targets, self.background, score.dtype, score)

    def pair_cost(self, scene: Scene) -> Tensor:
        return super().pair_cost(scene).masked_fill(~self._inside(scene), math.inf)

    def own_pair_cost(self, scene: Scene) -> Tensor:
        return -self._measure(scene).block(slice(None))[0]

    def _measure(self, scene: Scene) -> PairMeasure:
        """Return the function of metric and overlap."""
        cost = None
        if self._has_modules():
            cost = super().pair_cost(scene).masked_fill(~scene.mask.unsqueeze(-1), math.inf)  # (B, T, P)
            if self.nonfinite == "propagate":
                cost = cost.masked_fill(~scene.finite.unsqueeze(1), math.inf)
            check_cost_values("the cost that the match modules return", cost, self.validate)
        labels, one_hot, boxes = scene.targets.labels, scene.targets.one_hot, self._located_boxes(scene)
        return PairMeasure(
            scene.logits, labels, one_hot, scene.target_boxes, boxes, self.alpha, self.beta, self.overlap, cost
        )

    def _grown(self, scene: Scene) -> Tensor:
        """Return the (B, T, 4) boxes that the points of their candidates lie strictly inside."""
        boxes = scene.target_boxes
        return boxes if self.min_size is None else _grow(boxes, self._least_side(self._locations(scene)))

    def _inside(self, scene: Scene) -> Tensor:
        """Return where (B, T, P) the point of a prediction lies strictly inside a target."""
        return pairwise(contains, self._grown(scene), self._locations(scene).centers)

    def _least_side(self, anchors: Locations) -> Tensor:
        """Return the side (B, 1, 1) that targets are grown to."""
        if isinstance(self.min_size, float):
            return anchors.centers.new_full((1, 1, 1), self.min_size)
        stride = anchors.stride
        if stride is None:
            raise ValueError("anchors must have a stride with min_size='stride', got none; min_size=None needs none")
        padded = torch.nn.functional.pad(stride, (1, 0), value=math.inf)  # without predictions there is no minimum
        first = padded.amin(1, keepdim=True)
        second = padded.masked_fill(padded == first, math.inf).amin(1, keepdim=True)
        return torch.where(second < math.inf, second, first).unsqueeze(-1)


def _grow(boxes: Tensor, side: Tensor) -> Tensor:
    """Return (B, T, 4) boxes whose sides below `side`, (B, 1, 1), are grown to it about their centre."""
    low, high = boxes[..., :2], boxes[..., 2:]
    center, small = box_centers(boxes), high - low < side
    return torch.cat((torch.where(small, center - side / 2, low), torch.where(small, center + side / 2, high)), dim=-1)
