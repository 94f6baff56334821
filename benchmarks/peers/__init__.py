"""Everybody else's criteria on the problems of `workloads`; a peer that is not there is left out and named."""

from benchmarks.contender import Contender
from benchmarks.peers import anchors, detr, loops, original, pot, yolo
from benchmarks.peers.packages import installed
from benchmarks.workloads import Problem, Workload


def peers(workload: Workload, problem: Problem) -> list[Contender]:
    """Return the peers that are installed and that know the kind of the workload."""
    found: list[Contender] = []
    if workload.kind in ("detr", "dino") and installed("transformers"):
        found.append(detr.transformers(workload, problem))
    if workload.kind in ("ssd", "uot", "retina") and installed("torchvision"):
        found.append(anchors.torchvision(workload, problem))
    if workload.kind in ("ssd", "retina"):
        found.append(loops.loop(workload, problem))
    if workload.kind == "yolo" and installed("ultralytics"):
        found.append(yolo.ultralytics(workload, problem))
    if workload.kind == "transport":
        found.append(pot.pot(workload, problem))
    if workload.kind in original.RULES and original.installed():
        found.append(original.original(workload, problem))
    return found


def missing() -> list[str]:
    """Return the names of the peers that are not installed."""
    absent = [name for name in ("transformers", "torchvision", "ultralytics") if not installed(name)]
    return absent if original.installed() else [*absent, "original uotod"]
