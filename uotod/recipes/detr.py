"""DETR: number of classes in, its criterion out."""

from collections.abc import Sequence
from functools import partial

import torch
from torch import nn

from uotod.check import check_integer, check_number
from uotod.loss import ByTerm, DetectionLoss, MassNormalizer, NegativeProbLoss, Normalizer, TargetNormalizer
from uotod.match import Hungarian, Matcher
from uotod.recipes.dialect import Losses, Weights, choose_matcher, choose_parts, set_matcher, set_parts


def detr(
    num_classes: int,
    *,
    matcher: Matcher | None = None,
    losses: Losses | None = None,
    weights: Weights | None = None,
    cost_weights: Weights | None = None,
    normalizer: Normalizer | None = None,
    background_weight: float | None = None,
    nonfinite: str | None = None,
    box_format: str | None = None,
    layer_weights: Sequence[float] | None = None,
    validate: bool = False,
) -> DetectionLoss:
    """Return the criterion of DETR.

    ============= =====================================================================================
    matcher       `Hungarian`: `NegativeProbLoss` 1, L1 of centre and size 5, GIoU 2
    classes       cross-entropy 1, with a weight of 0.1 for the background, the last class
    boxes         L1 of centre and size 5, GIoU 2
    normaliser    classes: the sum of the class weights; boxes: the number of targets, averaged over ranks
    layers        each is matched on its own, all with weight 1
    ============= =====================================================================================

    Args:
        num_classes: number of classes of targets, labelled 0 to `num_classes - 1`; compared with the logits, which have
            one more.
        matcher: in place of the matcher.
        losses: losses by name in place of the published ones, under the same weights: "cls", "l1" and "giou"; or "loc",
            in place of the sum of the boxes, with weight 1.
        weights: weights by the same names, in place of those above; with 0 a part of the sum is left out.
        cost_weights: weights of the matching cost by name, in place of those above: "cls", "l1" and "giou".
        normalizer: in place of the normaliser.
        background_weight: class weight of the background, `eos_coef` of the implementation; None for 0.1.
        nonfinite: what to do with predictions that are not finite, "error" or "propagate", see `Matcher`; None for
            "error".
        box_format: "cxcywh" or "xywh" if predicted and target boxes are that, None for xyxy; a `matcher` must have the
            same.
        layer_weights: factors of the decoder layers, that of the final one last; None for 1.
        validate: also check values on a GPU, which synchronises.

    Shape:
        `pred_logits` (B, P, num_classes + 1) and `pred_boxes` (B, P, 4), xyxy, in units of the image; `aux_outputs`.

    Raises:
        TypeError: a part is of the wrong type.
        ValueError: an argument is out of its range, a name is unknown, or an option of the matcher is given with
            `matcher`.

    References:
        Carion et al., "End-to-end object detection with transformers", ECCV 2020; the numbers of
        facebookresearch/detr and of `ForObjectDetectionLoss` in transformers.

    Examples:
        >>> criterion = detr(num_classes=2)
        >>> box = torch.tensor([[[0.2, 0.2, 0.6, 0.6]]])
        >>> target = {"labels": torch.tensor([[1]]), "boxes": box}
        >>> criterion({"pred_logits": torch.zeros(1, 1, 3), "pred_boxes": box}, target)
        tensor(1.0986)
    """
    weight = torch.ones(check_integer("num_classes", num_classes, low=1) + 1)
    weight[-1] = check_number("background_weight", 0.1 if background_weight is None else background_weight, low=0.0)
    cross_entropy = nn.CrossEntropyLoss(weight, reduction="none")
    cross_entropy.register_buffer("weight", weight, persistent=False)  # an argument, not a state to be saved
    parts = choose_parts(num_classes, losses, weights, set_parts("ce", cross_entropy, cls=1.0))
    parts.refuse("cls", background_weight=background_weight)
    if normalizer is None:
        normalizer = ByTerm(TargetNormalizer(distributed=True), cls=MassNormalizer())
    rule = partial(set_matcher, Hungarian, NegativeProbLoss(reduction="none"), 1.0)
    return DetectionLoss(
        parts.term("cls"),
        parts.localization(),
        choose_matcher(matcher, rule, box_format, cost_weights=cost_weights, nonfinite=nonfinite),
        "last",
        normalizer=normalizer,
        num_classes=num_classes,
        box_format=box_format,
        layer_weights=layer_weights,
        unit_boxes=True,
        validate=validate,
    )
