"""The family of matchers that POT solves, balanced and unbalanced: costs in, soft plans out."""

from __future__ import annotations

from typing import TYPE_CHECKING

from uotod.match.balanced_sinkhorn import BalancedSinkhorn
from uotod.match.sinkhorn import PotOptions
from uotod.match.unbalanced_sinkhorn import UnbalancedSinkhorn

if TYPE_CHECKING:
    from typing_extensions import Unpack


class UnbalancedPotOptions(PotOptions, total=False):
    """Types of the arguments of an unbalanced matcher that POT solves."""

    reg_pred: float
    reg_target: float


class BalancedPOT(BalancedSinkhorn):
    """Match by `BalancedSinkhorn(solver="pot")`, whose arguments, errors and limit cases it shares.

    O(B·P·T) time a step, an image at a time, and O(P·T) doubles.

    Raises:
        RuntimeError: POT failed numerically, as it may where `cost / reg` is in the hundreds.

    Examples:
        >>> import torch
        >>> cost = torch.tensor([[[0.0, 1.0, 0.5], [1.0, 0.0, 0.5], [1.0, 1.0, 0.5]]])
        >>> mask = torch.ones(1, 2, dtype=torch.bool)
        >>> BalancedPOT(reg=0.1, pot_method="sinkhorn_log").compute_matching(cost, mask).round(decimals=2)
        tensor([[[0.9900, 0.0000, 0.0100],
                 [0.0000, 0.9900, 0.0100],
                 [0.0100, 0.0100, 0.9900]]])
    """

    def __init__(self, **sinkhorn: Unpack[PotOptions]) -> None:
        super().__init__(solver="pot", **sinkhorn)


class UnbalancedPOT(UnbalancedSinkhorn):
    """Match by `UnbalancedSinkhorn(solver="pot")`, whose arguments, errors and limit cases it shares.

    O(B·P·T) time a step, an image at a time, and O(P·T) doubles.

    Raises:
        RuntimeError: POT failed numerically, as it may where `cost / reg` is in the hundreds.

    Examples:
        >>> import torch
        >>> cost = torch.tensor([[[0.0, 1.0, 0.5], [1.0, 0.0, 0.5], [1.0, 1.0, 0.5]]])
        >>> mask = torch.ones(1, 2, dtype=torch.bool)
        >>> UnbalancedPOT(reg_pred=1e3, reg_target=1e-3, reg=0.05).compute_matching(cost, mask).round(decimals=2)
        tensor([[[1., 0., 0.],
                 [0., 1., 0.],
                 [0., 0., 1.]]])
    """

    def __init__(self, **sinkhorn: Unpack[UnbalancedPotOptions]) -> None:
        super().__init__(solver="pot", **sinkhorn)
