"""Mix several matchers: their plans in, the weighted sum out."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from uotod.check import check_flag, check_number
from uotod.match.base import Matcher
from uotod.match.composite import CompositeMatcher
from uotod.plan import Plan
from uotod.scene.scene import Scene


class WeightedSum(CompositeMatcher):
    r"""Add the plans of several matchers, each with its weight.

    .. math:: \hat P = \sum_k w_k \hat P^{(k)}, \qquad \text{by default } w_k = 1 / K

    Each matcher computes its own cost. The cost of the sum is the weighted sum of their costs, and
    `compute_matching` hands one cost to all of them. It takes the time of its matchers together, and a dense plan of
    each.

    Args:
        matchers: at least one matcher; all with, or all without a background.
        weights: one weight of at least 0 for each matcher. Weights that sum to 1 keep the marginals.
        validate: also check values on a GPU, which synchronises.

    Raises:
        TypeError: `matchers` is no sequence of matchers, or `weights` none of numbers.
        ValueError: there is no matcher, the number of weights differs, or the matchers disagree on the background
            or on what to do with non-finite predictions.

    Examples:
        >>> from uotod.match import ClosestPrediction, ClosestTarget
        >>> cost = torch.tensor([[[0.1, 0.2, 0.5], [0.3, 0.9, 0.5], [0.7, 0.8, 0.5]]])
        >>> mixed = WeightedSum([ClosestPrediction(), ClosestTarget()], weights=[0.5, 0.5])
        >>> mixed.compute_matching(cost, torch.ones(1, 2, dtype=torch.bool))
        tensor([[[1.0000, 0.5000, 0.0000],
                 [0.5000, 0.0000, 0.5000],
                 [0.0000, 0.0000, 1.0000]]])
    """

    def __init__(
        self, matchers: Sequence[Matcher], weights: Sequence[float] | None = None, *, validate: bool = False
    ) -> None:
        if not isinstance(matchers, Iterable):
            raise TypeError(f"matchers must be a sequence of matchers, got {type(matchers).__name__}")
        if weights is not None and not isinstance(weights, Sequence):
            raise TypeError(f"weights must be a sequence of numbers or None, got {type(weights).__name__}")
        members = list(matchers)
        if not members:
            raise ValueError("matchers must hold at least one matcher, got none")
        for index, matcher in enumerate(members):
            if not isinstance(matcher, Matcher):
                raise TypeError(
                    f"matchers[{index}] must be a Matcher, got {matcher!r} of type {type(matcher).__name__}"
                )
            for name in ("background", "nonfinite", "box_format"):
                found, expected = getattr(matcher, name), getattr(members[0], name)
                if found != expected:
                    raise ValueError(f"matchers[{index}].{name} must be {expected!r} like matchers[0], got {found!r}")
        if weights is None:
            weights = [1.0 / len(members)] * len(members)
        if len(weights) != len(members):
            raise ValueError(f"weights must hold {len(members)} numbers, one a matcher, got {len(weights)}")
        super().__init__()
        self.validate = check_flag("validate", validate)
        self.matchers = nn.ModuleList(members)
        self.weights = tuple(check_number(f"weights[{i}]", w, low=0.0) for i, w in enumerate(weights))
        if not any(self.weights):
            raise ValueError(f"weights must hold a positive number, got {list(weights)}")

    @property
    def members(self) -> list[Matcher]:
        """The matchers of the sum."""
        return [matcher for matcher in self.matchers if isinstance(matcher, Matcher)]

    def compute_matching(self, cost_matrix: Tensor, target_mask: Tensor) -> Tensor:
        """Return the weighted sum of the matchers' plans for one cost; see `Matcher.compute_matching`."""
        return self._weighted(matcher.compute_matching(cost_matrix, target_mask) for matcher in self.members)

    def scene_plan(self, scene: Scene) -> Plan:
        """Return the weighted sum of the matchers' plans, each of its own cost."""
        mass = self._weighted(matcher.scene_plan(scene).to_dense() for matcher in self.members)
        return Plan.from_columns(mass.transpose(1, 2), scene.mask.shape[1])

    def cost(self, scene: Scene) -> Tensor:
        """Return the weighted sum of the matchers' costs."""
        return self._weighted(matcher.cost(scene) for matcher in self.members)

    def _weighted(self, values: Iterable[Tensor]) -> Tensor:
        # a weight of 0 switches a matcher off, even where its cost is infinite
        terms = [w * x for w, x in zip(self.weights, values, strict=True) if w > 0]
        return torch.stack(terms).sum(0)
