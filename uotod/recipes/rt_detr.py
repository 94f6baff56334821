"""RT-DETR: its criterion, a varifocal loss of sigmoid scores on Hungarian pairs, with denoising queries."""

from torch import nn

from uotod.check import check_integer
from uotod.loss import (
    Branch,
    Branches,
    DetectionLoss,
    Normalizer,
    PositiveNormalizer,
    TargetNormalizer,
    VarifocalLoss,
)
from uotod.match import Matcher
from uotod.recipes.sets import Weights, box_loss, class_loss, focal_hungarian


def rt_detr(
    num_classes: int,
    *,
    matcher: Matcher | None = None,
    cls_loss: nn.Module | None = None,
    loc_loss: nn.Module | None = None,
    normalizer: Normalizer | None = None,
    cost_weights: Weights = (2.0, 5.0, 2.0),
    loss_weights: Weights = (1.0, 5.0, 2.0),
) -> Branches:
    """Return the criterion of RT-DETR and RT-DETRv2.

    ============= =====================================================================================
    matcher       `Hungarian`: `SigmoidFocalCost` 2, L1 of centre and size 5, GIoU 2
    classes       `VarifocalLoss(alpha=0.75, gamma=2, form="rtdetr")` 1 of the IoU of the pair
    boxes         L1 of centre and size 5, GIoU 2
    normaliser    the number of targets, averaged over ranks; denoising: the number of pairs
    layers        each is matched on its own, all with weight 1, that of the encoder among them
    ============= =====================================================================================

    Args:
        num_classes: number of classes of targets and of logits.
        matcher: replaces the matcher; `SharedLayers` of it is `share_matched_indices` of RT-DETRv2.
        cls_loss: replaces the loss of the classes, under the same weight.
        loc_loss: replaces the sum of the losses of the boxes; its weights are its own.
        normalizer: replaces the normaliser of matched queries.
        cost_weights: weights of classes, L1 and GIoU in the matching cost.
        loss_weights: weights of classes, L1 and GIoU in the loss.

    Shape:
        `pred_logits` (B, P, num_classes) and `pred_boxes` (B, P, 4), xyxy, in units of the image; `aux_outputs`, among
        which are the queries that the encoder selects; optionally `dn_outputs`, the same of the denoising queries with
        their `plan`: (B, P_dn) index of the target of each, T for those of negatives and of padding.

    Raises:
        TypeError: a part is of the wrong type.
        ValueError: `num_classes` or a weight is out of its range.

    References:
        Zhao et al., "DETRs beat YOLOs on real-time object detection", CVPR 2024; the numbers of lyuwenyu/RT-DETR and
        of `RTDetrLoss` in transformers.

    Examples:
        >>> import torch
        >>> criterion = rt_detr(num_classes=2)
        >>> box = torch.tensor([[[0.2, 0.2, 0.6, 0.6]]])
        >>> target = {"labels": torch.tensor([[1]]), "boxes": box}
        >>> criterion({"pred_logits": torch.zeros(1, 1, 2), "pred_boxes": box}, target)
        tensor(0.8231)
    """
    check_integer("num_classes", num_classes, low=1)
    varifocal = VarifocalLoss(alpha=0.75, gamma=2.0, form="rtdetr", reduction="none")
    cls_loss = class_loss(cls_loss, "vfl", varifocal, loss_weights)
    loc_loss = box_loss(loss_weights) if loc_loss is None else loc_loss
    matcher = focal_hungarian(cost_weights) if matcher is None else matcher

    def loss(normalizer: Normalizer) -> DetectionLoss:
        return DetectionLoss(cls_loss, loc_loss, matcher, "none", quality="iou", normalizer=normalizer)

    main = loss(TargetNormalizer(distributed=True) if normalizer is None else normalizer)
    return Branches(main, dn_outputs=Branch(loss(PositiveNormalizer(distributed=True))))
