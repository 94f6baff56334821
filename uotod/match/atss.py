"""Adaptive training sample selection: anchors and targets in, a plan by a threshold of each target out."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from uotod.check import check_integer, check_number
from uotod.geometry.boxes import aligned_overlap, box_centers
from uotod.match.base import Matcher, shared
from uotod.match.schedule import Schedule
from uotod.match.similarity import OverlapMatcher
from uotod.plan import Plan
from uotod.scene.scene import Scene
from uotod.solvers.atss import atss_match, nearest_candidates, nearest_per_level


class ATSS(OverlapMatcher):
    r"""Match each target to the nearby anchors whose IoU stands out, by a threshold from their statistics.

    The candidates `A_j` of target `j` are, on each level, the `topk` anchors whose centres are nearest to its own
    (L2). With `u_ij` the IoU of an anchor with the target, anchor `i` of `A_j` is positive if its centre lies inside
    the target and

    .. math:: u_{ij} \ge \operatorname{mean}_{A_j} u + \operatorname{std}_{A_j} u

    with the sample standard deviation, which is 0 for a single candidate. An anchor that is positive for several
    targets goes to the one with the highest IoU, then to the lowest index; all others are background. A target may
    stay without anchors: its centre-most anchors lie outside, or two unequal candidates, neither of which can reach
    the threshold, are all it has. The background cost is not read.

    `anchors` must be given: `Anchors` or `Points` with levels; a plain tensor counts as a single level. Without
    modules the cost is `1 - IoU`; with modules, or weights of targets, `1 - cost` takes the place of the IoU. Takes
    O(B·T·P) time, on a GPU times the number of levels, and without modules no (B, T, P) tensor: targets are visited a
    few at a time. A prediction that is not finite is never positive.

    Args:
        topk: number of candidates on each level.
        margin: least distance, exclusive, of an anchor's centre from the sides of its target, in the units of the
            boxes.
        alpha: with `alpha < 1` (DDOD: 0.8) the IoU is replaced by :math:`s^{1 - \alpha} u^\alpha`, where `s` is the
            sigmoid of the logit of the target's class. Only without modules.
        is_anchor_based: here True by default; with False the IoU is that of the predicted boxes (as in DDOD), and
            the anchors serve for the distances only.

    The other arguments are those of `Matcher`. `compute_matching`, which knows no geometry, takes the `topk` cheapest
    predictions as candidates, as if they lay inside and on one level.

    Raises:
        ValueError: an argument is out of its range, or `anchors` is missing in `forward`.

    References:
        Zhang et al., "Bridging the gap between anchor-based and anchor-free detection via adaptive training sample
        selection", CVPR 2020, algorithm 1 (topk 9); Chen et al., "Disentangle your dense object detector", ACM MM 2021
        (alpha).

    Examples:
        >>> from uotod.utils import Anchors
        >>> boxes = torch.tensor([[0.0, 0, 8, 8], [8, 0, 16, 8], [16, 0, 24, 8], [24, 0, 32, 8], [0, 0, 32, 32]])
        >>> anchors = Anchors.from_levels([boxes[:4], boxes[4:]], strides=[8, 32])
        >>> input = {"pred_logits": torch.zeros(1, 5, 2), "pred_boxes": boxes[None]}
        >>> target = {"boxes": torch.tensor([[[1.0, 0, 9, 8]]]), "labels": torch.tensor([[1]])}
        >>> ATSS()(input, target, anchors)[0, :, 0]
        tensor([1., 0., 0., 0., 0.])
    """

    def __init__(
        self,
        *,
        topk: int = 9,
        margin: float = 0.0,
        alpha: float = 1.0,
        cls_match_module: nn.Module | None = None,
        loc_match_module: nn.Module | None = None,
        background: bool = True,
        background_cost: float | Schedule = 10.0,
        is_anchor_based: bool = True,
        nonfinite: str = "error",
        ignore_threshold: float = 0.5,
        class_weight: Sequence[float] | Tensor | None = None,
        validate: bool = False,
        box_format: str | None = None,
    ) -> None:
        super().__init__(**shared(Matcher, locals()))
        self.topk = check_integer("topk", topk, low=1)
        self.margin = check_number("margin", margin, low=0.0)
        self.alpha = check_number("alpha", alpha, low=0.0, high=1.0)
        if self.alpha < 1 and self._has_modules():
            raise ValueError(f"alpha must be 1 with match modules, which bring a cost of their own, got {alpha!r}")

    def plan(self, scene: Scene) -> Plan:
        anchors, boxes = self._locations(scene), scene.target_boxes
        places = anchors.centers
        index, valid, similarity = self._candidates(scene)
        x, y = (places[..., k].gather(1, index.flatten(1)).view_as(index) for k in (0, 1))  # (B, T, K)
        x1, y1, x2, y2 = (side.unsqueeze(-1) for side in boxes.unbind(-1))
        inside = torch.stack((x - x1, y - y1, x2 - x, y2 - y)).amin(0) > self.margin
        return self._assign(similarity, index, valid, inside, places.shape[1])

    def _candidates(self, scene: Scene) -> tuple[Tensor, Tensor, Tensor]:
        """Return the candidates (B, T, K) of each target, which of these are some, and their similarity."""
        anchors, mask = self._locations(scene), scene.mask
        finite = scene.finite if self.nonfinite == "propagate" else mask.new_ones(anchors.level.shape)
        table = 1 - self.cost(scene)[:, : mask.shape[1]] if self._reads_cost(scene) else None  # (B, T, P)
        centers, forbidden = box_centers(scene.target_boxes), None if table is None else table == -math.inf
        index, valid = nearest_candidates(
            centers, anchors.centers, mask, finite, anchors.level, anchors.num_levels, self.topk, forbidden
        )
        return index, valid, self._pair_similarity(scene, index) if table is None else table.gather(2, index)

    def _pair_similarity(self, scene: Scene, index: Tensor) -> Tensor:
        """Return the similarity of each target with (B, T, K) predictions, without modules."""
        flat, targets, logits = index.flatten(1), scene.targets, scene.logits
        boxes = self._located_boxes(scene).gather(1, flat.unsqueeze(-1).expand(-1, -1, 4)).view(*index.shape, 4)
        iou = aligned_overlap(scene.target_boxes.unsqueeze(2), boxes, "iou", eps=0.0)
        if self.alpha == 1:
            return iou
        classes = logits.shape[2]
        rows = logits.gather(1, flat.unsqueeze(-1).expand(-1, -1, classes)).view(*index.shape, classes)
        if targets.one_hot is None:
            assert targets.labels is not None
            label = targets.labels[:, :, None, None].expand(*index.shape, 1)
            score = rows.gather(3, label).squeeze(3).sigmoid()
        else:
            score = (rows.sigmoid() * targets.one_hot.unsqueeze(2)).sum(3)
        return self._aligned(iou, score)

    def _aligned(self, iou: Tensor, score: Tensor) -> Tensor:
        return score ** (1 - self.alpha) * iou**self.alpha

    def match(self, cost: Tensor, mask: Tensor) -> Plan:
        cost = cost[:, : mask.shape[1]]
        index, valid = nearest_per_level(cost, torch.zeros_like(cost[:, 0], dtype=torch.long), 1, self.topk)
        return self._assign(1 - cost.gather(2, index), index, valid, torch.ones_like(valid), cost.shape[2])

    def _assign(self, similarity: Tensor, index: Tensor, valid: Tensor, inside: Tensor, preds: int) -> Plan:
        assigned = atss_match(similarity, index, valid, inside, preds)
        return Plan.from_index(assigned, similarity.shape[1], self.background, similarity.dtype)

    def _similarity(self, scene: Scene) -> Tensor:
        """Return the similarity (B, T, P) without modules: the IoU, or its mean with the score of the class."""
        iou = super()._similarity(scene)
        if self.alpha == 1:
            return iou
        return self._aligned(iou, scene.targets.pick(scene.logits.sigmoid()))
