"""Uniform matching: predictions, anchors and targets in, a plan with equally many anchors for each target out."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from uotod.check import check_integer, check_number
from uotod.cost.crowded import by_targets
from uotod.geometry.boxes import aligned_overlap, box_xyxy_to_cxcywh
from uotod.match.base import Matcher, shared
from uotod.match.schedule import Schedule
from uotod.plan import Plan
from uotod.scene.scene import Scene
from uotod.solvers.candidates import stable_topk, suitors
from uotod.solvers.overlaps import largest_iou, present_boxes


class Uniform(Matcher):
    r"""Match each target to its nearest predictions and its nearest anchors, equally many whatever its size.

    A target `j` chooses the `topk` predictions of least cost and the `topk` anchors of least distance;
    the lowest index wins ties. Both are the L1 distance of centres and sizes,

    .. math:: C_{ij} = \| (c_x, c_y, w, h)_i - (c_x, c_y, w, h)_j \|_1

    A prediction that several targets choose, by itself or by its anchor, goes to the one with the lowest cost `C_ij`
    of the prediction, then to the lowest index. It is ignored, a row of zeros, if its anchor has an IoU below
    `positive` with that target. Those that no target chooses are background, or ignored if the predicted box has an
    IoU above `negative` with some target. The background cost is not read.

    `anchors` must be given. With modules their cost replaces that of the predictions; the anchors' stays. Takes
    O(B·T·P) time and a few (B, t, P) tensors of some targets. A prediction that is not finite is never chosen.

    Args:
        topk: number of predictions and of anchors that a target chooses, so that it has at most twice as many.
        positive: least IoU of a chosen anchor with its target; below it is ignored.
        negative: largest IoU of a background prediction with a target; above it is ignored.

    The other arguments are those of `Matcher`; with `is_anchor_based=True` the anchors stand for the predicted boxes,
    too. `compute_matching`, which knows no geometry, takes the `topk` cheapest predictions of each target and
    ignores none.

    Raises:
        ValueError: an argument is out of its range, or `anchors` is missing in `forward`.

    References:
        Chen et al., "You only look one-level feature", CVPR 2021, sec. 4.2 (topk 4, positive 0.15, negative
        0.7).

    Examples:
        >>> anchors = torch.tensor([[0.0, 0, 4, 4], [4, 0, 8, 4], [8, 0, 12, 4], [12, 0, 16, 4]])
        >>> input = {"pred_logits": torch.zeros(1, 4, 2), "pred_boxes": anchors[None]}
        >>> target = {"boxes": torch.tensor([[[1.0, 0, 5, 4]]]), "labels": torch.tensor([[1]])}
        >>> Uniform(topk=2)(input, target, anchors)[0]  # the second anchor overlaps too little: ignored
        tensor([[1., 0.],
                [0., 0.],
                [0., 1.],
                [0., 1.]])
    """

    def __init__(
        self,
        *,
        topk: int = 4,
        positive: float = 0.15,
        negative: float = 0.7,
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
        self.topk = check_integer("topk", topk, low=1)
        self.positive = check_number("positive", positive, low=0.0, high=1.0)
        self.negative = check_number("negative", negative, low=0.0, high=1.0)

    def plan(self, scene: Scene) -> Plan:
        anchors, mask = self._locations(scene).boxes, scene.mask
        num_targets, preds = mask.shape[1], anchors.shape[1]
        chosen, value = (torch.cat(x, dim=1) for x in zip(*by_targets(self._choices, scene), strict=True))  # (B, T, K)
        owner = suitors(value, chosen, preds)

        overlap = largest_iou(scene.target_boxes, scene.mask, self._located_boxes(scene))  # (B, P)
        index = torch.where((owner == num_targets) & (overlap > self.negative), -1, owner)
        present = F.pad(present_boxes(scene.target_boxes, scene.mask), (0, 0, 0, 1))
        own = present.gather(1, owner.unsqueeze(-1).expand(-1, -1, 4))  # (B, P, 4)
        is_far = aligned_overlap(anchors, own, "iou", eps=0.0) < self.positive
        index = torch.where((owner < num_targets) & is_far, -1, index)
        return Plan.from_index(index, num_targets, self.background, value.dtype)

    def match(self, cost: Tensor, mask: Tensor) -> Plan:
        cost = cost[:, : mask.shape[1]]
        chosen = self._cheapest(cost)
        index = suitors(-cost.gather(2, chosen), chosen, cost.shape[2])
        return Plan.from_index(index, mask.shape[1], self.background, cost.dtype)

    def _choices(self, scene: Scene) -> tuple[Tensor, Tensor]:
        """Return the (B, T, K) indices of the predictions that targets choose, and how much each suits."""
        cost = self.cost(scene)[:, : scene.mask.shape[1]]  # (B, T, P)
        if self.nonfinite == "propagate":
            cost = cost.masked_fill(~scene.finite.unsqueeze(1), math.inf)
        distance = _distance(scene.target_boxes, self._locations(scene).boxes).masked_fill(cost == math.inf, math.inf)
        chosen = torch.cat((self._cheapest(cost), self._cheapest(distance)), dim=2)
        return chosen, -cost.gather(2, chosen)

    def _cheapest(self, cost: Tensor) -> Tensor:
        """Return the (B, T, k) indices of the cheapest predictions of each target."""
        return stable_topk(-cost, min(self.topk, cost.shape[2]))[1]

    def own_pair_cost(self, scene: Scene) -> Tensor:
        return _distance(scene.target_boxes, self._located_boxes(scene))


def _distance(target_boxes: Tensor, boxes: Tensor) -> Tensor:
    """Return the L1 distance (B, T, P) of centres and sizes."""
    return torch.cdist(box_xyxy_to_cxcywh(target_boxes), box_xyxy_to_cxcywh(boxes), p=1.0)
