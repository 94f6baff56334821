"""Localisation on a plan: boxes, plan and target boxes in, the loss of each decoder layer out."""

import torch
from torch import Tensor, nn

from uotod._batch import Batch
from uotod._cost import parts_of, sum_rows
from uotod._plan import Plan
from uotod.loss._fields import fields_of, unit_box


def localization_losses(module: nn.Module, batch: Batch, plan: Plan, divisor: Tensor | None = None) -> list[Tensor]:
    """Return the loss (L,) of each weighted part of `module`, evaluated on matched pairs only.

    A part gets predicted and target boxes, and by keyword what it declares in `needs`. The mass of an image is divided
    by its (L * B,) `divisor`, if there is one. A part that needs distributions is 0 in a layer without.
    """
    predictions = batch.predictions
    layers = predictions.layers
    per_layer = max(len(predictions.boxes) // layers, 1)
    parts = [(part, fields_of(part.module, batch)) for part in parts_of(module)]
    static = _has_static_shapes(predictions.boxes)
    pairs = plan.pairs(static)
    if not len(pairs.mass) or not batch.targets.boxes.shape[1]:  # a prediction may stand for no pair without targets
        zero = predictions.boxes.new_zeros(layers) + predictions.boxes[..., :0].sum()
        return [zero + sum(field.values[..., :0].sum() for field in fields.values()) for _, fields in parts]
    boxes, target_boxes = predictions.boxes[pairs.image, pairs.pred], batch.targets.boxes[pairs.image, pairs.target]
    matched = pairs.mass > 0 if static else None
    if matched is not None:
        # rows without mass get a harmless box before the loss: a masked NaN would still reach the gradient
        unit = unit_box(boxes)
        boxes = torch.where(matched.unsqueeze(-1), boxes, unit)
        target_boxes = torch.where(matched.unsqueeze(-1), target_boxes, unit)
    mass = pairs.mass if divisor is None else pairs.mass / divisor[pairs.image]
    losses = []
    for part, fields in parts:
        rows_of = {name: field.rows(pairs.image, pairs.pred, matched) for name, field in fields.items()}
        rows = sum_rows(part.module(boxes, target_boxes, **rows_of), len(boxes), "loc_loss_module")
        value = part.weight * mass.to(rows.dtype) * rows
        value = value.new_zeros(layers).index_add(0, pairs.image // per_layer, value)
        if "pred_dist" in fields and predictions.dist_layers is not None:
            value = torch.stack([x if predictions.has_dist(i) else torch.zeros_like(x) for i, x in enumerate(value)])
        losses.append(value)
    return losses


def _has_static_shapes(boxes: Tensor) -> bool:
    """Tell whether shapes must not depend on data: reading from a GPU how many pairs there are would synchronise."""
    return boxes.device.type == "cuda"
