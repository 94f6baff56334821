"""What the matchers with a dynamic k share: a cost of candidates, and how many predictions a target takes."""

from __future__ import annotations

import math
from abc import abstractmethod
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from uotod._batch import Batch
from uotod._boxes import pairwise_overlap
from uotod._check import check_choice, check_integer, check_number
from uotod._cost import box_cost, by_blocks, class_cost
from uotod._plan import AssignedPlan, Plan
from uotod.match._base import PlanMatcher
from uotod.match._checks import finite_predictions
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
        overlap = located_overlap(batch, self._located_boxes(batch))
        if self.nonfinite == "propagate":  # NaN has got a finite cost, wherever its point stands
            cost = cost.masked_fill(~self._candidates(batch), math.inf)
            overlap = overlap.masked_fill(~finite_predictions(batch).unsqueeze(1), 0)
        return self._assign(cost, overlap)

    def _match(self, cost: Tensor, mask: Tensor) -> Plan:
        return self._assign(cost[:, : mask.shape[1]], None)

    def _assign(self, cost: Tensor, overlap: Tensor | None) -> Plan:
        index = dynamic_k_match(cost, overlap, self.topk, self.contested)
        return AssignedPlan(index, cost.new_ones(index.shape), cost.shape[1], self.background)

    def _pair_cost(self, batch: Batch) -> Tensor:
        boxes = self._located_boxes(batch)
        overlap = located_overlap(batch, boxes)
        if self.cls_match_module is None:
            cost = self.cls_weight * self._class_cost(batch, overlap)
        else:
            cost = self.cls_weight * class_cost(self.cls_match_module, batch.predictions.logits, batch.targets)
        if self.loc_match_module is None:
            cost = cost - self.loc_weight * (overlap + self.eps).log()
        else:
            cost = cost + self.loc_weight * box_cost(self.loc_match_module, boxes, batch.targets.boxes)
        return (cost + self._prior(batch)).masked_fill(~self._candidates(batch), math.inf)


def located_overlap(batch: Batch, boxes: Tensor) -> Tensor:
    """Return the IoU (B, T, P) of the targets with (B, P, 4) boxes."""
    return by_blocks(partial(pairwise_overlap, kind="iou", eps=0.0), batch.targets.boxes, boxes)


def of_any_target(pairs: Tensor, mask: Tensor) -> Tensor:
    """Return which predictions form one of the (B, T, P) pairs with a target that is not padding, (B, 1, P)."""
    return torch.any(pairs & mask.unsqueeze(-1), dim=1, keepdim=True)
