"""The varifocal loss, as VarifocalNet, RT-DETR and Ultralytics compute it."""

import torch
from torch import Tensor
from torch.nn import functional as F

from uotod.check import check_choice, check_number
from uotod.cost.alpha import Alpha, alpha_of, set_alpha
from uotod.cost.labels import SoftTarget
from uotod.loss.soft_target import SoftTargetLoss


class VarifocalLoss(SoftTargetLoss):
    r"""Teach scores a quality `q` in [0, 1]; weigh positives with it, and down-weight easy negatives.

    .. math::
        L(x, q) = -w \big(q \ln p + (1 - q) \ln(1 - p)\big), \qquad p = \sigma(x)

    ============= ==============================================================
    `form`        weight
    ============= ==============================================================
    "varifocal"   :math:`w = q` where `q > 0`, else :math:`\alpha p^\gamma`
    "rtdetr"      :math:`w = q + \alpha p^\gamma (1 - y)`, without gradient
    "ultralytics" the same, with gradient
    ============= ==============================================================

    `y` is the one-hot label: a pair of quality 0 is a negative in the first form and has no loss in the others, which
    `MatchabilityAwareLoss` repairs. Only the others are continuous in `q` and `y`: take one of them for plans that
    split the mass of a prediction. With `alpha=1, gamma=0` all are the binary cross-entropy on labels.

    Args:
        alpha: weight of negatives, at least 0; or (C,) one for each class.
        gamma: focusing exponent of negatives, at least 0.
        form: "varifocal", "rtdetr" (also that of D-FINE) or "ultralytics" (its RT-DETR).
        reduction: "none", "mean" (over all N·C values) or "sum".

    Shape:
        input: (..., C) logits; target: (..., C) qualities, or (...) integers in [0, C). Output: (..., C) or ().

    References:
        Zhang et al., "VarifocalNet", CVPR 2021 (VFL); Zhao et al., "DETRs beat YOLOs on real-time object detection",
        CVPR 2024 (the loss of its implementation); the loss of Ultralytics 8.4.

    Examples:
        >>> import torch
        >>> VarifocalLoss(reduction="none")(torch.zeros(1, 2), torch.tensor([[0.5, 0.0]]))
        tensor([[0.3466, 0.1300]])
    """

    def __init__(
        self, *, alpha: Alpha = 0.75, gamma: float = 2.0, form: str = "varifocal", reduction: str = "mean"
    ) -> None:
        super().__init__(reduction)
        set_alpha(self, alpha)
        self.gamma = check_number("gamma", gamma, low=0.0)
        self.form = check_choice("form", form, ("varifocal", "rtdetr", "ultralytics"))

    def _values(self, logits: Tensor, target: SoftTarget) -> Tensor:
        alpha = alpha_of(self, logits)
        quality = target.quality
        loss = F.binary_cross_entropy_with_logits(logits, quality, reduction="none")
        focus = (self.gamma * F.logsigmoid(logits.detach() if self.form == "rtdetr" else logits)).exp()
        if self.form != "varifocal":
            return (quality + alpha * focus * (1 - target.positive)) * loss
        return torch.where(quality > 0, quality, alpha * focus) * loss
