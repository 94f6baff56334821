"""RTMDet: the number of classes in, its criterion out."""

from torch import nn

from uotod.check import check_integer
from uotod.loss import DetectionLoss, GIoULoss, Normalizer, QualityFocalLoss, ScoreNormalizer
from uotod.match import DynamicSoftLabel, Matcher
from uotod.recipes.dialect import weigh


def rtmdet(
    num_classes: int,
    *,
    matcher: Matcher | None = None,
    cls_loss: nn.Module | None = None,
    loc_loss: nn.Module | None = None,
    normalizer: Normalizer | None = None,
    cls_weight: float = 1.0,
    loc_weight: float = 2.0,
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
        num_classes: C, at least 1; nothing else depends on it.
        matcher: in place of the matcher.
        cls_loss: in place of the quality focal loss, under the same weight.
        loc_loss: in place of GIoU, under the same weight.
        normalizer: in place of the normaliser.
        cls_weight: weight of classification.
        loc_weight: weight of localisation.

    Raises:
        TypeError: a part is of the wrong type.
        ValueError: `num_classes` or a weight is out of its range.

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
    check_integer("num_classes", num_classes, low=1)
    return DetectionLoss(
        weigh("cls", cls_loss, QualityFocalLoss(reduction="none"), cls_weight),
        weigh("loc", loc_loss, GIoULoss(reduction="none"), loc_weight),
        DynamicSoftLabel() if matcher is None else matcher,
        "none",
        normalizer=ScoreNormalizer(distributed=True) if normalizer is None else normalizer,
        quality="iou",
        loc_quality="iou",
    )
