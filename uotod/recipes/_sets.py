"""The parts that detectors of sets share: weights in, the published costs, box losses and normalisers out."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from uotod._boxes import full_precision
from uotod._check import check_choice
from uotod._cost import ClassTerms
from uotod.loss import (
    BoxSpace,
    Divisors,
    GIoULoss,
    Masses,
    MassNormalizer,
    MultipleObjectiveLoss,
    Normalizer,
    SigmoidFocalCost,
    TargetNormalizer,
)
from uotod.match import Hungarian
from uotod.match._base import MatcherOptions
from uotod.recipes._weigh import weigh

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


def set_costs(cls_cost: nn.Module, weights: Weights) -> MatcherOptions:
    """Return the matching modules of a detector of sets."""
    return {
        "cls_match_module": MultipleObjectiveLoss({"cls": cls_cost}, weights[:1]),
        "loc_match_module": box_loss(weights),
    }


def focal_hungarian(weights: Weights, **options: int) -> Hungarian:
    """Return the Hungarian matcher on the focal cost, L1 and GIoU, of Deformable DETR and its successors."""
    return Hungarian(**options, **set_costs(SigmoidFocalCost(alpha=0.25, gamma=2.0, reduction="none"), weights))


def _three(weights: Weights) -> Weights:
    if len(weights) != 3:
        raise ValueError(f"weights must hold three numbers, of classes, L1 and GIoU, got {weights!r}")
    return weights


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


class MissingProbCost(nn.Module):
    """Return `1 - p`, what the probability of the target's class lacks to 1.

    Args:
        activation: "softmax" or "sigmoid".
    """

    reduction = "none"

    def __init__(self, activation: str) -> None:
        super().__init__()
        check_choice("activation", activation, ("softmax", "sigmoid"))
        self.activation = activation

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        """Return the cost of (N, C) logits and (N,) labels."""
        gain, _ = self.class_terms(input)
        return 1 + gain.gather(-1, target.unsqueeze(-1)).squeeze(-1)

    def class_terms(self, logits: Tensor) -> ClassTerms:
        """Return the cost as an affine function of the one-hot target."""
        logits = full_precision(logits)
        prob = logits.softmax(-1) if self.activation == "softmax" else logits.sigmoid()
        return ClassTerms(-prob, torch.ones_like(prob[..., 0]))

    def extra_repr(self) -> str:
        """Return the arguments for `repr`."""
        return f"activation={self.activation!r}"
