"""What losses that are affine in their label share: logits and labels in, the loss of each row out."""

from abc import ABC, abstractmethod
from collections.abc import Callable

from torch import Tensor

from uotod.check import Described, check_number
from uotod.cost.kinds import Affine, ClassTerms, Sigmoid
from uotod.geometry.boxes import full_precision
from uotod.loss.one_hot import one_hot_rows, smooth_gain, smooth_rows
from uotod.loss.reduce import check_reduction, reduce_loss


class LabelLoss(Described, ABC):
    """A loss that is zero without a label; a subclass states what each class adds, if it is the label."""

    def __init__(self, reduction: str) -> None:
        super().__init__()
        self.reduction = check_reduction(reduction)

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        """Return the loss of each row, or its mean or sum."""
        logits = full_precision(input)
        return reduce_loss((self._gain(logits) * one_hot_rows(target, logits)).sum(-1), self.reduction)

    def adapter(self) -> Affine:
        """Return how the loss takes part: affine in its label."""
        return Affine(self, self._terms, self._of_labels)

    @abstractmethod
    def _gain(self, logits: Tensor) -> Tensor:
        """Return the loss (..., C) of each class as the label."""

    def _terms(self, logits: Tensor) -> ClassTerms:
        return ClassTerms(self._gain(logits), None)

    def _of_labels(self, logits: Tensor, pick: Callable[[Tensor], Tensor]) -> Tensor:
        """Return the loss of integer labels, which `pick` picks; a subclass may know a cheaper order."""
        return pick(self._gain(logits))


class SigmoidLoss(Described, ABC):
    """A loss of each logit on its own; a subclass states that of a one and of a zero."""

    def __init__(self, label_smoothing: float, reduction: str) -> None:
        super().__init__()
        self.label_smoothing = check_number("label_smoothing", label_smoothing, low=0.0, high=1.0)
        self.reduction = check_reduction(reduction)

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        """Return the loss of each row and class, or its mean or sum."""
        logits = full_precision(input)
        positive, negative = self._of_label(logits)
        one_hot = smooth_rows(one_hot_rows(target, logits), self.label_smoothing, logits)
        return reduce_loss(one_hot * positive + (1 - one_hot) * negative, self.reduction)

    def adapter(self) -> Sigmoid:
        """Return how the loss takes part: each logit on its own."""
        return Sigmoid(self, self._terms, self._zeros)

    @abstractmethod
    def _of_label(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        """Return the loss (..., C) of a one and of a zero at each logit."""

    def _terms(self, logits: Tensor) -> ClassTerms:
        positive, negative = self._of_label(logits)
        return ClassTerms(smooth_gain(positive - negative, self.label_smoothing, logits), negative.sum(-1))

    def _zeros(self, logits: Tensor, slope: Tensor) -> Tensor | None:
        """Return the loss of a zero at each logit and write its slope, or None where that is not known."""
        return None
