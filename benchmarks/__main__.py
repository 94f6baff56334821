"""Time matching, forward and backward of our criteria and of the peers; print a table and write a JSON file."""

import argparse
import json
import subprocess
import sys
from pathlib import Path

import torch

from benchmarks.contender import Contender
from benchmarks.environment import environment
from benchmarks.measure import Timing, interleave
from benchmarks.ours import ours
from benchmarks.peers import missing, peers
from benchmarks.report import bench_table, markdown
from benchmarks.targets import Row
from benchmarks.workloads import WORKLOADS, Problem, Workload, make_problem


def main() -> None:
    """Run the benchmark that the command line asks for."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("workloads", nargs="*", default=list(WORKLOADS), help=f"of {', '.join(WORKLOADS)}")
    parser.add_argument("--json", type=Path, help="also write the measurements to this file")
    parser.add_argument("--budget", type=float, default=10.0, help="seconds for a stage of a workload")
    parser.add_argument("--peak", nargs=2, metavar=("WORKLOAD", "CONTENDER"), help="print the peak memory of one step")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.peak:
        print(_peak(*options.peak))
        return
    unknown = set(options.workloads) - set(WORKLOADS)
    if unknown:
        parser.error(f"unknown workloads {sorted(unknown)}, choose from {list(WORKLOADS)}")
    for name in missing():
        print(f"{name} is not installed: its rows are missing (`make peers` fetches what is optional)")
    rows: list[Row] = []
    for name in options.workloads:
        print(f"{name} ...", file=sys.stderr, flush=True)
        rows += measure(name, options.budget)
        if options.json:  # after each, so that a failure loses nothing
            found = {"environment": environment(), "missing": missing(), "rows": rows}
            options.json.write_text(json.dumps(found, indent=2) + "\n")
    print(markdown(bench_table(rows)))


def measure(name: str, budget: float) -> list[Row]:
    """Return one row for each contender of a workload."""
    everyone = contenders(WORKLOADS[name], make_problem(WORKLOADS[name]))
    losses = check_equal(name, everyone)
    timings: dict[str, dict[str, Timing]] = {}
    for stage in ("match", "forward", "full"):
        steps = {x.label: x.stages[stage] for x in everyone if stage in x.stages}
        timings[stage] = interleave(steps, budget=budget)
    return [_row(name, x, timings, losses[x.label]) for x in everyone]


def contenders(workload: Workload, problem: Problem) -> list[Contender]:
    """Return all contenders of a workload, ours first."""
    return ours(workload, problem) + [make(workload, problem) for make in peers(workload).values()]


def check_equal(name: str, everyone: list[Contender]) -> dict[str, float]:
    """Return the losses, or raise a RuntimeError unless contenders of the same rule compute the same."""
    losses: dict[str, float] = {}
    first: dict[str, tuple[str, torch.Tensor]] = {}
    for contender in everyone:
        result = contender.result().double()
        losses[contender.label] = float(result.sum())
        label, other = first.setdefault(contender.rule, (contender.label, result))
        gap = float((result - other).abs().max())
        allowed = contender.tolerance * (1.0 if result.dim() else abs(float(other)))
        if not gap <= allowed:  # NaN equals nothing
            raise RuntimeError(f"{name}: {contender.label} and {label} differ by {gap:g} (loss {losses[label]:g})")
    return losses


def _row(name: str, contender: Contender, timings: dict[str, dict[str, Timing]], loss: float) -> Row:
    spent = {stage: found[contender.label] for stage, found in timings.items() if contender.label in found}
    whole = spent.get("full", spent["match"])
    return {
        "workload": name,
        "contender": contender.name,
        "rule": contender.rule,
        "loss": loss,
        **{
            f"{stage}_ms": 1e3 * spent[stage].wall if stage in spent else None for stage in ("match", "forward", "full")
        },
        "cpu_ms": 1e3 * whole.cpu,
        "spread": whole.spread,
        "peak_mib": _fresh_peak(name, contender.label),
    }


def _fresh_peak(name: str, label: str) -> float:
    """Return the MiB by which a step raises the peak resident memory of a fresh process."""
    command = [sys.executable, "-m", "benchmarks", "--peak", name, label]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[-1])


def _peak(name: str, label: str) -> float:
    workload = WORKLOADS[name]
    small = Workload(workload.kind, 1, workload.classes, (1, 1), min(workload.queries, 10), 1)
    _chosen(small, label).growth()  # imports are not the step's
    return _chosen(workload, label).growth()


def _chosen(workload: Workload, label: str) -> Contender:
    """Return a contender without making the others."""
    problem, peer = make_problem(workload), peers(workload).get(label.split(", ")[0])
    found = ours(workload, problem) if peer is None else [peer(workload, problem)]
    return next(x for x in found if x.label == label)


if __name__ == "__main__":
    main()
