"""Localisation on a plan: boxes, plan and target boxes in, the loss of each decoder layer out."""

import torch
from torch import Tensor, nn

from uotod._batch import Batch
from uotod._cost import parts_of, sum_rows
from uotod._plan import Plan


def localization_losses(module: nn.Module, batch: Batch, plan: Plan) -> list[Tensor]:
    """Return the loss (L,) of each weighted part of `module`, evaluated on matched pairs only."""
    predictions = batch.predictions
    layers = predictions.layers
    per_layer = max(len(predictions.boxes) // layers, 1)
    # on a GPU the shape must not depend on data: reading how many pairs there are would synchronise
    static = predictions.boxes.device.type == "cuda"
    pairs = plan.pairs(static)
    if not len(pairs.mass):
        zero = predictions.boxes.new_zeros(layers) + predictions.boxes[..., :0].sum()
        return [zero for _ in parts_of(module)]
    boxes, target_boxes = predictions.boxes[pairs.image, pairs.pred], batch.targets.boxes[pairs.image, pairs.target]
    matched = pairs.mass > 0
    if static:
        # rows without mass get a harmless box before the loss: a masked NaN would still reach the gradient
        unit = boxes.new_tensor([0.0, 0.0, 1.0, 1.0])
        boxes = torch.where(matched.unsqueeze(-1), boxes, unit)
        target_boxes = torch.where(matched.unsqueeze(-1), target_boxes, unit)
    losses = []
    for part in parts_of(module):
        rows = sum_rows(part.module(boxes, target_boxes), len(boxes), "loc_loss_module")
        value = part.weight * pairs.mass.to(rows.dtype) * rows
        losses.append(value.new_zeros(layers).index_add(0, pairs.image // per_layer, value))
    return losses
