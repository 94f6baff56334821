"""Exact balanced transport: costs in, the plan of least total cost out."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from uotod.match.base import Matcher, shared
from uotod.match.schedule import Schedule
from uotod.plan import Plan
from uotod.solvers.emd import solve_emd
from uotod.solvers.marginals import column_masses


class EMD(Matcher):
    r"""Match by exact balanced transport (the earth mover's distance): `BalancedSinkhorn` without entropy.

    .. math:: \hat P = \arg\min_{\pi \ge 0} \langle \pi, C \rangle
        \quad \text{with} \quad \pi 1 = 1, \quad \pi^\top 1 = \beta

    with `β = 1` for each target and `P - T_b` for the background; without background, or with more targets than
    predictions, `P / T_b` for each target. With a background, `P ≥ T_b` and integer masses the plan is one of 0 and 1,
    and with a background cost that is constant over the predictions its cost is that of `Hungarian` (De Plaen et al.,
    CVPR 2023, prop. 1). Without background each target takes `P / T_b` predictions, which may split. Among plans of
    equal cost it is the vertex where POT's network simplex stops: the same in every run, but not the one of the lowest
    indices. Solved on the host in float64, with a single transfer for a batch and all its decoder layers; it takes
    longer than `Hungarian` and is meant for research: the network simplex visits O(P·T) pairs a pivot at worst, an
    image at a time, in a few (P, T + 1) doubles.

    Args: those of `Matcher`.

    Raises:
        ValueError: forbidden pairs (`inf`) leave no plan with these marginals.

    References:
        Kantorovich, "On the translocation of masses", 1942; R. Flamary et al., "POT: Python Optimal Transport", JMLR
        2021.

    Examples:
        >>> cost = torch.tensor([[[0.1, 0.2], [0.1, 0.9], [0.5, 0.5]]])
        >>> EMD(background=False).compute_matching(cost, torch.ones(1, 2, dtype=torch.bool))
        tensor([[[0.5000, 0.5000],
                 [1.0000, 0.0000],
                 [0.0000, 1.0000]]])
    """

    def __init__(
        self,
        *,
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
        super().__init__(**shared(Matcher, locals()))

    def match(self, cost: Tensor, mask: Tensor) -> Plan:
        active = torch.cat((mask, mask.new_ones(len(mask), 1)), dim=1) if self.background else mask
        # float64 masses: those of P / T_b in float32 add up to P only to rounding
        masses = column_masses(mask, cost.shape[2], self.background, torch.float64)
        return Plan.from_columns(solve_emd(cost, masses, active), mask.shape[1])
