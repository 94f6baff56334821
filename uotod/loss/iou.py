"""Losses of the IoU family: aligned boxes in, one loss a pair out."""

from typing import ClassVar

from torch import Tensor, nn

from uotod._boxes import OverlapKind, aligned_overlap, full_precision, pairwise_overlap
from uotod._check import check_choice, check_number
from uotod.loss._reduce import check_reduction, reduce_loss


class _OverlapLoss(nn.Module):
    """One minus an overlap, for aligned rows or for all pairs."""

    kind: ClassVar[OverlapKind]

    def __init__(self, *, eps: float = 1e-7, reduction: str = "mean") -> None:
        super().__init__()
        self.eps = check_number("eps", eps, low=0.0)
        self.reduction = check_reduction(reduction)

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        """Return the loss of (..., 4) boxes against the (..., 4) targets in the same rows, both xyxy.

        Raises:
            ValueError: the shapes differ or do not end in 4.
        """
        if input.shape != target.shape or input.shape[-1:] != (4,):
            raise ValueError(
                "input and target must have the same shape (..., 4), "
                f"got {tuple(input.shape)} and {tuple(target.shape)}"
            )
        overlap = aligned_overlap(full_precision(input), full_precision(target), self.kind, self.eps)
        return reduce_loss(self._of_overlap(overlap), self.reduction)

    def pairwise(self, boxes: Tensor, target_boxes: Tensor) -> Tensor:
        """Return the unreduced loss (B, T, P) of all pairs of (B, P, 4) boxes and (B, T, 4) targets."""
        # CIoU is not symmetric in its gradient only: the values do not depend on the order
        return self._of_overlap(pairwise_overlap(target_boxes, boxes, self.kind, self.eps))

    def extra_repr(self) -> str:
        """Return the arguments for `repr`."""
        return f"eps={self.eps}, reduction={self.reduction!r}"

    def _of_overlap(self, overlap: Tensor) -> Tensor:
        return 1 - overlap


class IoULoss(_OverlapLoss):
    r"""Penalise a small intersection over union `u`.

    .. math:: \text{linear: } 1 - u \qquad \text{square: } 1 - u^2 \qquad \text{log: } -\ln \max(u, 10^{-6})

    Args:
        mode: "linear", "square" (YOLOX) or "log" (UnitBox).
        eps: added to the union, in squared units of the boxes.
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

    def __init__(self, *, mode: str = "linear", eps: float = 1e-7, reduction: str = "mean") -> None:
        super().__init__(eps=eps, reduction=reduction)
        check_choice("mode", mode, ("linear", "log", "square"))
        self.mode = mode

    def extra_repr(self) -> str:
        """Return the arguments for `repr`."""
        return f"mode={self.mode!r}, {super().extra_repr()}"

    def _of_overlap(self, overlap: Tensor) -> Tensor:
        if self.mode == "linear":
            return 1 - overlap
        return 1 - overlap**2 if self.mode == "square" else -overlap.clamp(min=1e-6).log()


class GIoULoss(_OverlapLoss):
    r"""Penalise a small generalised IoU: `1 - u + (H - U) / H` with the union `U` and the smallest hull `H`.

    Args:
        eps: added to the denominators, in squared units of the boxes.
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
        eps: added to the denominators, in squared units of the boxes.
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
        eps: added to the denominators, in squared units of the boxes.
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
