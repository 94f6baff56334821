"""FCOS, as torchvision and as mmdetection train it: the number of classes in, its criterion out."""

from torch import nn

from uotod.check import check_choice
from uotod.loss import (
    ByTerm,
    DetectionLoss,
    GIoULoss,
    IoULoss,
    Localization,
    Normalizer,
    Objectness,
    PositiveNormalizer,
    SigmoidFocalLoss,
)
from uotod.match import FCOS, Matcher
from uotod.recipes.dialect import Losses, Weights, choose_matcher, choose_parts


def fcos(
    num_classes: int,
    *,
    matcher: Matcher | None = None,
    losses: Losses | None = None,
    weights: Weights | None = None,
    normalizer: Normalizer | None = None,
    style: str = "torchvision",
    nonfinite: str | None = None,
    box_format: str | None = None,
    validate: bool = False,
) -> DetectionLoss:
    r"""Build the criterion of FCOS.

    ============== ================================================================================
    matcher        `FCOS()`: smallest target that holds the point, radius 1.5, levels by size
    classification focal loss, :math:`\alpha = 0.25, \gamma = 2`
    localisation   torchvision: GIoU; mmdetection: :math:`-\ln u`, weighted by the centerness
    centerness     binary cross-entropy of matched predictions to the centerness of their point
    normaliser     matched predictions of the batch, at least 1: `PositiveNormalizer()`. mmdetection:
                   their mean over the ranks, and for localisation the sum of their centerness, at
                   least 1e-6
    ============== ================================================================================

    Its input has `pred_logits` (B, P, C) without a background class, `pred_boxes` (B, P, 4), xyxy in pixels, and
    `pred_objectness` (B, P), the logit of the centerness; `anchors` are `Points` with strides, or anchors whose
    centres they are. detectron2's is `normalizer=MovingAverageNormalizer(initial=300)`.

    Args:
        num_classes: number of classes, without a background; compared with the logits.
        matcher: in place of the matcher; `FCOS(radius=None)` for models without centre sampling.
        losses: losses by name in place of the published ones, under the same weights: "cls", "loc" and "obj".
        weights: weights by the same names, in place of those above.
        normalizer: in place of the normaliser.
        style: "torchvision" or "mmdetection", whose numbers it has.
        nonfinite: what to do with predictions that are not finite, "error" or "propagate", see `Matcher`; None for
            "error".
        box_format: "cxcywh" or "xywh" if predicted and target boxes are that, None for xyxy; a `matcher` must have the
            same.
        validate: also check values on a GPU, which synchronises.

    Raises:
        TypeError: a part is of the wrong type.
        ValueError: an argument is out of its range, a name is unknown, or an option of the matcher is given with
            `matcher`.

    Differences: those of `FCOS`.

    References:
        Tian et al., "FCOS: fully convolutional one-stage object detection", ICCV 2019, eqs. 2-3 (the numbers are those
        of torchvision's formulas and of `FCOSHead` of mmdetection 3.3).

    Examples:
        >>> import torch
        >>> from uotod.utils import Points
        >>> points = Points.from_levels([(4, 4), (2, 2)], strides=[8, 16])
        >>> boxes = torch.cat((points.centers - 10, points.centers + 10), -1)[None]
        >>> input = {"pred_logits": torch.zeros(1, 20, 3), "pred_boxes": boxes, "pred_objectness": torch.zeros(1, 20)}
        >>> target = {"boxes": torch.tensor([[[2.0, 2.0, 22.0, 22.0]]]), "labels": torch.tensor([[1]])}
        >>> terms = fcos(3).terms(input, target, points)
        >>> [(name, round(float(terms[name]), 4)) for name in ("loss_cls", "loss_loc", "loss_obj")]
        [('loss_cls', 0.7798), ('loss_loc', 0.6734), ('loss_obj', 0.6931)]
    """
    check_choice("style", style, ("torchvision", "mmdetection"))
    is_weighted = style == "mmdetection"
    if normalizer is None and is_weighted:
        matched, central = PositiveNormalizer(distributed=True), PositiveNormalizer(distributed=True, least=1e-6)
        normalizer = ByTerm(matched, loc=central)
    published = {
        "cls": (SigmoidFocalLoss(alpha=0.25, reduction="none"), 1.0),
        "loc": (IoULoss(mode="log", reduction="none") if is_weighted else GIoULoss(reduction="none"), 1.0),
        "obj": (nn.BCEWithLogitsLoss(reduction="none"), 1.0),
    }
    parts = choose_parts(num_classes, losses, weights, published)
    return DetectionLoss(
        parts.term("cls"),
        Localization(parts.localization(), quality="centerness" if is_weighted else None),
        choose_matcher(matcher, FCOS, box_format, nonfinite=nonfinite),
        "none",
        extra_terms=[Objectness(parts.term("obj"), quality="centerness", background=False)],
        normalizer=PositiveNormalizer() if normalizer is None else normalizer,
        num_classes=num_classes,
        box_format=box_format,
        validate=validate,
    )
