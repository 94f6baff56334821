"""DINO: its criterion, that of Deformable DETR with selected queries of the encoder and denoising queries."""

from torch import nn

from uotod.check import check_integer
from uotod.loss import (
    Branch,
    Branches,
    DetectionLoss,
    Normalizer,
    PositiveNormalizer,
    SigmoidFocalLoss,
    TargetNormalizer,
)
from uotod.match import Matcher
from uotod.recipes.sets import Weights, box_loss, class_loss, focal_hungarian


def dino(
    num_classes: int,
    *,
    matcher: Matcher | None = None,
    cls_loss: nn.Module | None = None,
    loc_loss: nn.Module | None = None,
    normalizer: Normalizer | None = None,
    cost_weights: Weights = (2.0, 5.0, 2.0),
    loss_weights: Weights = (1.0, 5.0, 2.0),
    interm_weight: float = 1.0,
    dn_weight: float = 1.0,
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
        num_classes: number of classes of targets and of logits.
        matcher: replaces the matcher.
        cls_loss: replaces the loss of the classes, under the same weight.
        loc_loss: replaces the sum of the losses of the boxes; its weights are its own.
        normalizer: replaces the normaliser of matched queries.
        cost_weights: weights of classes, L1 and GIoU in the matching cost.
        loss_weights: weights of classes, L1 and GIoU in the loss.
        interm_weight: weight of the encoder's queries.
        dn_weight: weight of the denoising queries.

    Shape:
        `pred_logits` (B, P, num_classes) and `pred_boxes` (B, P, 4), xyxy, in units of the image; `aux_outputs`;
        optionally `interm_outputs`, a dict of the same keys, and `dn_outputs`, one with `aux_outputs` and `plan`:
        (B, P_dn) index of the target of each denoising query, T for those of negatives and of padding.

    Raises:
        TypeError: a part is of the wrong type.
        ValueError: `num_classes` or a weight is out of its range.

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
    check_integer("num_classes", num_classes, low=1)
    focal = SigmoidFocalLoss(alpha=0.25, gamma=2.0, reduction="none")
    cls_loss = class_loss(cls_loss, "focal", focal, loss_weights)
    loc_loss = box_loss(loss_weights) if loc_loss is None else loc_loss
    matcher = focal_hungarian(cost_weights) if matcher is None else matcher
    normalizer = TargetNormalizer(distributed=True) if normalizer is None else normalizer
    main = DetectionLoss(cls_loss, loc_loss, matcher, "none", normalizer=normalizer)
    dn = DetectionLoss(cls_loss, loc_loss, matcher, "none", normalizer=PositiveNormalizer(distributed=True))
    return Branches(main, interm_outputs=Branch(main, interm_weight), dn_outputs=Branch(dn, dn_weight))
