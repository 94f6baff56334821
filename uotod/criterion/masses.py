"""What a batch counts: the masses of its images in, their sums in one process and over all ranks out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

    from uotod.criterion.detection import DetectionLoss, Matched

COUNTS = ("images", "targets", "positive", "floored", "background")


class Masses(NamedTuple):
    """What the images of a batch count, for `L` decoder layers, or the sum over the images; micro-batches add up.

    Attributes:
        rows: (R, L, B) one row a count, or (R, L, 1) for sums: those of `COUNTS`, and for each term the mass that
            stands for its number of positives, the mass on targets that it sees, scaled by the quality of pairs, and
            for each of its parts that times class weights, the background included where it counts. Or (1, L, 1), the
            number of targets alone.
        terms: number of parts of each term by its name; None if the number of targets is all.
        branches: the masses of further outputs, by their keys.
    """

    rows: Tensor
    terms: Mapping[str, int] | None
    branches: Mapping[str, Masses] = {}

    @classmethod
    def of_targets(cls, count: float | Tensor) -> Masses:
        """Return the sums of which the number of targets alone is known, which is enough for some divisors."""
        return cls(torch.as_tensor(count, dtype=torch.get_default_dtype()).view(1, 1, 1), None)

    def total(self) -> Masses:
        """Return the sums over the images."""
        return Masses(self.rows.sum(-1, keepdim=True), self.terms)

    def __add__(self, other: Masses) -> Masses:  # type: ignore[override]
        """Return the sums over the images of both batches."""
        if self.terms != other.terms:
            raise ValueError(f"masses must be of the same terms, got those of {self.terms} and of {other.terms}")
        branches = dict(self.branches)
        for key, masses in other.branches.items():
            branches[key] = branches[key] + masses if key in branches else masses
        return Masses(self.total().rows + other.total().rows, self.terms, branches)

    def of_branch(self, key: str) -> Masses:
        """Return the masses of a further output; the number of targets is the same in all of them.

        Raises:
            ValueError: they are not known.
        """
        if self.terms is None:
            return self
        if key not in self.branches:
            raise ValueError(
                f"masses must hold the branch {key!r}, got those of {list(self.branches)}: pass those of "
                "criterion.masses(...), summed over all micro-batches"
            )
        return self.branches[key]

    def of(self, name: str) -> Tensor:
        """Return a count (L, B).

        It is the number of "images" or "targets", the mass on targets, "positive" or, with at least 1 in each image,
        "floored", or that on the "background".

        Raises:
            ValueError: it is not known.
        """
        if name == "targets" and self.terms is None:
            return self.rows[0]
        self._check(name)
        return self.rows[COUNTS.index(name)]

    def of_term(self, term: str) -> tuple[Tensor, Tensor, Tensor]:
        """Return what a term counts: its positives (L, B), the mass that it sees (L, B), and that of parts (K, L, B).

        Raises:
            ValueError: it is not known.
        """
        first = len(COUNTS)
        for name, parts in self._check(term).items():
            if name == term:
                return self.rows[first], self.rows[first + 1], self.rows[first + 2 : first + 2 + parts]
            first += 2 + parts
        raise ValueError(f"masses must hold the term {term!r}, got {list(self.terms or ())}")

    def _check(self, name: str) -> Mapping[str, int]:
        if self.terms is None:
            raise ValueError(
                f"masses must hold {name!r} for this normalizer, got the number of targets only: pass those of "
                "criterion.masses(...), or a normalizer that counts targets"
            )
        return self.terms


def count_rows(terms: Mapping[str, int]) -> int:
    """Return the number of rows of the masses of terms with so many parts."""
    return len(COUNTS) + sum(2 + parts for parts in terms.values())


def mean_over_ranks(
    sums: Sequence[Masses | None], rows: Sequence[int], layers: int, like: Tensor, group: ProcessGroup | None
) -> list[Masses | None]:
    """Return the mean over the ranks of a process group of the sums of several criteria, in one reduction.

    Its length is the same on every rank, whatever the data holds: the sums of a criterion that a rank has no output
    for count as 0, and as many decoder layers are reduced for each as the main output has.

    Args:
        sums: the sums of each criterion, or None for one without output.
        rows: number of rows of each.
        layers: number of decoder layers of the main output.
        like: a tensor of the dtype and device of masses.
        group: the process group, None for all ranks.

    Raises:
        ValueError: a criterion has more decoder layers than the main output.
    """
    parts = []
    for own, count in zip(sums, rows, strict=True):
        found = like.new_zeros(count, layers) if own is None else own.rows.squeeze(-1).to(like)
        if found.shape[1] > layers:
            raise ValueError(
                f"with divisors over ranks a branch must have at most the {layers} decoder layers of the main output, "
                f"got {found.shape[1]}"
            )
        parts.append(F.pad(found, (layers - found.shape[1], 0)).flatten())  # final layers lie on final ones
    shared = torch.split(rank_mean(torch.cat(parts), group), [len(x) for x in parts])
    return [
        None if own is None else Masses(found.view(-1, layers, 1)[:, layers - own.rows.shape[1] :], own.terms)
        for own, found in zip(sums, shared, strict=True)
    ]


def is_shared() -> bool:
    """Tell whether there are ranks of `torch.distributed` to share masses with."""
    return torch.distributed.is_available() and torch.distributed.is_initialized()


Shares = tuple[Masses, Masses]  # sums of this process, and averaged over the ranks


def share_masses(
    criteria: Sequence[DetectionLoss], matched: Sequence[Matched | None], given: Sequence[Masses] | None = None
) -> list[Shares]:
    """Return the sums that the criteria divide by, or those `given`, and their means over the ranks.

    There is one reduction for all criteria together, in the process group of the first one, while that trains, and none
    in evaluation or of sums that are given. A criterion without output has sums of nothing.
    """
    if given is not None:
        return [(x, x) for x in given]
    sums = [None if x is None else x.masses.total() for x in matched]
    first, main = criteria[0], matched[0]
    assert main is not None
    shared = sums
    shares = any(x.normalizer.distributed and x.reduction == "mean" for x in criteria)
    if shares and is_shared() and first.training and torch.is_grad_enabled():
        rows = [count_rows(x.count_parts()) for x in criteria]
        shared = mean_over_ranks(sums, rows, main.scene.layers, main.masses.rows, first.process_group)
    nothing = Masses(main.masses.rows.new_zeros(1, 1, 1), None)
    return [(own or nothing, mean or nothing) for own, mean in zip(sums, shared, strict=True)]


def rank_mean(value: Tensor, group: ProcessGroup | None = None) -> Tensor:
    """Return the mean of a tensor over the ranks of a group, None for all; outside of `torch.distributed` the tensor.

    Raises:
        ValueError: this process is not in the group.
    """
    if not is_shared():
        return value
    ranks = torch.distributed.get_world_size(group)
    if ranks < 1:
        raise ValueError("process_group must have this process as a member, got one without it")
    value = value.clone()
    torch.distributed.all_reduce(value, group=group)
    return value / ranks
