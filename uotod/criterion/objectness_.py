"""Objectness on a plan: objectness logits and plan in, the loss of each image out."""

from dataclasses import replace

import torch
from torch import Tensor, nn

from uotod.cost.labels import fold_quality
from uotod.criterion.classify import Classifier
from uotod.plan import Plan
from uotod.scene.predictions import Scene


def objectness_losses(module: nn.Module | None, scene: Scene, plan: Plan, quality: Tensor | None) -> Tensor:
    """Return the loss (M, L, B) of each weighted part of `module`, a classification with one class; M = 0 for None.

    Raises:
        ValueError: the predictions have no objectness.
    """
    layers, objectness = scene.layers, scene.predictions.objectness
    if module is None:
        return scene.logits.new_zeros(0, layers, 1)
    if objectness is None:
        raise ValueError("input must have the key 'pred_objectness' with an obj_loss_module")
    one_class = replace(scene.targets, labels=torch.zeros_like(scene.mask, dtype=torch.long), one_hot=None)
    labels = fold_quality(plan, quality, one_class, 1, None)
    losses = Classifier(module, objectness.unsqueeze(-1), None, layers).losses(labels)
    return losses.view(len(losses), layers, losses.shape[1] // layers)
