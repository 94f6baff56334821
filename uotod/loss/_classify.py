"""Classification on a plan: logits, plan and labels in, the loss and the masses of each image out."""

from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from uotod._cost import (
    ClassTerms,
    Part,
    SoftTarget,
    class_terms,
    class_weight,
    parts_of,
    soft_loss,
    sum_rows,
    takes_one_hot,
)
from uotod._plan import AssignedPlan, DensePlan, Plan, carries_mass
from uotod._targets import Targets


class ClassLoss(NamedTuple):
    """Sums over the predictions of each image, all (B,): the loss, and the class-weighted masses."""

    value: Tensor
    positive: Tensor
    background: Tensor


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
            shares.scatter_(2, self.index.unsqueeze(-1), (self.positive / scale).unsqueeze(-1))
            shares = shares[..., :num_classes]
        else:
            assert self.soft is not None
            shares = self.soft / scale.unsqueeze(-1)
        if self.bg_class is not None:
            shares[..., self.bg_class] += self.background / scale
        return shares


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
        matched = plan.is_positive()
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


class Classifier:
    """The classification sub-losses on the logits of one batch.

    Args:
        module: the loss module, composite or single.
        logits: (B, P, C).
        bg_class: class of the background, or None if it has none.
        layers: number of decoder layers stacked along the batch.
    """

    def __init__(self, module: torch.nn.Module, logits: Tensor, bg_class: int | None, layers: int = 1) -> None:
        self.parts = parts_of(module)
        self.logits = logits
        self.bg_class = bg_class
        self.layers = layers
        self.terms = [class_terms(part.module, logits) for part in self.parts]

    @torch.no_grad()
    def background_loss(self) -> Tensor:
        """Return the weighted loss (B, P) of calling each prediction background."""
        total = self.logits.new_zeros(self.logits.shape[:2])
        for part, terms in zip(self.parts, self.terms, strict=True):
            if terms is None and soft_loss(part.module) is not None:
                shares = torch.zeros_like(self.logits)
                if self.bg_class is not None:
                    shares[..., self.bg_class] = 1
                value = self._soft_values(part, SoftTarget(shares, shares, torch.ones_like(total)))
            elif terms is None:
                value = self._background_rows(part, self.logits.flatten(0, 1)).view_as(total)
            else:
                value = total.new_zeros(()) if self.bg_class is None else terms.gain[..., self.bg_class]
                value = value if terms.base is None else value + terms.base
            total = total + part.weight * value
        return total

    def losses(self, labels: ClassLabels) -> list[ClassLoss]:
        """Return the loss of each part, weighted, with the masses that its mean divides by."""
        num_classes, dtype = self.logits.shape[-1], self.logits.dtype
        soft: SoftTarget | None = None
        losses = []
        for part, terms in zip(self.parts, self.terms, strict=True):
            if terms is not None:
                value = _affine(terms, labels)
            elif soft_loss(part.module) is not None:
                soft = SoftTarget(*(x.to(dtype) for x in labels.soft_target(num_classes))) if soft is None else soft
                value = (soft.mass * self._soft_values(part, soft)).sum(1)
            else:
                value = self._by_rows(part, labels)
            masses = _weighted_masses(class_weight(part.module, num_classes), labels)
            losses.append(ClassLoss(part.weight * value, *masses))
        return losses

    def _soft_values(self, part: Part, target: SoftTarget) -> Tensor:
        """Return the loss (B, P) of a module that takes soft targets, evaluated once a decoder layer."""
        method = soft_loss(part.module)
        assert method is not None
        chunks = zip(self.logits.chunk(self.layers), *(x.chunk(self.layers) for x in target), strict=True)
        return torch.cat([method(logits, SoftTarget(*rest)) for logits, *rest in chunks])

    def _by_rows(self, part: Part, labels: ClassLabels) -> Tensor:
        """Return the loss (B,) of a module that takes aligned rows."""
        images, preds, num_classes = self.logits.shape
        if labels.index is not None:
            soft = labels.positive.new_zeros(images, preds, num_classes + 1)
            soft = soft.scatter(2, labels.index.unsqueeze(-1), labels.positive.unsqueeze(-1))[..., :num_classes]
        else:
            assert labels.soft is not None
            soft = labels.soft
        image, pred, index = carries_mass(soft).nonzero(as_tuple=True)
        rows = self.logits[image, pred]
        if self.bg_class is None or takes_one_hot(part.module):
            target = torch.nn.functional.one_hot(index, num_classes).to(rows.dtype)
        else:
            target = index
        total = self.logits.new_zeros(images) + self.logits[..., :0].sum()
        if len(rows):
            loss = sum_rows(part.module(rows, target), len(rows), "cls_loss_module")
            total = total.to(loss.dtype).index_add(0, image, loss * soft[image, pred, index].to(loss.dtype))
        image, pred = (labels.background > 0).nonzero(as_tuple=True)
        if len(image):
            loss = self._background_rows(part, self.logits[image, pred])
            total = total.to(loss.dtype).index_add(0, image, loss * labels.background[image, pred].to(loss.dtype))
        return total

    def _background_rows(self, part: Part, rows: Tensor) -> Tensor:
        """Return the loss (N,) of calling each of (N, C) rows background."""
        if not len(rows):
            return rows.sum(-1)
        if self.bg_class is None:
            target = torch.zeros_like(rows)
        else:
            target = torch.full(rows.shape[:1], self.bg_class, device=rows.device)
            if takes_one_hot(part.module):
                target = torch.nn.functional.one_hot(target, rows.shape[-1]).to(rows.dtype)
        return sum_rows(part.module(rows, target), len(rows), "cls_loss_module")


def _affine(terms: ClassTerms, labels: ClassLabels) -> Tensor:
    """Return Σ_p m·base + ⟨S, gain⟩ for each image, (B,)."""
    if labels.index is not None:
        index = labels.index.clamp(max=terms.gain.shape[-1] - 1)
        rows = labels.positive * terms.gain.gather(-1, index.unsqueeze(-1)).squeeze(-1)
    else:
        assert labels.soft is not None
        rows = (labels.soft * terms.gain).sum(2)
    if labels.bg_class is not None:
        rows = rows + labels.background * terms.gain[..., labels.bg_class]
    # gain and base may be large and cancel: they are added row by row
    return (rows if terms.base is None else rows + (labels.positive + labels.background) * terms.base).sum(1)


def _weighted_masses(weight: Tensor | None, labels: ClassLabels) -> tuple[Tensor, Tensor]:
    """Return the positive and the background mass of each image, (B,), each mass times its class weight."""
    background = labels.background.sum(1)
    if weight is None:
        return labels.positive.sum(1), background
    weight = weight.to(labels.positive)
    if labels.bg_class is not None:
        background = background * weight[labels.bg_class]
    if labels.soft is not None:
        return (labels.soft * weight).sum((1, 2)), background
    assert labels.index is not None
    padded = torch.cat((weight, weight.new_zeros(1)))  # the background without a class carries no positive mass
    return (labels.positive * padded[labels.index]).sum(1), background
