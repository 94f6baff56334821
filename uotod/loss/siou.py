"""The SIoU loss, which weighs the distance of two boxes by the angle between their centres."""

from torch import Tensor

from uotod.check import check_number
from uotod.geometry.overlap import Coordinates, overlap_terms
from uotod.loss.box_pair import BoxPairLoss


class SIoULoss(BoxPairLoss):
    r"""Penalise a small IoU `u`, the distance of the centres along the axes and the difference in shape.

    .. math:: L = 1 - u + \frac{\Delta + \Omega}{2}, \qquad
        \Delta = \sum_{t = x, y} \left( 1 - e^{-(2 - \Lambda) \rho_t} \right), \qquad
        \Omega = \sum_{t = w, h} \left( 1 - e^{-\omega_t} \right)^\theta

    .. math:: \rho_x = \frac{d_x^2}{w_c^2}, \qquad \omega_w = \frac{|w - w_t|}{\max(w, w_t)}, \qquad
        \Lambda = 1 - 2 \sin^2 \left( \arcsin \frac{|d_y|}{\rho} - \frac{\pi}{4} \right)
        = \frac{2 |d_x d_y|}{d_x^2 + d_y^2}

    with the offset `d` of the centres, the hull's width `w_c` and height `h_c`, and likewise in the other direction.
    The angle cost `Λ` is 0 along the axes and 1 on the diagonals.

    Args:
        theta: exponent of the shape cost, at least 1; from 2 to 6 in the paper, 4 by default.
        eps: added to the denominators, in squared units of the boxes; 0 leaves the value without a unit.
        reduction: "none", "mean" or "sum".

    Shape:
        input and target: (..., 4) boxes, xyxy, in any common unit. Inverted boxes have area 0. Output: (...) or ().

    References:
        Gevorgyan, "SIoU loss: more powerful learning for bounding box regression", 2022, eqs. 1-8.

    Examples:
        >>> import torch
        >>> SIoULoss()(torch.tensor([[0.0, 0.0, 1.0, 1.0]]), torch.tensor([[1.0, 0.0, 2.0, 1.0]]))
        tensor(1.1967)
    """

    def __init__(self, *, theta: float = 4.0, eps: float = 0.0, reduction: str = "mean") -> None:
        super().__init__(eps=eps, reduction=reduction)
        self.theta = check_number("theta", theta, low=1.0)

    def _of_pair(self, box: Coordinates, target: Coordinates) -> Tensor:
        iou, distance, shape = overlap_terms(box, target, "siou", self.eps, theta=self.theta)
        return 1 - iou + distance + shape
