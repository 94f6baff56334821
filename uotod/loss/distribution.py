"""The distribution focal loss: logits of the distances to the sides of a box in, their loss out."""

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from uotod.check import check_number
from uotod.geometry.boxes import full_precision
from uotod.geometry.coders import DistanceCoder
from uotod.geometry.sides import bins_of, check_sides, interpolated_loss
from uotod.loss.reduce import check_reduction, reduce_loss


class DistributionFocalLoss(nn.Module):
    r"""Raise the probability of the two bins around the true distance of each side from its point.

    .. math:: L = -\frac{1}{4} \sum_\text{sides} \left( \frac{y_{n + 1} - y}{y_{n + 1} - y_n} \ln S_n
        + \frac{y - y_n}{y_{n + 1} - y_n} \ln S_{n + 1} \right), \qquad y_n \le y \le y_{n + 1}

    `S` is the softmax of the logits and `y` the distance in strides, clamped to the range of the bins. As the
    localisation loss of a `DetectionLoss` it reads `input["pred_dist"]` (B, P, 4, K + 1) and needs anchors with
    strides. `uotod.utils.distribution_to_box` turns the logits into the boxes.

    Args:
        bins: increasing distances, in strides, that the logits stand for; 0, 1, ..., K by default.
        reduction: "none", "mean" (over boxes) or "sum".

    Shape:
        pred_dist: (..., 4, K + 1) logits of the left, upper, right and lower side; target_boxes: (..., 4), xyxy;
        anchors: (..., 4) boxes, xyxy, whose centres are the points, or (..., 2) points; stride: (...). Output:
        (...) or ().

    Raises:
        ValueError: a shape is wrong, or the bins do not increase.

    References:
        Li et al., "Generalized focal loss", NeurIPS 2020, eq. 6.

    Examples:
        >>> logits, point, stride = torch.zeros(1, 4, 5), torch.tensor([[20.0, 20.0]]), torch.tensor([8.0])
        >>> target = torch.tensor([[8.0, 4.0, 24.0, 36.0]])
        >>> DistributionFocalLoss()(logits, target, point, stride)  # ln 5
        tensor(1.6094)
    """

    needs = ("pred_dist", "target_boxes", "anchors", "stride")
    bins: Tensor | None

    def __init__(self, *, bins: Sequence[float] | None = None, reduction: str = "mean") -> None:
        super().__init__()
        self.reduction = check_reduction(reduction)
        values = None
        if bins is not None:
            positions = [check_number(f"bins[{i}]", x) for i, x in enumerate(bins)]
            if len(positions) < 2 or any(a >= b for a, b in pairwise(positions)):
                raise ValueError(f"bins must hold at least two increasing distances, got {positions}")
            values = torch.tensor(positions, dtype=torch.float64)
        self.register_buffer("bins", values, persistent=False)

    def forward(self, pred_dist: Tensor, target_boxes: Tensor, anchors: Tensor, stride: Tensor) -> Tensor:
        """Return the loss of each row, or its mean or sum.

        Raises:
            ValueError: a shape is wrong, or the number of bins differs from that of the logits.
        """
        check_sides(target_boxes, pred_dist)
        pred_dist = full_precision(pred_dist)
        bins = bins_of(pred_dist, self.bins)
        distance = DistanceCoder(by_stride=True).encode(target_boxes, anchors, stride).to(pred_dist.dtype)
        loss = interpolated_loss(pred_dist, distance, bins).mean(-1)
        return reduce_loss(loss, self.reduction)

    def extra_repr(self) -> str:
        """Return the arguments for `repr`."""
        return f"bins={None if self.bins is None else self.bins.tolist()}, reduction={self.reduction!r}"
