"""The transport plan in its two representations, and the pairs and masses that losses read from it."""

from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor


class Pairs(NamedTuple):
    """Matched (prediction, target) pairs and their mass, each of shape (N,).

    A pair of mass 0 stands for no pair: shapes that do not depend on data need such rows.
    """

    image: Tensor
    pred: Tensor
    target: Tensor
    mass: Tensor


class Block(NamedTuple):
    """Some of the images and some of their targets, as an index of (B, T, ...) tensors."""

    images: slice
    targets: slice


EVERYTHING = Block(slice(None), slice(None))


@dataclass(frozen=True)
class DensePlan:
    """A plan that may split a prediction among targets.

    Attributes:
        positive: (B, T, P) mass on the targets, zero on padding.
        background: (B, P) mass on the background, or None for a plan without background.
    """

    positive: Tensor
    background: Tensor | None

    @classmethod
    def from_columns(cls, mass: Tensor, num_targets: int) -> "DensePlan":
        """Split (B, K, P) masses whose column after the targets, if there is one, is the background."""
        background = mass[:, num_targets] if mass.shape[1] > num_targets else None
        return cls(mass[:, :num_targets], background)

    def to_dense(self) -> Tensor:
        """Return the public layout: (B, P, T + 1), or (B, P, T) without background."""
        columns = [self.positive] if self.background is None else [self.positive, self.background.unsqueeze(1)]
        return torch.cat(columns, dim=1).transpose(1, 2).contiguous()

    def positive_mass(self) -> Tensor:
        """Return the (B, P) mass that each prediction gives to targets."""
        return self.positive.sum(1)

    def background_mass(self) -> Tensor:
        """Return the (B, P) mass that each prediction gives to the background."""
        return torch.zeros_like(self.positive_mass()) if self.background is None else self.background

    def with_background(self, mass: Tensor) -> "DensePlan":
        """Return the plan with another (B, P) background mass; a plan without background keeps none."""
        return self if self.background is None else replace(self, background=mass)

    def scaled(self, factor: Tensor) -> "DensePlan":
        """Return the plan with the mass of each pair times a (B, T, P) factor; the background stays."""
        return replace(self, positive=self.positive * factor)

    def repeat(self, layers: int) -> "DensePlan":
        """Return the plan once for each of `layers` decoder layers, stacked along the batch."""
        background = None if self.background is None else self.background.repeat(layers, 1)
        return DensePlan(self.positive.repeat(layers, 1, 1), background)

    def blocks(self, limit: int) -> list[Block]:
        """Return blocks of the plan of `limit` entries at most, or of the entries of one target."""
        images, targets, preds = self.positive.shape
        if self.positive.numel() <= limit:
            return [EVERYTHING]
        rows = max(limit // preds, 1)
        some, few = max(rows // targets, 1), min(rows, targets)
        return [
            Block(slice(i, i + some), slice(j, j + few)) for i in range(0, images, some) for j in range(0, targets, few)
        ]

    def pairs(self, static: bool, block: Block = EVERYTHING) -> Pairs:
        """Return the pairs of a block that carry mass; with `static` all of them, which avoids a synchronisation.

        Mass below the rounding of the largest of its image is left out.
        """
        positive = self.positive[block]
        images, targets, preds = positive.shape
        if static:
            index = torch.arange(images * targets * preds, device=positive.device)
            image, rest = index // max(targets * preds, 1), index % max(targets * preds, 1)
            pred, target, mass = rest % max(preds, 1), rest // max(preds, 1), positive.flatten()
        else:
            image, target, pred = (positive > self._rounding[block.images]).nonzero(as_tuple=True)
            mass = positive[image, target, pred]
        return Pairs(image + (block.images.start or 0), pred, target + (block.targets.start or 0), mass)

    @cached_property
    def _rounding(self) -> Tensor:
        """The rounding (B, 1, 1) of the largest mass of each image."""
        return rounding(self.positive)


@dataclass(frozen=True)
class AssignedPlan:
    """A plan in which each prediction gives mass to one target at most, to the background or to nothing.

    Attributes:
        index: (B, P) target of each prediction; `num_targets` for the background and -1 for an ignored prediction.
        mass: (B, P) mass that each prediction gives to what `index` says.
        num_targets: T.
        has_background: whether the dense layout has a background column.
        background: (B, P) mass on the background, matched predictions included, or None for what `index` says: the
            mass of unmatched predictions.
    """

    index: Tensor
    mass: Tensor
    num_targets: int
    has_background: bool
    background: Tensor | None = None

    def to_dense(self) -> Tensor:
        """Return the public layout: (B, P, T + 1), or (B, P, T) without background."""
        columns = self.num_targets + 2
        plan = self.mass.new_zeros(*self.index.shape, columns)
        plan.scatter_(-1, self.index.remainder(columns).unsqueeze(-1), self.mass.unsqueeze(-1))  # -1: a column to drop
        if self.background is not None:
            plan[..., self.num_targets] = self.background
        return plan[..., : self.num_targets + self.has_background].contiguous()

    @cached_property
    def is_positive(self) -> Tensor:
        """The (B, P) bool mask of predictions that are matched to a target."""
        return (self.index >= 0) & (self.index < self.num_targets)

    def positive_mass(self) -> Tensor:
        """Return the (B, P) mass that each prediction gives to targets."""
        return self.mass.masked_fill(~self.is_positive, 0)

    def background_mass(self) -> Tensor:
        """Return the (B, P) mass that each prediction gives to the background."""
        if not self.has_background:
            return torch.zeros_like(self.mass)
        if self.background is not None:
            return self.background
        return self.mass.masked_fill(self.index != self.num_targets, 0)

    def with_background(self, mass: Tensor) -> "AssignedPlan":
        """Return the plan with another (B, P) background mass, read where the plan may have some."""
        if self.background is not None:
            return replace(self, background=mass)
        return replace(self, mass=torch.where(self.index == self.num_targets, mass, self.mass))

    def scaled(self, factor: Tensor) -> "AssignedPlan":
        """Return the plan with the mass of each pair times a (B, P) factor; the background stays."""
        return replace(self, mass=torch.where(self.is_positive, self.mass * factor, self.mass))

    def repeat(self, layers: int) -> "AssignedPlan":
        """Return the plan once for each of `layers` decoder layers, stacked along the batch."""
        background = None if self.background is None else self.background.repeat(layers, 1)
        return replace(
            self, index=self.index.repeat(layers, 1), mass=self.mass.repeat(layers, 1), background=background
        )

    def blocks(self, limit: int) -> list[Block]:
        """Return the whole plan as one block: it has no more pairs than predictions."""
        return [EVERYTHING]

    def pairs(self, static: bool, block: Block = EVERYTHING) -> Pairs:
        """Return the pairs that carry mass; with `static` all B·P predictions, which avoids a synchronisation."""
        if static:
            positive = self.is_positive.flatten()
            images, preds = self.index.shape
            rows = torch.arange(images * preds, device=self.index.device)
            mass, target = self.mass.flatten() * positive, self.index.flatten() * positive
            return Pairs(rows // max(preds, 1), rows % max(preds, 1), target, mass)
        image, pred = self.is_positive.nonzero(as_tuple=True)
        return Pairs(image, pred, self.index[image, pred], self.mass[image, pred])


Plan = DensePlan | AssignedPlan


def carries_mass(mass: Tensor) -> Tensor:
    """Return where (B, ...) masses exceed the rounding of the largest one of their image."""
    return mass > rounding(mass)


def rounding(mass: Tensor) -> Tensor:
    """Return the rounding (B, 1, ...) of the largest of the (B, ...) masses of each image."""
    if not mass.numel():
        return mass.new_zeros(len(mass), *[1] * (mass.dim() - 1))
    return torch.finfo(mass.dtype).eps * mass.amax(tuple(range(1, mass.dim())), keepdim=True)
