"""DETR: number of classes in, its criterion out."""

import torch
from torch import nn

from uotod.check import check_integer, check_number
from uotod.loss import DetectionLoss, Divisors, Masses, MassNormalizer, NegativeProbLoss, Normalizer, TargetNormalizer
from uotod.match import Hungarian, Matcher
from uotod.recipes.sets import Weights, box_loss, class_loss, set_costs


def detr(
    num_classes: int,
    *,
    matcher: Matcher | None = None,
    cls_loss: nn.Module | None = None,
    loc_loss: nn.Module | None = None,
    normalizer: Normalizer | None = None,
    cost_weights: Weights = (1.0, 5.0, 2.0),
    loss_weights: Weights = (1.0, 5.0, 2.0),
    background_weight: float = 0.1,
) -> DetectionLoss:
    """Return the criterion of DETR.

    ============= =====================================================================================
    matcher       `Hungarian`: `NegativeProbLoss` 1, L1 of centre and size 5, GIoU 2
    classes       cross-entropy 1, with a weight of 0.1 for the background, the last class
    boxes         L1 of centre and size 5, GIoU 2
    normaliser    classes: the sum of the class weights; boxes: the number of targets, averaged over ranks
    layers        each is matched on its own, all with weight 1
    ============= =====================================================================================

    Args:
        num_classes: number of classes of targets, labelled 0 to `num_classes - 1`.
        matcher: replaces the matcher.
        cls_loss: replaces the loss of the classes, under the same weight.
        loc_loss: replaces the sum of the losses of the boxes; its weights are its own.
        normalizer: replaces the normaliser.
        cost_weights: weights of classes, L1 and GIoU in the matching cost.
        loss_weights: weights of classes, L1 and GIoU in the loss.
        background_weight: class weight of the background, `eos_coef` of the implementation.

    Shape:
        `pred_logits` (B, P, num_classes + 1) and `pred_boxes` (B, P, 4), xyxy, in units of the image; `aux_outputs`.

    Raises:
        TypeError: a part is of the wrong type.
        ValueError: `num_classes` or a weight is out of its range.

    References:
        Carion et al., "End-to-end object detection with transformers", ECCV 2020; the numbers of
        facebookresearch/detr and of `ForObjectDetectionLoss` in transformers.

    Examples:
        >>> criterion = detr(num_classes=2)
        >>> box = torch.tensor([[[0.2, 0.2, 0.6, 0.6]]])
        >>> target = {"labels": torch.tensor([[1]]), "boxes": box}
        >>> criterion({"pred_logits": torch.zeros(1, 1, 3), "pred_boxes": box}, target)
        tensor(1.0986)
    """
    weight = torch.ones(check_integer("num_classes", num_classes, low=1) + 1)
    weight[-1] = check_number("background_weight", background_weight, low=0.0)
    cross_entropy = nn.CrossEntropyLoss(weight, reduction="none")
    cross_entropy.register_buffer("weight", weight, persistent=False)  # an argument, not a state to be saved
    if matcher is None:
        cls_cost, loc_cost = set_costs(NegativeProbLoss(reduction="none"), cost_weights)
        matcher = Hungarian(cls_match_module=cls_cost, loc_match_module=loc_cost)
    return DetectionLoss(
        class_loss(cls_loss, "ce", cross_entropy, loss_weights),
        box_loss(loss_weights) if loc_loss is None else loc_loss,
        matcher,
        "last",
        normalizer=DetrNormalizer() if normalizer is None else normalizer,
    )


class DetrNormalizer(Normalizer):
    """Divide classification by its class-weighted mass and localisation by the number of targets, as DETR does.

    The number of targets is averaged over the ranks of `torch.distributed`, the mass is not.
    """

    def __init__(self) -> None:
        super().__init__(distributed=True)

    @torch.no_grad()
    def forward(self, masses: Masses) -> Divisors:
        """Return the divisors of a batch, at least 1 each."""
        own = MassNormalizer()(masses)
        return Divisors(own.classification, TargetNormalizer(distributed=True)(masses).localization)

    def divisors(self, masses: Masses) -> Divisors:
        """Return the divisors of this process."""
        own = MassNormalizer().divisors(masses)
        return Divisors(own.classification, TargetNormalizer().divisors(masses).localization)
