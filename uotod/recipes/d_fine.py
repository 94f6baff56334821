"""D-FINE and DEIM: their criteria, whose boxes learn from the union of the pairs of all decoder layers."""

from collections.abc import Sequence

from torch import Tensor, nn

from uotod.check import Described
from uotod.loss import (
    Branch,
    Branches,
    ByTerm,
    Classification,
    DetectionLoss,
    Distillation,
    DistillationLoss,
    FineGrainedLoss,
    Localization,
    MatchabilityAwareLoss,
    Normalizer,
    PairedTargetNormalizer,
    PositiveNormalizer,
    TargetNormalizer,
    VarifocalLoss,
)
from uotod.match import Matcher
from uotod.recipes.dialect import Losses, Parts, Weights, choose_matcher, choose_parts, focal_hungarian, set_parts


def d_fine(
    num_classes: int,
    *,
    matcher: Matcher | None = None,
    losses: Losses | None = None,
    weights: Weights | None = None,
    cost_weights: Weights | None = None,
    normalizer: Normalizer | None = None,
    union: bool = True,
    nonfinite: str | None = None,
    box_format: str | None = None,
    layer_weights: Sequence[float] | None = None,
    validate: bool = False,
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
        num_classes: number of classes, without a background; compared with the logits.
        matcher: in place of the matcher.
        losses: losses by name in place of the published ones, under the same weights: "cls", "l1", "giou", "fgl" and
            "dist"; or "loc", in place of the sum of the boxes, with weight 1.
        weights: weights by the same names, in place of those above; with 0 a part is left out, and a model without
            distributions has both "fgl" and "dist" at 0.
        cost_weights: weights of the matching cost by name, in place of those above: "cls", "l1" and "giou".
        normalizer: in place of the normaliser of matched queries.
        union: boxes learn from the union of the pairs of all layers; False for the pairs of their own layer.
        nonfinite: what to do with predictions that are not finite, "error" or "propagate", see `Matcher`; None for
            "error".
        box_format: "cxcywh" or "xywh" if predicted and target boxes are that, None for xyxy; a `matcher` must have the
            same.
        layer_weights: factors of the layers of matched queries, that of the final one last, the encoder's among the
            others; None for 1.
        validate: also check values on a GPU, which synchronises.

    Shape:
        As in `rt_detr`; `pred_dist` (B, P, 4, 33) of the layers that refine distributions, the final one among them,
        and as `anchors` the boxes (B, P, 4), xyxy, from which they start. `dn_outputs` has `anchors` of its own.

    Raises:
        TypeError: a part is of the wrong type.
        ValueError: an argument is out of its range, a name is unknown, or an option of the matcher is given with
            `matcher`.

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
    varifocal = VarifocalLoss(alpha=0.75, gamma=2.0, form="rtdetr", reduction="none")
    parts = choose_parts(num_classes, losses, weights, set_parts("vfl", varifocal, cls=1.0) | _distributions())
    return _united(
        num_classes, parts, matcher, cost_weights, nonfinite, normalizer, union, box_format, layer_weights, validate
    )


def deim(
    num_classes: int,
    *,
    matcher: Matcher | None = None,
    losses: Losses | None = None,
    weights: Weights | None = None,
    cost_weights: Weights | None = None,
    normalizer: Normalizer | None = None,
    gamma: float | None = None,
    union: bool = True,
    nonfinite: str | None = None,
    box_format: str | None = None,
    layer_weights: Sequence[float] | None = None,
    validate: bool = False,
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
        num_classes: number of classes, without a background; compared with the logits.
        matcher: in place of the matcher.
        losses: losses by name in place of the published ones, under the same weights: "cls", "l1", "giou", "fgl" and
            "dist"; or "loc", in place of the sum of the boxes, with weight 1.
        weights: weights by the same names, in place of those above; with 0 a part is left out, and a model without
            distributions has both "fgl" and "dist" at 0.
        cost_weights: weights of the matching cost by name, in place of those above: "cls", "l1" and "giou".
        normalizer: in place of the normaliser of matched queries.
        gamma: exponent of the IoU in the loss of the classes; None for 1.5.
        union: boxes learn from the union of the pairs of all layers; False for the pairs of their own layer.
        nonfinite: what to do with predictions that are not finite, "error" or "propagate", see `Matcher`; None for
            "error".
        box_format: "cxcywh" or "xywh" if predicted and target boxes are that, None for xyxy; a `matcher` must have the
            same.
        layer_weights: factors of the layers of matched queries, that of the final one last, the encoder's among the
            others; None for 1.
        validate: also check values on a GPU, which synchronises.

    Shape:
        As in `rt_detr`; `pred_dist` (B, P, 4, 33) of the layers that refine distributions, the final one among them,
        and as `anchors` the boxes (B, P, 4), xyxy, from which they start. `dn_outputs` has `anchors` of its own.

    Raises:
        TypeError: a part is of the wrong type.
        ValueError: an argument is out of its range, a name is unknown, or an option of the matcher is given with
            `matcher`.

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
    mal = MatchabilityAwareLoss(gamma=1.5 if gamma is None else gamma, reduction="none")
    parts = choose_parts(num_classes, losses, weights, set_parts("mal", mal, cls=1.0) | _distributions())
    parts.refuse("cls", gamma=gamma)
    return _united(
        num_classes, parts, matcher, cost_weights, nonfinite, normalizer, union, box_format, layer_weights, validate
    )


def _distributions() -> dict[str, tuple[nn.Module, float]]:
    return {"fgl": (FineGrainedLoss(reduction="none"), 0.15), "dist": (DistillationLoss(temperature=5.0), 1.5)}


def _united(
    num_classes: int,
    parts: Parts,
    matcher: Matcher | None,
    cost_weights: Weights | None,
    nonfinite: str | None,
    normalizer: Normalizer | None,
    union: bool,
    box_format: str | None,
    layer_weights: Sequence[float] | None,
    validate: bool,
) -> Branches:
    matcher = choose_matcher(matcher, focal_hungarian, box_format, cost_weights=cost_weights, nonfinite=nonfinite)
    targets = TargetNormalizer(distributed=True)
    if normalizer is None:
        normalizer = ByTerm(targets, loc=PositiveNormalizer(distributed=True)) if union else targets
    loc_loss, weight = parts.localization(), parts.weights["dist"]

    def loss(normalizer: Normalizer, union: bool, layer_weights: Sequence[float] | None = None) -> DetectionLoss:
        distillation = [Distillation(_Weighted(parts.losses["dist"], weight), union=union)] if weight else []
        return DetectionLoss(
            Classification(parts.term("cls"), quality="iou"),
            Localization(loc_loss, union=union),
            matcher,
            "none",
            extra_terms=distillation,
            normalizer=normalizer,
            num_classes=num_classes,
            box_format=box_format,
            layer_weights=layer_weights,
            unit_boxes=True,
            validate=validate,
        )

    dn = loss(PairedTargetNormalizer(distributed=True), False)
    return Branches(loss(normalizer, union, layer_weights), dn_outputs=Branch(dn, plan="given"))


class _Weighted(Described):
    """A loss of any number of values, times a weight."""

    def __init__(self, loss: nn.Module, weight: float) -> None:
        super().__init__()
        self.loss, self.weight = loss, weight

    def forward(self, *values: Tensor) -> Tensor:
        """Return the weighted loss."""
        loss: Tensor = self.loss(*values)
        return self.weight * loss
