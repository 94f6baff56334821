"""The transport plan: the mass of each prediction in a few slots, and the pairs and masses that losses read from it."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Generic, NamedTuple, NoReturn, TypeVar

import torch
from torch import Tensor

from uotod.check import check_device, check_finite, check_range, reads_values

Value = TypeVar("Value")


class once(Generic[Value]):  # noqa: N801  a decorator, as `property`
    """A property of a frozen value that is computed at its first use.

    As `functools.cached_property`, but without the lock that it takes in Python 3.11, which no compiler can trace.
    """

    def __init__(self, function: Callable[[Any], Value]) -> None:
        self.function, self.__doc__ = function, function.__doc__

    def __get__(self, instance: Any, owner: type) -> Value:
        if instance is None:
            return self  # type: ignore[return-value]
        value = instance.__dict__[self.function.__name__] = self.function(instance)
        return value


class Pairs(NamedTuple):
    """Matched pairs of a plan and their mass, each of shape (N,).

    A pair of mass 0 stands for no pair: shapes that do not depend on data need such rows.
    """

    image: Tensor
    slot: Tensor
    pred: Tensor
    target: Tensor
    mass: Tensor


class Block(NamedTuple):
    """Some of the images and some of the slots of a plan, as an index of its tensors."""

    images: slice
    slots: slice


EVERYTHING = Block(slice(None), slice(None))


@dataclass(frozen=True)
class Plan:
    """The mass that each prediction gives to targets, in `K` slots, and to the background.

    A rule that gives a prediction to one target has one slot, one that gives it to several targets a slot for each
    choice, and a dense plan a slot for each target. A slot of mass 0 is never read.

    Attributes:
        mass: (S, K, P) mass of each slot.
        target: (S, K, P) target of each slot, 0 where there is no mass; None if slot `k` is target `k`.
        background: (S, P) mass on the background, or None for a plan without background. A row of zeros is an ignored
            prediction; without background, one that is not matched.
        num_targets: T.
        unscaled: (S, K, P) the mass before the quality of its pairs scaled it, or None if none did.
    """

    mass: Tensor
    target: Tensor | None
    background: Tensor | None
    num_targets: int
    unscaled: Tensor | None = None

    @classmethod
    def from_columns(cls, mass: Tensor, num_targets: int) -> "Plan":
        """Split (S, T + 1, P) masses into those of targets and of the background; (S, T, P) have no background."""
        background = mass[:, -1] if mass.shape[1] > num_targets else None
        return cls(mass[:, :num_targets], None, background, num_targets)

    @classmethod
    def from_index(
        cls, index: Tensor, num_targets: int, background: bool, dtype: torch.dtype, mass: Tensor | None = None
    ) -> "Plan":
        """Return the plan that gives each prediction to one target, to the background or to nothing.

        Args:
            index: (S, P) target of each prediction, `num_targets` for the background, -1 for an ignored prediction.
            num_targets: T.
            background: whether the plan has a background.
            dtype: dtype of the masses.
            mass: (S, P) mass on the target, at most 1, of which the rest is on the background; None for 1.
        """
        rest = (index == num_targets).to(dtype)
        if not num_targets:
            return cls(rest.new_zeros(len(index), 0, index.shape[1]), None, rest if background else None, 0)
        matched = (index >= 0) & (index < num_targets)
        share = matched.to(dtype) if mass is None else mass * matched
        if mass is not None:
            rest = torch.where(matched, 1 - mass, rest)
        target = index.masked_fill(~matched, 0).unsqueeze(1)
        return cls(share.unsqueeze(1), target, rest if background else None, num_targets)

    def to_dense(self) -> Tensor:
        """Return the public layout: (S, P, T + 1), or (S, P, T) without background."""
        mass = self.mass
        if self.target is not None:
            mass = mass.new_zeros(len(mass), self.num_targets, mass.shape[2]).scatter_add_(1, self.target, mass)
        columns = [mass] if self.background is None else [mass, self.background.unsqueeze(1)]
        return torch.cat([x.transpose(1, 2) for x in columns], dim=2)

    @once
    def positive(self) -> Tensor:
        """The (S, P) mass that each prediction gives to targets."""
        return self.mass.squeeze(1) if self.mass.shape[1] == 1 else self.mass.sum(1)

    def target_mass(self, images: slice = slice(None)) -> Tensor:
        """Return the (S, T) mass that each target gets, in some of the images."""
        mass = self.mass[images]
        if self.target is None:
            return mass.sum(2)
        total = mass.new_zeros(len(mass), self.num_targets)
        return total.scatter_add_(1, self.target[images].flatten(1), mass.flatten(1))

    def background_mass(self) -> Tensor:
        """Return the (S, P) mass that each prediction gives to the background, zeros without one."""
        return torch.zeros_like(self.positive) if self.background is None else self.background

    def with_background(self, mass: Tensor | None) -> "Plan":
        """Return the plan with another (S, P) background mass; a plan without background keeps none."""
        return self if self.background is None else replace(self, background=mass)

    def only(self, valid: Tensor | None) -> "Plan":
        """Return the plan with rows of zeros for predictions that are padding, where (S, P) is False; None for none."""
        if valid is None:
            return self
        padding = ~valid
        background = None if self.background is None else self.background.masked_fill(padding, 0)
        target = None if self.target is None else self.target.masked_fill(padding.unsqueeze(1), 0)
        return replace(self, mass=self.mass.masked_fill(padding.unsqueeze(1), 0), target=target, background=background)

    def ignoring(self, dropped: Tensor) -> "Plan":
        """Return the plan in which the (S, P) bool `dropped` predictions give nothing to the background.

        A prediction with a target of its own keeps its background, which tells its quality; one whose mass a dense
        plan splits does not.
        """
        if self.background is None:
            return self
        if self.target is not None:
            dropped = dropped & (self.positive <= 0)
        return replace(self, background=self.background.masked_fill(dropped, 0))

    def scaled(self, quality: Tensor, *, rest_to_background: bool = False) -> "Plan":
        """Return the plan with the mass of each slot times an (S, K, P) quality.

        What that takes away goes to the background with `rest_to_background`, even in a plan without one; otherwise
        nowhere.
        """
        mass = self.mass * quality
        background = self.background
        if rest_to_background:
            background = self.background_mass() + (self.mass - mass).sum(1)
        return Plan(mass, self.target, background, self.num_targets, unscaled=self.mass)

    def weighted(self, weight: Tensor) -> "Plan":
        """Return the plan with the mass of each target times its (S, T) weight.

        The background of a prediction with a target of its own tells its quality, and goes with it.
        """
        if self.target is None:
            return replace(self, mass=self.mass * weight.unsqueeze(-1))
        factor = weight.gather(1, self.target.flatten(1)).view_as(self.mass)
        background = self.background
        if background is not None and self.mass.shape[1] == 1:
            background = torch.where(self.positive > 0, background * factor.squeeze(1), background)
        return replace(self, mass=self.mass * factor, background=background)

    def repeat(self, layers: int) -> "Plan":
        """Return the plan once for each of `layers` decoder layers, stacked along the batch."""
        if layers == 1:
            return self
        target = None if self.target is None else self.target.repeat(layers, 1, 1)
        background = None if self.background is None else self.background.repeat(layers, 1)
        return Plan(self.mass.repeat(layers, 1, 1), target, background, self.num_targets)

    def blocks(self, limit: int) -> list[Block]:
        """Return blocks of the plan of at most `limit` entries, or of the entries of one slot."""
        images, slots, preds = self.mass.shape
        if self.mass.numel() <= limit:
            return [EVERYTHING]
        lines = max(limit // preds, 1)
        some, few = max(lines // slots, 1), min(lines, slots)
        return [
            Block(slice(i, i + some), slice(j, j + few)) for i in range(0, images, some) for j in range(0, slots, few)
        ]

    def pairs(self, static: bool, block: Block = EVERYTHING) -> Pairs:
        """Return the pairs of a block that carry mass; with `static` all of them, which avoids a synchronisation.

        Of a dense plan, mass below the rounding of the largest of its image is left out.
        """
        mass = self.mass[block]
        images, slots, preds = mass.shape
        if static:
            entry = torch.arange(images * slots * preds, device=mass.device)
            image, rest = entry // max(slots * preds, 1), entry % max(slots * preds, 1)
            slot, pred, found = rest // max(preds, 1), rest % max(preds, 1), mass.flatten()
        else:
            least = self._rounding[block.images] if self.target is None else 0
            image, slot, pred = (mass > least).nonzero(as_tuple=True)
            found = mass[image, slot, pred]
        target = slot if self.target is None else self.target[block][image, slot, pred]
        first, offset = block.images.start or 0, block.slots.start or 0
        if self.target is None:
            target = target + offset
        return Pairs(image + first, slot + offset, pred, target, found)

    @once
    def _rounding(self) -> Tensor:
        """The rounding (S, 1, 1) of the largest mass of each image."""
        return rounding(self.mass)


def rounding(mass: Tensor) -> Tensor:
    """Return the rounding (B, 1, ...) of the largest of the (B, ...) masses of each image."""
    if not mass.numel():
        return mass.new_zeros(len(mass), *[1] * (mass.dim() - 1))
    return torch.finfo(mass.dtype).eps * mass.amax(tuple(range(1, mass.dim())), keepdim=True)


def parse_plan(plan: "Tensor | Plan", mask: Tensor, like: Tensor, background: bool, validate: bool) -> Plan:
    """Return the plan of one decoder layer that a user states.

    Shape, dtype and device are always checked, values on the CPU or with `validate`.

    Args:
        plan: (B, P, T + 1) masses, (B, P, T) without background; (B, P) integers, the target of each prediction, T for
            the background, -1 for an ignored prediction; or a `Plan`.
        mask: (B, T) bool, False for padding and ignored targets.
        like: (B, P, ...) tensor with the dtype and device of the masses.
        background: whether plans have a background.
        validate: whether values may be read on a GPU.

    Raises:
        TypeError: the plan is neither a tensor nor a `Plan`, or has the wrong dtype.
        ValueError: its shape, its device or a value is wrong.
    """
    (images, num_targets), preds = mask.shape, like.shape[1]
    if isinstance(plan, Plan):
        if plan.mass.dim() != 3 or (len(plan.mass), plan.mass.shape[2]) != (images, preds):
            raise ValueError(f"plan.mass must have shape ({images}, K, {preds}), got {tuple(plan.mass.shape)}")
        if plan.target is not None:
            check_device("plan", plan.mass, like.device)
            if plan.num_targets != num_targets or (plan.background is not None) != background:
                raise ValueError(
                    f"plan must have {num_targets} targets and background={background} like the matcher, "
                    f"got {plan.num_targets} and background={plan.background is not None}"
                )
            _check_slots(plan, plan.target, mask, validate)
            return plan
        plan = plan.to_dense()
    if not isinstance(plan, Tensor):
        raise TypeError(f"plan must be a tensor, got {type(plan).__name__}")
    dense, assigned = (images, preds, num_targets + background), (images, preds)
    if plan.shape != dense and plan.shape != assigned:
        raise ValueError(f"plan must have shape {dense} (masses) or {assigned} (indices), got {tuple(plan.shape)}")
    check_device("plan", plan, like.device)
    if plan.dim() == 3:
        if not plan.is_floating_point():
            raise TypeError(f"plan of shape {dense} must have a floating dtype, got {plan.dtype}")
        _check_masses(plan, mask, validate)
        return Plan.from_columns(plan.detach().to(like.dtype).transpose(1, 2).contiguous(), num_targets)
    if plan.is_floating_point() or plan.is_complex() or plan.dtype == torch.bool:
        raise TypeError(f"plan of shape {assigned} must have an integer dtype, got {plan.dtype}")
    index = plan.long()
    _check_indices(index, mask, background, validate)
    return Plan.from_index(index, num_targets, background, like.dtype)


def _check_slots(plan: Plan, target: Tensor, mask: Tensor, validate: bool) -> None:
    """Check the values of a plan: targets in range, masses finite, not negative, none on padded or ignored targets."""
    if not reads_values(target, validate) or not target.numel():
        return
    check_range("plan.target", target, mask.shape[1])
    _check_amounts(plan.mass, validate)
    _check_amounts(plan.background_mass(), validate)
    allowed = mask.gather(1, target.flatten(1)).view_as(target)
    for image, slot, pred in ((plan.mass != 0) & ~allowed).nonzero()[:1].tolist():
        _refuse_match(int(target[image, slot, pred]), image, pred)


def _check_amounts(mass: Tensor, validate: bool) -> None:
    """Check that masses are finite and not negative."""
    check_finite("plan", mass, validate)
    lowest = float(mass.detach().amin())
    if lowest < 0:
        raise ValueError(f"plan must not be negative, got {lowest}")


def _refuse_match(target: int, image: int, pred: int) -> NoReturn:
    raise ValueError(
        "plan must not match targets where target['mask'] is False or a target is ignored, "
        f"got target {target} in image {image}, prediction {pred}"
    )


def _check_masses(plan: Tensor, mask: Tensor, validate: bool) -> None:
    """Check the values of (B, P, T + 1) masses: finite, not negative, none on padded or ignored targets."""
    if not reads_values(plan, validate) or not plan.numel():
        return
    _check_amounts(plan, validate)
    on_padding = (plan.detach()[..., : mask.shape[1]] != 0) & ~mask.unsqueeze(1)
    for image, pred, target in on_padding.nonzero()[:1].tolist():
        _refuse_match(target, image, pred)


def _check_indices(index: Tensor, mask: Tensor, background: bool, validate: bool) -> None:
    """Check the values of (B, P) indices: in range, and none of a padded or ignored target."""
    if not reads_values(index, validate) or not index.numel():
        return
    num_targets = mask.shape[1]
    check_range("plan", index, num_targets + background, low=-1, note=" as indices")
    allowed = torch.cat((mask, mask.new_ones(len(mask), 2)), dim=1)  # the background, and -1 taken from the end
    on_padding = ~allowed.gather(1, index.remainder(num_targets + 2))
    for image, pred in on_padding.nonzero()[:1].tolist():
        _refuse_match(int(index[image, pred]), image, pred)
