"""The rule of FSAF and FoveaBox: a point in the core of a target is positive, one in the ring around it is ignored."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from torch import Tensor, nn

from uotod.check import check_number
from uotod.geometry.boxes import box_scaled
from uotod.geometry.region import contains, overlaps
from uotod.match.base import Matcher, shared
from uotod.match.point_region import RegionMatcher
from uotod.match.schedule import Schedule
from uotod.plan import Plan
from uotod.scene.scene import Scene
from uotod.solvers.overlaps import pairwise


class CenterRegion(RegionMatcher):
    r"""Match each point to the smallest target in whose core it lies; ignore the points of the ring around the core.

    With :math:`\sigma b` the box `b` shrunk to the share :math:`\sigma` of its sides around its centre, point `i` at
    :math:`a_i` is

    .. math::
        \text{positive for } \arg\min_j |b_j| \text{ among } a_i \in \text{core} \cdot b_j, \qquad
        \text{ignored if } a_i \in \text{ring} \cdot b_j \text{ for some } j ,

    in this order, and background otherwise. The side of a region is outside; the lowest target wins ties. Anchors
    count by their centres, and no stride is needed. A point in the core costs the area of the target and every other
    pair `inf`; with modules the cost is theirs in place of the area. The background cost is not read. A prediction
    that is not finite is never matched. `compute_matching` takes each prediction to the cheapest target that a cost
    does not forbid, and ignores nothing.

    All levels are treated alike: give a target to one level by `FCOS(radius=None, ranges=...)`. A target whose core
    lies between the points is matched by nothing; `min_iof` is milder.

    Time O(B·P·T); (B, T, P) floats.

    Args:
        core: side of the core, as a share of the target's: 0.2 in FSAF, 0.4 in FoveaBox; 1 for the whole box.
        ring: side of the core with its ring, at least `core`; 0.5 in FSAF. None for no ring.
        min_iof: share of the area of an anchor, or of the cell of a point, that must lie in a region, exclusive,
            instead of the centre; 0.01 in mmdet. The centre of a positive one must still lie in the target, or it
            belongs to the ring. None to go by centres.

    The other arguments are those of `Matcher`.

    Raises:
        TypeError: an argument has the wrong type.
        ValueError: an argument is out of its range; in a call: anchors are missing.

    References:
        Zhu et al., "Feature selective anchor-free module for single-shot object detection", CVPR 2019, sec. 3.2
        (0.2, 0.5); Kong et al., "FoveaBox: beyond anchor-based object detection", TIP 2020, sec. III.

    Examples:
        >>> import torch
        >>> from uotod.utils import Points
        >>> points = Points.from_levels([(1, 5)], [8])  # at 4, 12, 20, 28 and 36
        >>> input = {"pred_logits": torch.zeros(1, 5, 2), "pred_boxes": torch.zeros(1, 5, 4)}
        >>> target = {"labels": torch.ones(1, 1).long(), "boxes": torch.tensor([[[0.0, 0.0, 40.0, 8.0]]])}
        >>> CenterRegion(ring=0.5)(input, target, points)[0].T
        tensor([[0., 0., 1., 0., 0.],
                [1., 0., 0., 0., 1.]])
    """

    def __init__(
        self,
        *,
        core: float = 0.2,
        ring: float | None = None,
        min_iof: float | None = None,
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
        self.core = check_number("core", core, low=0.0, low_open=True)
        self.ring = None if ring is None else check_number("ring", ring, low=self.core)
        self.min_iof = None if min_iof is None else check_number("min_iof", min_iof, low=0.0, high=1.0)

    def plan(self, scene: Scene) -> Plan:
        plan = super().plan(scene)
        if self.ring is None or not scene.mask.shape[1]:
            return plan
        return plan.ignoring((self._region(scene, self.ring) & scene.mask.unsqueeze(-1)).any(1))

    def _candidates(self, scene: Scene) -> Tensor:
        region = self._region(scene, self.core)
        if self.min_iof is not None:
            region = region & pairwise(contains, scene.target_boxes, self._locations(scene).centers)
        return self._drop_nonfinite(region, scene)

    def _region(self, scene: Scene, scale: float) -> Tensor:
        """Return the (B, T, P) mask of points in the targets scaled around their centres."""
        places, region = self._locations(scene), box_scaled(scene.target_boxes, scale)
        if self.min_iof is None:
            return pairwise(contains, region, places.centers)
        return pairwise(partial(overlaps, share=self.min_iof), region, places.boxes)
