"""H-DETR: its criterion, that of Deformable DETR with a second set of queries, several for each target."""

from collections.abc import Sequence

from uotod.loss import Branch, Branches, DetectionLoss, Normalizer, PositiveNormalizer
from uotod.match import Matcher
from uotod.recipes.deformable_detr import deformable_detr
from uotod.recipes.dialect import Losses, Weights, focal_hungarian


def h_detr(
    num_classes: int,
    *,
    matcher: Matcher | None = None,
    losses: Losses | None = None,
    weights: Weights | None = None,
    cost_weights: Weights | None = None,
    normalizer: Normalizer | None = None,
    copies: int = 6,
    one2many_weight: float = 1.0,
    nonfinite: str | None = None,
    box_format: str | None = None,
    layer_weights: Sequence[float] | None = None,
    validate: bool = False,
) -> Branches:
    """Return the criterion of H-DETR: `deformable_detr` with a branch that matches several queries to each target.

    ============= =====================================================================================
    matcher       `Hungarian`: `SigmoidFocalCost` 2, L1 of centre and size 5, GIoU 2
    classes       `SigmoidFocalLoss(alpha=0.25, gamma=2)` 2
    boxes         L1 of centre and size 5, GIoU 2
    normaliser    the number of targets, averaged over ranks; one-to-many: the number of pairs
    layers        each is matched on its own, all with weight 1
    encoder       the same loss of all its proposals, with the label 0 for every target
    one-to-many   the same losses with `Hungarian(copies=6)`, times 1
    ============= =====================================================================================

    Args:
        num_classes: number of classes, without a background; compared with the logits.
        matcher: in place of the matcher of the one-to-one queries.
        losses: losses by name in place of the published ones, under the same weights: "cls", "l1" and "giou"; or "loc",
            in place of the sum of the boxes, with weight 1.
        weights: weights by the same names, in place of those above; with 0 a part of the sum is left out.
        cost_weights: weights of the matching cost by name, in place of those above: "cls", "l1" and "giou".
        normalizer: in place of the normaliser of the one-to-one queries.
        copies: one-to-many queries that a target takes.
        one2many_weight: weight of the one-to-many queries.
        nonfinite: what to do with predictions that are not finite, "error" or "propagate", see `Matcher`; None for
            "error".
        box_format: "cxcywh" or "xywh" if predicted and target boxes are that, None for xyxy; a `matcher` must have the
            same.
        layer_weights: factors of the decoder layers of both sets of queries, that of the final one last; None for 1.
        validate: also check values on a GPU, which synchronises.

    Shape:
        As in `deformable_detr`, and optionally `one2many_outputs`, a dict of the same keys.

    Raises:
        TypeError: a part is of the wrong type.
        ValueError: an argument is out of its range, a name is unknown, or an option of the matcher is given with
            `matcher`.

    References:
        Jia et al., "DETRs with hybrid matching", CVPR 2023; the numbers of HDETR/H-Deformable-DETR. Its targets are
        repeated there, which is the same as long as an image has at least `copies` queries a target.

    Examples:
        >>> import torch
        >>> criterion = h_detr(num_classes=2, copies=2)
        >>> box = torch.tensor([[[0.2, 0.2, 0.6, 0.6]]])
        >>> target = {"labels": torch.tensor([[1]]), "boxes": box}
        >>> output = {"pred_logits": torch.zeros(1, 1, 2), "pred_boxes": box}
        >>> many = {"pred_logits": torch.zeros(1, 2, 2), "pred_boxes": box.expand(1, 2, 4)}
        >>> criterion(output, target), criterion(output | {"one2many_outputs": many}, target)
        (tensor(0.3466), tensor(0.6931))
    """
    base = deformable_detr(
        num_classes,
        matcher=matcher,
        losses=losses,
        weights=weights,
        cost_weights=cost_weights,
        normalizer=normalizer,
        nonfinite=nonfinite,
        box_format=box_format,
        layer_weights=layer_weights,
        validate=validate,
    )
    main, encoder = base.main, base.branches["enc_outputs"]
    assert isinstance(encoder, Branch)
    many = DetectionLoss(
        main.cls_loss_module,
        main.loc_loss_module,
        focal_hungarian(
            cost_weights=cost_weights,
            copies=copies,
            nonfinite=main.matching_method.nonfinite,
            box_format=box_format,
        ),
        "none",
        normalizer=PositiveNormalizer(distributed=True),
        num_classes=num_classes,
        box_format=box_format,
        layer_weights=layer_weights,
        unit_boxes=True,
        validate=validate,
    )
    return Branches(main, enc_outputs=encoder, one2many_outputs=Branch(many, one2many_weight))
