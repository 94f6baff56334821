"""The recipes have the loss and the gradient of the criteria of transformers, on the same tensors."""

from types import SimpleNamespace
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from tests.problems import random_boxes
from uotod import recipes
from uotod.utils import box_cxcywh_to_xyxy, box_xyxy_to_cxcywh

pytest.importorskip("transformers")
CLASSES = 5
PROBLEMS = 20
SIZES = [(3, 20, 4), (1, 30, 1), (2, 12, 0), (3, 15, 9), (2, 4, 6)]  # images, predictions, most targets


class Layer(NamedTuple):
    """The leaves of one decoder layer: (B, P, C) logits and (B, P, 4) boxes, centre and size."""

    logits: Tensor
    boxes: Tensor

    def ours(self) -> dict[str, Tensor]:
        return {"pred_logits": self.logits, "pred_boxes": box_cxcywh_to_xyxy(self.boxes)}

    def theirs(self) -> dict[str, Tensor]:
        return {"logits": self.logits, "pred_boxes": self.boxes}


def random_layers(count: int, images: int, preds: int, classes: int = CLASSES) -> list[Layer]:
    layers = []
    for _ in range(count):
        logits = 2 * torch.randn(images, preds, classes, dtype=torch.float64)
        boxes = box_xyxy_to_cxcywh(random_boxes(images, preds))
        layers.append(Layer(logits.requires_grad_(), boxes.requires_grad_()))
    return layers


def random_targets(images: int, most: int) -> list[dict[str, Tensor]]:
    """Return targets of images of which the first has the most and some have none."""
    counts = [most, *torch.randint(0, most + 1, (images - 1,)).tolist()]
    return [{"labels": torch.randint(0, CLASSES, (n,)), "boxes": random_boxes(n)} for n in counts]


def published(targets: list[dict[str, Tensor]]) -> list[dict[str, Tensor]]:
    return [{"class_labels": x["labels"], "boxes": box_xyxy_to_cxcywh(x["boxes"])} for x in targets]


def stacked(layers: list[Layer]) -> dict:
    """Return the input of our criteria; the last layer is the final one."""
    return layers[-1].ours() | {"aux_outputs": [x.ours() for x in layers[:-1]]}


def assert_same(actual: Tensor, expected: Tensor, layers: list[Layer]) -> None:
    """Compare value and gradient on the same leaves."""
    torch.testing.assert_close(actual, expected, rtol=1e-6, atol=1e-9)
    leaves = [leaf for layer in layers for leaf in layer]
    ours, theirs = (torch.autograd.grad(x, leaves, materialize_grads=True) for x in (actual, expected))
    for a, e in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, e, rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("layers", [1, 3])
def test_detr(size, layers) -> None:
    from transformers.loss.loss_for_object_detection import HungarianMatcher, ImageLoss

    criterion = recipes.detr(CLASSES)
    reference = ImageLoss(HungarianMatcher(1, 5, 2), CLASSES, 0.1, ["labels", "boxes"]).double()
    images, preds, most = size
    for _ in range(PROBLEMS):
        outputs, targets = random_layers(layers, images, preds, CLASSES + 1), random_targets(images, most)
        losses = reference(
            outputs[-1].theirs() | {"auxiliary_outputs": [x.theirs() for x in outputs[:-1]]}, published(targets)
        )
        weight = {"loss_ce": 1, "loss_bbox": 5, "loss_giou": 2}
        expected = sum(weight[key.rstrip("_0123456789")] * value for key, value in losses.items())
        terms = criterion.terms(stacked(outputs), targets)
        torch.testing.assert_close(terms["loss_cls"], losses["loss_ce"])
        torch.testing.assert_close(terms["loss_loc_giou"], 2 * losses["loss_giou"])
        assert_same(terms["loss"], expected, outputs)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("weights", [(1.0, 5.0, 2.0), (2.0, 5.0, 2.0)])
def test_deformable_detr(size, weights) -> None:
    """transformers gives the classes a weight of 1, the published implementation 2."""
    from transformers.loss.loss_deformable_detr import DeformableDetrForObjectDetectionLoss

    criterion = recipes.deformable_detr(CLASSES, loss_weights=weights)
    names = {"class_cost": 2, "bbox_cost": 5, "giou_cost": 2, "num_labels": CLASSES, "focal_alpha": 0.25}
    names |= {"bbox_loss_coefficient": weights[1], "giou_loss_coefficient": weights[2]}
    config = SimpleNamespace(**names, auxiliary_loss=True, decoder_layers=3)
    images, preds, most = size
    for _ in range(PROBLEMS):
        outputs, targets = random_layers(3, images, preds), random_targets(images, most)
        expected, losses, _ = DeformableDetrForObjectDetectionLoss(
            outputs[-1].logits,
            published(targets),
            "cpu",
            outputs[-1].boxes,
            config,
            outputs_class=torch.stack([x.logits for x in outputs]),
            outputs_coord=torch.stack([x.boxes for x in outputs]),
        )
        expected = expected + (weights[0] - 1) * sum(v for k, v in losses.items() if k.startswith("loss_ce"))
        assert_same(criterion(stacked(outputs), targets), expected, outputs)
