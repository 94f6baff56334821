"""Losses of the IoU family: aligned boxes in, one loss a pair out."""

from typing import ClassVar

from torch import Tensor

from uotod.check import check_choice
from uotod.geometry.overlap import Coordinates, OverlapKind, overlap
from uotod.loss.box_pair import BoxPairLoss


class _OverlapLoss(BoxPairLoss):
    """One minus an overlap."""

    kind: ClassVar[OverlapKind]

    def _of_pair(self, box: Coordinates, target: Coordinates) -> Tensor:
        return self._of_overlap(overlap(box, target, self.kind, self.eps))

    def _of_overlap(self, overlap: Tensor) -> Tensor:
        return 1 - overlap


class IoULoss(_OverlapLoss):
    r"""Penalise a small intersection over union `u`.

    .. math:: \text{linear: } 1 - u \qquad \text{square: } 1 - u^2 \qquad \text{log: } -\ln \max(u, 10^{-6})

    Args:
        mode: "linear", "square" (YOLOX) or "log" (UnitBox).
        eps: added to the union, in squared units of the boxes; 0 leaves the value without a unit.
        reduction: "none", "mean" or "sum".

    Shape:
        input and target: (..., 4) boxes, xyxy, in any common unit. Inverted boxes have area 0. Output: (...) or ().

    References:
        Yu et al., "UnitBox", ACM MM 2016, eq. 2; Ge et al., "YOLOX", 2021.

    Examples:
        >>> import torch
        >>> half = torch.tensor([[0.0, 0.0, 2.0, 1.0]]), torch.tensor([[0.0, 0.0, 2.0, 2.0]])
        >>> [round(float(IoULoss(mode=mode)(*half)), 4) for mode in ("linear", "square", "log")]
        [0.5, 0.75, 0.6931]
    """

    kind = "iou"

    def __init__(self, *, mode: str = "linear", eps: float = 0.0, reduction: str = "mean") -> None:
        super().__init__(eps=eps, reduction=reduction)
        self.mode = check_choice("mode", mode, ("linear", "log", "square"))

    def _of_overlap(self, overlap: Tensor) -> Tensor:
        if self.mode == "linear":
            return 1 - overlap
        return 1 - overlap**2 if self.mode == "square" else -overlap.clamp(min=1e-6).log()


class GIoULoss(_OverlapLoss):
    r"""Penalise a small generalised IoU: `1 - u + (H - U) / H` with the union `U` and the smallest hull `H`.

    Args:
        eps: added to the denominators, in squared units of the boxes; 0 leaves the value without a unit.
        reduction: "none", "mean" or "sum".

    Shape:
        input and target: (..., 4) boxes, xyxy, in any common unit. Inverted boxes have area 0. Output: (...) or ().

    References:
        Rezatofighi et al., "Generalized intersection over union", CVPR 2019, algorithm 1.

    Examples:
        >>> import torch
        >>> GIoULoss()(torch.tensor([[0.0, 0.0, 1.0, 1.0]]), torch.tensor([[3.0, 0.0, 4.0, 1.0]]))
        tensor(1.5000)
    """

    kind = "giou"


class DIoULoss(_OverlapLoss):
    r"""Penalise a small distance IoU: `1 - u + ρ² / c²`, centre distance `ρ` over the hull's diagonal `c`.

    Args:
        eps: added to the denominators, in squared units of the boxes; 0 leaves the value without a unit.
        reduction: "none", "mean" or "sum".

    Shape:
        input and target: (..., 4) boxes, xyxy, in any common unit. Inverted boxes have area 0. Output: (...) or ().

    References:
        Zheng et al., "Distance-IoU loss", AAAI 2020, eq. 7.

    Examples:
        >>> import torch
        >>> DIoULoss()(torch.tensor([[0.0, 0.0, 1.0, 1.0]]), torch.tensor([[1.0, 0.0, 2.0, 1.0]]))
        tensor(1.2000)
    """

    kind = "diou"


class CIoULoss(_OverlapLoss):
    r"""Penalise a small complete IoU: the distance IoU loss plus a term for the aspect ratio.

    .. math:: 1 - u + \frac{\rho^2}{c^2} + \alpha v, \qquad
        v = \frac{4}{\pi^2} \left(\arctan\frac{w_t}{h_t} - \arctan\frac{w}{h}\right)^2, \qquad
        \alpha = \frac{v}{1 - u + v} \text{ (without gradient)}

    Args:
        eps: added to the denominators, in squared units of the boxes; 0 leaves the value without a unit.
        reduction: "none", "mean" or "sum".

    Shape:
        input and target: (..., 4) boxes, xyxy, in any common unit. Inverted boxes have area 0. Output: (...) or ().

    References:
        Zheng et al., "Distance-IoU loss", AAAI 2020, eqs. 8-11.

    Examples:
        >>> import torch
        >>> CIoULoss()(torch.tensor([[0.0, 0.0, 1.0, 1.0]]), torch.tensor([[1.0, 0.0, 2.0, 1.0]]))
        tensor(1.2000)
    """

    kind = "ciou"
