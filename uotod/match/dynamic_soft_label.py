"""RTMDet's dynamic soft labels: costs of candidates and a dynamic k in, an assignment out."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional as F

from uotod.check import check_number
from uotod.geometry.region import center_distance, contains
from uotod.match.base import shared
from uotod.match.dynamic import DynamicMatcher, of_any_target
from uotod.match.schedule import Schedule
from uotod.scene.scene import Scene
from uotod.scene.targets import Targets

LARGEST_EXPONENT = 30.0  # 10^38 is the end of float32; `inf` would forbid the pair


class DynamicSoftLabel(DynamicMatcher):
    r"""Give each target its `k` cheapest predictions inside targets, by a cost that softens labels by the IoU.

    .. math::
        C_{ij} = \text{cls\_weight} \sum_c \mathrm{BCE}(x_{ic}, y_{ijc})\, (y_{ijc} - p_{ic})^2
                 - \text{loc\_weight} \ln(u_{ij} + \text{eps}) + 10^{d_{ij} - \text{radius}},
        \qquad y_{ijc} = u_{ij} [c = c_j]

    with `p = σ(x)`, `u` the IoU and `d` the distance of the point from the target's centre, in strides of the point.
    Each target takes its `k_j = max(1, ⌊Σ u⌋)` cheapest predictions, the sum over the `topk` largest IoUs.
    Candidates are the predictions whose point lies strictly inside *some* target: only they are matched, and only they
    count in `k_j`. The rest is background.

    It needs points with strides (`Points`, or `Anchors` with a stride). An image without candidates is all background,
    and a target may end without a prediction. Without geometry, in `compute_matching`, each target takes its one
    cheapest prediction. The background's cost is not read. O(B·P·(T + C)) time; without match modules a few targets at
    a time, on the CPU with the candidates of one image, so that no (B, T, P) tensor is held.

    Args:
        topk: number of overlaps that are summed.
        radius: distance, in strides, at which a point's position costs 1.
        loc_weight: factor of the localisation cost, also of `loc_match_module` if that replaces it.
        cls_weight: factor of the classification cost, also of `cls_match_module` if that replaces it.
        eps: what is added to the IoU in the logarithm.
        contested: who competes for a prediction that several targets took: "all" targets, as in the published
            implementation, where it may go to a target that did not take it, or only its "takers".

    The other arguments are those of `Matcher`.

    Raises:
        TypeError: an argument has the wrong type.
        ValueError: an argument is out of its range; in `forward`, there are no anchors or they have no strides.

    References:
        Lyu et al., "RTMDet: an empirical study of designing real-time object detectors", arXiv 2212.07784, sec. 3.3,
        eqs. 1-4.

    Examples:
        >>> import torch
        >>> from uotod.utils import Points
        >>> points = Points.from_levels([(2, 2)], strides=[8])
        >>> boxes = points.centers[:, [0, 1, 0, 1]] + torch.tensor([-4.0, -4.0, 4.0, 4.0])
        >>> input = {"pred_logits": torch.zeros(1, 4, 3), "pred_boxes": boxes[None]}
        >>> target = {"boxes": torch.tensor([[[0.0, 0.0, 8.0, 16.0]]]), "labels": torch.tensor([[2]])}
        >>> DynamicSoftLabel()(input, target, points)[0, :, 0]
        tensor([1., 0., 0., 0.])
    """

    def __init__(
        self,
        *,
        topk: int = 13,
        radius: float = 3.0,
        loc_weight: float = 3.0,
        cls_weight: float = 1.0,
        eps: float = 1e-7,
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

    def _candidates(self, scene: Scene) -> Tensor:
        return of_any_target(contains(scene.target_boxes, self._locations(scene).centers), scene.mask)

    def _prior(self, scene: Scene) -> Tensor:
        distance = center_distance(*self._points(scene), scene.target_boxes)
        return 10 ** (distance - self.radius).clamp(max=LARGEST_EXPONENT)

    def _class_cost(self, scene: Scene, overlap: Tensor) -> Tensor:
        return soft_label_cost(scene.logits, scene.targets, overlap)


def soft_label_cost(logits: Tensor, targets: Targets, overlap: Tensor) -> Tensor:
    r"""Return the binary cross-entropy with labels times the IoU, weighted by the squared error, as (B, T, P).

    With `s = softplus(x)` and the soft label `y = u t`, a class costs `(s − x y)(y − p)²`: a polynomial of third degree
    in the IoU `u`, whose coefficients are sums over classes, so that only they are gathered.

    Args:
        logits: (B, P, C).
        targets: targets with integer labels, or rows of labels in [0, 1].
        overlap: (B, T, P) IoU.
    """
    p, s = logits.sigmoid(), F.softplus(logits)
    constant = (s * p**2).sum(-1).unsqueeze(1)  # (B, 1, P)
    first = targets.pick(-2 * p * s - logits * p**2)  # (B, T, P)
    second = _power(targets, 2).pick(s + 2 * logits * p)
    third = _power(targets, 3).pick(-logits)
    return constant + overlap * (first + overlap * (second + overlap * third))


def _power(targets: Targets, exponent: int) -> Targets:
    """Return the targets with their label rows to a power; integers stand for rows of zeros and a one."""
    if targets.one_hot is None:
        return targets
    return dataclasses.replace(targets, one_hot=targets.one_hot**exponent)
