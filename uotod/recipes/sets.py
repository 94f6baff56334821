"""The parts that detectors of sets share: weights in, the published costs and losses out."""

from collections.abc import Sequence

from torch import nn

from uotod.loss import BoxSpace, GIoULoss, MultipleObjectiveLoss, SigmoidFocalCost
from uotod.match import Hungarian
from uotod.recipes.dialect import weigh

Weights = Sequence[float]  # of classification, L1 and GIoU


def class_loss(given: nn.Module | None, name: str, published: nn.Module, weights: Weights) -> nn.Module:
    """Return the published loss of classes by its name, or the given one in its place, under the same weight."""
    weight = _three(weights)[0]
    if given is None:
        return MultipleObjectiveLoss({name: published}, [weight])
    return weigh("cls", given, published, weight)


def box_loss(weights: Weights) -> MultipleObjectiveLoss:
    """Return the weighted L1 loss of centre and size and the GIoU loss, as loss or as matching cost."""
    _, l1, giou = _three(weights)
    # no epsilon, as published: areas of normalised boxes may be as small as one
    losses = {"l1": BoxSpace(nn.L1Loss(reduction="none"), "cxcywh"), "giou": GIoULoss(eps=0.0, reduction="none")}
    return MultipleObjectiveLoss(losses, [l1, giou])


def set_costs(cls_cost: nn.Module, weights: Weights) -> tuple[nn.Module, nn.Module]:
    """Return the matching modules of classes and boxes of a detector of sets."""
    return MultipleObjectiveLoss({"cls": cls_cost}, weights[:1]), box_loss(weights)


def focal_hungarian(weights: Weights, *, copies: int = 1, groups: int = 1) -> Hungarian:
    """Return the Hungarian matcher on the focal cost, L1 and GIoU, of Deformable DETR and its successors."""
    cls_cost, loc_cost = set_costs(SigmoidFocalCost(alpha=0.25, gamma=2.0, reduction="none"), weights)
    return Hungarian(copies=copies, groups=groups, cls_match_module=cls_cost, loc_match_module=loc_cost)


def _three(weights: Weights) -> Weights:
    if len(weights) != 3:
        raise ValueError(f"weights must hold three numbers, of classes, L1 and GIoU, got {weights!r}")
    return weights
