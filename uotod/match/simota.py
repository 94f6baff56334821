"""SimOTA, the dynamic label assignment of YOLOX: costs of candidates and a dynamic k in, an assignment out."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from uotod.check import check_choice, check_number
from uotod.cost.kinds import ClassTerms
from uotod.geometry.region import contains, near_center
from uotod.match.base import shared
from uotod.match.dynamic import DynamicMatcher, of_any_target
from uotod.match.schedule import Schedule
from uotod.scene.scene import Scene


class SimOTA(DynamicMatcher):
    r"""Give each target its `k` cheapest predictions near its centre, `k` being what overlaps it in total.

    .. math::
        C_{ij} = \text{cls\_weight} \sum_c \mathrm{BCE}\bigl(\sqrt{p_{ic}\, o_i}, [c = c_j]\bigr)
                 - \text{loc\_weight} \ln(u_{ij} + \text{eps}) + \text{penalty}\, [i \notin \text{region}(j)],
        \qquad k_j = \max\bigl(1, \bigl\lfloor \textstyle\sum_{\text{topk}} u_{ij} \bigr\rfloor\bigr)

    with `p` the class probability, `o` the objectness (`input["pred_objectness"]`, before the sigmoid; 1 without it)
    and `u` the IoU. Candidates are the predictions whose point lies in the region of *some* target: only they are
    matched, and only they count in `k_j`. The rest is background. The defaults are those of YOLOX; mmdetection's
    assigner is `SimOTA(region="box_and_center", radius=2.5, penalty=1e5, eps=1e-7)`.

    It needs points with strides (`Points`, or `Anchors` with a stride). An image without candidates is all background,
    and a target may end without a prediction. Without geometry, in `compute_matching`, each target takes its one
    cheapest prediction. The background's cost is not read. O(B·P·(T + C)) time; without match modules a few targets at
    a time, on the CPU with the candidates of one image, so that no (B, T, P) tensor is held.

    Args:
        radius: half the side of the square around a target's centre, in strides of the point.
        topk: number of overlaps that are summed.
        cls_weight: factor of the classification cost, also of `cls_match_module` if that replaces it.
        loc_weight: factor of the localisation cost, also of `loc_match_module` if that replaces it.
        region: "center": a point lies strictly in the square around a target's centre, and this makes a candidate.
            "box_and_center": it lies strictly in the box too, where one of both makes a candidate.
        penalty: cost of a candidate outside the region, above all others; `inf` forbids such pairs. At 1e6 float32
            tells such pairs apart to 0.06.
        eps: what is added to the IoU in the logarithm.
        contested: who competes for a prediction that several targets took: "all" targets, as in the published
            implementations, where it may go to a target that did not take it, or only its "takers".

    The other arguments are those of `Matcher`.

    Raises:
        TypeError: an argument has the wrong type.
        ValueError: an argument is out of its range; in `forward`, there are no anchors or they have no strides.

    References:
        Ge et al., "YOLOX: exceeding YOLO series in 2021", arXiv 2107.08430, sec. 2.1, eq. 1; the radius of 1.5 and
        the region are those of its later implementation.

    Examples:
        >>> from uotod.utils import Points
        >>> points = Points.from_levels([(2, 2)], strides=[8])
        >>> boxes = points.centers[:, [0, 1, 0, 1]] + torch.tensor([-4.0, -4.0, 4.0, 4.0])
        >>> input = {"pred_logits": torch.zeros(1, 4, 3), "pred_boxes": boxes[None]}
        >>> target = {"boxes": torch.tensor([[[0.0, 0.0, 8.0, 8.0]]]), "labels": torch.tensor([[2]])}
        >>> SimOTA()(input, target, points)[0, :, 0]
        tensor([1., 0., 0., 0.])
    """

    reads_if_given = ("pred_objectness",)

    def __init__(
        self,
        *,
        radius: float = 1.5,
        topk: int = 10,
        cls_weight: float = 1.0,
        loc_weight: float = 3.0,
        region: str = "center",
        penalty: float = 1e6,
        eps: float = 1e-8,
        contested: str = "all",
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
        super().__init__(**shared(DynamicMatcher, locals()))
        self.radius = check_number("radius", radius, low=0.0, low_open=True)
        self.region = check_choice("region", region, ("center", "box_and_center"))
        self.penalty = check_number("penalty", penalty, low=0.0, finite=False)

    def _candidates(self, scene: Scene) -> Tensor:
        near, inside = self._tests(scene)
        return of_any_target(near if inside is None else near | inside, scene.mask)

    def _prior(self, scene: Scene) -> Tensor:
        near, inside = self._tests(scene)
        region = near if inside is None else near & inside
        return torch.where(region, 0.0, scene.target_boxes.new_full((), self.penalty))

    def _tests(self, scene: Scene) -> tuple[Tensor, Tensor | None]:
        """Return which points (B, T, P) are near a target's centre and, if that counts, inside its box."""
        (points, stride), boxes = self._points(scene), scene.target_boxes
        near = near_center(points, stride, boxes, self.radius)
        return near, contains(boxes, points) if self.region == "box_and_center" else None

    def _class_cost(self, scene: Scene, overlap: Tensor) -> Tensor:
        gain, base = joint_terms(scene.logits, scene.preds.get("pred_objectness"))
        assert base is not None
        return scene.targets.pick(gain) + base.unsqueeze(1)


def joint_terms(logits: Tensor, objectness: Tensor | None) -> ClassTerms:
    """Return the binary cross-entropy of `√(σ(logit) σ(objectness))`, summed over classes, as an affine function.

    Logarithms are cut off at -100, as in `torch.nn.functional.binary_cross_entropy`.

    Args:
        logits: (B, P, C).
        objectness: (B, P), or None for a probability of 1.
    """
    log_p = F.logsigmoid(logits)
    if objectness is not None:
        log_p = log_p + F.logsigmoid(objectness).unsqueeze(-1)
    log_p = log_p / 2
    # log(1 − p) from log p: 1 − p itself has lost its digits where p is near 1
    log_q = torch.where(log_p > -math.log(2), (-log_p.expm1()).log(), (-log_p.exp()).log1p())
    positive, negative = -log_p.clamp(min=-100.0), -log_q.clamp(min=-100.0)
    return ClassTerms(positive - negative, negative.sum(-1))
