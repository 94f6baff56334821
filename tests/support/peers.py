"""The modules of other libraries that tests compare with: those of the environment, or what `make peers` fetches."""

import importlib
import sys
import warnings
from collections.abc import Callable
from importlib.util import find_spec
from types import ModuleType
from typing import Any

import numpy as np
import PIL.Image
import pytest
import torch

from benchmarks.packages import installed


def peer(name: str) -> ModuleType:
    """Import a module of another library, or skip the test where that library is not there."""
    library = name.partition(".")[0]
    if not installed(library):
        pytest.skip(f"{library} is not installed: `make peers` fetches it")
    with warnings.catch_warnings(), np.printoptions(), pytest.MonkeyPatch.context() as patch:
        warnings.simplefilter("ignore")
        for owner, function in ((torch, "save"), (PIL.Image, "open")):  # ultralytics puts its own in their place
            patch.setattr(owner, function, getattr(owner, function))
        if library == "mmdet" and "mmcv._ext" not in sys.modules and find_spec("mmcv._ext") is None:
            sys.modules["mmcv._ext"] = _Uncompiled("mmcv._ext")
        module = importlib.import_module(name)
    # it sets both as well, for the whole process
    torch.set_num_threads(1)
    torch.set_printoptions(profile="default")
    return module


class _Uncompiled(ModuleType):
    """The operators of mmcv where they are not compiled: imported by the layers of mmdetection, called by no loss."""

    def __getattr__(self, name: str) -> Callable[..., Any]:
        if name.startswith("__"):
            raise AttributeError(name)

        def operator(*args: Any, **kwargs: Any) -> None:
            raise NotImplementedError(f"mmcv.ops.{name} is not compiled")

        return operator
