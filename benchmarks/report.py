"""Tables of measurements: rows of the benchmark and of the scaling study in, Markdown or the documentation's part out.

`python -m benchmarks.report bench.json scaling.json profile.json` keeps the files beside the documentation and writes
the tables and the figure that `docs/performance.rst` shows.
"""

import argparse
import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.targets import Row, Verdict, verdicts

DOCS = Path(__file__).parents[1] / "docs"
FIELDS = {"match_ms": "matching", "full_ms": "forward + backward", "peak_mib": "peak memory"}


class Table(NamedTuple):
    """Cells of text under their heads."""

    head: list[str]
    rows: list[list[str]]


def number(value: float | None) -> str:
    """Return three significant digits, without an exponent; a dash for what was not measured."""
    if value is None:
        return "-"
    if abs(value) >= 100:
        return f"{value:.0f}"
    return f"{value:.3g}"


def bench_table(rows: Sequence[Row]) -> Table:
    """Return the table of a benchmark; the ratio is that of its time to that of our first."""
    head = [
        "workload",
        "contender",
        "rule",
        "matching ms",
        "forward ms",
        "with backward ms",
        "CPU ms",
        "of ours",
        "peak MiB",
    ]
    first: dict[str, float] = {}
    cells = []
    for row in rows:
        time = row["full_ms"] or row["match_ms"]
        ratio = time / first.setdefault(row["workload"], time)
        values = [row[key] for key in ("match_ms", "forward_ms", "full_ms", "cpu_ms")]
        numbers = [number(value) for value in (*values, ratio, row["peak_mib"])]
        cells.append([row["workload"], row["contender"], row["rule"], *numbers])
    return Table(head, cells)


def target_table(found: Sequence[Verdict]) -> Table:
    """Return the table of targets."""
    head = ["workload", "measure", "peer", "ours", "peer ÷ ours wanted", "measured", "reached"]
    cells = []
    for target, ratio in found:
        verdict = "not measured" if ratio is None else ("yes" if ratio >= target.least else "**no**")
        peer = f"{target.peer[0]} ({target.peer[1]})"
        wanted = f"≥ {number(target.least)}"
        cells.append([target.workload, FIELDS[target.field], peer, target.rule, wanted, number(ratio), verdict])
    return Table(head, cells)


def exponent_table(exponents: Sequence[Row]) -> Table:
    """Return the exponents of the scaling study, a row for each criterion and a column for each size."""
    sizes = list(dict.fromkeys(row["size"] for row in exponents))
    head = ["criterion", *(f"time, {size}" for size in sizes), *(f"memory, {size}" for size in sizes)]
    criteria = list(dict.fromkeys(row["criterion"] for row in exponents))
    by = {(row["criterion"], row["size"]): row for row in exponents}

    def cell(criterion: str, size: str, field: str) -> str:
        row = by.get((criterion, size))
        return "-" if row is None or row[field] is None else f"{row[field]:.2f}"

    cells = [
        [name, *(cell(name, size, "time") for size in sizes), *(cell(name, size, "memory") for size in sizes)]
        for name in criteria
    ]
    return Table(head, cells)


def profile_table(profiles: dict[str, dict[str, float]]) -> Table:
    """Return the table of profiles: milliseconds of each stage, their sum, and the number of operations."""
    stages = [name for name in next(iter(profiles.values())) if name != "operations"]
    rows = []
    for stage in stages:
        times = [1e3 * found[stage] for found in profiles.values()]
        if any(times):
            rows.append([stage, *(number(x) if x else "" for x in times)])
    rows.append(["sum", *(number(1e3 * sum(found[x] for x in stages)) for found in profiles.values())])
    rows.append(["operations", *(f"{found['operations']:.0f}" for found in profiles.values())])
    return Table(["ms", *profiles], rows)


def markdown(table: Table) -> str:
    """Return a table in Markdown."""
    lines = ["| " + " | ".join(cells) + " |" for cells in (table.head, *table.rows)]
    return "\n".join([lines[0], "|" + "---|" * len(table.head), *lines[1:]])


def restructured(table: Table) -> str:
    """Return a table in reStructuredText."""
    lines = [".. list-table::", "   :header-rows: 1", ""]
    for cells in (table.head, *table.rows):
        lines += [f"   {'* -' if column == 0 else '  -'} {cell}" for column, cell in enumerate(cells)]
    return "\n".join(lines)


def documentation(bench: dict[str, Any], scaling: dict[str, Any], profile: dict[str, dict[str, float]]) -> str:
    """Return the part of the page on performance that is made from measurements."""
    facts = bench["environment"]
    packages = [f"{name} {version}" for name, version in facts.items() if name not in ("machine", "cores", "threads")]
    machine = f"{facts['machine']}, {facts['cores']} cores, {facts['threads']} thread; {', '.join(packages)}."
    absent = f"Not installed, so not measured: {', '.join(bench['missing'])}." if bench["missing"] else ""
    parts: list[tuple[str, Callable[[], Table], str]] = [
        ("Side by side", lambda: bench_table(bench["rows"]), f"{machine} {absent}".strip()),
        ("Targets", lambda: target_table(verdicts(bench["rows"])), "Ratios of the peer's measurement to ours."),
        (
            "Profile",
            lambda: profile_table(profile),
            "Our first criterion alone, forward and backward: milliseconds of each stage without those inside it.",
        ),
        (
            "Scaling",
            lambda: exponent_table(scaling["exponents"]),
            "Exponents of time and peak memory of forward and backward, fitted over the larger half of the sizes.",
        ),
    ]
    texts = [f"{title}\n{'-' * len(title)}\n\n{text}\n\n{restructured(table())}\n" for title, table, text in parts]
    return "\n".join([".. Written by ``python -m benchmarks.report``.\n", *texts])


def main() -> None:
    """Write the documentation's part of two measurements."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.report", description=__doc__)
    names = ("bench", "scaling", "profile")
    for name in names:
        program = "benchmarks" if name == "bench" else f"benchmarks.{name}"
        parser.add_argument(name, type=Path, help=f"JSON file of `python -m {program}`")
    options = parser.parse_args()
    from benchmarks.figure import draw_scaling

    paths = {name: getattr(options, name) for name in names}
    found = {name: json.loads(path.read_text()) for name, path in paths.items()}
    folder = DOCS / "measured"
    folder.mkdir(exist_ok=True)
    for name, path in paths.items():
        if path.resolve() != (folder / f"{name}.json").resolve():
            shutil.copyfile(path, folder / f"{name}.json")
    (folder / "tables.rst").write_text(documentation(**found))
    draw_scaling(found["scaling"]["points"], folder / "scaling.svg")


if __name__ == "__main__":
    main()
