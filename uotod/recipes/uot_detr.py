"""DETR and Deformable DETR by unbalanced optimal transport: their criteria with a soft plan in place of the pairs."""

import math

import torch
from torch import Tensor, nn

from uotod.check import check_choice
from uotod.cost.adapters import ClassTerms
from uotod.geometry.boxes import full_precision
from uotod.loss import Branches, DetectionLoss, MassNormalizer, Normalizer, PositiveNormalizer
from uotod.match import Matcher, UnbalancedSinkhorn
from uotod.recipes.deformable_detr import deformable_detr
from uotod.recipes.detr import detr
from uotod.recipes.sets import Weights, set_costs


def uot_detr(
    num_classes: int,
    *,
    matcher: Matcher | None = None,
    cls_loss: nn.Module | None = None,
    loc_loss: nn.Module | None = None,
    normalizer: Normalizer | None = None,
    cost_weights: Weights = (2.0, 5.0, 2.0),
    loss_weights: Weights = (2.0, 5.0, 2.0),
    background_weight: float = 0.1,
    reg_pred: float = math.inf,
    reg_target: float = math.inf,
    reg_dimless: float = 0.12,
) -> DetectionLoss:
    """Return the criterion of DETR with optimal transport in place of the Hungarian matching.

    ============= =====================================================================================
    matcher       balanced Sinkhorn, `reg = 0.12 / (ln(2 P) + 1)`: 1 - p of softmax 2, L1 5, GIoU 2
    classes       cross-entropy 2, with a weight of 0.1 for the background, the last class
    boxes         L1 of centre and size 5, GIoU 2
    normaliser    `MassNormalizer`: the mass that each loss sees, for classes times the class weight
    ============= =====================================================================================

    Args:
        num_classes: number of classes of targets, labelled 0 to `num_classes - 1`.
        matcher: replaces the matcher.
        cls_loss: replaces the loss of the classes, under the same weight.
        loc_loss: replaces the sum of the losses of the boxes; its weights are its own.
        normalizer: replaces the normaliser.
        cost_weights: weights of classes, L1 and GIoU in the matching cost.
        loss_weights: weights of classes, L1 and GIoU in the loss.
        background_weight: class weight of the background.
        reg_pred: penalty on the mass of predictions; `inf` fixes it.
        reg_target: penalty on the mass of targets and background; `inf` fixes it.
        reg_dimless: entropic regularisation without dimension.

    Shape:
        `pred_logits` (B, P, num_classes + 1) and `pred_boxes` (B, P, 4), xyxy, in units of the image; `aux_outputs`.

    Raises:
        TypeError: a part is of the wrong type.
        ValueError: `num_classes` or a weight is out of its range.

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
    if matcher is None:
        matcher = _transport("softmax", cost_weights, reg_pred, reg_target, reg_dimless)
    return detr(
        num_classes,
        matcher=matcher,
        cls_loss=cls_loss,
        loc_loss=loc_loss,
        normalizer=MassNormalizer(distributed=True) if normalizer is None else normalizer,
        loss_weights=loss_weights,
        background_weight=background_weight,
    )


def uot_deformable_detr(
    num_classes: int,
    *,
    matcher: Matcher | None = None,
    cls_loss: nn.Module | None = None,
    loc_loss: nn.Module | None = None,
    normalizer: Normalizer | None = None,
    cost_weights: Weights = (5.0, 5.0, 2.0),
    loss_weights: Weights = (2.0, 5.0, 2.0),
    reg_pred: float = math.inf,
    reg_target: float = math.inf,
    reg_dimless: float = 0.12,
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
        num_classes: number of classes of targets and of logits.
        matcher: replaces the matcher.
        cls_loss: replaces the loss of the classes, under the same weight.
        loc_loss: replaces the sum of the losses of the boxes; its weights are its own.
        normalizer: replaces the normaliser.
        cost_weights: weights of classes, L1 and GIoU in the matching cost.
        loss_weights: weights of classes, L1 and GIoU in the loss.
        reg_pred: penalty on the mass of predictions; `inf` fixes it.
        reg_target: penalty on the mass of targets and background; `inf` fixes it.
        reg_dimless: entropic regularisation without dimension.

    Shape:
        As in `deformable_detr`.

    Raises:
        TypeError: a part is of the wrong type.
        ValueError: `num_classes` or a weight is out of its range.

    References:
        De Plaen et al., CVPR 2023, sec. 5 and eq. 1.

    Examples:
        >>> import torch
        >>> box = torch.tensor([[[0.2, 0.2, 0.6, 0.6], [0.5, 0.5, 0.9, 0.9]]])
        >>> target = {"labels": torch.tensor([[1]]), "boxes": box[:, :1]}
        >>> uot_deformable_detr(num_classes=2)({"pred_logits": torch.zeros(1, 2, 2), "pred_boxes": box}, target)
        tensor(0.8866)
    """
    if matcher is None:
        matcher = _transport("sigmoid", cost_weights, reg_pred, reg_target, reg_dimless)
    return deformable_detr(
        num_classes,
        matcher=matcher,
        cls_loss=cls_loss,
        loc_loss=loc_loss,
        normalizer=PositiveNormalizer(distributed=True) if normalizer is None else normalizer,
        loss_weights=loss_weights,
    )


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


def _transport(
    activation: str, weights: Weights, reg_pred: float, reg_target: float, reg_dimless: float
) -> UnbalancedSinkhorn:
    cls_cost, loc_cost = set_costs(MissingProbCost(activation), weights)
    return UnbalancedSinkhorn(
        reg_pred=reg_pred,
        reg_target=reg_target,
        reg_dimless=reg_dimless,
        cls_match_module=cls_cost,
        loc_match_module=loc_cost,
    )
