"""What every loss of two boxes shares: aligned rows or all pairs in, the loss of each out."""

from abc import ABC, abstractmethod

from torch import Tensor

from uotod.check import Described, check_number
from uotod.cost.kinds import Pair
from uotod.geometry.boxes import aligned_coordinates, full_precision, pairwise_coordinates
from uotod.geometry.overlap import Coordinates
from uotod.loss.reduce import check_reduction, reduce_loss


class BoxPairLoss(Described, ABC):
    """A loss of two boxes, xyxy; a subclass states it on coordinates that broadcast."""

    def __init__(self, *, eps: float = 0.0, reduction: str = "mean") -> None:
        super().__init__()
        self.eps = check_number("eps", eps, low=0.0)
        self.reduction = check_reduction(reduction)

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        """Return the loss of (..., 4) boxes against the (..., 4) targets in the same rows, both xyxy.

        Raises:
            ValueError: the shapes differ or do not end in 4.
        """
        check_rows(input, target)
        box, other = aligned_coordinates(full_precision(input)), aligned_coordinates(full_precision(target))
        return reduce_loss(self._of_pair(box, other), self.reduction)

    def adapter(self) -> Pair:
        """Return how the loss takes part: by pairs of boxes."""
        return Pair(self, self.pairwise)

    def pairwise(self, boxes: Tensor, target_boxes: Tensor) -> Tensor:
        """Return the unreduced loss (B, T, P) of all pairs of (B, P, 4) boxes and (B, T, 4) targets."""
        target, box = pairwise_coordinates(target_boxes, boxes)
        return self._of_pair(box, target)

    @abstractmethod
    def _of_pair(self, box: Coordinates, target: Coordinates) -> Tensor:
        """Return the loss of predicted and target coordinates that broadcast."""


def check_rows(input: Tensor, target: Tensor) -> None:
    """Raise a ValueError unless both are boxes of the same shape (..., 4)."""
    if input.shape != target.shape or input.shape[-1:] != (4,):
        raise ValueError(
            f"input and target must have the same shape (..., 4), got {tuple(input.shape)} and {tuple(target.shape)}"
        )
