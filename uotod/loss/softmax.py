"""What the losses of softmax probabilities share: class weights and label smoothing."""

from abc import abstractmethod

import torch
from torch import Tensor

from uotod.check import check_number
from uotod.loss.affine import LabelLoss
from uotod.loss.one_hot import smooth_gain


class SoftmaxLoss(LabelLoss):
    """A function of the log-probability of the target's class; a subclass implements `_of_log_probability`."""

    class_weight: Tensor | None

    def __init__(self, class_weight: Tensor | None, label_smoothing: float, reduction: str) -> None:
        super().__init__(reduction)
        if class_weight is not None and (not isinstance(class_weight, Tensor) or class_weight.dim() != 1):
            raise ValueError(f"class_weight must be a tensor of shape (C,) or None, got {class_weight!r}")
        self.register_buffer("class_weight", class_weight)
        self.label_smoothing = check_number("label_smoothing", label_smoothing, low=0.0, high=1.0)

    def _gain(self, logits: Tensor) -> Tensor:
        gain = self._of_log_probability(torch.log_softmax(logits, dim=-1))
        if self.class_weight is not None:
            if self.class_weight.shape != gain.shape[-1:]:
                raise ValueError(
                    f"class_weight must have shape ({gain.shape[-1]},), got {tuple(self.class_weight.shape)}"
                )
            gain = gain * self.class_weight.to(gain.dtype)
        return smooth_gain(gain, self.label_smoothing, logits)

    @abstractmethod
    def _of_log_probability(self, log_p: Tensor) -> Tensor:
        """Return the loss of each class, if it is the target, from its log-probability."""
