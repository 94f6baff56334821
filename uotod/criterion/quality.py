"""The quality of matched pairs: predictions, targets and a plan in, a factor in [0, 1] for each pair out."""

from collections.abc import Callable

import torch
from torch import Tensor

from uotod.check import check_unit
from uotod.cost.kinds import BOXES
from uotod.cost.matched import matched_pairs, neutralized
from uotod.geometry.boxes import aligned_overlap
from uotod.plan import Pairs, Plan
from uotod.scene.scene import Scene

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
def pair_quality(name: str, quality: Quality | None, scene: Scene, plan: Plan) -> Tensor | None:
    """Return the quality (S, K, P) of each pair that carries mass, 0 elsewhere; None for None.

    Args:
        name: name of the argument, for errors.
        quality: "iou" of the boxes, "centerness" of the point in the target, "score" of the prediction or a callable.
        scene: predictions, targets and anchors.
        plan: the plan.

    Raises:
        ValueError: a callable returns another shape than (N,), or values outside [0, 1]; or what a quality needs is
            missing.
    """
    if quality is None:
        return None
    pairs = matched_pairs(plan, scene)
    value = _of_pairs(name, quality, scene, pairs)
    value = torch.where(pairs.mass > 0, value.detach().to(pairs.mass.dtype), 0)
    return torch.zeros_like(plan.mass).index_put((pairs.image, pairs.slot, pairs.pred), value)


def quality_reads(quality: Quality | None) -> tuple[str, ...]:
    """Return the fields that a quality reads."""
    if quality is None or quality == "score":
        return ()
    return ("target_boxes", "anchors") if quality == "centerness" else BOXES


def _of_pairs(name: str, quality: Quality, scene: Scene, pairs: Pairs) -> Tensor:
    """Return the quality (N,) of each pair, anything where it has no mass."""
    if quality == "score":
        if scene.bg_class is not None:
            raise ValueError(f'{name}="score" is a sigmoid score and needs bg_class_position="none"')
        score: Tensor = scene.logits.sigmoid().amax(-1)
        return score[pairs.image, pairs.pred]
    if quality == "centerness" and scene.anchors is None:
        raise ValueError(f'anchors must be given for {name}="centerness": boxes, Anchors or Points, got None')
    unmatched = pairs.mass <= 0
    theirs = neutralized("target_boxes", scene.target_boxes[pairs.image, pairs.target], unmatched)
    if quality == "centerness":
        assert scene.anchors is not None
        return centerness(scene.anchors.centers[pairs.image, pairs.pred], theirs)
    ours = neutralized("pred_boxes", scene.pred_boxes[pairs.image, pairs.pred], unmatched)
    if isinstance(quality, str):
        return aligned_overlap(ours, theirs, "iou", eps=0.0).clamp(max=1)
    value = quality(ours, theirs)
    if value.shape != unmatched.shape:
        raise ValueError(f"{name} must return one value a pair, {tuple(unmatched.shape)}, got {tuple(value.shape)}")
    check_unit(name, value, scene.validate)
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
