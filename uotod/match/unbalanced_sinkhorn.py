"""Unbalanced entropic transport: costs in, soft plans between assignment and nearest neighbours out."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from uotod.match.base import shared
from uotod.match.schedule import Schedule
from uotod.match.sinkhorn import SinkhornMatcher
from uotod.solvers.sinkhorn import NUM_ITER, TOL


class UnbalancedSinkhorn(SinkhornMatcher):
    r"""Match by unbalanced entropic transport, between hard assignment and nearest neighbours.

    .. math::
        \hat P = P \cdot \arg\min_{\pi \ge 0} \langle \pi, C \rangle
            + \text{reg} \sum_{ij} \pi_{ij} (\ln \pi_{ij} - 1)
            + \text{reg\_pred}\, \mathrm{KL}(\pi 1 \,|\, \alpha)
            + \text{reg\_target}\, \mathrm{KL}(\pi^\top 1 \,|\, \beta)

    with `α = 1/P` for each prediction, `β = 1/P` for each target and `(P - T_b)/P` for the background; without
    background, or with more targets than predictions, `β = 1/T_b` for each target and 0 for the background. Each image
    is solved on its own and to convergence. Limits: `(∞, ∞)` is balanced transport and, as `reg → 0`, `Hungarian`;
    `(∞, 0)` is `SoftMin(source="prediction")` and, as `reg → 0`, `ClosestTarget`; `(0, ∞)` with a background and
    `P ≥ T_b` is `SoftMin(source="target", uniform_background=True)` and, as `reg → 0`, `ClosestPrediction` (each on
    the same cost, which `SoftMin` does not normalise).

    Time O(B·P·T) a sweep or O(B·P·T²) a Newton step, typically ten of them. Memory beside cost and plan: on a CPU four
    (T_b + 1, P) floats of the largest image, or 10 MiB if that is more; on a GPU a few (B, T + 1, P) floats, of which
    one is a double. `solver="pot"` takes the images one by one, in O(P·T) doubles each.

    Args:
        reg_pred: penalty on the mass of the predictions, in [0, inf], in units of the normalised cost; a number, or a
            schedule: a callable that returns one for the step given to `set_step`.
        reg_target: penalty on the mass of targets and background, in [0, inf], likewise.
        reg_dimless: the entropic regularisation is `reg_dimless / (ln(2 P) + 1)`; a number or a schedule.
        reg: the entropic regularisation itself, in units of the normalised cost, a number or a schedule; overrides
            `reg_dimless`.
        normalize_cost_matrix: divide each image's cost by its scale, background included.
        cost_scale: what that is: "max", the largest absolute entry; or "median", the median over the predictions of
            each one's largest absolute entry, which predictions that are far from everything do not set, as long as
            they are fewer than half. With "max" one of them makes all other costs small beside the entropy, and the
            plan flat. A target that is far from everything sets either.
        num_iter: largest number of steps.
        tol: largest residual of a converged plan: the mass that a further sweep would move, where a prediction has 1.
        solver: "torch", batched and accelerated; "pot", which hands each image to the POT library; what it returns
            is checked, and a RuntimeError raised if it is not finite or without mass; or "triton", which solves a batch
            on a CUDA device in one launch of a kernel of ours, by the method and to the tolerance of "torch". It needs
            the extra `uotod[triton]`, and its speed has not been measured yet. More than 511 targets, or more than 127
            where Newton steps are taken (penalties that are large beside `reg`), go to "torch".
        pot_method: POT's name of its method, with `solver="pot"`: "sinkhorn" (the default) or "sinkhorn_stabilized";
            with two infinite penalties also those that `BalancedSinkhorn` names.
        on_unconverged: what to do on the CPU if `num_iter` steps leave a larger residual: "warn", "raise" (a
            RuntimeError) or "ignore".

    The other arguments are those of `Matcher`.

    Raises:
        TypeError: an argument has the wrong type.
        ValueError: an argument is out of its range, or `pot_method` is given without `solver="pot"`; in a call,
            forbidden pairs (`inf`) leave no plan with the marginals that must be met ("infeasible"), or
            `solver="triton"` meets a tensor on the CPU.
        ImportError: `solver="triton"` without Triton.
        RuntimeError: POT failed, or `num_iter` steps left a residual above `tol` and `on_unconverged="raise"`.

    References:
        De Plaen et al., "Unbalanced optimal transport: a unified framework for object detection", CVPR 2023, eq. 5 and
        prop. 2; Chizat et al., "Scaling algorithms for unbalanced optimal transport problems", Math. Comp. 2018.

    Examples:
        >>> import torch
        >>> cost = torch.tensor([[[0.0, 1.0, 0.5], [1.0, 0.0, 0.5], [1.0, 1.0, 0.5]]])
        >>> matcher = UnbalancedSinkhorn(reg_pred=1e3, reg_target=1e-3, reg=0.05)
        >>> matcher.compute_matching(cost, torch.ones(1, 2, dtype=torch.bool)).round(decimals=2)
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
        solver: str = "torch",
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
        super().__init__(**shared(SinkhornMatcher, locals()))
