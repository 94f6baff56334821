"""Group DETR, LW-DETR and RF-DETR: their criterion, groups of queries that are each matched to all targets."""

from torch import nn

from uotod.check import check_flag, check_integer
from uotod.loss import (
    Branch,
    Branches,
    DetectionLoss,
    Divisors,
    IoUAwareBCELoss,
    Masses,
    Normalizer,
    TargetNormalizer,
)
from uotod.match import Matcher
from uotod.recipes.sets import Weights, box_loss, class_loss, focal_hungarian


def group_detr(
    num_classes: int,
    *,
    matcher: Matcher | None = None,
    cls_loss: nn.Module | None = None,
    loc_loss: nn.Module | None = None,
    normalizer: Normalizer | None = None,
    cost_weights: Weights = (2.0, 5.0, 2.0),
    loss_weights: Weights = (1.0, 5.0, 2.0),
    groups: int = 13,
    sum_groups: bool = False,
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
        num_classes: number of classes of targets and of logits.
        matcher: replaces the matcher.
        cls_loss: replaces the loss of the classes, under the same weight.
        loc_loss: replaces the sum of the losses of the boxes; its weights are its own.
        normalizer: replaces the normaliser.
        cost_weights: weights of classes, L1 and GIoU in the matching cost.
        loss_weights: weights of classes, L1 and GIoU in the loss.
        groups: number of equal runs of queries.
        sum_groups: add the losses of the groups instead of averaging them (`sum_group_losses` of RF-DETR).

    Shape:
        `pred_logits` (B, P, num_classes) and `pred_boxes` (B, P, 4), xyxy, in units of the image, P a multiple of
        `groups`; `aux_outputs`; optionally `enc_outputs`, a dict of the same keys.

    Raises:
        TypeError: a part is of the wrong type.
        ValueError: `num_classes` or a weight is out of its range.

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
    check_integer("num_classes", num_classes, low=1)
    check_flag("sum_groups", sum_groups)
    if normalizer is None:
        normalizer = GroupNormalizer(1 if sum_groups else groups)
    iou_aware = IoUAwareBCELoss(alpha=0.25, gamma=2.0, reduction="none")
    main = DetectionLoss(
        class_loss(cls_loss, "ia_bce", iou_aware, loss_weights),
        box_loss(loss_weights) if loc_loss is None else loc_loss,
        focal_hungarian(cost_weights, groups=groups) if matcher is None else matcher,
        "none",
        quality="iou",
        normalizer=normalizer,
    )
    return Branches(main, enc_outputs=Branch(main))


class GroupNormalizer(TargetNormalizer):
    """Divide both by the number of targets, in training times the number of groups, averaged over ranks.

    Args:
        groups: number of groups.
    """

    def __init__(self, groups: int) -> None:
        super().__init__(distributed=True)
        self.groups = check_integer("groups", groups, low=1)

    def divisors(self, masses: Masses) -> Divisors:
        """Return the divisors of this process."""
        factor, own = self.groups if self.training else 1, super().divisors(masses)
        return Divisors(factor * own.classification, factor * own.localization)

    def extra_repr(self) -> str:
        """Return the arguments for `repr`."""
        return f"groups={self.groups}"
