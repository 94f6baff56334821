"""The family of hard nearest-partner matchers: costs in, the cheapest partner of each prediction or target out."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from uotod.check import check_choice, check_flag, check_number
from uotod.match.base import Matcher, shared
from uotod.match.schedule import Schedule
from uotod.plan import Plan
from uotod.solvers.nearest import left_over, nearest_prediction, nearest_target


class ClosestTarget(Matcher):
    r"""Match each prediction to its cheapest column, a target or the background; the lowest wins ties.

    .. math:: \hat P_{ij} = 1 \text{ for } j = \arg\min_{k \le T + 1} C_{ik}

    The background cost acts as the threshold. It is the limit `reg_pred → ∞, reg_target = 0, reg → 0` of unbalanced
    transport. Beside the cost it takes O(B·P·T) time and O(B·P) memory.

    Args: those of `Matcher`.

    Raises:
        TypeError: an argument has the wrong type.
        ValueError: an argument is out of its range.

    References:
        De Plaen et al., "Unbalanced optimal transport: a unified framework for object detection", CVPR 2023, prop. 2.

    Examples:
        >>> import torch
        >>> cost = torch.tensor([[[0.1, 0.2, 0.5], [0.1, 0.9, 0.5], [0.7, 0.8, 0.5]]])
        >>> ClosestTarget().compute_matching(cost, torch.ones(1, 2, dtype=torch.bool))
        tensor([[[1., 0., 0.],
                 [1., 0., 0.],
                 [0., 0., 1.]]])
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

    @property
    def reads_cost_alone(self) -> bool:
        """Whether the number of predictions is not read."""
        return True

    def match(self, cost: Tensor, mask: Tensor) -> Plan:
        return _take_targets(cost, mask, self.background)


class ClosestPrediction(Matcher):
    r"""Match each target to its cheapest prediction; the lowest wins ties.

    .. math:: \hat P_{ij} = 1 \text{ for } i = \arg\min_{l \le P} C_{lj} \text{ if } C_{ij} \le \text{threshold}

    A prediction that is closest to two targets carries mass 2. It is the limit `reg_pred = 0, reg_target → ∞, reg → 0`
    of unbalanced transport. With `SigmoidFocalCost`, L1 and GIoU as its cost it is the `SimpleMinsumMatcher` of DINO
    (Zhang et al., ICLR 2023), which lets the last of such targets have the prediction. Beside the cost it takes
    O(B·P·T) time and memory, a dense plan.

    Args:
        threshold: the largest cost that matches; None for no limit.
        uniform_background: spread the background's mass, `P` less the number of matched targets, evenly over all
            predictions, as the limit of unbalanced transport does, instead of giving 1 to each unmatched prediction.

    The other arguments are those of `Matcher`.

    Raises:
        TypeError: an argument has the wrong type.
        ValueError: an argument is out of its range.

    References:
        De Plaen et al., "Unbalanced optimal transport: a unified framework for object detection", CVPR 2023,
        the converse of prop. 2.

    Examples:
        >>> import torch
        >>> cost = torch.tensor([[[0.1, 0.2, 0.5], [0.1, 0.9, 0.5], [0.7, 0.8, 0.5]]])
        >>> ClosestPrediction().compute_matching(cost, torch.ones(1, 2, dtype=torch.bool))
        tensor([[[1., 1., 0.],
                 [0., 0., 1.],
                 [0., 0., 1.]]])
    """

    def __init__(
        self,
        *,
        threshold: float | None = None,
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
        self.threshold = None if threshold is None else check_number("threshold", threshold)
        self.uniform_background = check_flag("uniform_background", uniform_background)

    @property
    def reads_cost_alone(self) -> bool:
        """Whether the number of predictions is not read."""
        return not self.uniform_background

    def match(self, cost: Tensor, mask: Tensor) -> Plan:
        return _take_predictions(cost, mask, self.background, self.threshold, self.uniform_background)


class Min(Matcher):
    """Match each `source` to its cheapest partner: `ClosestPrediction` or `ClosestTarget` by a switch.

    It costs what they cost.

    Args:
        source: "target" matches each target to its cheapest prediction, "prediction" each prediction to its cheapest
            target or the background.

    The other arguments are those of `Matcher`.

    Raises:
        TypeError: an argument has the wrong type.
        ValueError: an argument is out of its range.

    Examples:
        >>> import torch
        >>> cost = torch.tensor([[[0.1, 0.2, 0.5], [0.1, 0.9, 0.5], [0.7, 0.8, 0.5]]])
        >>> Min(source="prediction").compute_matching(cost, torch.ones(1, 2, dtype=torch.bool))[0, 1]
        tensor([1., 0., 0.])
    """

    def __init__(
        self,
        *,
        source: str = "target",
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

    @property
    def reads_cost_alone(self) -> bool:
        """Whether the number of predictions is not read."""
        return True

    def match(self, cost: Tensor, mask: Tensor) -> Plan:
        if self.source == "prediction":
            return _take_targets(cost, mask, self.background)
        return _take_predictions(cost, mask, self.background, threshold=None, uniform=False)


def _take_targets(cost: Tensor, mask: Tensor, background: bool) -> Plan:
    index = nearest_target(cost)
    return Plan.from_index(index, mask.shape[1], background, cost.dtype)


def _take_predictions(cost: Tensor, mask: Tensor, background: bool, threshold: float | None, uniform: bool) -> Plan:
    positive = nearest_prediction(cost[:, : mask.shape[1]], threshold)
    return Plan(positive, None, left_over(positive, uniform) if background else None, mask.shape[1])
