"""Time matching, forward and backward of our criteria and of the peers; print a table and write a JSON file."""

import argparse
import json
import platform
from pathlib import Path

import torch

from benchmarks import ours
from benchmarks.measure import Step, Timing, interleave, peak_memory, resident_growth
from benchmarks.peers import missing, peers
from benchmarks.workloads import WORKLOADS, Problem, Workload, make_problem


def main() -> None:
    """Run the benchmark that the command line asks for."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("workloads", nargs="*", default=list(WORKLOADS), help=f"of {', '.join(WORKLOADS)}")
    parser.add_argument("--json", type=Path, help="also write the measurements to this file")
    parser.add_argument("--budget", type=float, default=15.0, help="seconds for a stage of a workload")
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
        print(f"{name} is not installed: its column is missing")
    rows = [row for name in options.workloads for row in measure(name, options.budget)]
    print(table(rows))
    if options.json:
        machine = {"machine": platform.processor() or platform.machine(), "torch": torch.__version__, "threads": 1}
        options.json.write_text(json.dumps({"environment": machine, "rows": rows}, indent=2) + "\n")


def measure(name: str, budget: float) -> list[dict[str, float | str]]:
    """Return one row for each contender of a workload."""
    workload, problem = WORKLOADS[name], make_problem(WORKLOADS[name])
    losses = contenders(workload, problem)
    _check_equal(name, {who: loss().item() for who, loss in losses.items() if "," not in who})

    def forward_backward(who: str) -> Step:
        def step() -> None:
            problem.logits.grad = problem.boxes.grad = None
            losses[who]().backward()

        return step

    forward = interleave(losses, budget=budget)
    full = interleave({who: forward_backward(who) for who in losses}, budget=budget)
    slowest = max(timing.wall for who, timing in full.items() if not who.startswith("uotod")) if len(losses) > 1 else 0
    return [_row(name, who, forward[who], full[who], slowest) for who in losses]


def contenders(workload: Workload, problem: Problem) -> dict[str, ours.Criterion]:
    """Return the losses of all contenders, ours first."""
    mine = {who: ours.step(criterion, workload, problem) for who, criterion in ours.criteria(workload).items()}
    return mine | peers(workload, problem)


def table(rows: list[dict[str, float | str]]) -> str:
    """Return the rows as a Markdown table."""
    head = ["workload", "contender", "forward ms", "+ backward ms", "CPU ms", "ratio", "peak MiB"]
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for row in rows:
        cells = [f"{value:.2f}" if isinstance(value, float) else value for value in row.values()]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _row(name: str, who: str, forward: Timing, full: Timing, slowest: float) -> dict[str, float | str]:
    return {
        "workload": name,
        "contender": who,
        "forward_ms": 1e3 * forward.wall,
        "backward_ms": 1e3 * full.wall,
        "cpu_ms": 1e3 * full.cpu,
        "ratio": slowest / full.wall,
        "peak_mib": peak_memory([name, who]),
    }


def _peak(name: str, who: str) -> float:
    workload = WORKLOADS[name]
    small = Workload(workload.kind, 1, workload.classes, (1, 1), min(workload.queries, 10), 1)
    warm = make_problem(small)
    contenders(small, warm)[who]().backward()  # imports and the allocator are not the step's
    problem = make_problem(workload)
    loss = contenders(workload, problem)[who]
    return resident_growth(lambda: loss().backward())


def _check_equal(name: str, losses: dict[str, float]) -> None:
    """Raise a RuntimeError unless all contenders compute the same loss.

    The tolerance leaves room for two targets that share their best anchor, where the rules of SSD differ.
    """
    values = list(losses.values())
    if max(values) - min(values) > 1e-3 * abs(values[0]):
        raise RuntimeError(f"{name}: the contenders do not compute the same loss: {losses}")


if __name__ == "__main__":
    main()
