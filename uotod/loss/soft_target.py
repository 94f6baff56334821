"""What the losses of a soft target share: logits and a quality in [0, 1] for each class in, one value a class out."""

from abc import ABC, abstractmethod
from typing import ClassVar

import torch
from torch import Tensor

from uotod.check import Described
from uotod.cost.kinds import Soft
from uotod.cost.labels import SoftTarget
from uotod.geometry.boxes import full_precision
from uotod.loss.one_hot import one_hot_rows
from uotod.loss.reduce import check_reduction, reduce_loss


class SoftTargetLoss(Described, ABC):
    """A loss of sigmoid scores against a quality in [0, 1]; a subclass implements `_values`.

    `is_rowwise` tells that the loss of a row reads no other row.
    """

    is_rowwise: ClassVar[bool] = True

    def __init__(self, reduction: str) -> None:
        super().__init__()
        self.reduction = check_reduction(reduction)

    def forward(self, input: Tensor, target: Tensor, positive: Tensor | None = None) -> Tensor:
        """Return the loss of each row and class, or its mean or sum.

        Args:
            input: (..., C) logits.
            target: (..., C) quality in [0, 1], or (...) integers in [0, C) for a quality of 1.
            positive: (..., C) one-hot label, for pairs of quality 0; by default the classes of positive quality.

        Raises:
            TypeError: integer labels have another dtype.
            ValueError: the shapes do not fit.
        """
        logits = full_precision(input)
        quality = one_hot_rows(target, logits)
        if positive is None:
            positive = quality > 0
        elif positive.shape != logits.shape:
            raise ValueError(f"positive must have shape {tuple(logits.shape)}, got {tuple(positive.shape)}")
        mass = logits.new_ones(logits.shape[:-1])
        return reduce_loss(self._values(logits, SoftTarget(quality, positive.to(logits.dtype), mass)), self.reduction)

    def adapter(self) -> Soft:
        """Return how the loss takes part: by a soft target."""
        return Soft(self, self._of_target, by_row=self.is_rowwise)

    def _of_target(self, logits: Tensor, target: SoftTarget) -> Tensor:
        """Return the loss (...) of rows, summed over classes and not yet multiplied by their mass."""
        return self._values(logits, target).sum(-1)

    @abstractmethod
    def _values(self, logits: Tensor, target: SoftTarget) -> Tensor:
        """Return the loss (..., C) of each row and class."""


def power(base: Tensor, exponent: float) -> Tensor:
    """Return `base ** exponent` for a base of at least 0, with a finite gradient at 0 if the exponent is below 1."""
    return base.clamp(min=torch.finfo(base.dtype).tiny) ** exponent
