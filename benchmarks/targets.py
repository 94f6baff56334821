"""What the project wants to reach, as ratios of measurements of one run: rows of the benchmark in, verdicts out."""

from collections.abc import Sequence
from typing import Any, NamedTuple

Row = dict[str, Any]


class Target(NamedTuple):
    """A ratio of a peer's measurement to ours on the same workload.

    Attributes:
        workload: its name.
        peer: (contender, rule) of the peer.
        rule: that of our contender.
        field: what is measured: "match_ms", "full_ms" or "peak_mib".
        least: the ratio that is wanted.
    """

    workload: str
    peer: tuple[str, str]
    rule: str
    field: str
    least: float


HUNGARIAN = ("transformers", "Hungarian")
SSD_ORIGINAL = ("original uotod", "unbalanced")
POT = ("POT", "unbalanced")
TARGETS = [
    Target("D2", HUNGARIAN, "Hungarian", "full_ms", 4.0),
    Target("D16", HUNGARIAN, "Hungarian", "full_ms", 8.0),
    Target("C16", HUNGARIAN, "Hungarian", "full_ms", 20.0),
    *(Target(name, HUNGARIAN, "Hungarian", "peak_mib", 5.0) for name in ("D2", "D16", "C16")),
    Target("S8", SSD_ORIGINAL, "unbalanced", "full_ms", 30.0),
    Target("S8", SSD_ORIGINAL, "unbalanced", "peak_mib", 30.0),
    Target("S8", ("torchvision", "IoU"), "unbalanced", "full_ms", 1 / 1.9),
    Target("S8h", ("torchvision", "IoU"), "IoU", "full_ms", 1.3),
    Target("S8h", ("torchvision", "IoU"), "IoU", "peak_mib", 1.0),
    Target("Y1", ("original uotod", "Hungarian"), "Hungarian", "full_ms", 250.0),
    Target("Y1", ("ultralytics", "task-aligned"), "task-aligned", "full_ms", 1.2),
    Target("P300", POT, POT[1], "match_ms", 20.0),
    Target("P8732", POT, POT[1], "match_ms", 3.0),
]


class Verdict(NamedTuple):
    """A target and the ratio that was measured, None if the run had not both."""

    target: Target
    ratio: float | None

    @property
    def reached(self) -> bool:
        """Whether the ratio is what was wanted."""
        return self.ratio is not None and self.ratio >= self.target.least


def verdicts(rows: Sequence[Row], targets: Sequence[Target] = TARGETS) -> list[Verdict]:
    """Return for each target what the rows of a run say about it."""
    values = {(row["workload"], row["contender"], row["rule"]): row for row in rows}

    def ratio(target: Target) -> float | None:
        theirs = values.get((target.workload, *target.peer))
        ours = values.get((target.workload, "uotod", target.rule))
        if not theirs or not ours or theirs[target.field] is None or not ours[target.field]:
            return None
        return float(theirs[target.field] / ours[target.field])

    return [Verdict(target, ratio(target)) for target in targets]
