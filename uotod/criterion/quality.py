"""The quality of matched pairs: predictions, targets and a plan in, a factor in [0, 1] for each pair out."""

from collections.abc import Callable

import torch
from torch import Tensor

from uotod.check import reads_values
from uotod.cost.fields import unit_box
from uotod.geometry.boxes import aligned_overlap
from uotod.plan import DensePlan, Pairs, Plan
from uotod.scene.predictions import Scene

Quality = str | Callable[[Tensor, Tensor], Tensor]
NAMES = ("iou", "centerness", "score")


def check_quality(name: str, quality: Quality | None) -> Quality | None:
    """Return `quality` if it is None, one of the named ones or a callable.

    Raises:
        ValueError: it is anything else.
    """
    if quality is None or (callable(quality) and not isinstance(quality, type)):
        return quality
    if isinstance(quality, str) and quality in NAMES:
        return quality
    raise ValueError(
        f"{name} must be None, 'iou', 'centerness', 'score' or a callable of boxes and target boxes, got {quality!r}"
    )


@torch.no_grad()
def pair_quality(
    name: str, quality: Quality | None, scene: Scene, plan: Plan, bg_class: int | None, validate: bool
) -> Tensor | None:
    """Return the quality of each pair that carries mass, 0 elsewhere; None for None.

    Args:
        name: name of the argument, for errors.
        quality: "iou" of the boxes, "centerness" of the point in the target, "score" of the prediction or a callable.
        scene: predictions, targets and anchors.
        plan: the plan.
        bg_class: class of the background, or None if it has none.
        validate: whether values may be read on a GPU.

    Returns:
        (B, T, P) for a dense plan, (B, P) for an assigned one.

    Raises:
        ValueError: a callable returns another shape than (N,), or values outside [0, 1]; or what a quality needs is
            missing.
    """
    if quality is None:
        return None
    boxes = scene.pred_boxes
    static = boxes.device.type == "cuda"  # reading how many pairs there are would synchronise
    pairs = plan.pairs(static)
    value = _of_pairs(name, quality, scene, pairs, bg_class, validate)
    value = torch.where(pairs.mass > 0, value.to(pairs.mass.dtype), 0)
    if isinstance(plan, DensePlan):
        return torch.zeros_like(plan.positive).index_put((pairs.image, pairs.target, pairs.pred), value)
    return torch.zeros_like(plan.positive_mass()).index_put((pairs.image, pairs.pred), value)


def _of_pairs(name: str, quality: Quality, scene: Scene, pairs: Pairs, bg_class: int | None, validate: bool) -> Tensor:
    """Return the quality (N,) of each pair, anything where it has no mass."""
    predictions = scene.predictions
    if quality == "score":
        if bg_class is not None:
            raise ValueError(f'{name}="score" is a sigmoid score and needs bg_class_position="none"')
        score: Tensor = predictions.logits.sigmoid().amax(-1)
        return score[pairs.image, pairs.pred]
    if quality == "centerness" and scene.anchors is None:
        raise ValueError(f'anchors must be given for {name}="centerness": boxes, Anchors or Points, got None')
    matched = pairs.mass > 0
    ours = theirs = unit_box(predictions.boxes).expand(len(matched), 4)
    if scene.target_boxes.shape[1]:
        ours = torch.where(matched.unsqueeze(-1), predictions.boxes[pairs.image, pairs.pred], ours)
        theirs = torch.where(matched.unsqueeze(-1), scene.target_boxes[pairs.image, pairs.target], theirs)
    if quality == "centerness":
        assert scene.anchors is not None
        return centerness(scene.anchors.centers[pairs.image, pairs.pred], theirs)
    if isinstance(quality, str):
        return aligned_overlap(ours, theirs, "iou", eps=0.0).clamp(max=1)
    value = quality(ours, theirs)
    if value.shape != matched.shape:
        raise ValueError(f"{name} must return one value a pair, {tuple(matched.shape)}, got {tuple(value.shape)}")
    if reads_values(value, validate) and bool(((value < 0) | (value > 1)).any()):
        raise ValueError(f"{name} must lie in [0, 1], got a value outside")
    return value


def centerness(points: Tensor, boxes: Tensor) -> Tensor:
    r"""Return how central (..., 2) points are in (..., 4) boxes, xyxy: 1 in the centre, 0 on the border and outside.

    .. math:: \sqrt{\frac{\min(l, r)}{\max(l, r)} \cdot \frac{\min(t, b)}{\max(t, b)}}

    References:
        Tian et al., "FCOS", ICCV 2019, eq. 3.
    """
    low, high = points - boxes[..., :2], boxes[..., 2:] - points  # left and top, right and bottom
    least, most = torch.minimum(low, high), torch.maximum(low, high)
    ratio = least.clamp(min=0) / torch.where(most > 0, most, 1)  # each axis alone: their product may underflow
    return ratio.prod(-1).sqrt()
