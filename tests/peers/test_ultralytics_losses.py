"""The criterion of YOLOv8 against the implementation of ultralytics."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.support.aligned_scenes import STRIDES
from tests.support.dense_scenes import DenseScene, check_gradients, dense_scene
from tests.support.peers import peer
from uotod import recipes
from uotod.utils import box_xyxy_to_cxcywh

SIZE = 64


@pytest.fixture(scope="module")
def ultralytics() -> Any:
    return peer("ultralytics.utils.loss")


class Model(nn.Module):
    """What their criterion reads of a model."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.parameter = nn.Parameter(torch.zeros(1))
        self.args = SimpleNamespace(box=7.5, cls=0.5, dfl=1.5)
        self.model = [SimpleNamespace(stride=torch.tensor(STRIDES), nc=classes, reg_max=16)]


def reference_loss(module: Any, problem: DenseScene) -> Tensor:
    """Return their three terms: box, classification and distribution."""
    logits, dist = problem.input["pred_logits"], problem.input["pred_dist"]
    image, column = problem.target["mask"].nonzero(as_tuple=True)
    outputs = {
        "boxes": dist.flatten(2).transpose(1, 2),
        "scores": logits.transpose(1, 2),
        "feats": [torch.zeros(1, 1, int(SIZE // s), int(SIZE // s), dtype=logits.dtype) for s in STRIDES],
    }
    batch = {
        "batch_idx": image.to(logits.dtype),
        "cls": problem.target["labels"][image, column].to(logits.dtype),
        "bboxes": box_xyxy_to_cxcywh(problem.target["boxes"][image, column]) / SIZE,
    }
    return module.v8DetectionLoss(Model(logits.shape[-1]))(outputs, batch)[0]


@pytest.mark.parametrize(("dtype", "rtol"), [(torch.float64, 1e-6), (torch.float32, 1e-4)])
@pytest.mark.parametrize("seed", range(1, 161, 4))  # those without ties, which it breaks arbitrarily
def test_yolov8_is_that_of_ultralytics(seed: int, dtype: torch.dtype, rtol: float, ultralytics: Any) -> None:
    problem = dense_scene(seed, dist=True, dtype=dtype, size=SIZE)
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)  # it makes targets and terms in the default dtype
    try:
        theirs = reference_loss(ultralytics, problem)
    finally:
        torch.set_default_dtype(before)
    images = len(problem.input["pred_logits"])
    terms = recipes.yolov8(3).terms(problem.input, problem.target, problem.points)
    ours = torch.stack([terms[k] for k in ("loss_loc_box", "loss_cls", "loss_loc_dfl")])
    torch.testing.assert_close(images * ours, theirs, rtol=rtol, atol=rtol)
    check_gradients(problem, images * terms["loss"], theirs.sum(), rtol)
