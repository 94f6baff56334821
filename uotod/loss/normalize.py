"""What a mean divides by: the masses of a batch in, the divisors of classification and localisation out."""

from abc import ABC, abstractmethod
from typing import NamedTuple

import torch
from torch import Tensor, nn


class Masses(NamedTuple):
    """The masses of a batch for `L` decoder layers and `K` classification sub-losses.

    Attributes:
        positive: (L,) mass on targets.
        class_positive: (K, L) mass on targets, each weighted by its class weight.
        class_background: (K, L) mass on the background, weighted likewise; 0 where it does not count (with mining, or
            without a background class).
        targets: () number of targets.
    """

    positive: Tensor
    class_positive: Tensor
    class_background: Tensor
    targets: Tensor


class Divisors(NamedTuple):
    """The divisors of the classification sub-losses, (K, L), and of localisation, (L,)."""

    classification: Tensor
    localization: Tensor


class Normalizer(nn.Module, ABC):
    """Choose what a mean divides by; a subclass implements `divisors`. Divisors are kept at 1 or above.

    Args:
        distributed: average the divisors over the ranks of `torch.distributed`, if it is initialised, as DETR does.
            Together with the gradient averaging of DDP this gives the mean over all ranks.
    """

    def __init__(self, *, distributed: bool = False) -> None:
        super().__init__()
        self.distributed = distributed

    @torch.no_grad()
    def forward(self, masses: Masses) -> Divisors:
        """Return the divisors of a batch, at least 1 each."""
        local = self.divisors(masses)
        if self.distributed and torch.distributed.is_available() and torch.distributed.is_initialized():
            flat = torch.cat((local.classification.flatten(), local.localization))
            torch.distributed.all_reduce(flat)
            flat = flat / torch.distributed.get_world_size()
            count = local.classification.numel()
            local = Divisors(flat[:count].view_as(local.classification), flat[count:])
        return Divisors(local.classification.clamp(min=1), local.localization.clamp(min=1))

    @abstractmethod
    def divisors(self, masses: Masses) -> Divisors:
        """Return the divisors of this process."""

    def extra_repr(self) -> str:
        """Return the arguments for `repr`."""
        return f"distributed={self.distributed}"


class MassNormalizer(Normalizer):
    """Divide localisation by the positive mass, and classification by the class-weighted mass that it sees.

    Args: those of `Normalizer`.

    Examples:
        >>> one = torch.ones(1)
        >>> MassNormalizer()(Masses(4 * one, 4 * one[None], 6 * one[None], torch.tensor(3.0)))
        Divisors(classification=tensor([[10.]]), localization=tensor([4.]))
    """

    def divisors(self, masses: Masses) -> Divisors:
        """Return the masses themselves."""
        return Divisors(masses.class_positive + masses.class_background, masses.positive)


class TargetNormalizer(Normalizer):
    """Divide both by the number of targets, as Deformable DETR and its successors do.

    Args: those of `Normalizer`.

    Examples:
        >>> one = torch.ones(1)
        >>> TargetNormalizer()(Masses(4 * one, 4 * one[None], 6 * one[None], torch.tensor(3.0)))
        Divisors(classification=tensor([[3.]]), localization=tensor([3.]))
    """

    def divisors(self, masses: Masses) -> Divisors:
        """Return the number of targets for every sub-loss and layer."""
        return Divisors(masses.targets.expand_as(masses.class_positive), masses.targets.expand_as(masses.positive))
