"""H-DETR: its criterion, that of Deformable DETR with a second set of queries, several for each target."""

from torch import nn

from uotod.loss import Branch, Branches, DetectionLoss, Normalizer, PositiveNormalizer
from uotod.match import Matcher
from uotod.recipes.deformable_detr import deformable_detr
from uotod.recipes.sets import Weights, focal_hungarian


def h_detr(
    num_classes: int,
    *,
    matcher: Matcher | None = None,
    cls_loss: nn.Module | None = None,
    loc_loss: nn.Module | None = None,
    normalizer: Normalizer | None = None,
    cost_weights: Weights = (2.0, 5.0, 2.0),
    loss_weights: Weights = (2.0, 5.0, 2.0),
    copies: int = 6,
    one2many_weight: float = 1.0,
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
        num_classes: number of classes of targets and of logits.
        matcher: replaces the matcher of the one-to-one queries.
        cls_loss: replaces the loss of the classes, under the same weight.
        loc_loss: replaces the sum of the losses of the boxes; its weights are its own.
        normalizer: replaces the normaliser of the one-to-one queries.
        cost_weights: weights of classes, L1 and GIoU in the matching cost.
        loss_weights: weights of classes, L1 and GIoU in the loss.
        copies: one-to-many queries that a target takes.
        one2many_weight: weight of the one-to-many queries.

    Shape:
        As in `deformable_detr`, and optionally `one2many_outputs`, a dict of the same keys.

    Raises:
        TypeError: a part is of the wrong type.
        ValueError: `num_classes` or a weight is out of its range.

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
        cls_loss=cls_loss,
        loc_loss=loc_loss,
        normalizer=normalizer,
        cost_weights=cost_weights,
        loss_weights=loss_weights,
    )
    main = base.main
    many = DetectionLoss(
        main.cls_loss_module,
        main.loc_loss_module,
        focal_hungarian(cost_weights, copies=copies),
        "none",
        normalizer=PositiveNormalizer(distributed=True),
    )
    encoder = Branch(main, class_agnostic=True)
    return Branches(main, enc_outputs=encoder, one2many_outputs=Branch(many, one2many_weight))
