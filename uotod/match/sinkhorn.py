"""What balanced and unbalanced Sinkhorn matchers share: regularisation, marginals, solver and its report."""

from __future__ import annotations

import math
import warnings
from abc import abstractmethod
from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn

from uotod.check import check_choice, check_flag, check_integer, check_number, known_largest
from uotod.cost.pairwise import parse_cost
from uotod.match.base import Matcher, shared
from uotod.match.schedule import Schedule
from uotod.plan import Plan
from uotod.scene.scene import Scene
from uotod.solvers.feasible import check_feasible
from uotod.solvers.marginals import column_masses, cost_unit
from uotod.solvers.pot import pot_methods, solve_pot
from uotod.solvers.scaling import rounding
from uotod.solvers.sinkhorn import Transport, solve_sinkhorn
from uotod.solvers.triton.launch import solve_triton


class SinkhornResult(NamedTuple):
    """A plan, and how it was reached.

    Attributes:
        plan: (B, P, T + 1) masses; (B, P, T) without background.
        pred_potential: (B, P) dual variables of the predictions, in units of the normalised cost.
        target_potential: (B, T + 1), or (B, T) without background, dual variables of the columns, likewise.
        iterations: (B,) steps of the solver.
        residual: (B,) largest mass that a further sweep would move in a column, where a prediction has 1 (relative for
            heavier columns); it bounds the error of an entry of the plan to first order.
    """

    plan: Tensor
    pred_potential: Tensor
    target_potential: Tensor
    iterations: Tensor
    residual: Tensor


class EntropicMatcher(Matcher, abstract=True):
    """Match by a transport problem with entropy; the subclasses document the arguments and implement `_transport`."""

    def __init__(
        self,
        *,
        reg_dimless: float | Schedule,
        reg: float | Schedule | None,
        normalize_cost_matrix: bool,
        cost_scale: str,
        num_iter: int,
        tol: float,
        on_unconverged: str,
        cls_match_module: nn.Module | None,
        loc_match_module: nn.Module | None,
        background: bool,
        background_cost: float | Schedule,
        is_anchor_based: bool,
        nonfinite: str,
        ignore_threshold: float,
        class_weight: Sequence[float] | Tensor | None,
        validate: bool,
        box_format: str | None,
    ) -> None:
        super().__init__(**shared(Matcher, locals()))
        self.reg_dimless = self.scheduled("reg_dimless", reg_dimless, low=0.0, low_open=True)
        self.reg = None if reg is None else self.scheduled("reg", reg, low=0.0, low_open=True)
        self.normalize_cost_matrix = check_flag("normalize_cost_matrix", normalize_cost_matrix)
        check_choice("cost_scale", cost_scale, ("max", "median"))
        if cost_scale != "max" and not normalize_cost_matrix:
            raise ValueError(f"cost_scale={cost_scale!r} needs normalize_cost_matrix=True, got False")
        self.cost_scale = cost_scale
        self.num_iter = check_integer("num_iter", num_iter, low=1)
        self.tol = check_number("tol", tol, low=0.0, low_open=True)
        self.on_unconverged = check_choice("on_unconverged", on_unconverged, ("warn", "raise", "ignore"))

    @torch.no_grad()
    def solve(self, cost_matrix: Tensor, target_mask: Tensor) -> SinkhornResult:
        """Return the plan of a cost matrix with its potentials, iterations and residual.

        Arguments and errors as in `compute_matching`.
        """
        cost = parse_cost(cost_matrix, target_mask, self.background, self.validate)
        transport = self._transport(cost, target_mask)
        return SinkhornResult(
            Plan.from_columns(transport.plan, target_mask.shape[1]).to_dense(),
            transport.pred_potential,
            transport.target_potential,
            transport.iterations,
            transport.residual,
        )

    def plan(self, scene: Scene) -> Plan:
        # the cost that stands in for that of a prediction that is not finite must not set the image's scale
        seen = scene.finite if self.nonfinite == "propagate" else None
        mask = scene.mask
        return Plan.from_columns(self._transport(self.cost(scene), mask, seen).plan, mask.shape[1])

    def match(self, cost: Tensor, mask: Tensor) -> Plan:
        return Plan.from_columns(self._transport(cost, mask).plan, mask.shape[1])

    def _regularization(self, preds: int) -> float:
        """Return the weight of the entropy."""
        return self.reg_dimless / (math.log(2 * max(preds, 1)) + 1) if self.reg is None else self.reg

    def _entropy_name(self) -> str:
        return "reg_dimless" if self.reg is None else "reg"

    @abstractmethod
    def _transport(self, cost: Tensor, mask: Tensor, seen: Tensor | None = None) -> Transport:
        """Solve a target-major cost (B, K, P), scaled by the predictions in `seen`, (B, P) bool, or by all."""

    def _report(self, transport: Transport, reg: float) -> None:
        """Warn or raise if a plan missed `tol`, by more than float64 leaves."""
        if not transport.plan.numel():
            return
        left = transport.residual - rounding(transport.target_potential, reg)
        residual = left.where(left > 0, 0.0)
        worst = None if self.on_unconverged == "ignore" else known_largest(residual, self.validate)
        if worst is None or worst <= max(self.tol, 8 * torch.finfo(residual.dtype).eps):  # rounding leaves no less
            return
        message = (
            f"{type(self).__name__} reached a residual of {worst:.1e} after num_iter={self.num_iter} steps, above "
            f"tol={self.tol:.1e}: {self._remedy()}"
        )
        if self.on_unconverged == "raise":
            raise RuntimeError(message)
        warnings.warn(message, stacklevel=2)

    def _remedy(self) -> str:
        return "raise num_iter, tol or reg"


class SinkhornMatcher(EntropicMatcher, abstract=True):
    """Match by balanced or unbalanced entropic transport; the subclasses document the arguments."""

    def __init__(
        self,
        *,
        reg_pred: float | Schedule,
        reg_target: float | Schedule,
        reg_dimless: float | Schedule,
        reg: float | Schedule | None,
        normalize_cost_matrix: bool,
        cost_scale: str,
        num_iter: int,
        tol: float,
        solver: str,
        pot_method: str | None,
        on_unconverged: str,
        cls_match_module: nn.Module | None,
        loc_match_module: nn.Module | None,
        background: bool,
        background_cost: float | Schedule,
        is_anchor_based: bool,
        nonfinite: str,
        ignore_threshold: float,
        class_weight: Sequence[float] | Tensor | None,
        validate: bool,
        box_format: str | None,
    ) -> None:
        super().__init__(**shared(EntropicMatcher, locals()))
        self.reg_pred = self.scheduled("reg_pred", reg_pred, low=0.0, finite=False)
        self.reg_target = self.scheduled("reg_target", reg_target, low=0.0, finite=False)
        self.solver = check_choice("solver", solver, ("torch", "pot", "triton"))
        if pot_method is not None:
            if solver != "pot":
                raise ValueError(f"pot_method={pot_method!r} needs solver='pot', got solver={solver!r}")
            check_choice("pot_method", pot_method, pot_methods(self.reg_pred, self.reg_target))
        self.pot_method = pot_method

    def extra_repr(self) -> str:
        """Return the arguments for `repr`."""
        solver = f"solver={self.solver!r}" + (f", pot_method={self.pot_method!r}" if self.pot_method else "")
        return f"{self.describe_numbers('reg_pred', 'reg_target', self._entropy_name())}, {solver}"

    def _transport(self, cost: Tensor, mask: Tensor, seen: Tensor | None = None) -> Transport:
        """Solve a target-major cost (B, K, P), scaled by the predictions in `seen`, (B, P) bool, or by all."""
        active = mask
        if self.background:
            active = torch.cat((mask, mask.new_ones(len(mask), 1)), dim=1)
        preds = cost.shape[2]
        unit = cost_unit(cost, active, self.cost_scale, seen) if self.normalize_cost_matrix else None
        column_mass = column_masses(mask, preds, self.background, cost.dtype)
        check_feasible(cost, column_mass, active, self.reg_pred, self.reg_target, self.validate)
        solve: Callable[..., Transport] = partial(solve_sinkhorn, unit=unit)  # which divides by parts
        if self.solver != "torch":
            cost = cost if unit is None else cost / unit[:, None, None]
            pot = partial(solve_pot, method=self.pot_method or "sinkhorn")
            solve = pot if self.solver == "pot" else solve_triton
        weight = self._regularization(preds)
        reg: float | Tensor = weight
        if self.cost_scale != "max":
            reg = torch.full_like(cost[:, 0, 0], weight, dtype=torch.float64)  # a number goes with costs of at most 1
        transport = solve(
            cost,
            column_mass,
            active,
            reg,
            self.reg_pred,
            self.reg_target,
            num_iter=self.num_iter,
            tol=self.tol,
        )
        self._report(transport, self._regularization(preds))
        return transport

    def _remedy(self) -> str:
        balanced = math.isinf(self.reg_pred) and math.isinf(self.reg_target)
        return super()._remedy() + ("" if balanced else ", or lower reg_pred and reg_target")
