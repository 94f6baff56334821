"""Outputs of detectors of sets on common leaves, for uotod and for transformers: centre and size, layers, denoising."""

from typing import NamedTuple

import torch
from torch import Tensor

from tests.support.problems import random_boxes
from uotod.utils import box_cxcywh_to_xyxy, box_xyxy_to_cxcywh

CLASSES = 5


class Layer(NamedTuple):
    """The leaves of one decoder layer: (B, P, C) logits and (B, P, 4) boxes, centre and size."""

    logits: Tensor
    boxes: Tensor

    def ours(self) -> dict[str, Tensor]:
        return {"pred_logits": self.logits, "pred_boxes": box_cxcywh_to_xyxy(self.boxes)}

    def theirs(self) -> dict[str, Tensor]:
        return {"logits": self.logits, "pred_boxes": self.boxes}


def random_layers(count: int, images: int, preds: int, classes: int = CLASSES, spread: float = 1.0) -> list[Layer]:
    """Return layers of which each lies between a common one and one of its own, at the share `spread` of the way."""
    common, layers = (), []
    for _ in range(count):
        own = 2 * torch.randn(images, preds, classes, dtype=torch.float64), random_boxes(images, preds)
        common = common or own
        logits, boxes = (torch.lerp(x, y, spread) for x, y in zip(common, own, strict=True))
        layers.append(Layer(logits.requires_grad_(), box_xyxy_to_cxcywh(boxes).requires_grad_()))
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


def assert_same(actual: Tensor, expected: Tensor, layers: list[Layer], rtol: float = 1e-6, atol: float = 1e-9) -> None:
    """Compare value and gradient on the same leaves, the latter to ten times the relative error."""
    torch.testing.assert_close(actual, expected, rtol=rtol, atol=atol)
    leaves = [leaf for layer in layers for leaf in layer]
    ours, theirs = (torch.autograd.grad(x, leaves, materialize_grads=True) for x in (actual, expected))
    for a, e in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, e, rtol=10 * rtol, atol=atol)


def auxiliary(layers: list[Layer]) -> dict:
    """Return the input of the criteria of transformers."""
    return layers[-1].theirs() | {"auxiliary_outputs": [x.theirs() for x in layers[:-1]]}


def denoising(targets: list[dict[str, Tensor]], groups: int) -> tuple[Tensor, list[Tensor]]:
    """Return the plan (B, P) of contrastive groups, and the positives of each image.

    A group has a positive and then a negative query for each target, both padded to the most targets of an image.
    """
    most = max(len(x["labels"]) for x in targets)
    plan = torch.full((len(targets), groups, 2, most), most)
    for b, image in enumerate(targets):
        count = len(image["labels"])
        plan[b, :, 0, :count] = torch.arange(count)
    plan = plan.flatten(1)
    return plan, [(row < most).nonzero().flatten() for row in plan]
