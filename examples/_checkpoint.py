"""Files of a run that are whole or not there: the state of a training goes to the disk and comes back."""

import json
import math
import os
import pickle
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, BinaryIO, Protocol

import torch
from _options import fail


class Stateful(Protocol):
    """A model, an optimiser, a scheduler: what has a state."""

    def state_dict(self) -> dict[str, Any]:
        """Return the state."""

    def load_state_dict(self, state_dict: dict[str, Any], /) -> object:
        """Take a state over."""


def write_atomically(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Let `write` fill a temporary file beside `path`, and put it there once it is on the disk."""
    partial = path.with_name(f"{path.name}.partial")
    try:
        with partial.open("wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write an object as json, with null for numbers that are not finite, which json does not have."""
    text = json.dumps(_finite(content), indent=2, allow_nan=False) + "\n"
    write_atomically(path, lambda file: file.write(text.encode()))


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def save_checkpoint(
    path: Path, run: Mapping[str, str], parts: Mapping[str, Stateful], progress: Mapping[str, Any]
) -> None:
    """Write the options that name a run, the states of its parts, how far it is, and the random numbers."""
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    content = {
        "run": dict(run),
        "parts": {name: part.state_dict() for name, part in parts.items()},
        "progress": dict(progress),
        "random": {"cpu": torch.get_rng_state(), "cuda": cuda},
    }
    write_atomically(path, lambda file: torch.save(content, file))


def load_checkpoint(path: Path, run: Mapping[str, str], parts: Mapping[str, Stateful]) -> dict[str, Any]:
    """Restore what `save_checkpoint` wrote and return how far the run was.

    The program ends with a one-line error if there is no checkpoint, if it is broken or if it is of another run.
    """
    if not path.is_file():
        fail(f"--resume needs the checkpoint of an interrupted run, got none at {path}")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
        for option, value in run.items():
            if content["run"][option] != value:
                fail(f"{path} was made with {option} {content['run'][option]}, got {value}")
        for name, part in parts.items():
            part.load_state_dict(content["parts"][name])
        torch.set_rng_state(content["random"]["cpu"])
        if len(content["random"]["cuda"]) == torch.cuda.device_count():
            torch.cuda.set_rng_state_all(content["random"]["cuda"])
        progress: dict[str, Any] = content["progress"]
    except (OSError, EOFError, LookupError, RuntimeError, TypeError, ValueError, pickle.UnpicklingError) as error:
        reason = str(error).strip().split("\n")[0] or type(error).__name__
        fail(f"{path} is not a checkpoint of this program, start again without --resume ({reason})")
    return progress
