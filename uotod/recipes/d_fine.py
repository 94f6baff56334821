"""D-FINE and DEIM: their criteria, whose boxes learn from the union of the pairs of all decoder layers."""

from torch import nn

from uotod.check import check_integer
from uotod.loss import (
    Branch,
    Branches,
    DetectionLoss,
    DistillationLoss,
    Divisors,
    FineGrainedLoss,
    Masses,
    MatchabilityAwareLoss,
    MultipleObjectiveLoss,
    Normalizer,
    PositiveNormalizer,
    TargetNormalizer,
    VarifocalLoss,
)
from uotod.match import Matcher
from uotod.recipes.sets import Weights, box_loss, class_loss, focal_hungarian


def d_fine(
    num_classes: int,
    *,
    matcher: Matcher | None = None,
    cls_loss: nn.Module | None = None,
    loc_loss: nn.Module | None = None,
    normalizer: Normalizer | None = None,
    cost_weights: Weights = (2.0, 5.0, 2.0),
    loss_weights: Weights = (1.0, 5.0, 2.0),
    dist_weights: tuple[float, float] | None = (0.15, 1.5),
    union: bool = True,
) -> Branches:
    """Return the criterion of D-FINE, fine-grained distributions included.

    ============= =====================================================================================
    matcher       `Hungarian`: `SigmoidFocalCost` 2, L1 of centre and size 5, GIoU 2
    classes       `VarifocalLoss(alpha=0.75, gamma=2, form="rtdetr")` 1 of the IoU of the pair
    boxes         L1 of centre and size 5, GIoU 2, of the union of the pairs of all layers
    distributions `FineGrainedLoss` 0.15 of the same pairs, `DistillationLoss` 1.5 of earlier layers
    normaliser    classes: the number of targets; boxes: the number of pairs; both averaged over ranks
    layers        each is matched on its own, all with weight 1, that of the encoder among them
    denoising     the same losses of the pairs that are given, divided by their number
    ============= =====================================================================================

    Args:
        num_classes: number of classes of targets and of logits.
        matcher: replaces the matcher.
        cls_loss: replaces the loss of the classes, under the same weight.
        loc_loss: replaces the sum of the losses of the boxes, `FineGrainedLoss` included; its weights are its own.
        normalizer: replaces the normaliser of matched queries.
        cost_weights: weights of classes, L1 and GIoU in the matching cost.
        loss_weights: weights of classes, L1 and GIoU in the loss.
        dist_weights: weights of `FineGrainedLoss` and `DistillationLoss`, None for a model without distributions.
        union: boxes learn from the union of the pairs of all layers; False for the pairs of their own layer.

    Shape:
        As in `rt_detr`; `pred_dist` (B, P, 4, 33) of the layers that refine distributions, the final one among them,
        and as `anchors` the boxes (B, P, 4), xyxy, from which they start. `dn_outputs` has `anchors` of its own.

    Raises:
        TypeError: a part is of the wrong type.
        ValueError: `num_classes` or a weight is out of its range.

    References:
        Peng et al., "D-FINE: redefine regression task in DETRs as fine-grained distribution refinement", ICLR 2025;
        the numbers of Peterande/D-FINE and, with `union=False`, of `DFineLoss` in transformers.

    Examples:
        >>> import torch
        >>> criterion = d_fine(num_classes=2)
        >>> box = torch.tensor([[[0.2, 0.2, 0.6, 0.6]]])
        >>> target = {"labels": torch.tensor([[1]]), "boxes": box}
        >>> output = {"pred_logits": torch.zeros(1, 1, 2), "pred_boxes": box, "pred_dist": torch.zeros(1, 1, 4, 33)}
        >>> criterion(output, target, anchors=box)
        tensor(2.9210)
    """
    check_integer("num_classes", num_classes, low=1)
    varifocal = VarifocalLoss(alpha=0.75, gamma=2.0, form="rtdetr", reduction="none")
    cls_loss = class_loss(cls_loss, "vfl", varifocal, loss_weights)
    return _united(cls_loss, loc_loss, matcher, normalizer, cost_weights, loss_weights, dist_weights, union)


def deim(
    num_classes: int,
    *,
    matcher: Matcher | None = None,
    cls_loss: nn.Module | None = None,
    loc_loss: nn.Module | None = None,
    normalizer: Normalizer | None = None,
    cost_weights: Weights = (2.0, 5.0, 2.0),
    loss_weights: Weights = (1.0, 5.0, 2.0),
    gamma: float = 1.5,
    dist_weights: tuple[float, float] | None = (0.15, 1.5),
    union: bool = True,
) -> Branches:
    """Return the criterion of DEIM, those of the distributions of D-FINE included.

    ============= =====================================================================================
    matcher       `Hungarian`: `SigmoidFocalCost` 2, L1 of centre and size 5, GIoU 2
    classes       `MatchabilityAwareLoss(gamma=1.5)` 1 of the IoU of the pair
    boxes         L1 of centre and size 5, GIoU 2, of the union of the pairs of all layers
    distributions `FineGrainedLoss` 0.15 of the same pairs, `DistillationLoss` 1.5 of earlier layers
    normaliser    classes: the number of targets; boxes: the number of pairs; both averaged over ranks
    layers        each is matched on its own, all with weight 1, that of the encoder among them
    denoising     the same losses of the pairs that are given, divided by their number
    ============= =====================================================================================

    Args:
        num_classes: number of classes of targets and of logits.
        matcher: replaces the matcher.
        cls_loss: replaces the loss of the classes, under the same weight.
        loc_loss: replaces the sum of the losses of the boxes, `FineGrainedLoss` included; its weights are its own.
        normalizer: replaces the normaliser of matched queries.
        cost_weights: weights of classes, L1 and GIoU in the matching cost.
        loss_weights: weights of classes, L1 and GIoU in the loss.
        gamma: exponent of the IoU in the loss of the classes.
        dist_weights: weights of `FineGrainedLoss` and `DistillationLoss`, None for a model without distributions.
        union: boxes learn from the union of the pairs of all layers; False for the pairs of their own layer.

    Shape:
        As in `rt_detr`; `pred_dist` (B, P, 4, 33) of the layers that refine distributions, the final one among them,
        and as `anchors` the boxes (B, P, 4), xyxy, from which they start. `dn_outputs` has `anchors` of its own.

    Raises:
        TypeError: a part is of the wrong type.
        ValueError: `num_classes` or a weight is out of its range.

    References:
        Huang et al., "DEIM: DETR with improved matching for fast convergence", CVPR 2025; the numbers of
        ShihuaHuang95/DEIM and of `Deimv2Loss` in transformers.

    Examples:
        >>> import torch
        >>> criterion = deim(num_classes=2)
        >>> box = torch.tensor([[[0.2, 0.2, 0.6, 0.6]]])
        >>> target = {"labels": torch.tensor([[1]]), "boxes": box}
        >>> output = {"pred_logits": torch.zeros(1, 1, 2), "pred_boxes": box, "pred_dist": torch.zeros(1, 1, 4, 33)}
        >>> criterion(output, target, anchors=box)
        tensor(3.0361)
    """
    check_integer("num_classes", num_classes, low=1)
    mal = MatchabilityAwareLoss(gamma=gamma, reduction="none")
    cls_loss = class_loss(cls_loss, "mal", mal, loss_weights)
    return _united(cls_loss, loc_loss, matcher, normalizer, cost_weights, loss_weights, dist_weights, union)


class UnionNormalizer(Normalizer):
    """Divide classification by the number of targets and localisation by the mass that it sees, averaged over ranks."""

    def __init__(self) -> None:
        super().__init__(distributed=True)

    def divisors(self, masses: Masses) -> Divisors:
        """Return the divisors of this process."""
        classification = TargetNormalizer().divisors(masses).classification
        return Divisors(classification, masses.localization.sum(-1, keepdim=True))


def _united(
    cls_loss: nn.Module,
    loc_loss: nn.Module | None,
    matcher: Matcher | None,
    normalizer: Normalizer | None,
    cost_weights: Weights,
    loss_weights: Weights,
    dist_weights: tuple[float, float] | None,
    union: bool,
) -> Branches:
    matcher = focal_hungarian(cost_weights) if matcher is None else matcher
    boxes, distillation = box_loss(loss_weights), None
    if dist_weights is not None:
        distillation = DistillationLoss(temperature=5.0, weight=dist_weights[1])
        parts = dict(zip(boxes.names, boxes.losses, strict=True)) | {"fgl": FineGrainedLoss(reduction="none")}
        boxes = MultipleObjectiveLoss(parts, [*boxes.weights, dist_weights[0]])
    loc_loss = boxes if loc_loss is None else loc_loss
    if normalizer is None:
        normalizer = UnionNormalizer() if union else TargetNormalizer(distributed=True)

    def loss(normalizer: Normalizer, union: bool) -> DetectionLoss:
        return DetectionLoss(
            cls_loss,
            loc_loss,
            matcher,
            "none",
            quality="iou",
            loc_union=union,
            distillation_module=distillation,
            normalizer=normalizer,
        )

    return Branches(loss(normalizer, union), dn_outputs=Branch(loss(PositiveNormalizer(distributed=True), False)))
