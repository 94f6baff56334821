"""Deformable DETR: its criterion, a focal loss of sigmoid scores on Hungarian pairs."""

from torch import nn

from uotod.check import check_integer
from uotod.loss import (
    Branch,
    Branches,
    DetectionLoss,
    Normalizer,
    SigmoidFocalLoss,
    TargetNormalizer,
)
from uotod.match import Matcher
from uotod.recipes.sets import Weights, box_loss, class_loss, focal_hungarian


def deformable_detr(
    num_classes: int,
    *,
    matcher: Matcher | None = None,
    cls_loss: nn.Module | None = None,
    loc_loss: nn.Module | None = None,
    normalizer: Normalizer | None = None,
    cost_weights: Weights = (2.0, 5.0, 2.0),
    loss_weights: Weights = (2.0, 5.0, 2.0),
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
        num_classes: number of classes of targets and of logits.
        matcher: replaces the matcher.
        cls_loss: replaces the loss of the classes, under the same weight.
        loc_loss: replaces the sum of the losses of the boxes; its weights are its own.
        normalizer: replaces the normaliser.
        cost_weights: weights of classes, L1 and GIoU in the matching cost.
        loss_weights: weights of classes, L1 and GIoU in the loss.

    Shape:
        `pred_logits` (B, P, num_classes) and `pred_boxes` (B, P, 4), xyxy, in units of the image; `aux_outputs`;
        optionally, with two stages, `enc_outputs`, a dict of the same keys.

    Raises:
        TypeError: a part is of the wrong type.
        ValueError: `num_classes` or a weight is out of its range.

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
    check_integer("num_classes", num_classes, low=1)
    focal = SigmoidFocalLoss(alpha=0.25, gamma=2.0, reduction="none")
    main = DetectionLoss(
        class_loss(cls_loss, "focal", focal, loss_weights),
        box_loss(loss_weights) if loc_loss is None else loc_loss,
        focal_hungarian(cost_weights) if matcher is None else matcher,
        "none",
        normalizer=TargetNormalizer(distributed=True) if normalizer is None else normalizer,
    )
    return Branches(main, enc_outputs=Branch(main, class_agnostic=True))
