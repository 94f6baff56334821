"""The loss functions of mmdet where it is installed, without the compiled operators that its package imports."""

import importlib
import sys
import warnings
from types import ModuleType
from typing import Any

import pytest


class _Stub(ModuleType):
    """A package of classes that are imported and never used."""

    __path__: list[str] = []  # noqa: RUF012

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return type(name, (), {})


def mmdet_losses(name: str, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """Return the module `mmdet.models.losses.<name>`, or skip the test."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        mmcv = pytest.importorskip("mmcv")
        monkeypatch.setattr(mmcv, "__version__", "2.1.0")
        mmdet = pytest.importorskip("mmdet")
        for package in ("structures", "structures.bbox", "models", "models.losses"):
            stub = _Stub(f"mmdet.{package}")
            if package.startswith("models"):  # a plain package: its modules are found, its imports are not run
                stub.__path__ = [f"{mmdet.__path__[0]}/{package.replace('.', '/')}"]
            monkeypatch.setitem(sys.modules, stub.__name__, stub)
        return importlib.import_module(f"mmdet.models.losses.{name}")
