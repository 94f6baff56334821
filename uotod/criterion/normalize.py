"""What a mean divides by: the masses of a batch in, the divisor of each term out."""

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from uotod.check import check_flag, check_integer, check_number


class TermMass(NamedTuple):
    """The masses that one term counts, for `B` images, or 1 for their sum, of `L` decoder layers.

    Attributes:
        positives: (L, B) mass on targets that stands for the number of its positives.
        seen: (L, B) mass on targets that it sees, scaled by the quality of its pairs.
        weighted: (K, L, B) what each of its `K` parts sees, weighted by class weights, the background included where it
            counts.
    """

    positives: Tensor
    seen: Tensor
    weighted: Tensor


@dataclass(frozen=True)
class Masses:
    """The masses of `B` images, or 1 for their sum, of `L` decoder layers; those of micro-batches add up.

    Attributes:
        targets: (L, B) number of targets.
        images: () number of images, or None if it is not known, as for the others.
        positive: (L, B) mass on targets.
        floored: (L, B) the same, at least 1 in each image.
        background: (L, B) mass on the background.
        terms: what each term counts, by its name.
    """

    targets: Tensor
    images: Tensor | None = None
    positive: Tensor | None = None
    floored: Tensor | None = None
    background: Tensor | None = None
    terms: Mapping[str, TermMass] | None = None

    @classmethod
    def of_targets(cls, count: float | Tensor) -> "Masses":
        """Return the masses of which nothing but the number of targets is known, which is enough for some divisors."""
        return cls(torch.as_tensor(count, dtype=torch.get_default_dtype()).view(1, 1))

    def total(self) -> "Masses":
        """Return the sums over the images."""
        if self.terms is None:
            return self
        return self._of_rows(self.rows())

    def __add__(self, other: "Masses") -> "Masses":
        """Return the masses of both batches together."""
        if self.terms is None or other.terms is None:
            return Masses(_sum(self.targets) + _sum(other.targets))
        return self._of_rows(self.rows() + other.rows())

    def rows(self) -> Tensor:
        """Return all sums over images as one tensor (R, L), where R depends on nothing but the terms."""
        first = torch.stack((self.targets, self.of("positive"), self.of("floored"), self.of("background")))
        rows = [first, *(x for t in (self.terms or {}).values() for x in (t.positives[None], t.seen[None], t.weighted))]
        summed = torch.cat(rows).sum(-1)
        return torch.cat((self.of("images").to(summed).expand(1, summed.shape[1]), summed))

    def _of_rows(self, rows: Tensor) -> "Masses":
        """Return the masses of the same terms with the sums (R, L)."""
        images, targets, positive, floored, background, *rest = rows.unsqueeze(-1).unbind(0)
        terms = {}
        for name, old in (self.terms or {}).items():
            parts = len(old.weighted)
            positives, seen, *weighted = rest[: 2 + parts]
            terms[name], rest = TermMass(positives, seen, torch.stack(weighted)), rest[2 + parts :]
        return Masses(targets, images[0, 0], positive, floored, background, terms)

    def of(self, name: str) -> Tensor:
        """Return `positive`, `background` or `images`, which must be known.

        Raises:
            ValueError: it is not.
        """
        value: Tensor | None = getattr(self, name)
        if value is None:
            raise ValueError(
                f"masses must hold {name!r} for this normalizer, got the number of targets only: pass those of "
                "criterion.masses(...), or a normalizer that counts targets"
            )
        return value

    def of_term(self, name: str) -> TermMass:
        """Return what a term counts, which must be known.

        Raises:
            ValueError: it is not.
        """
        if self.terms is None or name not in self.terms:
            self.of("positive")
            raise ValueError(f"masses must hold the term {name!r}, got {sorted(self.terms or ())}")
        return self.terms[name]


def is_shared() -> bool:
    """Tell whether there are ranks of `torch.distributed` to share masses with."""
    return torch.distributed.is_available() and torch.distributed.is_initialized()


def mean_over_ranks(
    masses: Sequence[Masses | None], rows: Sequence[int], layers: int, like: Tensor
) -> list[Masses | None]:
    """Return the mean over the ranks of `torch.distributed` of the masses of several criteria, in one reduction.

    Its length is the same on every rank, whatever the data holds: the masses of a criterion that a rank has no output
    for count as 0, and as many decoder layers are reduced for each as the main output has.

    Args:
        masses: the masses of each criterion, or None for one without output.
        rows: number of rows of each.
        layers: number of decoder layers of the main output.
        like: a tensor of the dtype and device of masses.

    Raises:
        ValueError: a criterion has more decoder layers than the main output.
    """
    parts = []
    for own, count in zip(masses, rows, strict=True):
        found = like.new_zeros(count, layers) if own is None else own.rows().to(like)
        if found.shape[1] > layers:
            raise ValueError(
                f"with divisors over ranks a branch must have at most the {layers} decoder layers of the main output, "
                f"got {found.shape[1]}"
            )
        parts.append(F.pad(found, (0, layers - found.shape[1])).flatten())
    shared = torch.split(_rank_mean(torch.cat(parts)), [len(x) for x in parts])
    return [
        None if own is None else own._of_rows(found.view(-1, layers)[:, : len(own.targets)])
        for own, found in zip(masses, shared, strict=True)
    ]


class Normalizer(nn.Module):
    """Choose what a mean divides by; a subclass implements `divisor`.

    Args:
        distributed: average the masses over the ranks of `torch.distributed`, if it is initialised, as DETR does.
            Together with the gradient averaging of DDP this gives the mean over all ranks.
        least: the least divisor, at least 0; it applies once, last.
    """

    def __init__(self, *, distributed: bool = False, least: float = 1.0) -> None:
        super().__init__()
        self.distributed = check_flag("distributed", distributed)
        self.least = check_number("least", least, low=0.0)

    @torch.no_grad()
    def forward(self, term: str, local: Masses, shared: Masses) -> Tensor:
        """Return the divisor of a term, which broadcasts with (parts, L, B).

        Args:
            term: its name: "cls", "loc", "obj" or that of a term of one's own.
            local: the masses of the images of this process.
            shared: their sums, averaged over the ranks, or as they are given to the criterion.
        """
        return self.divisor(term, local, shared if self.distributed else local.total()).clamp(min=self.least)

    @abstractmethod
    def divisor(self, term: str, local: Masses, total: Masses) -> Tensor:
        """Return the divisor of a term before `least`.

        Args:
            term: its name.
            local: the masses of each image of this process.
            total: the sums that count.
        """
        raise NotImplementedError

    def extra_repr(self) -> str:
        """Return the arguments for `repr`."""
        least = "" if self.least == 1 else f", least={self.least}"
        return f"distributed={self.distributed}{least}"


class ByTerm(Normalizer):
    """Divide each term by a normaliser of its own.

    Args:
        default: for the terms that are not named.
        terms: normalisers by the names of terms, such as `cls=MassNormalizer()`.

    Examples:
        >>> ByTerm(TargetNormalizer(distributed=True), cls=MassNormalizer())  # DETR
        ByTerm(
          (default): TargetNormalizer(distributed=True)
          (cls): MassNormalizer(distributed=False)
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

    def forward(self, term: str, local: Masses, shared: Masses) -> Tensor:
        """Return the divisor of a term by its own normaliser; see `Normalizer.forward`."""
        divisor: Tensor = getattr(self, term if term in self._modules else "default")(term, local, shared)
        return divisor

    def extra_repr(self) -> str:
        """Return no arguments: the members say it all."""
        return ""


class MassNormalizer(Normalizer):
    """Divide classification by the class-weighted mass that it sees, localisation and objectness by the positive mass.

    The background counts where it has a class of its own and is not mined. This is the mean of
    `torch.nn.CrossEntropyLoss`, hence also that of DETR. A localisation whose pairs have a quality is divided by the
    mass that it scales.

    Args: those of `Normalizer`.
    """

    def divisor(self, term: str, local: Masses, total: Masses) -> Tensor:
        """Return the mass that each part of the term sees."""
        return total.of_term(term).weighted


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
        >>> TargetNormalizer()("cls", three, three).item()
        3.0
    """

    def __init__(self, *, groups: int = 1, distributed: bool = False, least: float = 1.0) -> None:
        super().__init__(distributed=distributed, least=least)
        self.groups = check_integer("groups", groups, low=1)

    def divisor(self, term: str, local: Masses, total: Masses) -> Tensor:
        """Return the number of targets for every term and layer."""
        return total.targets * self.groups if self.groups > 1 and self.training else total.targets

    def extra_repr(self) -> str:
        """Return the arguments for `repr`."""
        return f"groups={self.groups}, {super().extra_repr()}" if self.groups > 1 else super().extra_repr()


class PositiveNormalizer(Normalizer):
    """Divide all by the positive mass: the number of positive predictions of a plan whose rows sum to 1.

    This is what SSD, FCOS, ATSS, GFL and YOLOX do. A localisation whose pairs have a quality is divided by its scaled
    mass: the sum of centernesses in FCOS and ATSS, that of scores in GFL.

    Args: those of `Normalizer`.
    """

    def divisor(self, term: str, local: Masses, total: Masses) -> Tensor:
        """Return the positive mass of the term."""
        return total.of_term(term).positives


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
        return total.of_term("cls").seen


class PairedTargetNormalizer(Normalizer):
    """Divide all by the number of targets times the pairs that each has here: the groups of denoising queries.

    The number of targets may be averaged over ranks, on which the groups differ: DINO and RT-DETR.

    Args: those of `Normalizer`.
    """

    def divisor(self, term: str, local: Masses, total: Masses) -> Tensor:
        """Return the number of targets times the groups of this process."""
        own = local.total()
        return total.targets * own.of("positive") / own.targets.clamp(min=1)


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
        return local.of_term(term).positives.clamp(min=1) * total.of("images").clamp(min=1)


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
    def update(self, num_pos: Tensor) -> None:
        """Take the positive mass () of a batch into the average."""
        if self.distributed:
            num_pos = _rank_mean(num_pos)
        self.average.copy_(self._blend(num_pos.to(self.average)))

    def extra_repr(self) -> str:
        """Return the arguments for `repr`."""
        return f"momentum={self.momentum}, {super().extra_repr()}"

    def _blend(self, num_pos: Tensor) -> Tensor:
        return self.momentum * self.average.to(num_pos) + (1 - self.momentum) * num_pos.clamp(min=1)


def _sum(masses: Tensor) -> Tensor:
    """Sum (..., B) masses over the images, (..., 1)."""
    return masses.sum(-1, keepdim=True)


def _rank_mean(value: Tensor) -> Tensor:
    """Return the mean of a tensor over the ranks; outside of `torch.distributed` the tensor."""
    if not is_shared():
        return value
    value = value.clone()
    torch.distributed.all_reduce(value)
    return value / torch.distributed.get_world_size()
