"""OTA, optimal transport assignment: costs of pairs and dynamic supplies in, an assignment out."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from uotod.check import check_integer, check_number
from uotod.cost.alpha import Alpha, alpha_of, set_alpha
from uotod.cost.focal import focal_terms
from uotod.geometry.region import contains, near_center
from uotod.match.base import Matcher, shared
from uotod.match.dynamic import PointCostMatcher
from uotod.match.schedule import Schedule
from uotod.plan import Plan
from uotod.scene.scene import Scene
from uotod.solvers.dynamic_k import dynamic_count
from uotod.solvers.ota import ota_match
from uotod.solvers.overlaps import pairwise_iou


class OTA(PointCostMatcher):
    r"""Give each prediction to the target, or to the background, whose transport plan favours it most.

    Balanced entropic transport brings `s_j` predictions to target `j` and the rest to the background, at the costs

    .. math::
        C_{ij} = \text{cls\_weight}\, \mathrm{focal}(x_i, c_j) - \text{loc\_weight} \ln \max(u_{ij}, \text{eps})
                 + \text{penalty}\, [i \notin \text{region}(j)], \qquad
        C_{i\varnothing} = \text{cls\_weight}\, \mathrm{focal}(x_i, 0), \qquad
        s_j = \max\bigl(1, \bigl\lfloor \textstyle\sum_{\text{topk}} u_{ij} \bigr\rfloor\bigr)

    with the focal loss summed over classes and `u` the IoU; `s_j` sums those of points in the target's region: strictly
    inside its box and in the square of `2 · radius · stride` around its centre. Each column of the plan is divided by
    its largest mass, and a prediction goes to the column in which it then has most.

    It needs points with strides (`Points`, or `Anchors` with a stride). A target without a point in its region still
    supplies one prediction, at the penalty; of targets that favour the same predictions, the copies of an object among
    them, the lowest index takes those. More supplies than predictions are scaled down. Without geometry, in
    `compute_matching`, each target supplies 1, and `inf` forbids a pair. Solved in float64: time O(B·P·T) a step,
    typically 15 to 40 of them, memory a few (B, T, P) doubles.

    Args:
        radius: half the side of the square around a target's centre, in strides of the point.
        topk: number of overlaps that are summed.
        cls_weight: factor of the classification cost, also of `cls_match_module` if that replaces it; with a module
            the background costs `background_cost`, and a constant there changes nothing.
        loc_weight: factor of the localisation cost, also of `loc_match_module` if that replaces it.
        alpha: weight of a one in the focal loss, in [0, 1]; or (C,) one for each class.
        gamma: focusing exponent of the focal loss, at least 0.
        eps: least IoU in the logarithm.
        penalty: cost of a pair outside the region.
        reg: weight of the entropy, in units of the cost; a number, or a schedule: a callable that returns one for the
            step given to `set_step`.
        num_iter: most steps of the solver; on a GPU, where stopping early would synchronise, all are taken.
        tol: largest mass that a further sweep may move in a column.

    The other arguments are those of `Matcher`.

    Raises:
        TypeError: an argument has the wrong type.
        ValueError: an argument is out of its range; in `forward`, there are no anchors or they have no strides.

    References:
        Ge et al., "OTA: optimal transport assignment for object detection", CVPR 2021, secs. 3.1-3.3, alg. 1. Its
        implementation takes 50 sweeps, after which masses may still be off by a tenth; this is the solution.

    Examples:
        >>> from uotod.utils import Points
        >>> points = Points.from_levels([(2, 2)], strides=[8])
        >>> boxes = points.centers[:, [0, 1, 0, 1]] + torch.tensor([-4.0, -4.0, 4.0, 4.0])
        >>> input = {"pred_logits": torch.zeros(1, 4, 3), "pred_boxes": boxes[None]}
        >>> target = {"boxes": torch.tensor([[[0.0, 0.0, 8.0, 8.0]]]), "labels": torch.tensor([[2]])}
        >>> OTA()(input, target, points)[0, :, 0]
        tensor([1., 0., 0., 0.])
    """

    alpha: float | Tensor

    def __init__(
        self,
        *,
        radius: float = 2.5,
        topk: int = 20,
        cls_weight: float = 1.0,
        loc_weight: float = 1.5,
        alpha: Alpha = 0.25,
        gamma: float = 2.0,
        eps: float = 2.0**-23,
        penalty: float = 1e6,
        reg: float | Schedule = 0.1,
        num_iter: int = 100,
        tol: float = 1e-6,
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
        self.radius = check_number("radius", radius, low=0.0, low_open=True)
        self.topk = check_integer("topk", topk, low=1)
        self.cls_weight = check_number("cls_weight", cls_weight, low=0.0)
        self.loc_weight = check_number("loc_weight", loc_weight, low=0.0)
        set_alpha(self, alpha, high=1.0)
        self.gamma = check_number("gamma", gamma, low=0.0)
        self.eps = check_number("eps", eps, low=0.0, low_open=True)
        self.penalty = check_number("penalty", penalty, low=0.0)
        self.reg = self.scheduled("reg", reg, low=0.0, low_open=True)
        self.num_iter = check_integer("num_iter", num_iter, low=1)
        self.tol = check_number("tol", tol, low=0.0, low_open=True)

    def cost(self, scene: Scene) -> Tensor:
        """Return the target-major cost, penalty and the background's column included."""
        pairs = self._target_cost(scene) + torch.where(self._region(scene), 0.0, self.penalty)
        if not self.background:
            return pairs
        return torch.cat((pairs, self._background_cost(scene).unsqueeze(1)), dim=1)

    def plan(self, scene: Scene) -> Plan:
        overlap, region = pairwise_iou(scene.target_boxes, self._located_boxes(scene)), self._region(scene)
        if self.nonfinite == "propagate":
            overlap = overlap.masked_fill(~scene.finite.unsqueeze(1), 0)
        supply = torch.zeros_like(scene.mask, dtype=torch.long)
        if overlap.numel():
            supply = dynamic_count(overlap.masked_fill(~region, 0), self.topk) * scene.mask
        return self._assign(self._target_cost(scene), ~region, self._background_cost(scene), supply)

    def match(self, cost: Tensor, mask: Tensor) -> Plan:
        pairs = cost[:, : mask.shape[1]]
        # without a column any constant does: the background's supply is fixed
        background = cost[:, -1] if self.background else cost.new_zeros(len(cost), cost.shape[2])
        return self._assign(pairs, None, background, mask)

    def _assign(self, cost: Tensor, outside: Tensor | None, background: Tensor, supply: Tensor) -> Plan:
        index = ota_match(
            cost,
            outside,
            background,
            supply,
            penalty=self.penalty,
            reg=self.reg,
            num_iter=self.num_iter,
            tol=self.tol,
        )
        return Plan.from_index(index, cost.shape[1], self.background, cost.dtype)

    def _target_cost(self, scene: Scene) -> Tensor:
        """Return the cost (B, T, P) of the targets, without the penalty."""
        return super().cost(scene)[:, : scene.mask.shape[1]]

    def pair_cost(self, scene: Scene) -> Tensor:
        boxes, own, loc = self._located_boxes(scene), None, None
        if self.cls_match_module is None:
            positive, negative = focal_terms(scene.logits, alpha_of(self, scene.logits), self.gamma)
            own = scene.targets.pick(positive - negative) + negative.sum(-1).unsqueeze(1)
        if self.loc_match_module is None:
            loc = -pairwise_iou(scene.target_boxes, boxes).clamp(min=self.eps).log()
        return self._weighted_cost(scene, own, loc)

    def _background_cost(self, scene: Scene) -> Tensor:
        """Return the cost (B, P) of the background; a prediction that is not finite belongs there."""
        logits = scene.logits
        if self.cls_match_module is not None:
            return logits.new_full(logits.shape[:2], self.background_cost)
        _, negative = focal_terms(logits, alpha_of(self, logits), self.gamma)
        return self.cls_weight * negative.sum(-1).where(scene.finite, 0.0)

    def _region(self, scene: Scene) -> Tensor:
        (points, stride), boxes = self._points(scene), scene.target_boxes
        return contains(boxes, points) & near_center(points, stride, boxes, self.radius)
