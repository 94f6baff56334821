"""The command line of the training programs: arguments come in, checked options go out."""

import argparse
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn, cast

import torch

from uotod.recipes import ALL_RECIPES

DEFAULT_STEPS = 800
COLOR_BOXES_SIZE, FOLDER_SIZE = (128, 128), (144, 192)


@dataclass(frozen=True)
class Options:
    """What the command line says; the defaults stand in `parse_options`."""

    program: str
    matcher: str | None
    recipe: str | None
    data: Path | None
    size: tuple[int, int]
    epochs: int | None
    steps: int | None
    batch_size: int
    lr: float
    seed: int
    amp: bool
    device: str
    threads: int
    workers: int
    cache: bool
    augment: bool
    out: Path
    resume: bool

    @property
    def rule(self) -> str:
        """Return the name of the matcher or of the recipe."""
        rule = self.matcher if self.recipe is None else self.recipe
        assert rule is not None
        return rule


class _Parser(argparse.ArgumentParser):
    """An argument parser whose errors are one line."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {message} (--help lists the options)\n")


def fail(message: object) -> NoReturn:
    """End the program with a one-line error."""
    raise SystemExit(f"error: {message}")


def parse_options(
    argv: Sequence[str] | None, *, program: str, description: str | None, matchers: Sequence[str], learning_rate: float
) -> Options:
    """Parse the command line of a training program.

    Args:
        argv: the arguments; None for those of the process.
        program: name of the program, which also names the folder of the run.
        description: what the program does; its first line is shown by `--help`.
        matchers: names of the matchers that fit the model; the first one is the default.
        learning_rate: default of `--lr`.
    """
    summary = (description or "").strip().split("\n")[0]
    parser = _Parser(prog=program, description=summary, allow_abbrev=False)
    add = parser.add_argument
    rule = parser.add_mutually_exclusive_group()
    rule.add_argument("--matcher", choices=matchers, help=f"how predictions meet targets ({matchers[0]})")
    recipes = sorted(ALL_RECIPES)
    purpose = f"matcher and losses of a published detector that fits this model: {', '.join(recipes)}"
    rule.add_argument("--recipe", choices=recipes, metavar="NAME", help=purpose)
    add("--data", type=Path, help="folder in the COCO layout with the splits train and val or test (Color Boxes)")
    add("--size", type=_size, help="HEIGHTxWIDTH of the images in pixels (128x128 for Color Boxes, else 144x192)")
    add("--epochs", type=_integer(1), help="epochs; with --steps as well, what is over first ends the training")
    add("--steps", type=_integer(1), help=f"steps of the optimiser ({DEFAULT_STEPS} without --epochs)")
    add("--batch-size", type=_integer(1), default=16, help="images a step (%(default)s)")
    add("--lr", type=_positive, default=learning_rate, help="largest learning rate (%(default)s)")
    add("--seed", type=_integer(0), default=0, help="seed of weights, data and their order (%(default)s)")
    add("--amp", action="store_true", help="mixed precision, with bfloat16")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    add("--device", type=_device, default=device, help="where to train, such as cpu or cuda:0 (%(default)s)")
    add("--threads", type=_integer(1), default=1, help="threads of the CPU (%(default)s)")
    add("--workers", type=_integer(0), default=0, help="processes that load images; 0 for none (%(default)s)")
    add("--no-cache", dest="cache", action="store_false", help="decode the images of --data anew in every epoch")
    add("--no-augment", dest="augment", action="store_false", help="train on the images of --data as they are")
    add(
        "--out",
        type=Path,
        help="folder of the run, overwritten without --resume (runs/MODEL-MATCHER-DATA, or the recipe)",
    )
    add("--resume", action="store_true", help="continue the run in --out after its last complete epoch")
    values = vars(parser.parse_args(argv))
    values["size"] = values["size"] or (COLOR_BOXES_SIZE if values["data"] is None else FOLDER_SIZE)
    if values["recipe"] is None:
        values["matcher"] = values["matcher"] or matchers[0]
    data = "color_boxes" if values["data"] is None else values["data"].resolve().name
    values["out"] = values["out"] or Path(
        "runs", f"{program.removeprefix('train_')}-{values['recipe'] or values['matcher']}-{data}"
    )
    if values["epochs"] is None and values["steps"] is None:
        values["steps"] = DEFAULT_STEPS
    return Options(program=program, **values)


def _integer(low: int) -> Callable[[str], int]:
    def parse(text: str) -> int:
        if not text.isdecimal() or not low <= int(text) < 2**31:
            raise argparse.ArgumentTypeError(f"expected an integer in [{low}, 2^31), got {text!r}")
        return int(text)

    return parse


def _positive(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"expected a positive number, got {text!r}")
    return value


def _size(text: str) -> tuple[int, int]:
    sides = text.split("x")
    if len(sides) != 2 or not all(side.isdecimal() and int(side) > 0 and int(side) % 16 == 0 for side in sides):
        raise argparse.ArgumentTypeError(f"expected HEIGHTxWIDTH, multiples of 16 such as 144x192, got {text!r}")
    return cast(tuple[int, int], tuple(map(int, sides)))


def _device(text: str) -> str:
    try:
        torch.zeros((), device=text)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).split("\n")[0]
        raise argparse.ArgumentTypeError(f"expected a device that is there, got {text!r} ({reason})") from error
    return text
