"""The objectness loss: a binary cross-entropy that weighs negatives."""

from torch import Tensor, nn
from torch.nn import functional as F

from uotod.check import check_number
from uotod.cost.kinds import Affine, ClassTerms
from uotod.geometry.boxes import full_precision
from uotod.loss.one_hot import one_hot_rows
from uotod.loss.reduce import check_reduction, reduce_loss


class ObjectnessLoss(nn.Module):
    r"""Teach objectness the positive mass or the quality of a prediction, with a weight for what is not an object.

    .. math::
        L(x, t) = -\lambda_1 t \ln p - \lambda_0 (1 - t) \ln(1 - p), \qquad p = \sigma(x)

    Meant for `DetectionLoss(obj_loss_module=...)`, which also takes `SigmoidFocalLoss` and every other loss of one
    class. With weights of 1 it is `torch.nn.BCEWithLogitsLoss`.

    Args:
        positive_weight: `λ₁`, at least 0.
        negative_weight: `λ₀`, at least 0; 0.5 for YOLO.
        reduction: "none", "mean" or "sum".

    Shape:
        input: (N, 1) logits; target: (N, 1) values in [0, 1]. Output: (N, 1) or ().

    References:
        Redmon et al., "You only look once", CVPR 2016, eq. 3 (λ_noobj); Redmon, Farhadi, "YOLOv3", 2018 (the
        cross-entropy).

    Examples:
        >>> import torch
        >>> ObjectnessLoss(negative_weight=0.5, reduction="none")(torch.zeros(2, 1), torch.tensor([[1.0], [0.0]]))
        tensor([[0.6931],
                [0.3466]])
    """

    def __init__(self, *, positive_weight: float = 1.0, negative_weight: float = 1.0, reduction: str = "mean") -> None:
        super().__init__()
        self.positive_weight = check_number("positive_weight", positive_weight, low=0.0)
        self.negative_weight = check_number("negative_weight", negative_weight, low=0.0)
        self.reduction = check_reduction(reduction)

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        """Return the loss of each row, or its mean or sum."""
        logits = full_precision(input)
        positive, negative = self._terms(logits)
        target = one_hot_rows(target, logits)
        return reduce_loss(target * positive + (1 - target) * negative, self.reduction)

    def adapter(self) -> Affine:
        """Return how the loss takes part: affine in its target."""
        return Affine(self, self._class_terms)

    def extra_repr(self) -> str:
        """Return the arguments for `repr`."""
        return (
            f"positive_weight={self.positive_weight}, negative_weight={self.negative_weight}, "
            f"reduction={self.reduction!r}"
        )

    def _terms(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        """Return the loss of a one and of a zero at each logit."""
        return -self.positive_weight * F.logsigmoid(logits), -self.negative_weight * F.logsigmoid(-logits)

    def _class_terms(self, logits: Tensor) -> ClassTerms:
        positive, negative = self._terms(logits)
        return ClassTerms(positive - negative, negative.sum(-1))
