"""Mutants of the package: a seeded sample in, which of them the tests kill out, one line of JSON each.

The operators are those of cosmic-ray. Each mutant lies in a copy of the repository, where the tests run that reach its
line: those that a coverage file with contexts names (`make coverage`), or else all tests of the room. `python -m
benchmarks.mutation --json runs/mutation.jsonl` goes on where it stopped.
"""

import argparse
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
PLACES = ("uotod/solvers", "uotod/criterion", "uotod/match", "uotod/plan.py")
LEFT_OUT = ("triton",)  # kernels are no Python
COPIED = ("uotod", "tests", "benchmarks", "docs", "examples", "pyproject.toml", "setup.cfg", "Makefile", "README.md")
BASELINE = "tests/test_plan.py"  # must pass before the first mutant
MAX_TESTS = 30  # functions of tests for a mutant, those of its own file first
OPERATORS = (  # not those that remove decorators or the like, most of whose mutants cannot be imported
    "core/ReplaceBinaryOperator",
    "core/ReplaceComparisonOperator",
    "core/ReplaceUnaryOperator",
    "core/ReplaceAndWithOr",
    "core/ReplaceOrWithAnd",
    "core/ReplaceTrueWithFalse",
    "core/ReplaceFalseWithTrue",
    "core/NumberReplacer",
    "core/AddNot",
    "core/ReplaceBreakWithContinue",
    "core/ReplaceContinueWithBreak",
    "core/ZeroIterationForLoop",
)


class Mutant(NamedTuple):
    """A place in a file and what happens to it; `name` says both."""

    path: str
    operator: str
    occurrence: int
    line: int

    @property
    def name(self) -> str:
        """What identifies the mutant between runs."""
        return f"{self.path}:{self.line} {self.operator} {self.occurrence}"


def mutants(path: Path) -> Iterator[Mutant]:
    """Yield every mutant of a file."""
    from cosmic_ray import plugins
    from cosmic_ray.ast import ast_nodes, get_ast

    tree = get_ast(path.read_text())
    for operator in plugins.operator_names():
        if operator.startswith(OPERATORS):
            visitor, occurrence = plugins.get_operator(operator)(), 0
            for node in ast_nodes(tree):
                for (line, _), _ in visitor.mutation_positions(node):
                    yield Mutant(str(path.relative_to(ROOT)), operator, occurrence, line)
                    occurrence += 1


def sample(count: int, seed: int) -> list[Mutant]:
    """Return so many mutants of the places, the same ones for a seed; more are the same ones and others."""
    files = [
        path for place in PLACES for path in ([ROOT / place] if place.endswith(".py") else (ROOT / place).rglob("*.py"))
    ]
    found = [x for path in sorted(files) if not set(LEFT_OUT) & set(path.parts) for x in mutants(path)]
    random.Random(seed).shuffle(found)
    return found[:count]


def tests_of(mutant: Mutant, coverage_file: Path) -> list[str]:
    """Return the tests that reach the line of a mutant, those named like its file first; else those of its room."""
    room = Path(mutant.path).parts[1].removesuffix(".py")
    fallback = [f"tests/test_{room}.py"] if mutant.path.endswith("plan.py") else [f"tests/{room}"]
    if not coverage_file.exists():
        return fallback
    from coverage import CoverageData

    data = CoverageData(str(coverage_file))
    data.read()
    measured = next((x for x in data.measured_files() if x.endswith(mutant.path)), "")
    contexts = data.contexts_by_lineno(measured).get(mutant.line, []) if measured else []
    names = {node for node in map(node_of, contexts) if node}
    stem = Path(mutant.path).stem
    nodes = sorted(names, key=lambda x: (f"test_{stem}" not in x, f"tests/{room}/" not in x, x))
    return nodes[:MAX_TESTS] or fallback


def node_of(context: str) -> str:
    """Return the pytest node of a context such as `tests.match.test_ota.test_it`; "" if it is none of a test."""
    parts = context.split(".")
    for end in range(len(parts), 0, -1):
        path = Path(*parts[:end]).with_suffix(".py")
        if parts[:end] and (ROOT / path).is_file():
            return "::".join([str(path), *parts[end:]]) if parts[0] == "tests" else ""
    return ""


def test(tree: Path, tests: list[str], limit: float) -> int:
    """Return the exit status of pytest on a copy of the repository."""
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "-p", "no:xdist", *tests]
    environment = os.environ | {"PYTHONPATH": str(tree), "PYTHONDONTWRITEBYTECODE": "1"}
    return subprocess.run(
        command, cwd=tree, env=environment, timeout=limit, capture_output=True, check=False
    ).returncode


def run(mutant: Mutant, tree: Path, tests: list[str], limit: float) -> str:
    """Return "killed", "survived" or "timed out", for tests on a copy of the repository with the mutant in it."""
    from cosmic_ray import plugins
    from cosmic_ray.mutating import mutate_code

    path = tree / mutant.path
    source = path.read_text()
    changed = mutate_code(source.encode(), plugins.get_operator(mutant.operator)(), mutant.occurrence)
    path.write_text(changed if isinstance(changed, str) else changed.decode())
    try:
        status = test(tree, tests, limit)
    except subprocess.TimeoutExpired:
        return "timed out"
    finally:
        path.write_text(source)
    return {0: "survived", 5: "without tests"}.get(status, "killed")


def main() -> None:
    """Run the mutants that no line of the file has yet, and count all."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, default=Path("runs/mutation.jsonl"))
    parser.add_argument("--coverage", type=Path, default=Path(".coverage"))
    parser.add_argument("--count", type=int, default=150)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--limit", type=float, default=300.0, help="seconds of a mutant")
    options = parser.parse_args()
    options.json.parent.mkdir(parents=True, exist_ok=True)
    lines = options.json.read_text().splitlines() if options.json.exists() else []
    done = {found["mutant"]: found["result"] for found in map(json.loads, lines)}
    with tempfile.TemporaryDirectory() as folder, options.json.open("a") as file:
        tree = Path(folder)
        for name in COPIED:
            if (ROOT / name).is_dir():
                shutil.copytree(ROOT / name, tree / name, ignore=shutil.ignore_patterns("__pycache__", "_build"))
            else:
                shutil.copy(ROOT / name, tree / name)
        if test(tree, [BASELINE], options.limit):
            raise SystemExit(f"{BASELINE} fails without a mutant, so that every mutant would seem to be killed")
        for mutant in sample(options.count, options.seed):
            if mutant.name not in done:
                tests = tests_of(mutant, options.coverage.resolve())
                done[mutant.name] = run(mutant, tree, tests, options.limit)
                print(done[mutant.name], mutant.name, flush=True)
                file.write(json.dumps({"mutant": mutant.name, "result": done[mutant.name], "tests": len(tests)}) + "\n")
                file.flush()
    results = list(done.values())
    print({result: results.count(result) for result in sorted(set(results))})


if __name__ == "__main__":
    main()
