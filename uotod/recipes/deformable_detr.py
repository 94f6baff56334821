"""Deformable DETR: its criterion, a focal loss of sigmoid scores on Hungarian pairs."""

from collections.abc import Sequence
from functools import partial

from uotod.loss import Branch, Branches, DetectionLoss, Normalizer, SigmoidFocalLoss, TargetNormalizer
from uotod.match import Matcher
from uotod.recipes.dialect import Losses, Weights, choose_matcher, choose_parts, focal_hungarian, set_parts


def deformable_detr(
    num_classes: int,
    *,
    matcher: Matcher | None = None,
    losses: Losses | None = None,
    weights: Weights | None = None,
    cost_weights: Weights | None = None,
    normalizer: Normalizer | None = None,
    nonfinite: str | None = None,
    box_format: str | None = None,
    layer_weights: Sequence[float] | None = None,
    validate: bool = False,
) -> Branches:
    r"""Return the criterion of Deformable DETR.

    ============= =====================================================================================
    matcher       `Hungarian`: `SigmoidFocalCost` 2, L1 of centre and size 5, GIoU 2
    classes       `SigmoidFocalLoss(alpha=0.25, gamma=2)` 2
    boxes         L1 of centre and size 5, GIoU 2
    normaliser    the number of targets, averaged over ranks
    layers        each is matched on its own, all with weight 1
    encoder       the same loss of all its proposals, with the label 0 for every target
    ============= =====================================================================================

    Args:
        num_classes: number of classes, without a background; compared with the logits.
        matcher: in place of the matcher.
        losses: losses by name in place of the published ones, under the same weights: "cls", "l1" and "giou"; or "loc",
            in place of the sum of the boxes, with weight 1.
        weights: weights by the same names, in place of those above; with 0 a part of the sum is left out.
        cost_weights: weights of the matching cost by name, in place of those above: "cls", "l1" and "giou".
        normalizer: in place of the normaliser.
        nonfinite: what to do with predictions that are not finite, "error" or "propagate", see `Matcher`; None for
            "error".
        box_format: "cxcywh" or "xywh" if predicted and target boxes are that, None for xyxy; a `matcher` must have the
            same.
        layer_weights: factors of the decoder layers, that of the final one last, not of the encoder; None for 1.
        validate: also check values on a GPU, which synchronises.

    Shape:
        `pred_logits` (B, P, num_classes) and `pred_boxes` (B, P, 4), xyxy, in units of the image; `aux_outputs`;
        optionally, with two stages, `enc_outputs`, a dict of the same keys for the proposals of the encoder. They may
        have any number of logits: `num_classes` in the published model, of which the first stands for all objects.

    Raises:
        TypeError: a part is of the wrong type.
        ValueError: an argument is out of its range, a name is unknown, or an option of the matcher is given with
            `matcher`.

    References:
        Zhu et al., "Deformable DETR", ICLR 2021; the numbers of fundamentalvision/Deformable-DETR and of
        `DeformableDetrForObjectDetectionLoss` in transformers, whose cost has an epsilon of 1e-8 in the logarithms.

    Examples:
        >>> import torch
        >>> criterion = deformable_detr(num_classes=2)
        >>> box = torch.tensor([[[0.2, 0.2, 0.6, 0.6]]])
        >>> target = {"labels": torch.tensor([[1]]), "boxes": box}
        >>> criterion({"pred_logits": torch.zeros(1, 1, 2), "pred_boxes": box}, target)
        tensor(0.3466)
    """
    focal = SigmoidFocalLoss(alpha=0.25, gamma=2.0, reduction="none")
    parts = choose_parts(num_classes, losses, weights, set_parts("focal", focal, cls=2.0))
    matcher = choose_matcher(matcher, focal_hungarian, box_format, cost_weights=cost_weights, nonfinite=nonfinite)
    normalizer = TargetNormalizer(distributed=True) if normalizer is None else normalizer
    build = partial(
        DetectionLoss,
        parts.term("cls"),
        parts.localization(),
        matcher,
        "none",
        normalizer=normalizer,
        box_format=box_format,
        unit_boxes=True,
        validate=validate,
    )
    main = build(num_classes=num_classes, layer_weights=layer_weights)
    return Branches(main, enc_outputs=Branch(build(), class_agnostic=True))
