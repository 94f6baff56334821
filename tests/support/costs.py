"""Sub-losses on all pairs and on rows, by the adapters through which they take part."""

import torch
from torch import Tensor, nn

from uotod.cost.adapters import adapt
from uotod.cost.classes import class_values
from uotod.cost.labels import ClassLabels
from uotod.scene.targets import Targets


def class_cost(module: nn.Module, logits: Tensor, targets: Targets) -> Tensor:
    """Return the classification cost (B, T, P) of a module."""
    return sum(part.weight * part.adapter.class_cost(logits, targets) for part in adapt(module))


def box_cost(module: nn.Module, boxes: Tensor, target_boxes: Tensor) -> Tensor:
    """Return the localisation cost (B, T, P) of a module."""
    shape = (len(boxes), target_boxes.shape[1], boxes.shape[1])
    fields = {"pred_boxes": boxes, "target_boxes": target_boxes}
    return sum(part.weight * part.adapter.pair_cost(fields, shape) for part in adapt(module))


def row_values(module: nn.Module, logits: Tensor, labels: ClassLabels) -> Tensor:
    """Return the loss (B, P) of a module under labels, each times its mass."""
    return sum(part.weight * class_values(part.adapter, logits, labels, 1) for part in adapt(module))


def row_values_by_autograd(module: nn.Module, logits: Tensor, labels: ClassLabels) -> Tensor:
    """Return the same by operations that autograd knows."""
    values = [part.weight * part.adapter.values(logits.flatten(0, 1), labels.flat()) for part in adapt(module)]
    return torch.stack(values).sum(0).view(logits.shape[:2])
