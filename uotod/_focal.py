"""The sigmoid focal loss as losses and matchers share it: logits in, the loss of both labels out."""

from torch import Tensor
from torch.nn import functional as F


def focal_terms(logits: Tensor, alpha: float, gamma: float) -> tuple[Tensor, Tensor]:
    """Return the focal loss of a one and of a zero at each logit; `alpha` of -1 weighs neither."""
    log_p, log_q = F.logsigmoid(logits), F.logsigmoid(-logits)  # q = 1 - p
    # p^γ as exp(γ log p): its gradient stays finite where p underflows and γ < 1
    positive, negative = -(gamma * log_q).exp() * log_p, -(gamma * log_p).exp() * log_q
    if alpha < 0:
        return positive, negative
    return alpha * positive, (1 - alpha) * negative
