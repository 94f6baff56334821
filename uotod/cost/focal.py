"""The sigmoid focal loss as losses and matchers share it: logits in, the loss of both labels out."""

import math

import torch
from torch import Tensor
from torch.nn import functional as F

LOG2_E = math.log2(math.e)


def focal_terms(logits: Tensor, alpha: float | Tensor, gamma: float) -> tuple[Tensor, Tensor]:
    """Return the focal loss of a one and of a zero at each logit; `alpha` of -1 weighs neither, (C,) each class."""
    log_p, log_q = F.logsigmoid(logits), F.logsigmoid(-logits)  # q = 1 - p
    # p^γ as exp(γ log p): its gradient stays finite where p underflows and γ < 1
    positive, negative = -(gamma * log_q).exp() * log_p, -(gamma * log_p).exp() * log_q
    if not isinstance(alpha, Tensor) and alpha < 0:
        return positive, negative
    return alpha * positive, (1 - alpha) * negative


def zero_terms(logits: Tensor, alpha: float, gamma: float, slope: Tensor) -> Tensor:
    """Return the focal loss of a zero at each logit, and write its derivative into `slope`."""
    size = logits.abs()
    # ln(1 + e^x) without overflow; powers of two are several times faster than `exp` on CPUs
    loss = logits.clamp(min=0).add_(size.mul_(-LOG2_E).exp2_().log1p_())
    torch.sigmoid(logits, out=slope)
    if gamma > 0:
        focus = slope * slope if gamma == 2 else (logits - loss).mul_(gamma * LOG2_E).exp2_()
        # (p^γ l)' = p^γ (γ (1 - p) l + p), as p' = p (1 - p) and l' = p
        torch.mul(1 - slope, loss, out=size).mul_(gamma).add_(slope)
        torch.mul(focus, size, out=slope)
        loss.mul_(focus)
    if alpha >= 0:
        slope.mul_(1 - alpha)
        loss.mul_(1 - alpha)
    return loss
