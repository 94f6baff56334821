"""The objectness loss: a binary cross-entropy that weighs negatives."""

from torch import Tensor
from torch.nn import functional as F

from uotod.check import check_number
from uotod.loss.affine import SigmoidLoss


class ObjectnessLoss(SigmoidLoss):
    r"""Teach objectness the positive mass or the quality of a prediction, with a weight for what is not an object.

    .. math::
        L(x, t) = -\lambda_1 t \ln p - \lambda_0 (1 - t) \ln(1 - p), \qquad p = \sigma(x)

    Meant for the term `Objectness`, which also takes `SigmoidFocalLoss` and every other loss of one class. With weights
    of 1 it is `torch.nn.BCEWithLogitsLoss`.

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
        super().__init__(0.0, reduction)
        self.positive_weight = check_number("positive_weight", positive_weight, low=0.0)
        self.negative_weight = check_number("negative_weight", negative_weight, low=0.0)

    def _of_label(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        return -self.positive_weight * F.logsigmoid(logits), -self.negative_weight * F.logsigmoid(-logits)
