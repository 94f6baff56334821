"""Task-aligned matching: each target takes the predictions that both classify and locate it best."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor
from torch.nn import functional as F

from uotod._anchors import Locations
from uotod._batch import Batch
from uotod._blocks import by_blocks
from uotod._boxes import box_centers
from uotod._check import check_choice, check_integer, check_number
from uotod._cost import gather_classes
from uotod._overlap import OverlapKind, overlap
from uotod._plan import AssignedPlan, Plan
from uotod.match._assigned import assigned_plan
from uotod.match._base import PlanMatcher
from uotod.match._checks import check_cost_values, finite_predictions
from uotod.solvers.aligned import align, best_of_target, pick, relative_scores
from uotod.solvers.region import contains
from uotod.solvers.some_pairs import PairFunction, SomePairs

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from uotod.match._base import MatcherOptions


class TaskAligned(PlanMatcher):
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

    Time and memory O(B·P·T): on the CPU of bools, for with `candidates="inside"` only the pairs inside are evaluated,
    elsewhere about five (B, T, P) floats; nothing of size B·T·P·C.

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
        **matcher: Unpack[MatcherOptions],
    ) -> None:
        super().__init__(**matcher)
        check_choice("overlap", overlap, ("ciou", "iou"))
        check_choice("candidates", candidates, ("inside", "all"))
        check_choice("scores", scores, ("normalized", None))
        if isinstance(min_size, str):
            check_choice("min_size", min_size, ("stride", None))
        elif min_size is not None:
            min_size = check_number("min_size", min_size, low=0.0)
        self.topk = check_integer("topk", topk, low=1)
        self.alpha = check_number("alpha", alpha, low=0.0)
        self.beta = check_number("beta", beta, low=0.0)
        self.overlap = cast(OverlapKind, overlap)
        self.candidates = candidates
        self.topk2 = None if topk2 is None else check_integer("topk2", topk2, low=1)
        self.scores = scores
        self.min_size = min_size
        self.eps = check_number("eps", eps, low=0.0)

    @torch.no_grad()
    def compute_matching(self, cost_matrix: Tensor, target_mask: Tensor) -> Tensor:
        """Return the plan of a cost matrix; see `Matcher.compute_matching`.

        A bare cost has no geometry: `exp(-cost)` is metric and overlap, every pair of finite cost counts as inside,
        and scores are relative to the best of each target, whose mass is 1.
        """
        return super().compute_matching(cost_matrix, target_mask)

    def _plan(self, batch: Batch) -> Plan:
        mask = batch.targets.mask
        inside = self._inside(batch) & mask.unsqueeze(-1)  # (B, T, P)
        images, num_targets, preds = inside.shape
        valid = mask.unsqueeze(-1).expand_as(inside)
        if self.nonfinite == "propagate":
            finite = finite_predictions(batch).unsqueeze(1)
            inside, valid = inside & finite, valid & finite
        inside_first = self.candidates == "inside"
        pairs = SomePairs.of(inside) if inside_first else SomePairs.dense(valid)
        measure = self._measure(batch, valid)
        metric, overlap = pairs.evaluate(measure, -math.inf, 0.0)  # (B, T, K)
        weight = self._target_weight(batch)
        if weight is not None:
            metric = metric * weight.unsqueeze(-1)
        index = self._assign(metric, overlap, None if inside_first else inside, pairs)
        if self.scores is None or not num_targets:
            return assigned_plan(index, metric, num_targets, self.background)
        own = (
            torch.arange(images, device=mask.device).unsqueeze(1),
            index.clamp(max=num_targets - 1),
            torch.arange(preds, device=mask.device).unsqueeze(0),
        )
        eps = 0.0 if self._has_modules() else self.eps
        power = None if weight is None else weight[own[:2]]
        metric, overlap = measure(*own)  # (B, P)
        score = relative_scores(index, metric, num_targets, eps, power)
        return self._weigh(index, (score * best_of_target(overlap, index, num_targets)).clamp(max=1), mask)

    def _match(self, cost: Tensor, mask: Tensor) -> Plan:
        log_metric = -cost[:, : mask.shape[1]]
        index = self._assign(log_metric, log_metric, None, SomePairs.dense(mask.unsqueeze(-1).expand_as(log_metric)))
        return self._weigh(index, relative_scores(index, pick(log_metric, index, -math.inf), mask.shape[1]), mask)

    def _assign(self, metric: Tensor, overlap: Tensor, inside: Tensor | None, pairs: SomePairs) -> Tensor:
        inside_first = self.candidates == "inside"
        return align(metric, overlap, inside, pairs, self.topk, self.topk2, inside_first=inside_first)

    def _weigh(self, index: Tensor, score: Tensor, mask: Tensor) -> AssignedPlan:
        """Return the plan of an assignment (B, P) and its scores."""
        num_targets = mask.shape[1]
        if self.scores is None:
            return assigned_plan(index, score, num_targets, self.background)
        mass = score.masked_fill(index == num_targets, 1)
        rest = (1 - score).masked_fill(index == num_targets, 1)
        return AssignedPlan(index, mass, num_targets, self.background, rest)

    def _pair_cost(self, batch: Batch) -> Tensor:
        return super()._pair_cost(batch).masked_fill(~self._inside(batch), math.inf)

    def _own_pair_cost(self, batch: Batch) -> Tensor:
        mask = batch.targets.mask.unsqueeze(-1).expand(-1, -1, batch.predictions.boxes.shape[1])
        return -SomePairs.dense(mask).evaluate(self._measure(batch, mask), -math.inf, 0.0)[0]

    def _measure(self, batch: Batch, valid: Tensor) -> PairFunction:
        """Return the function whose values are the logarithm of the metric, without weights, and the overlap."""
        logits, targets = batch.predictions.logits, batch.targets
        boxes, others = ([x.contiguous() for x in y.unbind(-1)] for y in (targets.boxes, self._located_boxes(batch)))
        cost = soft = None
        if self._has_modules():
            cost = super()._pair_cost(batch).masked_fill(~valid, math.inf)  # (B, T, P)
            check_cost_values("the cost that the match modules return", cost, self.validate)
        elif targets.one_hot is not None:
            soft = gather_classes(logits.sigmoid(), targets).log()  # (B, T, P)

        def measure(image: Tensor, target: Tensor, pred: Tensor) -> tuple[Tensor, Tensor]:
            x1, y1, x2, y2 = (x[image, target] for x in boxes)
            a1, b1, a2, b2 = (x[image, pred] for x in others)
            u = overlap((x1, y1, x2, y2), (a1, b1, a2, b2), self.overlap, eps=0.0).clamp(min=0)
            if cost is not None:
                return -cost[image, target, pred], u
            metric = self.beta * u.log() if self.beta > 0 else torch.zeros_like(u)  # the power 0 of 0 is 1
            if self.alpha > 0 and soft is not None:
                metric = metric + self.alpha * soft[image, target, pred]
            elif self.alpha > 0:
                assert targets.labels is not None
                metric = metric + self.alpha * F.logsigmoid(logits[image, pred, targets.labels[image, target]])
            return metric, u

        return measure

    def _inside(self, batch: Batch) -> Tensor:
        """Return where (B, T, P) the point of a prediction lies strictly inside a target."""
        places, boxes = self._locations(batch), batch.targets.boxes
        if self.min_size is not None:
            boxes = _grow(boxes, self._least_side(places))
        return by_blocks(contains, boxes, places.centers)

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
