"""What the matchers with a dynamic k share: a cost of candidates, and how many predictions a target takes."""

from __future__ import annotations

import math
from abc import abstractmethod
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor, nn

from uotod._batch import Batch
from uotod._check import check_choice, check_integer, check_number
from uotod._cost import box_cost, class_cost
from uotod._plan import Plan
from uotod.match._assigned import assigned_plan
from uotod.match._base import PlanMatcher
from uotod.match._checks import finite_predictions
from uotod.match._overlap import pairwise_iou
from uotod.solvers.dynamic_k import dynamic_k_match

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from uotod.match._base import MatcherOptions


class DynamicMatcher(PlanMatcher):
    """Match the candidates of each target that are cheapest, as many as overlap it; the subclasses document it."""

    def __init__(
        self,
        *,
        topk: int,
        cls_weight: float,
        loc_weight: float,
        eps: float,
        contested: str,
        **matcher: Unpack[MatcherOptions],
    ) -> None:
        super().__init__(**matcher)
        check_choice("contested", contested, ("all", "takers"))
        self.topk = check_integer("topk", topk, low=1)
        self.cls_weight = check_number("cls_weight", cls_weight, low=0.0)
        self.loc_weight = check_number("loc_weight", loc_weight, low=0.0)
        self.eps = check_number("eps", eps, low=0.0, low_open=True)
        self.contested = contested

    @abstractmethod
    def _candidates(self, batch: Batch) -> Tensor:
        """Return the predictions that may be matched at all, (B, 1, P) or (B, T, P) bool."""

    @abstractmethod
    def _class_cost(self, batch: Batch, overlap: Tensor) -> Tensor:
        """Return the default classification cost (B, T, P)."""

    @abstractmethod
    def _prior(self, batch: Batch) -> Tensor:
        """Return the cost (B, T, P) of a point's position."""

    def _plan(self, batch: Batch) -> Plan:
        cost = self.cost(batch)[:, : batch.targets.mask.shape[1]]
        overlap = pairwise_iou(batch.targets.boxes, self._located_boxes(batch))
        if self.nonfinite == "propagate":  # NaN has got a finite cost, wherever its point stands
            cost = cost.masked_fill(~self._candidates(batch), math.inf)
            overlap = overlap.masked_fill(~finite_predictions(batch).unsqueeze(1), 0)
        return self._assign(cost, overlap)

    def _match(self, cost: Tensor, mask: Tensor) -> Plan:
        return self._assign(cost[:, : mask.shape[1]], None)

    def _assign(self, cost: Tensor, overlap: Tensor | None) -> Plan:
        index = dynamic_k_match(cost, overlap, self.topk, self.contested)
        return assigned_plan(index, cost, cost.shape[1], self.background)

    def _pair_cost(self, batch: Batch) -> Tensor:
        boxes = self._located_boxes(batch)
        overlap = pairwise_iou(batch.targets.boxes, boxes)
        own = self._class_cost(batch, overlap) if self.cls_match_module is None else None
        loc = -(overlap + self.eps).log() if self.loc_match_module is None else None
        cost = weighted_cost(self, batch, boxes, own, loc)
        return (cost + self._prior(batch)).masked_fill(~self._candidates(batch), math.inf)


class WeightedMatcher(Protocol):
    """What `weighted_cost` reads of a matcher."""

    cls_match_module: nn.Module | None
    loc_match_module: nn.Module | None
    cls_weight: float
    loc_weight: float


def weighted_cost(
    matcher: WeightedMatcher, batch: Batch, boxes: Tensor, own_cls: Tensor | None, own_loc: Tensor | None
) -> Tensor:
    """Return the weighted sum (B, T, P) of a matcher's own costs, of which a match module replaces one each."""
    if matcher.cls_match_module is not None:
        own_cls = class_cost(matcher.cls_match_module, batch.predictions.logits, batch.targets)
    if matcher.loc_match_module is not None:
        own_loc = box_cost(matcher.loc_match_module, boxes, batch.targets.boxes)
    assert own_cls is not None
    assert own_loc is not None
    return matcher.cls_weight * own_cls + matcher.loc_weight * own_loc


def of_any_target(pairs: Tensor, mask: Tensor) -> Tensor:
    """Return which predictions form one of the (B, T, P) pairs with a target that is not padding, (B, 1, P)."""
    return torch.any(pairs & mask.unsqueeze(-1), dim=1, keepdim=True)
