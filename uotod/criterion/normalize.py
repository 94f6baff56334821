"""What a mean divides by: the masses of a batch in, the divisors of classification and localisation out."""

from abc import ABC, abstractmethod
from typing import NamedTuple

import torch
from torch import Tensor, nn

from uotod.check import check_flag, check_number


class Masses(NamedTuple):
    """The masses of `B` images for `L` decoder layers and `K` classification sub-losses.

    Attributes:
        positive: (L, B) mass on targets.
        background: (L, B) mass on the background.
        scores: (L, B) mass on targets that classification sees, scaled by the quality of its pairs.
        targets: (L, B) number of targets.
        class_positive: (K, L, B) mass on targets that each sub-loss sees, weighted by its class weight.
        class_background: (K, L, B) mass on the background, weighted likewise; 0 where it does not count (with mining,
            or without a background class).
        localization: (L, B) mass on targets that localisation sees: `positive`, or that of the union of the layers,
            scaled by `loc_quality`.
    """

    positive: Tensor
    background: Tensor
    scores: Tensor
    targets: Tensor
    class_positive: Tensor
    class_background: Tensor
    localization: Tensor


class Divisors(NamedTuple):
    """The divisors of the classification sub-losses, (K, L, B), of localisation and of objectness, (L, B).

    A last dimension of 1 is a divisor that the images share. The default of objectness is that of localisation.
    """

    classification: Tensor
    localization: Tensor
    objectness: Tensor | None = None

    @property
    def of_objectness(self) -> Tensor:
        """Return the divisor of objectness."""
        return self.localization if self.objectness is None else self.objectness


class Normalizer(nn.Module, ABC):
    """Choose what a mean divides by; a subclass implements `divisors`. Divisors are kept at 1 or above.

    Args:
        distributed: average the divisors over the ranks of `torch.distributed`, if it is initialised, as DETR does.
            Together with the gradient averaging of DDP this gives the mean over all ranks.
    """

    def __init__(self, *, distributed: bool = False) -> None:
        super().__init__()
        self.distributed = check_flag("distributed", distributed)

    @torch.no_grad()
    def forward(self, masses: Masses) -> Divisors:
        """Return the divisors of a batch, at least 1 each."""
        local = self.divisors(masses)
        values = [local.classification, local.localization, local.of_objectness]
        if self.distributed:
            values = _rank_mean(*values)
        return Divisors(*(x.clamp(min=1) for x in values))

    @abstractmethod
    def divisors(self, masses: Masses) -> Divisors:
        """Return the divisors of this process."""

    def extra_repr(self) -> str:
        """Return the arguments for `repr`."""
        return f"distributed={self.distributed}"


class MassNormalizer(Normalizer):
    """Divide classification by the class-weighted mass that it sees, localisation and objectness by the positive mass.

    The background counts where it has a class of its own and is not mined. This is the mean of
    `torch.nn.CrossEntropyLoss`, hence also that of DETR. With a `loc_quality` localisation is divided by the mass that
    it scales.

    Args: those of `Normalizer`.

    Examples:
        >>> four, six, three = torch.full((1, 1), 4.0), torch.full((1, 1), 6.0), torch.full((1, 1), 3.0)
        >>> masses = Masses(four, six, four, three, four[None], six[None], localization=four)
        >>> divisors = MassNormalizer()(masses)
        >>> divisors.classification.item(), divisors.localization.item()
        (10.0, 4.0)
    """

    def divisors(self, masses: Masses) -> Divisors:
        """Return the masses themselves."""
        return _by_mass(masses.class_positive + masses.class_background, masses)


class TotalMassNormalizer(Normalizer):
    """Divide classification by the positive and the background mass, localisation and objectness as `MassNormalizer`.

    Unlike `MassNormalizer` it counts the background always, and every class once.

    Args: those of `Normalizer`.
    """

    def divisors(self, masses: Masses) -> Divisors:
        """Return all mass for classification, the positive mass for localisation."""
        return _by_mass((masses.positive + masses.background)[None], masses)


class TargetNormalizer(Normalizer):
    """Divide all by the number of targets, as Deformable DETR and its successors do.

    Args: those of `Normalizer`.

    Examples:
        >>> four, six, three = torch.full((1, 1), 4.0), torch.full((1, 1), 6.0), torch.full((1, 1), 3.0)
        >>> masses = Masses(four, six, four, three, four[None], six[None], localization=four)
        >>> TargetNormalizer()(masses).classification.item()
        3.0
    """

    def divisors(self, masses: Masses) -> Divisors:
        """Return the number of targets for every sub-loss and layer."""
        return _all(_total(masses.targets))


class PositiveNormalizer(Normalizer):
    """Divide all by the positive mass: the number of positive predictions of a plan whose rows sum to 1.

    This is what SSD, FCOS, ATSS, GFL and YOLOX do. With a `loc_quality` localisation alone is divided by its scaled
    mass: the sum of centernesses in FCOS and ATSS, that of scores in GFL.

    Args: those of `Normalizer`.
    """

    def divisors(self, masses: Masses) -> Divisors:
        """Return the positive mass for every sub-loss."""
        return _by_mass(masses.positive[None], masses)


class ScoreNormalizer(Normalizer):
    """Divide all by the sum of the scores that classification is taught, as TOOD and YOLOv8 do.

    A score is the mass of a pair times its `quality`; without quality and `loc_quality` this is `PositiveNormalizer`. A
    `loc_quality` does not change the divisor: give the quality that weighs localisation to `quality`, too.

    Args: those of `Normalizer`.
    """

    def divisors(self, masses: Masses) -> Divisors:
        """Return the sum of scores for every sub-loss."""
        return _all(_total(masses.scores))


class PerImageNormalizer(Normalizer):
    """Divide all, in each image, by its own positive mass, and average over the images: RetinaNet of torchvision.

    The divisor of an image is `B · max(N_pos, 1)`; that of localisation has the mass scaled by `loc_quality`.

    Args:
        distributed: average the number of images `B` over the ranks.

    Examples:
        >>> positive, zero = torch.tensor([[4.0, 0.0]]), torch.zeros(1, 2)
        >>> PerImageNormalizer()(Masses(positive, zero, zero, zero, zero[None], zero[None], positive)).localization
        tensor([[8., 2.]])
    """

    @torch.no_grad()
    def forward(self, masses: Masses) -> Divisors:
        """Return the divisors of each image, at least 1 each."""
        local = self.divisors(masses)
        if not self.distributed:
            return local
        images = local.localization.new_full((1,), max(masses.positive.shape[1], 1))
        (mean,) = _rank_mean(images)  # the only number that the ranks share
        values = local.classification, local.localization, local.of_objectness
        return Divisors(*(x * mean / images for x in values))

    def divisors(self, masses: Masses) -> Divisors:
        """Return the divisors of the images of this process."""
        images = max(masses.positive.shape[1], 1)
        positive = masses.positive.clamp(min=1) * images
        return Divisors(positive[None], masses.localization.clamp(min=1) * images, positive)


class MovingAverageNormalizer(Normalizer):
    r"""Divide all by a moving average of the positive mass, as RetinaNet of detectron2 does.

    .. math:: d = m\, a + (1 - m) \max(N_\text{pos}, 1)

    The average `a` is the buffer `average`. `forward` leaves it alone; call `update` with the "num_pos" that
    `DetectionLoss.terms` returns, after each training step.

    Args:
        momentum: `m` in [0, 1].
        initial: first value of `a`, at least 1; 100 for RetinaNet, 300 for FCOS.
        distributed: average `N_pos` over the ranks, here and in `update`.

    Examples:
        >>> normalizer = MovingAverageNormalizer(momentum=0.9, initial=100)
        >>> normalizer.update(torch.tensor(50.0))
        >>> normalizer.average
        tensor(95.)
    """

    average: Tensor

    def __init__(self, *, momentum: float = 0.9, initial: float = 100.0, distributed: bool = False) -> None:
        super().__init__(distributed=distributed)
        self.momentum = check_number("momentum", momentum, low=0.0, high=1.0)
        self.register_buffer("average", torch.tensor(check_number("initial", initial, low=1.0)))

    @torch.no_grad()
    def forward(self, masses: Masses) -> Divisors:
        """Return the average with the positive mass of this batch taken in, for each decoder layer."""
        return self.divisors(masses)

    def divisors(self, masses: Masses) -> Divisors:
        """Return the same: the ranks share the positive mass, not the average."""
        return _all(self._blend(_total(masses.positive)))

    @torch.no_grad()
    def update(self, num_pos: Tensor) -> None:
        """Take the positive mass () of a batch into the average."""
        self.average.copy_(self._blend(num_pos.to(self.average)))

    def extra_repr(self) -> str:
        """Return the arguments for `repr`."""
        return f"momentum={self.momentum}, {super().extra_repr()}"

    def _blend(self, num_pos: Tensor) -> Tensor:
        if self.distributed:
            (num_pos,) = _rank_mean(num_pos)
        return self.momentum * self.average.to(num_pos) + (1 - self.momentum) * num_pos.clamp(min=1)


def _total(masses: Tensor) -> Tensor:
    """Sum (..., B) masses over the images, (..., 1)."""
    return masses.sum(-1, keepdim=True)


def _by_mass(classification: Tensor, masses: Masses) -> Divisors:
    """Divide by totals: of the (K, L, B) for classification, of the mass of localisation, and of the positive mass."""
    return Divisors(_total(classification), _total(masses.localization), _total(masses.positive))


def _all(divisor: Tensor) -> Divisors:
    """Divide everything by the same (L, B)."""
    return Divisors(divisor[None], divisor)


def _rank_mean(*values: Tensor) -> list[Tensor]:
    """Return the mean of each tensor over the ranks, in one reduction; outside of `torch.distributed` the tensor."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return list(values)
    flat = torch.cat([x.flatten() for x in values])
    torch.distributed.all_reduce(flat)
    flat = flat / torch.distributed.get_world_size()
    return [part.view_as(x) for part, x in zip(torch.split(flat, [x.numel() for x in values]), values, strict=True)]
