"""Everybody else's criteria on the problems of `workloads`; a peer that is not there is left out and named."""

from collections.abc import Callable

from benchmarks.contender import Contender
from benchmarks.packages import installed
from benchmarks.peers import anchors, detr, loops, original, pot, yolo
from benchmarks.workloads import Problem, Workload


def peers(workload: Workload) -> dict[str, Callable[[Workload, Problem], Contender]]:
    """Return what makes the contenders that are installed and that know the kind of the workload, by their names."""
    kind = workload.kind
    found: dict[str, Callable[[Workload, Problem], Contender]] = {}
    if kind in ("detr", "dino") and installed("transformers"):
        found["transformers"] = detr.transformers
    if kind in ("ssd", "uot", "retina") and installed("torchvision"):
        found["torchvision"] = anchors.torchvision
    if kind in ("ssd", "retina"):
        found["loop over images"] = loops.loop
    if kind == "yolo" and installed("ultralytics"):
        found["ultralytics"] = yolo.ultralytics
    if kind == "transport":
        found["POT"] = pot.pot
    fits = kind != "yolo" or workload.images == 1  # see `original.RULES`
    if kind in original.RULES and fits and original.installed():
        found["original uotod"] = original.original
    return found


def missing() -> list[str]:
    """Return the names of the peers that are not installed."""
    absent = [name for name in ("transformers", "torchvision", "ultralytics") if not installed(name)]
    return absent if original.installed() else [*absent, "original uotod"]
