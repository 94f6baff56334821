"""Soft nearest-partner matching: each side spreads its mass by a softmin of the cost."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from uotod.check import check_choice, check_flag
from uotod.match.base import Matcher, shared
from uotod.match.schedule import Schedule
from uotod.plan import Plan
from uotod.solvers.nearest import left_over, soft_minimum


class SoftMin(Matcher):
    r"""Spread each `source` over its partners by a softmin of the cost.

    .. math::
        \text{target: } \hat P_{ij} = \frac{e^{-C_{ij}/\text{reg}}}{\sum_{l \le P} e^{-C_{lj}/\text{reg}}}, \qquad
        \text{prediction: } \hat P_{ij} = \frac{e^{-C_{ij}/\text{reg}}}{\sum_{k \le T + 1} e^{-C_{ik}/\text{reg}}}

    These are unbalanced transport with `(reg_pred, reg_target)` of `(0, ∞)` and `(∞, 0)`. The cost is not normalised.
    As `reg → 0` they are `ClosestPrediction` and `ClosestTarget`, as `reg → ∞` uniform. Beside the cost it takes
    O(B·P·T) time and memory, a dense plan.

    Args:
        source: "target" spreads each target over the predictions; "prediction" spreads each prediction over targets
            and background.
        reg: temperature, in units of the cost; a number, or a schedule: a callable that returns one for the step given
            to `set_step`.
        uniform_background: with `source="target"`, spread the background's mass `P - T_b` evenly over all
            predictions, as the limit of unbalanced transport does, instead of filling each row up to 1.

    The other arguments are those of `Matcher`.

    Raises:
        TypeError: an argument has the wrong type.
        ValueError: an argument is out of its range.

    References:
        De Plaen et al., "Unbalanced optimal transport: a unified framework for object detection", CVPR 2023, prop. 2.

    Examples:
        >>> import torch
        >>> cost = torch.tensor([[[0.0, 1.0], [0.0, 1.0]]])
        >>> SoftMin(source="target").compute_matching(cost, torch.ones(1, 1, dtype=torch.bool))
        tensor([[[0.5000, 0.5000],
                 [0.5000, 0.5000]]])
    """

    def __init__(
        self,
        *,
        source: str = "target",
        reg: float | Schedule = 1.0,
        uniform_background: bool = False,
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
        self.source = check_choice("source", source, ("target", "prediction"))
        self.reg = self.scheduled("reg", reg, low=0.0, low_open=True)
        self.uniform_background = check_flag("uniform_background", uniform_background)

    @property
    def reads_cost_alone(self) -> bool:
        """Whether the number of predictions is not read."""
        return not self.uniform_background

    def match(self, cost: Tensor, mask: Tensor) -> Plan:
        num_targets = mask.shape[1]
        if self.source == "prediction":
            return Plan.from_columns(soft_minimum(cost, 1, self.reg), num_targets)
        positive = soft_minimum(cost[:, :num_targets], 2, self.reg)
        background = left_over(positive, self.uniform_background) if self.background else None
        return Plan(positive, None, background, num_targets)
