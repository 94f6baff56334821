"""PolyLoss: a cross-entropy or focal loss with another first coefficient of its polynomial."""

import torch
from torch import Tensor
from torch.nn import functional as F

from uotod.check import check_number
from uotod.loss.affine import SigmoidLoss
from uotod.loss.softmax import SoftmaxLoss


class PolyLoss(SoftmaxLoss):
    r"""Add `ε` times the first polynomial of the cross-entropy to it (Poly-1).

    .. math:: L(x, y) = -w_y \big(\ln p_y - \varepsilon (1 - p_y)\big), \qquad p = \operatorname{softmax}(x)

    `epsilon=0` is the cross-entropy. Like that it needs a class for the background.

    Args:
        epsilon: coefficient of at least -1; below that the loss would fall as a probability falls from 1.
        class_weight: (C,) weight `w` of each class, by which a mean in `DetectionLoss` divides as well; None for 1.
        label_smoothing: share in [0, 1] of the target that is spread over all classes.
        reduction: "none", "mean" (over the rows) or "sum".

    Shape:
        input: (..., C) logits; target: (...) integers in [0, C), or (..., C) one-hot. Output: (...) or ().

    References:
        Leng et al., "PolyLoss", ICLR 2022 (Poly-1).

    Examples:
        >>> PolyLoss()(torch.zeros(1, 2), torch.tensor([0]))
        tensor(1.1931)
    """

    def __init__(
        self,
        *,
        epsilon: float = 1.0,
        class_weight: Tensor | None = None,
        label_smoothing: float = 0.0,
        reduction: str = "mean",
    ) -> None:
        super().__init__(class_weight, label_smoothing, reduction)
        self.epsilon = check_number("epsilon", epsilon, low=-1.0)

    def _of_log_probability(self, log_p: Tensor) -> Tensor:
        return -log_p - self.epsilon * torch.expm1(log_p)


class SigmoidPolyLoss(SigmoidLoss):
    r"""Add `ε` times the first polynomial of the binary cross-entropy, or of the focal loss, to it (Poly-1).

    .. math:: L(x, t) = -(1 - p_t)^\gamma \ln p_t + \varepsilon (1 - p_t)^{\gamma + 1}

    with `p_t` the probability `p = σ(x)` of a one and `1 - p` of a zero. `epsilon=0` is the binary cross-entropy, with
    `gamma` the focal loss.

    Args:
        epsilon: coefficient of at least -1.
        gamma: focusing exponent, at least 0; 0 for the binary cross-entropy.
        label_smoothing: share in [0, 1] of a label that is spread over all classes; the background stays zero.
        reduction: "none", "mean" (over all N·C values) or "sum".

    Shape:
        input: (..., C) logits; target: (...) integers in [0, C), or (..., C) one-hot. Output: (..., C) or ().

    References:
        Leng et al., "PolyLoss", ICLR 2022 (Poly-1 of the cross-entropy and of the focal loss).

    Examples:
        >>> SigmoidPolyLoss(reduction="none")(torch.zeros(1, 2), torch.tensor([0]))
        tensor([[1.1931, 1.1931]])
    """

    def __init__(
        self, *, epsilon: float = 1.0, gamma: float = 0.0, label_smoothing: float = 0.0, reduction: str = "mean"
    ) -> None:
        super().__init__(label_smoothing, reduction)
        self.epsilon = check_number("epsilon", epsilon, low=-1.0)
        self.gamma = check_number("gamma", gamma, low=0.0)

    def _of_label(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        log_p, log_q = F.logsigmoid(logits), F.logsigmoid(-logits)  # q = 1 - p
        positive = (self.gamma * log_q).exp() * (self.epsilon * log_q.exp() - log_p)
        negative = (self.gamma * log_p).exp() * (self.epsilon * log_p.exp() - log_q)
        return positive, negative
