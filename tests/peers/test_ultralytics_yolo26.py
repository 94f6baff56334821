"""The criterion of YOLO26 against the implementation of ultralytics: both heads, in every epoch."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.support.aligned_scenes import STRIDES
from tests.support.dense_scenes import DenseScene, check_gradients, dense_scene
from tests.support.peers import peer
from uotod import recipes
from uotod.utils import DistanceCoder, box_xyxy_to_cxcywh

SIZE, EPOCHS = 64, 5


class Model(nn.Module):
    """What their criterion reads of a model."""

    def __init__(self) -> None:
        super().__init__()
        self.parameter = nn.Parameter(torch.zeros(1))
        self.args = SimpleNamespace(box=7.5, cls=0.5, dfl=1.5, epochs=EPOCHS)
        self.model = [SimpleNamespace(stride=torch.tensor(STRIDES), nc=3, reg_max=1)]


def head(scene: DenseScene) -> dict[str, Any]:
    """Return the outputs of a head: distances to the sides in strides, and scores."""
    coder = DistanceCoder(by_stride=True)
    boxes = coder.encode(scene.input["pred_boxes"], scene.points.centers, scene.stride)
    return {
        "boxes": boxes.transpose(1, 2),
        "scores": scene.input["pred_logits"].transpose(1, 2),
        "feats": [torch.zeros(1, 1, int(SIZE // s), int(SIZE // s), dtype=boxes.dtype) for s in STRIDES],
    }


def batch(target: dict[str, Tensor], dtype: torch.dtype) -> dict[str, Tensor]:
    image, column = target["mask"].nonzero(as_tuple=True)
    return {
        "batch_idx": image.to(dtype),
        "cls": target["labels"][image, column].to(dtype),
        "bboxes": box_xyxy_to_cxcywh(target["boxes"][image, column]) / SIZE,
    }


@pytest.mark.parametrize(("dtype", "rtol"), [(torch.float64, 1e-5), (torch.float32, 1e-4)])
@pytest.mark.parametrize("seed", range(1, 161, 12))  # those without ties, which it breaks arbitrarily
def test_yolo26_is_that_of_ultralytics(seed: int, dtype: torch.dtype, rtol: float) -> None:
    before, reference = torch.get_default_dtype(), peer("ultralytics.utils.loss")
    one, many = dense_scene(seed, dtype=dtype, size=SIZE), dense_scene(seed, dtype=dtype, size=SIZE)
    with torch.no_grad():  # another head on the same images
        many.leaves["logits"].add_(torch.randn_like(many.leaves["logits"]))
        many.leaves["boxes"][..., 2:].add_(torch.rand_like(many.leaves["boxes"][..., 2:]))
    theirs, ours = reference.E2ELoss(Model()), recipes.yolo26(3, epochs=EPOCHS)
    images = len(one.input["pred_logits"])
    input = one.input | {
        "one2many_outputs": many.input,
        "image_size": torch.full((images, 2), float(SIZE), dtype=dtype),
    }
    for epoch in range(EPOCHS + 1):
        ours.set_step(epoch)
        terms = ours.terms(input, one.target, one.points)
        torch.set_default_dtype(dtype)  # it makes targets and terms in the default dtype
        try:
            total, items = theirs({"one2many": head(many), "one2one": head(one)}, batch(one.target, dtype))
        finally:
            torch.set_default_dtype(before)
        names = {"loss_loc_box": "box_loss", "loss_cls": "cls_loss", "loss_loc_l1": "l1_loss"}
        for name, key in names.items():
            torch.testing.assert_close(terms[name] / ours.main_weight, items[key].to(dtype), rtol=rtol, atol=rtol)
        torch.testing.assert_close(images * terms["loss"], total.sum(), rtol=rtol, atol=rtol)
        for scene in (one, many):
            check_gradients(scene, images * terms["loss"], total.sum(), rtol)
        theirs.update()
