"""Group DETR, LW-DETR and RF-DETR: their criterion, groups of queries that are each matched to all targets."""

from collections.abc import Sequence
from functools import partial

from uotod.check import check_flag
from uotod.loss import Branch, Branches, Classification, DetectionLoss, IoUAwareBCELoss, Normalizer, TargetNormalizer
from uotod.match import Matcher
from uotod.recipes.dialect import Losses, Weights, choose_matcher, choose_parts, focal_hungarian, set_parts

GROUPS = 13


def group_detr(
    num_classes: int,
    *,
    matcher: Matcher | None = None,
    losses: Losses | None = None,
    weights: Weights | None = None,
    cost_weights: Weights | None = None,
    normalizer: Normalizer | None = None,
    groups: int | None = None,
    sum_groups: bool = False,
    nonfinite: str | None = None,
    box_format: str | None = None,
    layer_weights: Sequence[float] | None = None,
    validate: bool = False,
) -> Branches:
    """Return the criterion of LW-DETR and RF-DETR: Group DETR with an IoU-aware classification.

    ============= =====================================================================================
    matcher       `Hungarian(groups=13)`: `SigmoidFocalCost` 2, L1 of centre and size 5, GIoU 2
    classes       `IoUAwareBCELoss(alpha=0.25, gamma=2)` 1 of the IoU of the pair
    boxes         L1 of centre and size 5, GIoU 2
    normaliser    the number of targets times 13, averaged over ranks
    layers        each is matched on its own, all with weight 1
    encoder       the same loss of its selected queries
    ============= =====================================================================================

    The groups are those of training: after `eval()` all queries are one group, as in inference.

    Args:
        num_classes: number of classes, without a background; compared with the logits.
        matcher: in place of the matcher; the normaliser counts the `groups` that it or a matcher in it has, 1 if none.
        losses: losses by name in place of the published ones, under the same weights: "cls", "l1" and "giou"; or "loc",
            in place of the sum of the boxes, with weight 1.
        weights: weights by the same names, in place of those above; with 0 a part of the sum is left out.
        cost_weights: weights of the matching cost by name, in place of those above: "cls", "l1" and "giou".
        normalizer: in place of the normaliser.
        groups: number of equal runs of queries; None for 13.
        sum_groups: add the losses of the groups instead of averaging them (`sum_group_losses` of RF-DETR).
        nonfinite: what to do with predictions that are not finite, "error" or "propagate", see `Matcher`; None for
            "error".
        box_format: "cxcywh" or "xywh" if predicted and target boxes are that, None for xyxy; a `matcher` must have the
            same.
        layer_weights: factors of the decoder layers, that of the final one last, not of the encoder; None for 1.
        validate: also check values on a GPU, which synchronises.

    Shape:
        `pred_logits` (B, P, num_classes) and `pred_boxes` (B, P, 4), xyxy, in units of the image, P a multiple of
        `groups`; `aux_outputs`; optionally `enc_outputs`, a dict of the same keys.

    Raises:
        TypeError: a part is of the wrong type.
        ValueError: an argument is out of its range, a name is unknown, or an option of the matcher is given with
            `matcher`.

    References:
        Chen et al., "Group DETR", ICCV 2023; Chen et al., "LW-DETR", 2024; Robinson et al., "RF-DETR", 2025; the
        numbers of `LwDetrImageLoss` in transformers.

    Examples:
        >>> import torch
        >>> criterion = group_detr(num_classes=2, groups=2)
        >>> box = torch.tensor([[[0.2, 0.2, 0.6, 0.6]]])
        >>> target = {"labels": torch.tensor([[1]]), "boxes": box}
        >>> criterion({"pred_logits": torch.zeros(1, 2, 2), "pred_boxes": box.expand(1, 2, 4)}, target)
        tensor(0.8664)
    """
    check_flag("sum_groups", sum_groups)
    iou_aware = IoUAwareBCELoss(alpha=0.25, gamma=2.0, reduction="none")
    parts = choose_parts(num_classes, losses, weights, set_parts("ia_bce", iou_aware, cls=1.0))
    rule, options = partial(focal_hungarian, groups=GROUPS), {"cost_weights": cost_weights, "groups": groups}
    matcher = choose_matcher(matcher, rule, box_format, **options, nonfinite=nonfinite)
    if normalizer is None:
        normalizer = TargetNormalizer(groups=1 if sum_groups else _groups(matcher), distributed=True)
    build = partial(
        DetectionLoss,
        Classification(parts.term("cls"), quality="iou"),
        parts.localization(),
        matcher,
        "none",
        normalizer=normalizer,
        num_classes=num_classes,
        box_format=box_format,
        unit_boxes=True,
        validate=validate,
    )
    return Branches(build(layer_weights=layer_weights), enc_outputs=Branch(build()))


def _groups(matcher: Matcher) -> int:
    """Return the number of groups of a matcher, or the largest of those that it is made of."""
    members = matcher.modules() if isinstance(matcher, Matcher) else ()  # the loss refuses what is no matcher
    return max((getattr(x, "groups", 1) for x in members if isinstance(x, Matcher)), default=1)
