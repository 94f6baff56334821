"""RTMDet: the number of classes in, its criterion out."""

from uotod.loss import (
    Classification,
    DetectionLoss,
    GIoULoss,
    Localization,
    Normalizer,
    QualityFocalLoss,
    ScoreNormalizer,
)
from uotod.match import DynamicSoftLabel, Matcher
from uotod.recipes.dialect import Losses, Weights, choose_matcher, choose_parts


def rtmdet(
    num_classes: int,
    *,
    matcher: Matcher | None = None,
    losses: Losses | None = None,
    weights: Weights | None = None,
    normalizer: Normalizer | None = None,
    nonfinite: str | None = None,
    box_format: str | None = None,
    validate: bool = False,
) -> DetectionLoss:
    r"""Build the criterion of RTMDet.

    ============== ================================================================================
    matcher        `DynamicSoftLabel()`: dynamic k of the 13 largest IoUs, IoU cost 3, radius 3
    classification quality focal loss, :math:`\beta = 2`, to the IoU `u` of predicted box and target
    localisation   2 · GIoU, weighted by `u`
    normaliser     `ScoreNormalizer(distributed=True)`: :math:`\max(1, \sum u)`, mean over the ranks
    ============== ================================================================================

    Its input has `pred_logits` (B, P, C) without a background class and `pred_boxes` (B, P, 4), xyxy in pixels;
    `anchors` are `Points` with strides, at the corners of their cells (`offset=0`) in the published models.

    Args:
        num_classes: number of classes, without a background; compared with the logits.
        matcher: in place of the matcher.
        losses: losses by name in place of the published ones, under the same weights: "cls" and "loc".
        weights: weights by the same names, in place of those above.
        normalizer: in place of the normaliser.
        nonfinite: what to do with predictions that are not finite, "error" or "propagate", see `Matcher`; None for
            "error".
        box_format: "cxcywh" or "xywh" if predicted and target boxes are that, None for xyxy; a `matcher` must have the
            same.
        validate: also check values on a GPU, which synchronises.

    Raises:
        TypeError: a part is of the wrong type.
        ValueError: an argument is out of its range, a name is unknown, or an option of the matcher is given with
            `matcher`.

    Differences: those of `DynamicSoftLabel`.

    References:
        Lyu et al., "RTMDet: an empirical study of designing real-time object detectors", arXiv 2212.07784, sec. 3.3
        (the numbers are those of `RTMDetHead` of mmdetection 3.3).

    Examples:
        >>> import torch
        >>> from uotod.utils import Points
        >>> points = Points.from_levels([(4, 4), (2, 2)], strides=[8, 16], offset=0)
        >>> boxes = torch.cat((points.centers - 10, points.centers + 10), -1)[None]
        >>> target = {"boxes": torch.tensor([[[2.0, 2.0, 22.0, 22.0]]]), "labels": torch.tensor([[1]])}
        >>> terms = rtmdet(3).terms({"pred_logits": torch.zeros(1, 20, 3), "pred_boxes": boxes}, target, points)
        >>> round(float(terms["loss_cls"]), 4), round(float(terms["loss_loc"]), 4)
        (10.0518, 1.1011)
    """
    published = {
        "cls": (QualityFocalLoss(reduction="none"), 1.0),
        "loc": (GIoULoss(reduction="none"), 2.0),
    }
    parts = choose_parts(num_classes, losses, weights, published)
    return DetectionLoss(
        Classification(parts.term("cls"), quality="iou"),
        Localization(parts.localization(), quality="iou"),
        choose_matcher(matcher, DynamicSoftLabel, box_format, nonfinite=nonfinite),
        "none",
        normalizer=ScoreNormalizer(distributed=True) if normalizer is None else normalizer,
        num_classes=num_classes,
        box_format=box_format,
        validate=validate,
    )
