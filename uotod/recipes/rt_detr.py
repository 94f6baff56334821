"""RT-DETR, as its authors and as Ultralytics train it: a varifocal loss on Hungarian pairs, with denoising queries."""

from collections.abc import Sequence
from functools import partial

from uotod.check import check_choice
from uotod.loss import (
    Branch,
    Branches,
    Classification,
    DetectionLoss,
    Normalizer,
    PairedTargetNormalizer,
    PositiveNormalizer,
    TargetNormalizer,
    VarifocalLoss,
)
from uotod.match import Matcher
from uotod.recipes.dialect import Losses, Weights, choose_matcher, choose_parts, focal_hungarian, set_parts


def rt_detr(
    num_classes: int,
    *,
    matcher: Matcher | None = None,
    losses: Losses | None = None,
    weights: Weights | None = None,
    cost_weights: Weights | None = None,
    normalizer: Normalizer | None = None,
    style: str = "rtdetr",
    nonfinite: str | None = None,
    box_format: str | None = None,
    layer_weights: Sequence[float] | None = None,
    validate: bool = False,
) -> Branches:
    """Return the criterion of RT-DETR and RT-DETRv2.

    ============= =====================================================================================
    matcher       `Hungarian`: `SigmoidFocalCost` 2, L1 of centre and size 5, GIoU 2
    classes       `VarifocalLoss(alpha=0.75, gamma=2, form="rtdetr")` 1 of the IoU of the pair
    boxes         L1 of centre and size 5, GIoU 2
    normaliser    the number of targets, averaged over ranks; denoising: the number of pairs
    layers        each is matched on its own, all with weight 1, that of the encoder among them
    ============= =====================================================================================

    With `style="ultralytics"` the varifocal loss is `VarifocalLoss(alpha=0.25, gamma=1.5, form="ultralytics")`, and
    both normalisers are the number of pairs in this process, `PositiveNormalizer()`.

    Args:
        num_classes: number of classes, without a background; compared with the logits.
        matcher: in place of the matcher; `SharedLayers` of it is `share_matched_indices` of RT-DETRv2.
        losses: losses by name in place of the published ones, under the same weights: "cls", "l1" and "giou"; or "loc",
            in place of the sum of the boxes, with weight 1.
        weights: weights by the same names, in place of those above; with 0 a part of the sum is left out.
        cost_weights: weights of the matching cost by name, in place of those above: "cls", "l1" and "giou".
        normalizer: in place of the normaliser of matched queries.
        style: "rtdetr" or "ultralytics", whose numbers it has.
        nonfinite: what to do with predictions that are not finite, "error" or "propagate", see `Matcher`; None for
            "error".
        box_format: "cxcywh" or "xywh" if predicted and target boxes are that, None for xyxy; a `matcher` must have the
            same.
        layer_weights: factors of the layers of matched queries, that of the final one last, the encoder's among the
            others; None for 1.
        validate: also check values on a GPU, which synchronises.

    Shape:
        `pred_logits` (B, P, num_classes) and `pred_boxes` (B, P, 4), xyxy, in units of the image; `aux_outputs`, among
        which are the queries that the encoder selects; optionally `dn_outputs`, the same of the denoising queries with
        their `plan`: (B, P_dn) index of the target of each, T for those of negatives and of padding.

    Raises:
        TypeError: a part is of the wrong type.
        ValueError: an argument is out of its range, a name is unknown, or an option of the matcher is given with
            `matcher`.

    Differences: in a batch without any target, Ultralytics teaches its negatives by a focal loss, which weighs them
    three times as much. Predictions that are not finite cost it nothing, so that they are matched first.

    References:
        Zhao et al., "DETRs beat YOLOs on real-time object detection", CVPR 2024; the numbers of lyuwenyu/RT-DETR and
        of `RTDetrLoss` in transformers, and of `RTDETRDetectionLoss` in Ultralytics 8.4.

    Examples:
        >>> import torch
        >>> criterion = rt_detr(num_classes=2)
        >>> box = torch.tensor([[[0.2, 0.2, 0.6, 0.6]]])
        >>> target = {"labels": torch.tensor([[1]]), "boxes": box}
        >>> criterion({"pred_logits": torch.zeros(1, 1, 2), "pred_boxes": box}, target)
        tensor(0.8231)
    """
    is_published = check_choice("style", style, ("rtdetr", "ultralytics")) == "rtdetr"
    alpha, gamma = (0.75, 2.0) if is_published else (0.25, 1.5)
    varifocal = VarifocalLoss(alpha=alpha, gamma=gamma, form=style, reduction="none")
    parts = choose_parts(num_classes, losses, weights, set_parts("vfl", varifocal, cls=1.0))
    matcher = choose_matcher(matcher, focal_hungarian, box_format, cost_weights=cost_weights, nonfinite=nonfinite)
    build = partial(
        DetectionLoss,
        Classification(parts.term("cls"), quality="iou"),
        parts.localization(),
        matcher,
        "none",
        num_classes=num_classes,
        box_format=box_format,
        unit_boxes=True,
        validate=validate,
    )
    if normalizer is None:
        normalizer = TargetNormalizer(distributed=True) if is_published else PositiveNormalizer()
    main = build(normalizer=normalizer, layer_weights=layer_weights)
    dn = build(normalizer=PairedTargetNormalizer(distributed=True) if is_published else PositiveNormalizer())
    return Branches(main, dn_outputs=Branch(dn, plan="given"))
