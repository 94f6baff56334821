"""The quality of matched pairs: predictions, targets and a plan in, a factor in [0, 1] for each pair out."""

from collections.abc import Callable

import torch
from torch import Tensor

from uotod._batch import Batch
from uotod._boxes import aligned_overlap
from uotod._plan import DensePlan, Plan
from uotod._tensors import reads_values

Quality = str | Callable[[Tensor, Tensor], Tensor]


def check_quality(name: str, quality: Quality | None) -> Quality | None:
    """Return `quality` if it is None, "iou" or a callable.

    Raises:
        ValueError: it is anything else.
    """
    if quality is None or quality == "iou" or (callable(quality) and not isinstance(quality, type)):
        return quality
    raise ValueError(f"{name} must be None, 'iou' or a callable of boxes and target boxes, got {quality!r}")


@torch.no_grad()
def pair_quality(quality: Quality | None, batch: Batch, plan: Plan, validate: bool) -> Tensor | None:
    """Return the quality of each pair that carries mass, 0 elsewhere; None for None.

    Returns:
        (B, T, P) for a dense plan, (B, P) for an assigned one.

    Raises:
        ValueError: a callable returns another shape than (N,), or values outside [0, 1].
    """
    if quality is None:
        return None
    boxes = batch.predictions.boxes
    static = boxes.device.type == "cuda"  # reading how many pairs there are would synchronise
    pairs = plan.pairs(static)
    matched = pairs.mass > 0
    ours = boxes.new_tensor([0.0, 0.0, 1.0, 1.0]).expand(len(matched), 4)
    theirs = ours
    if batch.targets.boxes.shape[1]:
        ours = torch.where(matched.unsqueeze(-1), boxes[pairs.image, pairs.pred], ours)
        theirs = torch.where(matched.unsqueeze(-1), batch.targets.boxes[pairs.image, pairs.target], theirs)
    if isinstance(quality, str):
        value = aligned_overlap(ours, theirs, "iou", eps=0.0).clamp(max=1)
    else:
        value = quality(ours, theirs)
        if value.shape != matched.shape:
            raise ValueError(f"quality must return one value a pair, {tuple(matched.shape)}, got {tuple(value.shape)}")
        if reads_values(value, validate) and bool(((value < 0) | (value > 1)).any()):
            raise ValueError("quality must lie in [0, 1], got a value outside")
    value = torch.where(matched, value.to(pairs.mass.dtype), 0)
    if isinstance(plan, DensePlan):
        return torch.zeros_like(plan.positive).index_put((pairs.image, pairs.target, pairs.pred), value)
    return torch.zeros_like(plan.positive_mass()).index_put((pairs.image, pairs.pred), value)
