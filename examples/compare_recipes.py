"""Train a small model with every recipe for a few steps and write a table of what it learnt.

Each recipe trains the program that it fits, `train_detr` or `train_ssd`, on the same generated Color Boxes; one that
fits neither is named below the table. The trainings go to `runs/recipes`, the table, in reStructuredText, to
`docs/recipe_runs.rst`. About half a minute a recipe.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import train_detr
import train_ssd
from _checkpoint import write_atomically
from _recipes import DoesNotFitError

from uotod.recipes import ALL_RECIPES

ROOT = Path(__file__).resolve().parents[1]
PROGRAMS = (train_detr, train_ssd)


def main(argv: Sequence[str] | None = None) -> str:
    """Train, write the table and return it."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0], allow_abbrev=False)
    parser.add_argument("recipes", nargs="*", help=f"names of recipes; all without: {', '.join(sorted(ALL_RECIPES))}")
    parser.add_argument("--steps", type=int, default=150, help="steps of the optimiser (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="seed of weights, data and their order (%(default)s)")
    parser.add_argument("--runs", type=Path, default=Path("runs/recipes"), help="folder of the runs (%(default)s)")
    parser.add_argument("--table", type=Path, default=ROOT / "docs" / "recipe_runs.rst", help="file of the table")
    options = parser.parse_args(argv)
    unknown = sorted(set(options.recipes) - set(ALL_RECIPES))
    if unknown:
        parser.error(f"unknown recipes: {', '.join(unknown)}")
    rows, left_out = [], []
    for name in options.recipes or sorted(ALL_RECIPES):
        metrics = train(name, options)
        if metrics is None:
            left_out.append(name)
        else:
            model, precision = metrics["program"].removeprefix("train_"), (metrics["AP50"], metrics["AP"])
            rows.append((name, model, *(f"{x:.3f}" for x in precision), f"{metrics['cpu_seconds']:.0f}"))
    text = describe(rows, left_out, options.steps)
    write_atomically(options.table, lambda file: file.write(text.encode()))
    print(f"\n{text}")
    return text


def train(name: str, options: argparse.Namespace) -> dict[str, Any] | None:
    """Return the metrics of the first program that fits the recipe, None if there is none."""
    arguments = [f"--recipe={name}", f"--steps={options.steps}", f"--seed={options.seed}"]
    for program in PROGRAMS:
        try:
            metrics: dict[str, Any] = program.main([*arguments, f"--out={options.runs / name}"])
            return metrics
        except DoesNotFitError as error:
            reason = error
    print(reason, flush=True)
    return None


def describe(rows: Sequence[tuple[str, ...]], left_out: Sequence[str], steps: int) -> str:
    """Return a table in reStructuredText, the best AP50 first."""
    head = ("recipe", "model", "AP50", "AP", "CPU seconds")
    ordered = sorted(rows, key=lambda row: -float(row[2]))
    columns = zip(head, *ordered, strict=True)
    widths = [max(map(len, column)) for column in columns]
    line = "  ".join("=" * width for width in widths)
    body = ["  ".join(x.ljust(width) for x, width in zip(row, widths, strict=True)).rstrip() for row in ordered]
    title = "  ".join(x.ljust(width) for x, width in zip(head, widths, strict=True)).rstrip()
    text = [
        ".. Written by examples/compare_recipes.py.",
        "",
        f"{len(rows)} recipes, {steps} steps of 16 images each, one seed. Seconds of training are those of one",
        "thread of a CPU. After so few steps the numbers tell that a recipe learns, not which one is best: learning",
        "rate, size and length of training are the same for all, and those of none of the papers.",
        "The small models have no encoder outputs, denoising queries or one-to-many heads, so that the branches of",
        "recipes for those contribute nothing here: h_detr is deformable_detr.",
        "",
        *(line, title, line, *body, line),
    ]
    if left_out:
        text += ["", f"Without a small model here that fits them: {', '.join(left_out)}."]
    return "\n".join(text) + "\n"


if __name__ == "__main__":
    main()
