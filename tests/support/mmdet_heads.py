"""The losses of the dense heads of mmdetection."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from tests.support.aligned_scenes import STRIDES
from tests.support.dense_scenes import DenseScene
from tests.support.peers import peer

SIZE = 64


def dense_head(name: str, **config: Any) -> Any:
    """Return a head of three classes on levels of strides 8, 16 and 32, or skip the test."""
    module = peer(f"mmdet.models.dense_heads.{name.lower().removesuffix('head')}_head")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        head = getattr(module, name)(num_classes=3, in_channels=32, feat_channels=32, stacked_convs=1, **config)
    places = head.prior_generator.grid_priors
    head.prior_generator.grid_priors = lambda *args, **kwargs: [
        x.to(torch.get_default_dtype()) for x in places(*args, **kwargs)
    ]
    return head


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
