"""Objectness on a plan: objectness logits and plan in, the loss of each image out."""

from dataclasses import replace

import torch
from torch import Tensor, nn

from uotod.cost.labels import fold_quality
from uotod.criterion.classify import Classifier
from uotod.plan import Plan
from uotod.scene.predictions import Batch


def objectness_losses(module: nn.Module | None, batch: Batch, plan: Plan, quality: Tensor | None) -> Tensor:
    """Return the loss (M, L, B) of each weighted part of `module`, a classification with one class; M = 0 for None.

    Raises:
        ValueError: the predictions have no objectness.
    """
    layers, objectness = batch.predictions.layers, batch.predictions.objectness
    if module is None:
        return batch.predictions.logits.new_zeros(0, layers, 1)
    if objectness is None:
        raise ValueError("input must have the key 'pred_objectness' with an obj_loss_module")
    one_class = replace(batch.targets, labels=torch.zeros_like(batch.targets.mask, dtype=torch.long), one_hot=None)
    labels = fold_quality(plan, quality, one_class, 1, None)
    losses = Classifier(module, objectness.unsqueeze(-1), None, layers).losses(labels)
    return losses.view(len(losses), layers, losses.shape[1] // layers)
