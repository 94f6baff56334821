"""What classification sees of a plan: the mass of each prediction, folded onto the classes of its targets."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from uotod.cost.adapters import SoftTarget
from uotod.plan import AssignedPlan, DensePlan, Plan, carries_mass
from uotod.scene.targets import Targets

Rows = slice | Tensor


@dataclass(frozen=True)
class ClassLabels:
    """What classification sees of a plan: the mass of each prediction, folded onto classes.

    Attributes:
        positive: (B, P) mass on targets.
        background: (B, P) mass on the background.
        index: (B, P) the one class that has the positive mass of a prediction, C for a background without a class;
            None if a prediction may have several.
        soft: (B, P, C) mass on the classes of targets, or None if `index` says it all.
        bg_class: class of the background, or None if it has none.
        unscaled: the labels before the quality of pairs scaled them, or None if it did not.
    """

    positive: Tensor
    background: Tensor
    index: Tensor | None
    soft: Tensor | None
    bg_class: int | None
    unscaled: "ClassLabels | None" = None

    def soft_target(self, num_classes: int) -> SoftTarget:
        """Return the share of each prediction's mass on every class, the background's included if it has a class."""
        mass = self.positive + self.background
        before = self if self.unscaled is None else self.unscaled
        return SoftTarget(self._shares(mass, num_classes), before._shares(mass, num_classes), mass)

    def _shares(self, mass: Tensor, num_classes: int) -> Tensor:
        scale = torch.where(mass > 0, mass, 1)
        if self.index is not None:
            shares = mass.new_zeros(*mass.shape, num_classes + 1)  # a column to drop: the background without a class
            shares.scatter_(-1, self.index.unsqueeze(-1), (self.positive / scale).unsqueeze(-1))
            shares = shares[..., :num_classes]
        else:
            assert self.soft is not None
            shares = self.soft / scale.unsqueeze(-1)
        if self.bg_class is not None:
            shares[..., self.bg_class] += self.background / scale
        return shares

    def pruned(self) -> "ClassLabels":
        """Return the labels without the masses on targets that are below the rounding of their image's largest."""
        if self.soft is not None:
            return replace(self, soft=self.soft * carries_mass(self.soft))
        return replace(self, positive=self.positive * carries_mass(self.positive))

    def over(self, divisor: Tensor) -> "ClassLabels":
        """Return the labels with all masses over a (B, 1) divisor, for labels of one class a prediction."""
        assert self.soft is None
        before = None if self.unscaled is None else self.unscaled.over(divisor)
        return replace(self, positive=self.positive / divisor, background=self.background / divisor, unscaled=before)

    def flat(self) -> "ClassLabels":
        """Return the labels of all predictions as rows, (N,) and (N, C)."""
        return self._map(lambda x: x.flatten(0, 1))

    def rows(self, some: Rows) -> "ClassLabels":
        """Return some of the rows of flat labels."""
        return self._map(lambda x: x[some])

    def _map(self, function: Callable[[Tensor], Tensor]) -> "ClassLabels":
        index = None if self.index is None else function(self.index)
        soft = None if self.soft is None else function(self.soft)
        before = None if self.unscaled is None else self.unscaled._map(function)
        return ClassLabels(function(self.positive), function(self.background), index, soft, self.bg_class, before)


def fold_quality(
    plan: Plan, quality: Tensor | None, targets: Targets, num_classes: int, bg_class: int | None
) -> ClassLabels:
    """Fold the mass on targets, scaled by the quality of each pair; the rest of it goes to the background.

    Args:
        plan: the plan.
        quality: (B, T, P) for a dense plan, (B, P) for an assigned one, both in [0, 1]; None for 1.
        targets: the targets of the same images.
        num_classes: C.
        bg_class: class of the background, or None if it has none.
    """
    labels = fold_plan(plan, targets, num_classes, bg_class)
    if quality is None:
        return labels
    if isinstance(plan, DensePlan):
        positive = plan.positive * quality
        background = plan.background_mass() + (plan.positive - positive).sum(1)
        return replace(fold_plan(DensePlan(positive, background), targets, num_classes, bg_class), unscaled=labels)
    positive = labels.positive * quality
    return replace(
        labels,
        positive=positive,
        background=labels.background + (labels.positive - positive),
        soft=None if labels.soft is None else labels.soft * quality.unsqueeze(-1),
        unscaled=labels,
    )


def fold_plan(plan: Plan, targets: Targets, num_classes: int, bg_class: int | None) -> ClassLabels:
    """Fold the mass on targets onto their classes: `S[b, p, c] = Σ_t plan[b, p, t] · [label_t = c]`."""
    positive, background = plan.positive_mass(), plan.background_mass()
    if isinstance(plan, AssignedPlan):
        matched = plan.is_positive
        none = num_classes if bg_class is None else bg_class
        target = plan.index.clamp(0, max(plan.num_targets - 1, 0))
        if targets.labels is not None:
            if not plan.num_targets:
                return ClassLabels(positive, background, torch.full_like(plan.index, none), None, bg_class)
            index = torch.where(matched, targets.labels.gather(1, target), none)
            return ClassLabels(positive, background, index, None, bg_class)
        assert targets.one_hot is not None
        if plan.num_targets:
            rows = targets.one_hot.gather(1, target.unsqueeze(-1).expand(-1, -1, num_classes))
            soft = rows.to(positive.dtype) * positive.unsqueeze(-1)
        else:
            soft = positive.new_zeros(*positive.shape, num_classes)
        return ClassLabels(positive, background, None, soft, bg_class)
    soft = plan.positive.transpose(1, 2) @ targets.class_matrix(num_classes, plan.positive.dtype)
    return ClassLabels(positive, background, None, soft, bg_class)
