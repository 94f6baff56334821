"""What the losses of softmax probabilities share: class weights, label smoothing and the affine form."""

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn

from uotod.check import check_number
from uotod.cost.kinds import Affine, ClassTerms
from uotod.geometry.boxes import full_precision
from uotod.loss.one_hot import one_hot_rows, smooth_gain
from uotod.loss.reduce import check_reduction, reduce_loss


class SoftmaxLoss(nn.Module, ABC):
    """A function of the log-probability of the target's class; a subclass implements `_of_log_probability`."""

    class_weight: Tensor | None

    def __init__(self, class_weight: Tensor | None, label_smoothing: float, reduction: str) -> None:
        super().__init__()
        if class_weight is not None and (not isinstance(class_weight, Tensor) or class_weight.dim() != 1):
            raise ValueError(f"class_weight must be a tensor of shape (C,) or None, got {class_weight!r}")
        self.register_buffer("class_weight", class_weight)
        self.label_smoothing = check_number("label_smoothing", label_smoothing, low=0.0, high=1.0)
        self.reduction = check_reduction(reduction)

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        """Return the loss of each row, or its mean or sum."""
        logits = full_precision(input)
        loss = (self._terms(logits).gain * one_hot_rows(target, logits)).sum(-1)
        return reduce_loss(loss, self.reduction)

    def adapter(self) -> Affine:
        """Return how the loss takes part: affine in its label."""
        return Affine(self, self._terms)

    def _terms(self, logits: Tensor) -> ClassTerms:
        gain = self._of_log_probability(torch.log_softmax(logits, dim=-1))
        if self.class_weight is not None:
            if self.class_weight.shape != gain.shape[-1:]:
                raise ValueError(
                    f"class_weight must have shape ({gain.shape[-1]},), got {tuple(self.class_weight.shape)}"
                )
            gain = gain * self.class_weight.to(gain.dtype)
        return ClassTerms(smooth_gain(gain, self.label_smoothing), None)

    def extra_repr(self) -> str:
        """Return the arguments for `repr`."""
        return f"label_smoothing={self.label_smoothing}, reduction={self.reduction!r}"

    @abstractmethod
    def _of_log_probability(self, log_p: Tensor) -> Tensor:
        """Return the loss of each class, if it is the target, from its log-probability."""
