"""What classification sees of a plan: the mass of each prediction, folded onto the classes of its targets."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from uotod.plan import Plan, rounding
from uotod.scene.targets import Targets


class SoftTarget(NamedTuple):
    """What a classification loss that is not affine in its target sees of rows that share a mass between classes.

    Attributes:
        quality: (..., C) share of the row's mass on each class, in [0, 1], scaled by the quality of its pairs.
        positive: (..., C) the same before that scaling: the one-hot label of a row with a single target.
        mass: (...) mass of the row, by which its loss is multiplied afterwards; 0 for an ignored prediction.
    """

    quality: Tensor
    positive: Tensor
    mass: Tensor


@dataclass(frozen=True)
class ClassLabels:
    """The mass of each prediction on classes.

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

    def masses(self) -> Tensor:
        """Return the (B, P, C) mass on the classes of targets, of labels that may have several classes a prediction."""
        assert self.soft is not None
        return self.soft

    def soft_target(self, num_classes: int) -> SoftTarget:
        """Return the share of each prediction's mass on every class, the background's included if it has a class."""
        mass = self.positive + self.background
        before = self if self.unscaled is None else self.unscaled
        return SoftTarget(self._shares(mass, num_classes), before._shares(mass, num_classes), mass)

    def _shares(self, mass: Tensor, num_classes: int) -> Tensor:
        scale = torch.where(mass > 0, mass, 1)
        if self.index is not None:
            shares = mass.new_zeros(*mass.shape, num_classes + 1)  # a column to drop: the background without a class
            shares = shares.scatter(-1, self.index.unsqueeze(-1), (self.positive / scale).unsqueeze(-1))
            shares = shares[..., :num_classes]
        else:
            shares = self.masses() / scale.unsqueeze(-1)
        if self.bg_class is not None:
            shares[..., self.bg_class] += self.background / scale
        return shares

    def entries(self) -> tuple[Tensor, Tensor, Tensor]:
        """Return row, class and mass (N,) of what flat labels put on targets."""
        if self.index is None:
            row, label = self.masses().nonzero(as_tuple=True)
            return row, label, self.masses()[row, label]
        row = self.positive.nonzero().squeeze(1)
        return row, self.index[row], self.positive[row]

    def pruned(self) -> "ClassLabels":
        """Return the labels without the masses on targets that are below the rounding of their image's largest."""
        if self.soft is not None:
            return replace(self, soft=self.soft * (self.soft > rounding(self.soft)))
        return replace(self, positive=self.positive * (self.positive > rounding(self.positive)))

    def over(self, divisor: Tensor) -> "ClassLabels":
        """Return the labels with all masses over a (B, 1) divisor, for labels of one class a prediction."""
        before = None if self.unscaled is None else self.unscaled.over(divisor)
        return replace(self, positive=self.positive / divisor, background=self.background / divisor, unscaled=before)

    def flat(self) -> "ClassLabels":
        """Return the labels of all predictions as rows, (N,) and (N, C)."""
        return self._map(lambda x: x.flatten(0, 1))

    def rows(self, some: slice | Tensor) -> "ClassLabels":
        """Return some of the rows of flat labels, or some of the images of others."""
        return self._map(lambda x: x[some])

    def _map(self, function: Callable[[Tensor], Tensor]) -> "ClassLabels":
        index = None if self.index is None else function(self.index)
        soft = None if self.soft is None else function(self.soft)
        before = None if self.unscaled is None else self.unscaled._map(function)
        return ClassLabels(function(self.positive), function(self.background), index, soft, self.bg_class, before)


def fold(plan: Plan, targets: Targets, num_classes: int, bg_class: int | None) -> ClassLabels:
    """Fold the mass on targets onto their classes: `S[b, p, c] = Σ_t plan[b, p, t] · [label_t = c]`.

    Args:
        plan: what classification sees of the plan, whose mass may be scaled by the quality of pairs.
        targets: the targets of the same images.
        num_classes: C.
        bg_class: class of the background, or None if it has none.
    """
    labels = _fold_mass(plan, plan.mass, targets, num_classes, bg_class)
    if plan.unscaled is None:
        return labels
    before = _fold_mass(plan, plan.unscaled, targets, num_classes, bg_class)
    rest = labels.background - (before.positive - labels.positive)
    return replace(labels, unscaled=replace(before, background=rest))


def _fold_mass(plan: Plan, mass: Tensor, targets: Targets, num_classes: int, bg_class: int | None) -> ClassLabels:
    """Return the labels of (B, K, P) masses in the slots of a plan."""
    slots, background = mass.shape[1], plan.background_mass()
    none = num_classes if bg_class is None else bg_class
    if not slots:
        index = torch.full_like(background, none, dtype=torch.long)
        return ClassLabels(torch.zeros_like(background), background, index, None, bg_class)
    if slots == 1 and plan.target is not None:  # never of the size (B, P, C) with integer labels
        positive, target = mass.squeeze(1), plan.target.squeeze(1)
        if targets.labels is not None:
            index = targets.labels.gather(1, target).masked_fill(positive <= 0, none)
            return ClassLabels(positive, background, index, None, bg_class)
        labels = targets.class_matrix(num_classes, mass.dtype)
        soft = labels.gather(1, target.unsqueeze(-1).expand(-1, -1, num_classes)) * positive.unsqueeze(-1)
        return ClassLabels(positive, background, None, soft, bg_class)
    positive, labels = mass.sum(1), targets.class_matrix(num_classes, mass.dtype)
    if plan.target is None:
        return ClassLabels(positive, background, None, mass.transpose(1, 2) @ labels, bg_class)
    soft = mass.new_zeros(*positive.shape, num_classes)
    for share, target in zip(mass.unbind(1), plan.target.unbind(1), strict=True):
        rows = labels.gather(1, target.unsqueeze(-1).expand(-1, -1, num_classes))
        soft = soft + share.unsqueeze(-1) * rows
    return ClassLabels(positive, background, None, soft, bg_class)
