"""The Wise-IoU losses: the IoU loss times a focus on the distance and on the quality of a box among the others."""

import torch
from torch import Tensor

from uotod.check import check_integer, check_number
from uotod.geometry.boxes import aligned_coordinates, full_precision
from uotod.geometry.overlap import Coordinates, center_offsets, overlap, quotient
from uotod.loss.box_pair import BoxPairLoss

LEAST_MEAN = 1e-7  # of the IoU losses: what it is divided by stays finite when all boxes are perfect


class WiseIoULoss(BoxPairLoss):
    r"""Penalise a small IoU `u`, more for distant centres and, from version 2 on, by how bad a box is among the rest.

    .. math:: L_1 = e^{\rho^2 / (w_c^2 + h_c^2)^*} (1 - u), \qquad
        L_2 = \left( \beta^* \right)^\gamma L_1, \qquad
        L_3 = \frac{\beta^*}{\delta\, \alpha^{\beta^* - \delta}} L_1, \qquad
        \beta = \frac{1 - u}{\overline{1 - u}}

    with the distance of the centres `ρ` and the hull of width `w_c` and height `h_c`. What has a star carries no
    gradient. Version 2 favours hard boxes; version 3 is largest for ordinary ones, so that outliers do less harm.

    The mean in the outlier degree `β` is the buffer `mean`, which starts at 1. The loss never writes it: call
    `update` once a training step.

    Args:
        version: 1, 2 or 3.
        gamma: exponent of version 2, at least 0.
        alpha: base of version 3, above 1.
        delta: outlier degree at which the factor of version 3 is 1, positive.
        momentum: weight in [0, 1] of a step in the mean. The paper takes `1 − 0.05^(1 / n)`, where `n` is the number
            of steps until the IoU loss stops falling quickly; 4e-4 stands for about 7,000 steps.
        eps: added to the denominators, in squared units of the boxes; 0 leaves the value without a unit.
        reduction: "none", "mean" or "sum".

    Shape:
        input and target: (..., 4) boxes, xyxy, in any common unit. Inverted boxes have area 0. Output: (...) or ().

    References:
        Tong et al., "Wise-IoU: bounding box regression loss with dynamic focusing mechanism", 2023, eqs. 7-14.

    Examples:
        >>> boxes, target = torch.tensor([[0.0, 0.0, 1.0, 1.0]]), torch.tensor([[1.0, 0.0, 2.0, 1.0]])
        >>> loss = WiseIoULoss(version=2, momentum=0.5)
        >>> float(loss.update(boxes / 2, boxes))  # the mean of 1 and 0.75
        0.875
        >>> round(float(loss(boxes, target)), 4)  # exp(1 / 5) · 1 · (1 / 0.875)^0.5
        1.3057

        Within a `DetectionLoss` the plan tells which pairs count:

        >>> plan = torch.tensor([[[0.0, 1.0]]])  # matcher(input, target): here the one prediction is background
        >>> pred_boxes, target_boxes = boxes[None], target[None]  # (B, P, 4) and (B, T, 4)
        >>> float(loss.update(pred_boxes[:, :, None], target_boxes[:, None], plan[..., :-1]))
        0.875
    """

    mean: Tensor

    def __init__(
        self,
        *,
        version: int = 3,
        gamma: float = 0.5,
        alpha: float = 1.9,
        delta: float = 3.0,
        momentum: float = 4e-4,
        eps: float = 0.0,
        reduction: str = "mean",
    ) -> None:
        super().__init__(eps=eps, reduction=reduction)
        if check_integer("version", version, low=1) > 3:
            raise ValueError(f"version must be 1, 2 or 3, got {version}")
        self.version = version
        self.gamma = check_number("gamma", gamma, low=0.0)
        self.alpha = check_number("alpha", alpha, low=1.0, low_open=True)
        self.delta = check_number("delta", delta, low=0.0, low_open=True)
        self.momentum = check_number("momentum", momentum, low=0.0, high=1.0)
        self.register_buffer("mean", torch.ones(()))

    @torch.no_grad()
    def update(self, input: Tensor, target: Tensor, mass: Tensor | None = None) -> Tensor:
        """Move the mean towards the IoU loss of a step and return it: `(1 − momentum) · mean + momentum · (1 − u)`.

        Args:
            input: (..., 4) predicted boxes, xyxy.
            target: (..., 4) target boxes, xyxy, of a shape that broadcasts with the input's.
            mass: (...) weights of the pairs, all 1 by default; what has none is not read, and without any the mean
                stays as it is.
        """
        box, other = aligned_coordinates(full_precision(input)), aligned_coordinates(full_precision(target))
        loss = 1 - overlap(box, other, "iou", self.eps)
        mass = torch.ones_like(loss) if mass is None else full_precision(mass)
        total = mass.sum()
        step = torch.where(mass > 0, mass * loss, 0.0).sum() / torch.where(total > 0, total, 1.0)
        moved = (1 - self.momentum) * self.mean + self.momentum * step.to(self.mean.dtype)
        self.mean.copy_(torch.where(total > 0, moved, self.mean))
        return self.mean.clone()

    def _of_pair(self, box: Coordinates, target: Coordinates) -> Tensor:
        loss = 1 - overlap(box, target, "iou", self.eps)
        dx, dy = center_offsets(box, target)
        focus = self._focus(loss.detach())
        diagonal = (_span(box, target, 0) ** 2 + _span(box, target, 1) ** 2).detach()
        return focus * quotient(dx**2 + dy**2, diagonal, self.eps).exp() * loss

    def _focus(self, loss: Tensor) -> Tensor | float:
        """Return the factor of versions 2 and 3 of the IoU losses."""
        if self.version == 1:
            return 1.0
        degree = loss.clamp(min=0) / self.mean.to(loss.dtype).clamp(min=LEAST_MEAN)
        if self.version == 2:
            return degree**self.gamma
        return degree * self.alpha ** (self.delta - degree) / self.delta


def _span(box: Coordinates, target: Coordinates, axis: int) -> Tensor:
    """Return the hull's extent along an axis, which holds both centres even of inverted boxes: it bounds `exp`."""
    ends = box[axis], box[axis + 2], target[axis], target[axis + 2]
    high = torch.maximum(torch.maximum(ends[0], ends[1]), torch.maximum(ends[2], ends[3]))
    low = torch.minimum(torch.minimum(ends[0], ends[1]), torch.minimum(ends[2], ends[3]))
    return high - low
