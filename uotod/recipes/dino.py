"""DINO: its criterion, that of Deformable DETR with selected queries of the encoder and denoising queries."""

from collections.abc import Sequence
from functools import partial

from uotod.loss import (
    Branch,
    Branches,
    DetectionLoss,
    Normalizer,
    PairedTargetNormalizer,
    SigmoidFocalLoss,
    TargetNormalizer,
)
from uotod.match import Matcher
from uotod.recipes.dialect import Losses, Weights, choose_matcher, choose_parts, focal_hungarian, set_parts


def dino(
    num_classes: int,
    *,
    matcher: Matcher | None = None,
    losses: Losses | None = None,
    weights: Weights | None = None,
    cost_weights: Weights | None = None,
    normalizer: Normalizer | None = None,
    interm_weight: float = 1.0,
    dn_weight: float = 1.0,
    nonfinite: str | None = None,
    box_format: str | None = None,
    layer_weights: Sequence[float] | None = None,
    validate: bool = False,
) -> Branches:
    """Return the criterion of DINO.

    ============= =====================================================================================
    matcher       `Hungarian`: `SigmoidFocalCost` 2, L1 of centre and size 5, GIoU 2
    classes       `SigmoidFocalLoss(alpha=0.25, gamma=2)` 1
    boxes         L1 of centre and size 5, GIoU 2
    normaliser    the number of targets, averaged over ranks
    layers        each is matched on its own, all with weight 1
    interm        the same loss of the queries that the encoder selects, with their classes
    denoising     the same losses of the pairs that are given, divided by their number: targets times groups
    ============= =====================================================================================

    Args:
        num_classes: number of classes, without a background; compared with the logits.
        matcher: in place of the matcher.
        losses: losses by name in place of the published ones, under the same weights: "cls", "l1" and "giou"; or "loc",
            in place of the sum of the boxes, with weight 1.
        weights: weights by the same names, in place of those above; with 0 a part of the sum is left out.
        cost_weights: weights of the matching cost by name, in place of those above: "cls", "l1" and "giou".
        normalizer: in place of the normaliser of matched queries.
        interm_weight: weight of the encoder's queries.
        dn_weight: weight of the denoising queries.
        nonfinite: what to do with predictions that are not finite, "error" or "propagate", see `Matcher`; None for
            "error".
        box_format: "cxcywh" or "xywh" if predicted and target boxes are that, None for xyxy; a `matcher` must have the
            same.
        layer_weights: factors of the decoder layers, those of the denoising queries too, that of the final one last;
            None for 1.
        validate: also check values on a GPU, which synchronises.

    Shape:
        `pred_logits` (B, P, num_classes) and `pred_boxes` (B, P, 4), xyxy, in units of the image; `aux_outputs`;
        optionally `interm_outputs`, a dict of the same keys, and `dn_outputs`, one with `aux_outputs` and `plan`:
        (B, P_dn) index of the target of each denoising query, T for those of negatives and of padding.

    Raises:
        TypeError: a part is of the wrong type.
        ValueError: an argument is out of its range, a name is unknown, or an option of the matcher is given with
            `matcher`.

    References:
        Zhang et al., "DINO: DETR with improved denoising anchor boxes", ICLR 2023; the numbers of IDEA-Research/DINO
        but for its epsilons of 1e-6 in the GIoU.

    Examples:
        >>> import torch
        >>> criterion = dino(num_classes=2)
        >>> box = torch.tensor([[[0.2, 0.2, 0.6, 0.6]]])
        >>> target = {"labels": torch.tensor([[1]]), "boxes": box}
        >>> output = {"pred_logits": torch.zeros(1, 1, 2), "pred_boxes": box}
        >>> criterion(output, target)
        tensor(0.1733)
        >>> denoising = {"pred_logits": torch.zeros(1, 2, 2), "pred_boxes": box.expand(1, 2, 4)}
        >>> denoising["plan"] = torch.tensor([[0, 1]])  # a positive and a negative query
        >>> criterion(output | {"dn_outputs": denoising}, target)
        tensor(0.6065)
    """
    focal = SigmoidFocalLoss(alpha=0.25, gamma=2.0, reduction="none")
    parts = choose_parts(num_classes, losses, weights, set_parts("focal", focal, cls=1.0))
    matcher = choose_matcher(matcher, focal_hungarian, box_format, cost_weights=cost_weights, nonfinite=nonfinite)
    normalizer = TargetNormalizer(distributed=True) if normalizer is None else normalizer
    build = partial(
        DetectionLoss,
        parts.term("cls"),
        parts.localization(),
        matcher,
        "none",
        num_classes=num_classes,
        box_format=box_format,
        unit_boxes=True,
        validate=validate,
    )
    main = build(normalizer=normalizer, layer_weights=layer_weights)
    dn = build(normalizer=PairedTargetNormalizer(distributed=True), layer_weights=layer_weights)
    return Branches(
        main,
        interm_outputs=Branch(build(normalizer=normalizer), interm_weight),
        dn_outputs=Branch(dn, dn_weight, plan="given"),
    )
