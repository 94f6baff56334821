"""Localisation on a plan: boxes, plan and target boxes in, the loss of each decoder layer out."""

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from uotod.cost.adapters import Part, parts_of
from uotod.cost.by_rows import sum_rows
from uotod.cost.fields import Field, fields_of, unit_box
from uotod.plan import Block, Pairs, Plan
from uotod.scene.predictions import Scene

MAX_PAIR_ELEMENTS = 1 << 19  # of the plan's entries that are looked at together on the CPU
MAX_GPU_PAIR_ELEMENTS = 1 << 24
MAX_PAIRS = 1 << 18  # of several blocks, if they are evaluated together and remembered for the backward pass


def localization_losses(module: nn.Module, scene: Scene, plan: Plan, divisor: Tensor | None = None) -> list[Tensor]:
    """Return the loss (L,) of each weighted part of `module`, evaluated on matched pairs only.

    A part gets predicted and target boxes, and by keyword what it declares in `needs`. The mass of an image is divided
    by its (L * B,) `divisor`, if there is one. A part that needs distributions is 0 in a layer without.

    A plan of many pairs is evaluated block by block, and again in the backward pass instead of remembered.
    """
    boxes = scene.pred_boxes
    parts = [(part, fields_of(part.module, scene)) for part in parts_of(module)]
    static = _has_static_shapes(boxes)

    if not scene.target_boxes.shape[1]:  # a prediction may stand for no pair without targets
        return [_nothing(boxes, fields, scene.layers) for _, fields in parts]

    def block_losses(boxes: Tensor, pairs: Pairs) -> list[Tensor]:
        return _pair_losses(parts, boxes, scene, pairs, divisor, static)

    blocks = plan.blocks(MAX_GPU_PAIR_ELEMENTS if static else MAX_PAIR_ELEMENTS)
    pairs = _few_pairs(plan, blocks, static)
    if pairs is not None:
        return block_losses(boxes, pairs)
    found = [
        checkpoint(lambda x, block: block_losses(x, plan.pairs(static, block)), boxes, block, use_reentrant=False)
        for block in blocks
    ]
    return [torch.stack(values).sum(0) for values in zip(*found, strict=True)]


def _few_pairs(plan: Plan, blocks: list[Block], static: bool) -> Pairs | None:
    """Return the pairs of all blocks, or None if they are too many to be held at once."""
    if len(blocks) == 1:
        return plan.pairs(static, blocks[0])
    if static:
        return None
    found: list[Pairs] = []
    for block in blocks:
        found.append(plan.pairs(static, block))
        if sum(len(pairs.mass) for pairs in found) > MAX_PAIRS:
            return None
    return Pairs(*(torch.cat(column) for column in zip(*found, strict=True)))


def _pair_losses(
    parts: list[tuple[Part, dict[str, Field]]],
    boxes: Tensor,
    scene: Scene,
    pairs: Pairs,
    divisor: Tensor | None,
    static: bool,
) -> list[Tensor]:
    """Return the loss (L,) of each part on some pairs."""
    predictions = scene.predictions
    layers = predictions.layers
    if not len(pairs.mass):
        return [_nothing(boxes, fields, layers) for _, fields in parts]
    boxes, target_boxes = boxes[pairs.image, pairs.pred], scene.target_boxes[pairs.image, pairs.target]
    matched = pairs.mass > 0 if static else None
    if matched is not None:
        # rows without mass get a harmless box before the loss: a masked NaN would still reach the gradient
        unit = unit_box(boxes)
        boxes = torch.where(matched.unsqueeze(-1), boxes, unit)
        target_boxes = torch.where(matched.unsqueeze(-1), target_boxes, unit)
    mass = pairs.mass if divisor is None else pairs.mass / divisor[pairs.image]
    layer = pairs.image // (len(predictions.boxes) // layers)
    losses = []
    for part, fields in parts:
        rows_of = {name: field.rows(pairs.image, pairs.pred, matched) for name, field in fields.items()}
        rows = sum_rows(part.module(boxes, target_boxes, **rows_of), len(boxes), "loc_loss_module")
        value = part.weight * mass.to(rows.dtype) * rows
        # in float64, for a float32 sum of many pairs one by one would lose digits
        total = torch.zeros(layers, dtype=torch.float64, device=value.device).index_add(0, layer, value.double())
        value = total.to(value.dtype)
        if "pred_dist" in fields and predictions.dist_layers is not None:
            value = torch.stack([x if predictions.has_dist(i) else torch.zeros_like(x) for i, x in enumerate(value)])
        losses.append(value)
    return losses


def _nothing(boxes: Tensor, fields: dict[str, Field], layers: int) -> Tensor:
    """Return zeros (L,) that depend on the boxes and the fields."""
    zero = boxes.new_zeros(layers) + boxes[..., :0].sum()
    return zero + sum(field.values[..., :0].sum() for field in fields.values())


def _has_static_shapes(boxes: Tensor) -> bool:
    """Tell whether shapes must not depend on data: reading from a GPU how many pairs there are would synchronise."""
    return boxes.device.type == "cuda"
