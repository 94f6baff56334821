"""Partial transport: costs in, plans that give the targets a stated total mass out."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from uotod.check import check_choice, check_number
from uotod.match.base import shared
from uotod.match.schedule import Schedule
from uotod.match.sinkhorn import EntropicMatcher
from uotod.solvers.feasible import check_carries
from uotod.solvers.marginals import cost_unit
from uotod.solvers.partial_ot import solve_partial, solve_partial_exact
from uotod.solvers.sinkhorn import NUM_ITER, TOL, Transport, blank


class PartialOT(EntropicMatcher):
    r"""Match by partial transport: a stated share of the targets' mass, where it costs least.

    .. math::
        \hat P = \arg\min_{\pi \ge 0} \langle \pi, C \rangle + \text{reg} \sum_{ij} \pi_{ij} (\ln \pi_{ij} - 1)
        \quad \text{with} \quad \pi 1 \le 1, \quad \pi^\top 1 \le 1,
        \quad \sum_{ij} \pi_{ij} = \text{mass} \cdot \min(P, T_b)

    over the pairs of predictions and targets. The background takes what is left of each prediction; its column of a
    cost is not read, because the total is given. With `mass=1` and `solver="exact"` it is `Hungarian`; with less, the
    dearest targets go without, in part. To let the cost decide how much mass is worth its price, see
    `UnbalancedSinkhorn`.

    Args:
        mass: share of `min(P, T_b)` that is transported, in (0, 1].
        solver: "torch", batched, with entropy, or "exact", without, by POT's network simplex on the host. The exact
            plan is a vertex: the same in every run, but not that of the lowest indices where costs tie; `solve` gives
            it without potentials (0).
        reg_dimless: the entropic regularisation is `reg_dimless / (ln(2 P) + 1)`; a number, or a schedule: a callable
            that returns one for the step given to `set_step`. Not read by the exact solver.
        reg: the entropic regularisation itself, in units of the normalised cost, a number or a schedule; overrides
            `reg_dimless`.
        normalize_cost_matrix: divide each image's cost of targets by its scale.
        cost_scale: what that is: "max", the largest absolute entry; or "median", the median over the predictions of
            each one's largest absolute entry, which predictions that are far from everything do not set, as long as
            they are fewer than half. With "max" one of them makes all other costs small beside the entropy, and the
            plan flat. A target that is far from everything sets either.
        num_iter: largest number of sweeps.
        tol: largest residual of a converged plan: the mass that a further sweep would move, where a prediction has 1.
        on_unconverged: what to do on the CPU if `num_iter` sweeps leave a larger residual: "warn", "raise" (a
            RuntimeError) or "ignore".

    The other arguments are those of `Matcher`. For research: in contrast to the other entropic matchers, it waits for
    a GPU once every five sweeps. Each sweep takes O(B·P·T) and each fifth O(B·P·T²), with some (B, T, P) float64.

    Raises:
        ValueError: forbidden pairs leave less than the total to transport, where values may be read.

    References:
        Benamou et al., "Iterative Bregman projections for regularized transportation problems", SIAM J. Sci. Comput.
        2015, sec. 5.2; Chapel et al., "Partial optimal transport with applications on positive-unlabeled learning",
        NeurIPS 2020.

    Examples:
        >>> import torch
        >>> cost = torch.tensor([[[0.0, 1.0, 9.0], [1.0, 0.2, 9.0], [1.0, 1.0, 9.0]]])
        >>> PartialOT(mass=0.75, solver="exact").compute_matching(cost, torch.ones(1, 2, dtype=torch.bool))
        tensor([[[1.0000, 0.0000, 0.0000],
                 [0.0000, 0.5000, 0.5000],
                 [0.0000, 0.0000, 1.0000]]])
    """

    def __init__(
        self,
        *,
        mass: float = 1.0,
        solver: str = "torch",
        reg_dimless: float | Schedule = 0.12,
        reg: float | Schedule | None = None,
        normalize_cost_matrix: bool = True,
        cost_scale: str = "max",
        num_iter: int = NUM_ITER,
        tol: float = TOL,
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
        super().__init__(**shared(EntropicMatcher, locals()))
        self.mass = check_number("mass", mass, low=0.0, high=1.0, low_open=True)
        self.solver = check_choice("solver", solver, ("torch", "exact"))
        if solver == "exact" and self.reg is not None:
            raise ValueError(f"reg must be None with solver='exact', which has no entropy, got {reg!r}")

    def extra_repr(self) -> str:
        """Return the arguments for `repr`."""
        return f"mass={self.mass}, {self.describe_numbers(self._entropy_name())}, solver={self.solver!r}"

    def _transport(self, cost: Tensor, mask: Tensor, seen: Tensor | None = None) -> Transport:
        targets, preds = mask.shape[1], cost.shape[2]
        total = self.mass * mask.sum(1).clamp(max=preds).double()
        pairs = cost[:, :targets]
        check_carries(pairs, mask, total, self.validate)
        if self.normalize_cost_matrix:
            pairs = pairs / cost_unit(pairs, mask, self.cost_scale, seen)[:, None, None]
        if self.solver == "exact":
            found = blank(pairs)._replace(plan=solve_partial_exact(pairs, mask, total))
        else:
            reg = self._regularization(preds)
            found = solve_partial(pairs, mask, total, reg, num_iter=self.num_iter, tol=self.tol)
            self._report(found, reg)
        if not self.background:
            return found
        left = (1 - found.plan.sum(1, keepdim=True)).clamp(min=0.0)
        potential = torch.cat((found.target_potential, cost.new_zeros(len(cost), 1)), dim=1)
        return found._replace(plan=torch.cat((found.plan, left), dim=1), target_potential=potential)
