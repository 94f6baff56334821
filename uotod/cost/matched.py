"""Localisation on a plan: the fields of matched pairs and a loss of rows in, the loss of each image out."""

import torch
from torch import Tensor

from uotod.cost import blocks
from uotod.cost.adapters import Part
from uotod.cost.kinds import Fields, take_rows
from uotod.plan import Block, Pairs, Plan
from uotod.scene.scene import Scene


def matched_losses(parts: tuple[Part, ...], scene: Scene, plan: Plan, divisor: Tensor, name: str) -> Tensor:
    """Return the loss (K, S) of each weighted part, evaluated on matched pairs only.

    A part gets the fields that it reads. The mass of an image is divided by its (K or 1, S) divisor. A part is 0 in a
    decoder layer without one of its fields. A plan of many pairs is evaluated block by block, and again in the
    backward pass instead of remembered.

    Args:
        parts: the parts, adapted.
        scene: predictions and targets.
        plan: what localisation sees of the plan.
        divisor: the divisors.
        name: what errors call the module.

    Raises:
        ValueError: a field is missing, or a part does not return one loss a row.
    """
    fields = {name: x for part in parts for name, x in part.adapter.fields(scene).items()}
    static = not scene.looks
    if not plan.mass.shape[1]:  # a prediction may stand for no pair without targets
        return _nothing(fields, parts, scene)

    def block_losses(pairs: Pairs) -> Tensor:
        return _pair_losses(parts, fields, scene, pairs, divisor, static, name)

    found = plan.blocks(blocks.MAX_GPU_PAIR_ELEMENTS if static else blocks.MAX_PAIR_ELEMENTS)
    pairs = _few_pairs(plan, found, static)
    if pairs is not None:
        return block_losses(pairs)

    def checkpointed(block: Block) -> Tensor:
        return blocks.recomputed(lambda x: block_losses(plan.pairs(static, x)), block)

    return torch.stack([checkpointed(block) for block in found]).sum(0)


def matched_pairs(plan: Plan, scene: Scene) -> Pairs:
    """Return the pairs of a plan that carry mass, or all where their number must not be looked at."""
    return plan.pairs(static=not scene.looks)


def reads_of(parts: tuple[Part, ...]) -> tuple[str, ...]:
    """Return the fields that the parts read, in their order."""
    return tuple(dict.fromkeys(name for part in parts for name in part.adapter.reads))


def _few_pairs(plan: Plan, some: list[Block], static: bool) -> Pairs | None:
    """Return the pairs of all blocks, or None if they are too many to be held at once."""
    if len(some) == 1:
        return plan.pairs(static, some[0])
    if static:
        return None
    found: list[Pairs] = []
    for block in some:
        found.append(plan.pairs(static, block))
        if sum(len(pairs.mass) for pairs in found) > blocks.MAX_PAIRS:
            return None
    return Pairs(*(torch.cat(column) for column in zip(*found, strict=True)))


def _pair_losses(
    parts: tuple[Part, ...], fields: Fields, scene: Scene, pairs: Pairs, divisor: Tensor, static: bool, name: str
) -> Tensor:
    """Return the loss (K, S) of each part on some pairs."""
    if not len(pairs.mass):
        return _nothing(fields, parts, scene)
    rows = take_rows(fields, pairs.image, pairs.pred, pairs.target)
    if static:
        # rows without mass get a harmless value before the loss: a masked NaN would still reach the gradient
        unmatched = pairs.mass <= 0
        rows = {key: neutralized(key, value, unmatched) for key, value in rows.items()}
    losses = []
    for part, over in zip(parts, divisor.expand(len(parts), -1), strict=True):
        own = {key: rows[key] for key in part.adapter.reads}
        value = part.adapter.rows(own, name)
        value = part.weight * (pairs.mass / over[pairs.image]).to(value.dtype) * value
        # in float64, for a float32 sum of many pairs one by one would lose digits
        total = torch.zeros(len(scene.mask), dtype=torch.float64, device=value.device)
        losses.append(scene.where_given(tuple(own), total.index_add(0, pairs.image, value.double()).to(value.dtype)))
    return torch.stack(losses)


def neutralized(name: str, rows: Tensor, unmatched: Tensor) -> Tensor:
    """Return the rows of a field with a harmless value where they stand for no pair; what images have is harmless."""
    if name.startswith("image_"):
        return rows
    mask = unmatched.view(-1, *[1] * (rows.dim() - 1))
    if name in ("pred_boxes", "target_boxes", "anchors") and rows.shape[-1] == 4:
        # (0, 0, 1, 1), made on the device: a transfer would synchronise
        return torch.where(mask, (torch.arange(4, device=rows.device) // 2).to(rows.dtype), rows)
    return rows.masked_fill(mask, 1 if name == "stride" else 0)


def _nothing(fields: Fields, parts: tuple[Part, ...], scene: Scene) -> Tensor:
    """Return zeros (K, S) that depend on the fields."""
    zero = scene.logits.new_zeros(len(parts), len(scene.mask))
    return zero + sum(x[..., :0].sum() for x in fields.values() if x.is_floating_point())
