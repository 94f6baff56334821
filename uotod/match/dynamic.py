"""What the matchers with a dynamic k share: a cost of candidates, and how many predictions a target takes."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor, nn

from uotod.check import check_choice, check_integer, check_number, reads_values
from uotod.cost.blocks import MAX_BLOCK_ELEMENTS, MAX_GPU_BLOCK_ELEMENTS
from uotod.cost.pairwise import Cost
from uotod.match.assigned import assigned_plan
from uotod.match.base import Matcher, shared
from uotod.match.schedule import Schedule
from uotod.plan import Plan
from uotod.scene.scene import Scene
from uotod.solvers.aligned import Block, align
from uotod.solvers.dynamic_k import dynamic_block, dynamic_k_match
from uotod.solvers.overlaps import pairwise_iou

MAX_IMAGE_BLOCK_ELEMENTS = 1 << 20  # of a (t, P) block on the CPU: what is computed for each prediction is repeated


class DynamicMatcher(Matcher, abstract=True):
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
        check_choice("contested", contested, ("all", "takers"))
        self.topk = check_integer("topk", topk, low=1)
        self.cls_weight = check_number("cls_weight", cls_weight, low=0.0)
        self.loc_weight = check_number("loc_weight", loc_weight, low=0.0)
        self.eps = check_number("eps", eps, low=0.0, low_open=True)
        self.contested = contested

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
        self._strides(scene, "the distance of a point from a target")
        if self._has_modules():
            cost = self.cost(scene)[:, : mask.shape[1]]
            overlap = pairwise_iou(scene.target_boxes, self._located_boxes(scene))
            if self.nonfinite == "propagate":  # NaN has got a finite cost, wherever its point stands
                cost = cost.masked_fill(~self._candidates(scene), math.inf)
                overlap = overlap.masked_fill(~scene.finite.unsqueeze(1), 0)
            return self._assign(cost, overlap)
        index = torch.full(boxes.shape[:2], mask.shape[1], device=boxes.device)
        if not mask.numel() or not boxes.shape[1]:
            return assigned_plan(index, boxes, mask.shape[1], self.background)
        if reads_values(boxes, validate=False):
            for image, real in enumerate(mask):
                targets = real.nonzero().squeeze(1)
                if len(targets):
                    index[image] = self._match_image(
                        scene.part(slice(image, image + 1), targets), targets, mask.shape[1]
                    )
        else:
            candidates = self._any_candidates(scene, MAX_GPU_BLOCK_ELEMENTS)
            index = self._match_part(scene, candidates, MAX_GPU_BLOCK_ELEMENTS)
        return assigned_plan(index, boxes, mask.shape[1], self.background)

    def _match_image(self, image: Scene, targets: Tensor, background: int) -> Tensor:
        """Return the (P,) target of each prediction of a batch of one image, of whose predictions few are candidates.

        Args:
            image: the batch.
            targets: (T_b,) what its targets are called.
            background: what the background is called.
        """
        candidates = self._any_candidates(image, MAX_BLOCK_ELEMENTS)
        chosen = candidates[0].nonzero().squeeze(1)
        index = torch.full_like(candidates[0], background, dtype=torch.long)
        if len(chosen):
            part = image.part(preds=chosen)
            found = self._match_part(part, candidates[:, chosen], MAX_IMAGE_BLOCK_ELEMENTS)
            index[chosen] = torch.cat((targets, targets.new_full((1,), background)))[found[0]]
        return index

    def _any_candidates(self, scene: Scene, limit: int) -> Tensor:
        """Return the candidates (B, P), by blocks of targets of at most `limit` pairs."""
        found = torch.zeros(scene.pred_boxes.shape[:2], dtype=torch.bool, device=scene.mask.device)
        for some in _blocks(scene, limit):
            found = found | self._candidates(scene.part(targets=some)).squeeze(1)
        return found

    def _match_part(self, scene: Scene, candidates: Tensor, limit: int) -> Tensor:
        """Return the (B, P) target of each candidate, T for none, by blocks of targets of at most `limit` pairs."""
        finite = scene.finite.unsqueeze(1) if self.nonfinite == "propagate" else None

        def block(some: slice) -> Block:
            part = scene.part(targets=some)
            overlap = pairwise_iou(part.target_boxes, self._located_boxes(part))
            cost, weight = self._candidate_cost(part, overlap), self._target_weight(part)
            if weight is not None:
                cost = cost * weight.unsqueeze(-1)
            if finite is not None:  # above that of any finite pair
                cost = cost.where(finite, torch.finfo(cost.dtype).max)
                overlap = overlap.where(finite, 0.0)
            allowed = candidates.unsqueeze(1) & part.targets.mask.unsqueeze(-1)
            return dynamic_block(cost.masked_fill(~allowed, math.inf), overlap, self.topk)

        blocks = (block(some) for some in _blocks(scene, limit))
        return align(blocks, scene.pred_boxes.shape[1], self.topk, among_all=self.contested == "all")

    def match(self, cost: Tensor, mask: Tensor) -> Plan:
        return self._assign(cost[:, : mask.shape[1]], None)

    def _assign(self, cost: Tensor, overlap: Tensor | None) -> Plan:
        index = dynamic_k_match(cost, overlap, self.topk, self.contested)
        return assigned_plan(index, cost, cost.shape[1], self.background)

    def pair_cost(self, scene: Scene) -> Tensor:
        overlap = pairwise_iou(scene.target_boxes, self._located_boxes(scene))
        return self._candidate_cost(scene, overlap).masked_fill(~self._candidates(scene), math.inf)

    def _candidate_cost(self, scene: Scene, overlap: Tensor) -> Tensor:
        """Return the cost (B, T, P) of all pairs as if each prediction were a candidate."""
        own = self._class_cost(scene, overlap) if self.cls_match_module is None else None
        loc = -(overlap + self.eps).log() if self.loc_match_module is None else None
        return weighted_cost(self, scene, own, loc) + self._prior(scene)


class WeightedMatcher(Protocol):
    """What `weighted_cost` reads of a matcher."""

    cls_match_module: nn.Module | None
    loc_match_module: nn.Module | None
    cls_weight: float
    loc_weight: float

    @property
    def costs(self) -> Cost:
        """What the match modules say."""


def weighted_cost(matcher: WeightedMatcher, scene: Scene, own_cls: Tensor | None, own_loc: Tensor | None) -> Tensor:
    """Return the weighted sum (B, T, P) of a matcher's own costs, of which a match module replaces one each."""
    if matcher.cls_match_module is not None:
        own_cls = matcher.costs.of_pairs(scene, loc=False)
    if matcher.loc_match_module is not None:
        own_loc = matcher.costs.of_pairs(scene, cls=False)
    assert own_cls is not None
    assert own_loc is not None
    return matcher.cls_weight * own_cls + matcher.loc_weight * own_loc


def of_any_target(pairs: Tensor, mask: Tensor) -> Tensor:
    """Return which predictions form one of the (B, T, P) pairs with a target that is not padding, (B, 1, P)."""
    return torch.any(pairs & mask.unsqueeze(-1), dim=1, keepdim=True)


def _blocks(scene: Scene, limit: int) -> list[slice]:
    """Return slices of the targets of a batch, which form at most `limit` pairs with its predictions, or one each."""
    size = max(limit // max(scene.pred_boxes[..., 0].numel(), 1), 1)
    return [slice(start, start + size) for start in range(0, scene.mask.shape[1], size)]
