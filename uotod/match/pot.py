"""The family of matchers that POT solves, balanced and unbalanced: costs in, soft plans out."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from uotod.match.balanced_sinkhorn import BalancedSinkhorn
from uotod.match.base import shared
from uotod.match.schedule import Schedule
from uotod.match.unbalanced_sinkhorn import UnbalancedSinkhorn
from uotod.solvers.sinkhorn import NUM_ITER, TOL


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

    def __init__(
        self,
        *,
        reg_dimless: float | Schedule = 0.12,
        reg: float | Schedule | None = None,
        normalize_cost_matrix: bool = True,
        cost_scale: str = "max",
        num_iter: int = NUM_ITER,
        tol: float = TOL,
        pot_method: str | None = None,
        on_unconverged: str = "warn",
        cls_match_module: nn.Module | None = None,
        loc_match_module: nn.Module | None = None,
        background: bool = True,
        background_cost: float | Schedule = 10.0,
        is_anchor_based: bool = False,
        nonfinite: str = "error",
        ignore_threshold: float = 0.5,
        class_weight: Sequence[float] | Tensor | None = None,
        validate: bool = False,
        box_format: str | None = None,
    ) -> None:
        super().__init__(solver="pot", **shared(BalancedSinkhorn, locals()))


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

    def __init__(
        self,
        *,
        reg_pred: float | Schedule = 1.0,
        reg_target: float | Schedule = 1.0,
        reg_dimless: float | Schedule = 0.12,
        reg: float | Schedule | None = None,
        normalize_cost_matrix: bool = True,
        cost_scale: str = "max",
        num_iter: int = NUM_ITER,
        tol: float = TOL,
        pot_method: str | None = None,
        on_unconverged: str = "warn",
        cls_match_module: nn.Module | None = None,
        loc_match_module: nn.Module | None = None,
        background: bool = True,
        background_cost: float | Schedule = 10.0,
        is_anchor_based: bool = False,
        nonfinite: str = "error",
        ignore_threshold: float = 0.5,
        class_weight: Sequence[float] | Tensor | None = None,
        validate: bool = False,
        box_format: str | None = None,
    ) -> None:
        super().__init__(solver="pot", **shared(UnbalancedSinkhorn, locals()))
