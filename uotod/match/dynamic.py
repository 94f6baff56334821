"""What the matchers with a dynamic k share: a cost of candidates, and how many predictions a target takes."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from uotod.check import check_choice, check_integer, check_number
from uotod.match.base import Matcher, shared
from uotod.match.schedule import Schedule
from uotod.plan import Plan
from uotod.scene.scene import Scene
from uotod.solvers.dynamic_k import dynamic_k_match, match_candidates
from uotod.solvers.overlaps import pairwise_iou


class PointCostMatcher(Matcher, abstract=True):
    """Match by a weighted sum of two costs, of which a match module replaces one each, and by distances from points."""

    cls_weight: float
    loc_weight: float

    def _points(self, scene: Scene) -> tuple[Tensor, Tensor]:
        """Return the points (B, P, 2) and their strides (B, P)."""
        return self._locations(scene).centers, self._strides(scene, "the distance of a point from a target")

    def _weighted_cost(self, scene: Scene, own_cls: Tensor | None, own_loc: Tensor | None) -> Tensor:
        """Return the weighted sum (B, T, P) of the costs; one's own are None where a module replaces them."""
        cls = self.costs.of_pairs(scene, loc=False) if own_cls is None else own_cls
        loc = self.costs.of_pairs(scene, cls=False) if own_loc is None else own_loc
        return self.cls_weight * cls + self.loc_weight * loc


class DynamicMatcher(PointCostMatcher, abstract=True):
    """Match the candidates of each target that are cheapest, as many as overlap it; the subclasses document it."""

    def __init__(
        self,
        *,
        topk: int,
        cls_weight: float,
        loc_weight: float,
        eps: float,
        contested: str,
        cls_match_module: nn.Module | None,
        loc_match_module: nn.Module | None,
        background: bool,
        background_cost: float | Schedule,
        is_anchor_based: bool,
        nonfinite: str,
        ignore_threshold: float,
        class_weight: Sequence[float] | Tensor | None,
        validate: bool,
        box_format: str | None,
    ) -> None:
        super().__init__(**shared(Matcher, locals()))
        self.topk = check_integer("topk", topk, low=1)
        self.cls_weight = check_number("cls_weight", cls_weight, low=0.0)
        self.loc_weight = check_number("loc_weight", loc_weight, low=0.0)
        self.eps = check_number("eps", eps, low=0.0, low_open=True)
        self.contested = check_choice("contested", contested, ("all", "takers"))

    @abstractmethod
    def _candidates(self, scene: Scene) -> Tensor:
        """Return the predictions that may be matched at all, (B, 1, P) bool: those of any target."""

    @abstractmethod
    def _class_cost(self, scene: Scene, overlap: Tensor) -> Tensor:
        """Return the default classification cost (B, T, P)."""

    @abstractmethod
    def _prior(self, scene: Scene) -> Tensor:
        """Return the cost (B, T, P) of a point's position."""

    def plan(self, scene: Scene) -> Plan:
        mask, boxes = scene.mask, scene.pred_boxes
        self._points(scene)  # which raises even where no pair needs them
        if self._has_modules():
            cost = self.cost(scene)[:, : mask.shape[1]]
            overlap = pairwise_iou(scene.target_boxes, self._located_boxes(scene))
            if self.nonfinite == "propagate":  # NaN has got a finite cost, wherever its point stands
                cost = cost.masked_fill(~self._candidates(scene), math.inf)
                overlap = overlap.masked_fill(~scene.finite.unsqueeze(1), 0)
            return self._assign(cost, overlap)
        index = match_candidates(
            lambda piece: self._candidates(scene.part(*piece)),
            lambda piece: self._piece_cost(scene.part(*piece)),
            mask,
            boxes,
            self.topk,
            self.contested,
        )
        return Plan.from_index(index, mask.shape[1], self.background, boxes.dtype)

    def _piece_cost(self, scene: Scene) -> tuple[Tensor, Tensor]:
        """Return cost and overlap (B, T, P) of all pairs as if each prediction were a candidate."""
        overlap = pairwise_iou(scene.target_boxes, self._located_boxes(scene))
        cost, weight = self._candidate_cost(scene, overlap), self.costs.target_weight(scene)
        if weight is not None:
            cost = cost * weight.unsqueeze(-1)
        if self.nonfinite == "propagate":  # above that of any finite pair
            finite = scene.finite.unsqueeze(1)
            cost, overlap = cost.where(finite, torch.finfo(cost.dtype).max), overlap.where(finite, 0.0)
        return cost, overlap

    def match(self, cost: Tensor, mask: Tensor) -> Plan:
        return self._assign(cost[:, : mask.shape[1]], None)

    def _assign(self, cost: Tensor, overlap: Tensor | None) -> Plan:
        index = dynamic_k_match(cost, overlap, self.topk, self.contested)
        return Plan.from_index(index, cost.shape[1], self.background, cost.dtype)

    def pair_cost(self, scene: Scene) -> Tensor:
        overlap = pairwise_iou(scene.target_boxes, self._located_boxes(scene))
        return self._candidate_cost(scene, overlap).masked_fill(~self._candidates(scene), math.inf)

    def _candidate_cost(self, scene: Scene, overlap: Tensor) -> Tensor:
        """Return the cost (B, T, P) of all pairs as if each prediction were a candidate."""
        own = self._class_cost(scene, overlap) if self.cls_match_module is None else None
        loc = -(overlap + self.eps).log() if self.loc_match_module is None else None
        return self._weighted_cost(scene, own, loc) + self._prior(scene)


def of_any_target(pairs: Tensor, mask: Tensor) -> Tensor:
    """Return which predictions form one of the (B, T, P) pairs with a target that is not padding, (B, 1, P)."""
    return torch.any(pairs & mask.unsqueeze(-1), dim=1, keepdim=True)
