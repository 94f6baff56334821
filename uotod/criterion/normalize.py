"""What a mean divides by: the masses of a batch in, the divisor of each term out."""

from abc import abstractmethod
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from uotod.check import Described, check_flag, check_integer, check_number
from uotod.criterion.masses import Masses, rank_mean

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


class Normalizer(Described):
    """Choose what a mean divides by; a subclass implements `divisor`.

    Args:
        distributed: average the masses over the ranks of `torch.distributed`, if it is initialised, as DETR does; over
            those of the criterion's `process_group`. Together with the gradient averaging of DDP this gives the mean
            over all ranks.
        least: the least divisor, at least 0; it applies once, last.
    """

    def __init__(self, *, distributed: bool = False, least: float = 1.0) -> None:
        super().__init__()
        self.distributed = check_flag("distributed", distributed)
        self.least = check_number("least", least, low=0.0)

    @torch.no_grad()
    def forward(self, term: str, local: Masses, own: Masses, shared: Masses) -> Tensor:
        """Return the divisor of a term, which broadcasts with (parts, L, B).

        Args:
            term: its name: "cls", "loc", "obj" or that of a term of one's own.
            local: the masses of each image of this process.
            own: their sums, or those that are given to the criterion.
            shared: the same, averaged over the ranks.
        """
        return self.divisor(term, local, shared if self.distributed else own).clamp(min=self.least)

    @abstractmethod
    def divisor(self, term: str, local: Masses, total: Masses) -> Tensor:
        """Return the divisor of a term before `least`.

        Args:
            term: its name.
            local: the masses of each image of this process.
            total: the sums that count.
        """
        raise NotImplementedError


class ByTerm(Normalizer):
    """Divide each term by a normaliser of its own.

    Args:
        default: for the terms that are not named.
        terms: normalisers by the names of terms, such as `cls=MassNormalizer()`.

    Examples:
        >>> ByTerm(TargetNormalizer(distributed=True), cls=MassNormalizer())  # DETR
        ByTerm(
          (default): TargetNormalizer(groups=1, distributed=True, least=1.0)
          (cls): MassNormalizer(distributed=False, least=1.0)
        )
    """

    def __init__(self, default: Normalizer, **terms: Normalizer) -> None:
        members = {"default": default, **terms}
        for name, member in members.items():
            if not isinstance(member, Normalizer):
                raise TypeError(f"{name} must be a Normalizer, got {member!r}")
        super().__init__(distributed=any(member.distributed for member in members.values()))
        for name, member in members.items():
            self.add_module(name, member)

    def forward(self, term: str, local: Masses, own: Masses, shared: Masses) -> Tensor:
        """Return the divisor of a term by its own normaliser; see `Normalizer.forward`."""
        member = self._modules["default" if term not in self._modules else term]
        assert member is not None
        divisor: Tensor = member(term, local, own, shared)
        return divisor

    def divisor(self, term: str, local: Masses, total: Masses) -> Tensor:
        """Return nothing: the members have the divisors."""
        raise NotImplementedError


class MassNormalizer(Normalizer):
    """Divide classification by the class-weighted mass that it sees, localisation and objectness by the positive mass.

    The background counts where it has a class of its own and is not mined. This is the mean of
    `torch.nn.CrossEntropyLoss`, hence also that of DETR. A localisation whose pairs have a quality is divided by the
    mass that it scales.

    Args: those of `Normalizer`.
    """

    def divisor(self, term: str, local: Masses, total: Masses) -> Tensor:
        """Return the mass that each part of the term sees."""
        return total.of_term(term)[2]


class TotalMassNormalizer(MassNormalizer):
    """Divide classification by the positive and the background mass, the other terms as `MassNormalizer`.

    Unlike `MassNormalizer` it counts the background always, and every class once.

    Args: those of `Normalizer`.
    """

    def divisor(self, term: str, local: Masses, total: Masses) -> Tensor:
        """Return all mass for classification, the mass that they see for the others."""
        if term == "cls":
            return total.of("positive") + total.of("background")
        return super().divisor(term, local, total)


class TargetNormalizer(Normalizer):
    """Divide all by the number of targets, as Deformable DETR and its successors do.

    Args:
        groups: factor of the number while training: the groups of queries that are each matched to all targets.
        distributed: see `Normalizer`.
        least: see `Normalizer`.

    Examples:
        >>> three = Masses.of_targets(3)
        >>> TargetNormalizer()("cls", three, three, three).item()
        3.0
    """

    def __init__(self, *, groups: int = 1, distributed: bool = False, least: float = 1.0) -> None:
        super().__init__(distributed=distributed, least=least)
        self.groups = check_integer("groups", groups, low=1)

    def divisor(self, term: str, local: Masses, total: Masses) -> Tensor:
        """Return the number of targets for every term and layer."""
        return total.of("targets") * (self.groups if self.training else 1)


class PositiveNormalizer(Normalizer):
    """Divide all by the positive mass: the number of positive predictions of a plan whose rows sum to 1.

    This is what SSD, FCOS, ATSS, GFL and YOLOX do. A localisation whose pairs have a quality is divided by its scaled
    mass: the sum of centernesses in FCOS and ATSS, that of scores in GFL.

    Args: those of `Normalizer`.
    """

    def divisor(self, term: str, local: Masses, total: Masses) -> Tensor:
        """Return the positive mass of the term."""
        return total.of_term(term)[0]


class ImagePositiveNormalizer(PositiveNormalizer):
    """Divide as `PositiveNormalizer`, but count an image without matches as one match outside of localisation: ATSS.

    Args: those of `Normalizer`.
    """

    def divisor(self, term: str, local: Masses, total: Masses) -> Tensor:
        """Return the positive mass of the term."""
        return total.of("floored") if term in ("cls", "obj") else super().divisor(term, local, total)


class ScoreNormalizer(Normalizer):
    """Divide all by the sum of the scores that classification is taught, as TOOD and YOLOv8 do.

    A score is the mass of a pair times the quality that classification gives it; without any this is
    `PositiveNormalizer`. A quality of localisation does not change the divisor: give it to classification, too.

    Args: those of `Normalizer`.
    """

    def divisor(self, term: str, local: Masses, total: Masses) -> Tensor:
        """Return the sum of scores for every term."""
        return total.of_term("cls")[1]


class PairedTargetNormalizer(Normalizer):
    """Divide all by the number of targets times the pairs that each has here: the groups of denoising queries.

    The number of targets may be averaged over ranks, on which the groups differ: DINO and RT-DETR.

    Args: those of `Normalizer`.
    """

    def divisor(self, term: str, local: Masses, total: Masses) -> Tensor:
        """Return the number of targets times the groups of this process."""
        own = local.total()
        return total.of("targets") * own.of("positive") / own.of("targets").clamp(min=1)


class PerImageNormalizer(Normalizer):
    """Divide all, in each image, by its own positive mass, and average over the images: RetinaNet of torchvision.

    The divisor of an image is `B · max(N_pos, 1)`; that of localisation has the mass scaled by its quality.

    Args:
        distributed: average the number of images `B` over the ranks.
    """

    def __init__(self, *, distributed: bool = False) -> None:
        super().__init__(distributed=distributed)

    def divisor(self, term: str, local: Masses, total: Masses) -> Tensor:
        """Return the divisors of each image."""
        return local.of_term(term)[0].clamp(min=1) * total.of("images").clamp(min=1)


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

    def divisor(self, term: str, local: Masses, total: Masses) -> Tensor:
        """Return the average with the positive mass of this batch taken in, for each decoder layer."""
        return self._blend(total.of("positive"))

    @torch.no_grad()
    def update(self, num_pos: Tensor, process_group: "ProcessGroup | None" = None) -> None:
        """Take the positive mass () of a batch into the average, with `distributed` its mean over a process group."""
        if self.distributed:
            num_pos = rank_mean(num_pos, process_group)
        self.average.copy_(self._blend(num_pos.to(self.average)))

    def _blend(self, num_pos: Tensor) -> Tensor:
        return self.momentum * self.average.to(num_pos) + (1 - self.momentum) * num_pos.clamp(min=1)
