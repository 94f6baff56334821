"""The dense heads of mmdetection where it is installed, without the compiled operators that it imports."""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.machinery
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.support.aligned_scenes import STRIDES
from tests.support.dense_scenes import DenseScene

SIZE = 64


class _Stub(ModuleType):
    """A package of classes that are imported and never used."""

    __path__: list[str] = []  # noqa: RUF012

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return type(name, (), {})


class _Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Find stubs in the place of compiled operators."""

    def find_spec(self, name: str, path: Any, target: Any = None) -> importlib.machinery.ModuleSpec | None:
        if name.split(".")[0] == "torchvision" or f"{name}.".startswith("mmcv.ops."):
            return importlib.machinery.ModuleSpec(name, self, is_package=True)
        return None

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType:
        return _Stub(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        pass


def dense_head(name: str, **config: Any) -> Any:
    """Return a head of three classes on levels of strides 8, 16 and 32, or skip the test."""
    with warnings.catch_warnings(), pytest.MonkeyPatch.context() as patch:
        warnings.simplefilter("ignore")
        mmcv = pytest.importorskip("mmcv")
        pytest.importorskip("mmdet")
        patch.setattr(mmcv, "__version__", "2.1.0")  # newer ones work as well
        patch.setattr(sys, "meta_path", [_Finder(), *sys.meta_path])
        if "mmdet.models.dense_heads" not in sys.modules:
            _forget(patch)
        module = importlib.import_module(f"mmdet.models.dense_heads.{name.lower().removesuffix('head')}_head")
        head = getattr(module, name)(num_classes=3, in_channels=32, feat_channels=32, stacked_convs=1, **config)
    places = head.prior_generator.grid_priors
    head.prior_generator.grid_priors = lambda *args, **kwargs: [
        x.to(torch.get_default_dtype()) for x in places(*args, **kwargs)
    ]
    return head


def _forget(patch: pytest.MonkeyPatch) -> None:
    """Let mmdetection be imported anew: other tests import its losses with stubs."""
    from mmengine.registry import Registry

    for name in [name for name in sys.modules if name.startswith(("mmdet.models", "mmdet.structures"))]:
        del sys.modules[name]
    register = Registry._register_module
    again = lambda self, module, module_name=None, force=False: register(self, module, module_name, True)  # noqa: E731
    patch.setattr(Registry, "_register_module", again)


@contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    """Make `dtype` that of the tensors that mmdetection creates."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def head_losses(head: Any, problem: DenseScene, *outputs: Tensor) -> dict[str, Tensor]:
    """Return the losses of (B, P, K) outputs, those of levels added up."""
    from mmengine.structures import InstanceData

    targets = []
    for mask, labels, boxes in zip(*(problem.target[k] for k in ("mask", "labels", "boxes")), strict=True):
        targets.append(InstanceData(bboxes=boxes[mask], labels=labels[mask]))
    meta = [{"img_shape": (SIZE, SIZE), "pad_shape": (SIZE, SIZE, 3)} for _ in targets]
    with default_dtype(problem.points.centers.dtype), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        losses = head.loss_by_feat(*(feature_maps(x) for x in outputs), targets, meta)
    return {k: sum(v) if isinstance(v, Sequence) else v for k, v in losses.items()}


def feature_maps(values: Tensor) -> list[Tensor]:
    """Return (B, P, K) values as feature maps (B, K, H, W)."""
    sides = [int(SIZE // s) for s in STRIDES]
    parts = values.transpose(1, 2).split([n * n for n in sides], dim=2)
    return [part.unflatten(2, (n, n)) for part, n in zip(parts, sides, strict=True)]
