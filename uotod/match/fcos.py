"""The rule of FCOS: a point is positive for the smallest target that holds it, on the level of the target's size."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from uotod.check import check_number
from uotod.geometry.anchors import Locations
from uotod.geometry.region import reaches
from uotod.match.base import Matcher, shared
from uotod.match.point_region import RegionMatcher
from uotod.match.schedule import Schedule
from uotod.scene.scene import Scene
from uotod.solvers.overlaps import pairwise


class FCOS(RegionMatcher):
    r"""Match each point to the smallest target that it lies in, near its centre and on the level of its size.

    With :math:`(l, t, r, b)` the distances of point `i` of stride :math:`s_i` to the sides of target `j`, and
    :math:`(d_x, d_y)` those to its centre, the pair is a candidate if

    .. math::
        \min(l, t, r, b) > 0, \qquad \max(d_x, d_y) < \text{radius} \cdot s_i, \qquad
        \text{low}_i \le \max(l, t, r, b) \le \text{high}_i .

    The first condition clips the region around the centre to the box. A candidate costs the area of its target, and
    every other pair `inf`; a point takes its cheapest target, the lowest on ties, and is background without any. The
    background cost is not read. With modules the cost of a candidate is theirs, in place of the area. Anchors count
    by their centres. A prediction that is not finite is never matched. `compute_matching` takes each prediction to
    the cheapest target that a cost does not forbid.

    A target without a candidate, such as one that lies between the points, is matched by nothing; two targets of the
    same centre and size are matched by the first alone. A distance equal to a bound of two levels is on both.

    Time O(B·P·T); (B, T, P) floats.

    Args:
        radius: half the width of the region around a target's centre, in strides; None for the whole box, as in the
            first version of the paper. The anchors then need no stride if `ranges` are given.
        ranges: least and largest distance to the farthest side, (low, high) for each level, in the unit of the boxes.
            The paper has (0, 64), (64, 128), (128, 256), (256, 512) and (512, inf) pixels for strides 8 to 128. None
            for 4 to 8 times the stride, from 0 at the least and to infinity at the largest stride, as torchvision does.

    The other arguments are those of `Matcher`.

    Raises:
        TypeError: an argument has the wrong type.
        ValueError: an argument is out of its range; in a call: anchors or a stride are missing, or `ranges` are not
            as many as the levels.

    References:
        Tian et al., "FCOS: fully convolutional one-stage object detection", ICCV 2019, sec. 3.1 and 3.2; "FCOS: a
        simple and strong anchor-free object detector", TPAMI 2020, sec. 3 (the radius of 1.5).

    Examples:
        >>> from uotod.utils import Points
        >>> points = Points.from_levels([(1, 4)], [8])  # at 4, 12, 20 and 28
        >>> input = {"pred_logits": torch.zeros(1, 4, 2), "pred_boxes": torch.zeros(1, 4, 4)}
        >>> boxes = torch.tensor([[[0.0, 0.0, 32.0, 8.0], [16.0, 0.0, 24.0, 8.0]]])
        >>> target = {"labels": torch.ones(1, 2).long(), "boxes": boxes}
        >>> FCOS(background=False)(input, target, points)[0].T
        tensor([[0., 1., 0., 0.],
                [0., 0., 1., 0.]])
        >>> FCOS(radius=None, background=False)(input, target, points)[0].T
        tensor([[1., 1., 0., 1.],
                [0., 0., 1., 0.]])
    """

    def __init__(
        self,
        *,
        radius: float | None = 1.5,
        ranges: Sequence[tuple[float, float]] | None = None,
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
        self.radius = None if radius is None else check_number("radius", radius, low=0.0, low_open=True)
        self.ranges = None if ranges is None else _check_ranges(ranges)

    def _candidates(self, scene: Scene) -> Tensor:
        places = self._locations(scene)
        if self.radius is None:
            radius = torch.full_like(places.centers[..., 0], math.inf)
        else:
            radius = self.radius * self._strides(scene, f"radius={self.radius}")
        points = torch.stack((*places.centers.unbind(-1), radius, *self._bounds(scene, places)), dim=-1)  # (B, P, 5)
        return self._drop_nonfinite(pairwise(reaches, scene.target_boxes, points), scene)

    def _bounds(self, scene: Scene, places: Locations) -> tuple[Tensor, Tensor]:
        """Return the (B, P) least and largest distance to the farthest side."""
        levels = places.num_levels
        if self.ranges is None:
            stride = self._strides(scene, "ranges=None")
            if not stride.shape[1]:
                return stride, stride
            finest, coarsest = (
                x.unsqueeze(1) for x in torch.aminmax(stride, dim=1)
            )  # whatever the order of the levels
            return (4 * stride).masked_fill(stride == finest, 0.0), (8 * stride).masked_fill(
                stride == coarsest, math.inf
            )
        if len(self.ranges) != levels:
            raise ValueError(
                f"ranges must hold one (low, high) for each of the {levels} levels of the anchors, "
                f"got {len(self.ranges)}"
            )
        low, high = (torch.zeros_like(places.centers[..., 0]) for _ in range(2))
        for index, (least, largest) in enumerate(self.ranges):
            low = low.masked_fill(places.level == index, least)
            high = high.masked_fill(places.level == index, largest)
        return low, high


def _check_ranges(ranges: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    if not isinstance(ranges, (tuple, list)):
        raise TypeError(f"ranges must be a list of (low, high), got {ranges!r} of type {type(ranges).__name__}")
    checked = []
    for index, pair in enumerate(ranges):
        if not isinstance(pair, (tuple, list)) or len(pair) != 2:
            raise TypeError(f"ranges[{index}] must be a pair (low, high), got {pair!r}")
        low = check_number(f"ranges[{index}][0]", pair[0])
        checked.append((low, check_number(f"ranges[{index}][1]", pair[1], low=low, finite=False)))
    return checked
