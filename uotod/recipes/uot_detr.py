"""DETR and Deformable DETR by unbalanced optimal transport: their criteria with a soft plan in place of the pairs."""

import math
from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor

from uotod.check import Described, check_choice
from uotod.cost.kinds import Affine, ClassTerms
from uotod.geometry.boxes import full_precision
from uotod.loss import Branches, DetectionLoss, MassNormalizer, Normalizer, PositiveNormalizer
from uotod.match import Matcher, UnbalancedSinkhorn
from uotod.match.schedule import Schedule
from uotod.recipes.deformable_detr import deformable_detr
from uotod.recipes.detr import detr
from uotod.recipes.dialect import Losses, Weights, by_name, choose_matcher, set_matcher

# the published transport, in which both marginals are fixed
BALANCED = partial(UnbalancedSinkhorn, reg_pred=math.inf, reg_target=math.inf, reg_dimless=0.12)


def uot_detr(
    num_classes: int,
    *,
    matcher: Matcher | None = None,
    losses: Losses | None = None,
    weights: Weights | None = None,
    cost_weights: Weights | None = None,
    normalizer: Normalizer | None = None,
    background_weight: float | None = None,
    reg_pred: float | Schedule | None = None,
    reg_target: float | Schedule | None = None,
    reg_dimless: float | Schedule | None = None,
    nonfinite: str | None = None,
    box_format: str | None = None,
    layer_weights: Sequence[float] | None = None,
    validate: bool = False,
) -> DetectionLoss:
    """Return the criterion of DETR with optimal transport in place of the Hungarian matching.

    ============= =====================================================================================
    matcher       balanced Sinkhorn, `reg = 0.12 / (ln(2 P) + 1)`: 1 - p of softmax 2, L1 5, GIoU 2
    classes       cross-entropy 2, with a weight of 0.1 for the background, the last class
    boxes         L1 of centre and size 5, GIoU 2
    normaliser    `MassNormalizer`: the mass that each loss sees, for classes times the class weight
    ============= =====================================================================================

    Args:
        num_classes: number of classes of targets, labelled 0 to `num_classes - 1`; compared with the logits, which have
            one more.
        matcher: in place of the matcher.
        losses: losses by name in place of the published ones, under the same weights: "cls", "l1" and "giou"; or "loc",
            in place of the sum of the boxes, with weight 1.
        weights: weights by the same names, in place of those above; with 0 a part of the sum is left out.
        cost_weights: weights of the matching cost by name, in place of those above: "cls", "l1" and "giou".
        normalizer: in place of the normaliser.
        background_weight: class weight of the background; None for 0.1.
        reg_pred: penalty on the mass of predictions; `inf` fixes it, as does None.
        reg_target: penalty on the mass of targets and background; `inf` fixes it, as does None.
        reg_dimless: entropic regularisation without dimension; None for 0.12.
        nonfinite: what to do with predictions that are not finite, "error" or "propagate", see `Matcher`; None for
            "error".
        box_format: "cxcywh" or "xywh" if predicted and target boxes are that, None for xyxy; a `matcher` must have the
            same.
        layer_weights: factors of the decoder layers, that of the final one last; None for 1.
        validate: also check values on a GPU, which synchronises.

    Shape:
        `pred_logits` (B, P, num_classes + 1) and `pred_boxes` (B, P, 4), xyxy, in units of the image; `aux_outputs`.

    Raises:
        TypeError: a part is of the wrong type.
        ValueError: an argument is out of its range, a name is unknown, or an option of the matcher is given with
            `matcher`.

    References:
        De Plaen et al., "Unbalanced optimal transport: a unified framework for object detection", CVPR 2023, sec. 5
        and eq. 1.

    Examples:
        >>> import torch
        >>> box = torch.tensor([[[0.2, 0.2, 0.6, 0.6], [0.5, 0.5, 0.9, 0.9]]])
        >>> target = {"labels": torch.tensor([[1]]), "boxes": box[:, :1]}
        >>> plan = uot_detr(num_classes=2).matching_method(
        ...     {"pred_logits": torch.zeros(1, 2, 3), "pred_boxes": box}, target
        ... )
        >>> plan.round(decimals=3)
        tensor([[[0.9960, 0.0040],
                 [0.0040, 0.9960]]])
    """
    rule = partial(set_matcher, BALANCED, MissingProbCost("softmax"), 2.0)
    options = {"reg_pred": reg_pred, "reg_target": reg_target, "reg_dimless": reg_dimless}
    matcher = choose_matcher(matcher, rule, box_format, cost_weights=cost_weights, **options, nonfinite=nonfinite)
    return detr(
        num_classes,
        matcher=matcher,
        losses=losses,
        weights={"cls": 2.0, **by_name("weights", weights)},
        normalizer=MassNormalizer(distributed=True) if normalizer is None else normalizer,
        background_weight=background_weight,
        box_format=box_format,
        layer_weights=layer_weights,
        validate=validate,
    )


def uot_deformable_detr(
    num_classes: int,
    *,
    matcher: Matcher | None = None,
    losses: Losses | None = None,
    weights: Weights | None = None,
    cost_weights: Weights | None = None,
    normalizer: Normalizer | None = None,
    reg_pred: float | Schedule | None = None,
    reg_target: float | Schedule | None = None,
    reg_dimless: float | Schedule | None = None,
    nonfinite: str | None = None,
    box_format: str | None = None,
    layer_weights: Sequence[float] | None = None,
    validate: bool = False,
) -> Branches:
    """Return the criterion of Deformable DETR with optimal transport in place of the Hungarian matching.

    ============= =====================================================================================
    matcher       balanced Sinkhorn, `reg = 0.12 / (ln(2 P) + 1)`: 1 - p of sigmoid 5, L1 5, GIoU 2
    classes       `SigmoidFocalLoss(alpha=0.25, gamma=2)` 2
    boxes         L1 of centre and size 5, GIoU 2
    normaliser    `PositiveNormalizer`: the mass on targets
    encoder       the same loss of all its proposals, with the label 0 for every target
    ============= =====================================================================================

    Args:
        num_classes: number of classes, without a background; compared with the logits.
        matcher: in place of the matcher.
        losses: losses by name in place of the published ones, under the same weights: "cls", "l1" and "giou"; or "loc",
            in place of the sum of the boxes, with weight 1.
        weights: weights by the same names, in place of those above; with 0 a part of the sum is left out.
        cost_weights: weights of the matching cost by name, in place of those above: "cls", "l1" and "giou".
        normalizer: in place of the normaliser.
        reg_pred: penalty on the mass of predictions; `inf` fixes it, as does None.
        reg_target: penalty on the mass of targets and background; `inf` fixes it, as does None.
        reg_dimless: entropic regularisation without dimension; None for 0.12.
        nonfinite: what to do with predictions that are not finite, "error" or "propagate", see `Matcher`; None for
            "error".
        box_format: "cxcywh" or "xywh" if predicted and target boxes are that, None for xyxy; a `matcher` must have the
            same.
        layer_weights: factors of the decoder layers, that of the final one last, not of the encoder; None for 1.
        validate: also check values on a GPU, which synchronises.

    Shape:
        As in `deformable_detr`.

    Raises:
        TypeError: a part is of the wrong type.
        ValueError: an argument is out of its range, a name is unknown, or an option of the matcher is given with
            `matcher`.

    References:
        De Plaen et al., CVPR 2023, sec. 5 and eq. 1.

    Examples:
        >>> import torch
        >>> box = torch.tensor([[[0.2, 0.2, 0.6, 0.6], [0.5, 0.5, 0.9, 0.9]]])
        >>> target = {"labels": torch.tensor([[1]]), "boxes": box[:, :1]}
        >>> uot_deformable_detr(num_classes=2)({"pred_logits": torch.zeros(1, 2, 2), "pred_boxes": box}, target)
        tensor(0.8866)
    """
    rule = partial(set_matcher, BALANCED, MissingProbCost("sigmoid"), 5.0)
    options = {"reg_pred": reg_pred, "reg_target": reg_target, "reg_dimless": reg_dimless}
    matcher = choose_matcher(matcher, rule, box_format, cost_weights=cost_weights, **options, nonfinite=nonfinite)
    return deformable_detr(
        num_classes,
        matcher=matcher,
        losses=losses,
        weights=weights,
        normalizer=PositiveNormalizer(distributed=True) if normalizer is None else normalizer,
        box_format=box_format,
        layer_weights=layer_weights,
        validate=validate,
    )


class MissingProbCost(Described):
    """Return `1 - p`, what the probability of the target's class lacks to 1.

    Args:
        activation: "softmax" or "sigmoid".
    """

    reduction = "none"

    def __init__(self, activation: str) -> None:
        super().__init__()
        self.activation = check_choice("activation", activation, ("softmax", "sigmoid"))

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        """Return the cost of (N, C) logits and (N,) labels."""
        return 1 - self._prob(full_precision(input)).gather(-1, target.unsqueeze(-1)).squeeze(-1)

    def adapter(self) -> Affine:
        """Return how the cost takes part: affine in its label."""
        return Affine(self, self._terms)

    def _prob(self, logits: Tensor) -> Tensor:
        return logits.softmax(-1) if self.activation == "softmax" else logits.sigmoid()

    def _terms(self, logits: Tensor) -> ClassTerms:
        prob = self._prob(logits)
        return ClassTerms(-prob, torch.ones_like(prob[..., 0]))
