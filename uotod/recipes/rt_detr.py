"""RT-DETR: its criterion, a varifocal loss of sigmoid scores on Hungarian pairs, with denoising queries."""

from torch import nn

from uotod.loss import (
    Branch,
    Branches,
    DetectionLoss,
    MultipleObjectiveLoss,
    Normalizer,
    PositiveNormalizer,
    TargetNormalizer,
    VarifocalLoss,
)
from uotod.match import Matcher
from uotod.recipes._sets import Weights, box_loss, focal_hungarian


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
        cls_loss: replaces the loss of the classes, weights included.
        loc_loss: replaces the loss of the boxes, weights included.
        normalizer: replaces the normaliser of matched queries.
        cost_weights: weights of classes, L1 and GIoU in the matching cost.
        loss_weights: weights of classes, L1 and GIoU in the loss.

    Shape:
        `pred_logits` (B, P, num_classes) and `pred_boxes` (B, P, 4), xyxy, in units of the image; `aux_outputs`, among
        which are the queries that the encoder selects; optionally `dn_outputs`, the same of the denoising queries with
        their `plan`: (B, P_dn) index of the target of each, T for those of negatives and of padding.

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
    varifocal = VarifocalLoss(alpha=0.75, gamma=2.0, form="rtdetr", reduction="none")
    cls_loss = cls_loss or MultipleObjectiveLoss({"vfl": varifocal}, loss_weights[:1])
    loc_loss, matcher = loc_loss or box_loss(loss_weights), matcher or focal_hungarian(cost_weights)

    def loss(normalizer: Normalizer) -> DetectionLoss:
        return DetectionLoss(cls_loss, loc_loss, matcher, "none", quality="iou", normalizer=normalizer)

    main = loss(normalizer or TargetNormalizer(distributed=True))
    return Branches(main, dn_outputs=Branch(loss(PositiveNormalizer(distributed=True))))
