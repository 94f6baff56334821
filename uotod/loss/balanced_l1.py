"""The balanced L1 loss of Libra R-CNN, for boxes or deltas."""

import math

import torch
from torch import Tensor

from uotod.check import Described, check_number
from uotod.cost.kinds import Pair
from uotod.geometry.boxes import full_precision, pairwise_coordinates
from uotod.loss.reduce import check_reduction, reduce_loss


class BalancedL1Loss(Described):
    r"""Weigh small differences more than the smooth L1 loss does, and large ones by a bounded slope.

    .. math:: L(d) = \begin{cases}
        \frac{\alpha}{b} (b |d| + \beta) \ln \left( \frac{b |d|}{\beta} + 1 \right) - \alpha |d| & |d| < \beta \\
        \gamma |d| + \frac{\gamma \beta}{b} - \alpha \beta & |d| \ge \beta \end{cases},
        \qquad b = e^{\gamma / \alpha} - 1

    Its slope is `min(α ln(b |d| / β + 1), γ)`. The paper states it for `β = 1`; in general it is `β` times the loss of
    `d / β`.

    Args:
        alpha: gain of small differences, positive.
        gamma: slope of large differences, positive.
        beta: difference from which on the loss is linear, positive.
        reduction: "none", "mean" (over all values, as `torch.nn.L1Loss`) or "sum".

    Shape:
        input and target: (...), of the same shape. Output: (...) or ().

    References:
        Pang et al., "Libra R-CNN: towards balanced learning for object detection", CVPR 2019, eqs. 6-9.

    Examples:
        >>> BalancedL1Loss(reduction="none")(torch.tensor([0.0, 0.5, 1.0, 2.0]), torch.zeros(4))
        tensor([0.0000, 0.4006, 1.0786, 2.5786])
    """

    def __init__(self, *, alpha: float = 0.5, gamma: float = 1.5, beta: float = 1.0, reduction: str = "mean") -> None:
        super().__init__()
        self.alpha = check_number("alpha", alpha, low=0.0, low_open=True)
        self.gamma = check_number("gamma", gamma, low=0.0, low_open=True)
        self.beta = check_number("beta", beta, low=0.0, low_open=True)
        self.reduction = check_reduction(reduction)

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        """Return the loss of each value, or the mean or sum.

        Raises:
            ValueError: the shapes differ.
        """
        if input.shape != target.shape:
            raise ValueError(
                f"input and target must have the same shape, got {tuple(input.shape)} and {tuple(target.shape)}"
            )
        return reduce_loss(self._of_difference(full_precision(input) - full_precision(target)), self.reduction)

    def adapter(self) -> Pair:
        """Return how the loss takes part: by pairs of boxes."""
        return Pair(self, self.pairwise)

    def pairwise(self, boxes: Tensor, target_boxes: Tensor) -> Tensor:
        """Return the loss (B, T, P), summed over 4 values, of all pairs of (B, P, 4) boxes and (B, T, 4) targets."""
        targets, values = pairwise_coordinates(target_boxes, boxes)
        cost = self._of_difference(values[0] - targets[0])
        for value, target in zip(values[1:], targets[1:], strict=True):
            cost = cost + self._of_difference(value - target)
        return cost

    def _of_difference(self, difference: Tensor) -> Tensor:
        alpha, gamma, beta = self.alpha, self.gamma, self.beta
        b = math.expm1(gamma / alpha)
        distance = difference.abs()
        near = distance.clamp(max=beta)  # the branch that is not taken must stay finite for the gradient
        curve = alpha / b * (b * near + beta) * torch.log1p(b * near / beta) - alpha * near
        return torch.where(distance < beta, curve, gamma * distance + gamma * beta / b - alpha * beta)
