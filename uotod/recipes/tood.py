"""TOOD: the number of classes in, its criterion out."""

from torch import nn

from uotod.check import check_integer
from uotod.loss import DetectionLoss, GIoULoss, Normalizer, QualityFocalLoss, ScoreNormalizer
from uotod.match import Matcher, TaskAligned
from uotod.recipes.dialect import weigh


def tood(
    num_classes: int,
    *,
    matcher: Matcher | None = None,
    cls_loss: nn.Module | None = None,
    loc_loss: nn.Module | None = None,
    normalizer: Normalizer | None = None,
    cls_weight: float = 1.0,
    loc_weight: float = 2.0,
) -> DetectionLoss:
    r"""Build the criterion of TOOD, task-aligned one-stage object detection.

    ============== =================================================================================
    matcher        `TaskAligned(topk=13, alpha=1.0, overlap="iou", candidates="all", min_size=None,
                   eps=1e-7)`: the normalised scores :math:`\hat t` of :math:`t = s u^6` are the mass
    classification quality focal loss, :math:`\beta = 2`, to the soft target :math:`\hat t`
    localisation   2 · GIoU, weighted by :math:`\hat t`
    normaliser     `ScoreNormalizer(distributed=True)`: :math:`\max(1, \sum \hat t)`, mean over the ranks
    ============== =================================================================================

    Its input has `pred_logits` (B, P, C) without a background class and `pred_boxes` (B, P, 4), xyxy in pixels;
    `anchors` are the anchors, or their centres as `Points`. TOOD's score is the geometric mean of two sigmoids: hand
    in its logit, `torch.logit` of the score.

    The first four of its twelve epochs train the assignment of ATSS; `criterion.matching_method` and the other parts
    are attributes that may be exchanged during training.

    Args:
        num_classes: C, at least 1; nothing else depends on it.
        matcher: in place of the matcher. The mass of its plan is the soft target.
        cls_loss: in place of the quality focal loss, under the same weight.
        loc_loss: in place of GIoU, under the same weight.
        normalizer: in place of the normaliser.
        cls_weight: weight of classification.
        loc_weight: weight of localisation.

    Raises:
        TypeError: a part is of the wrong type.
        ValueError: `num_classes` or a weight is out of its range.

    Differences: a point lies inside a target if it does so strictly, where mmdetection asks for 0.01 pixel.

    References:
        Feng et al., "TOOD: task-aligned one-stage object detection", ICCV 2021, sec. 3.2 (the numbers are those of
        `TOODHead` of mmdetection 3.3).

    Examples:
        >>> import torch
        >>> from uotod.utils import Points
        >>> points = Points.from_levels([(4, 4), (2, 2)], strides=[8, 16])
        >>> boxes = torch.cat((points.centers - 10, points.centers + 10), -1)[None]
        >>> target = {"boxes": torch.tensor([[[2.0, 2.0, 22.0, 22.0]]]), "labels": torch.tensor([[1]])}
        >>> terms = tood(3).terms({"pred_logits": torch.zeros(1, 20, 3), "pred_boxes": boxes}, target, points)
        >>> round(float(terms["loss_cls"]), 4), round(float(terms["loss_loc"]), 4)
        (10.011, 0.0404)
    """
    check_integer("num_classes", num_classes, low=1)
    if matcher is None:
        matcher = TaskAligned(topk=13, alpha=1.0, overlap="iou", candidates="all", min_size=None, eps=1e-7)
    return DetectionLoss(
        weigh("cls", cls_loss, QualityFocalLoss(reduction="none"), cls_weight),
        weigh("loc", loc_loss, GIoULoss(reduction="none"), loc_weight),
        matcher,
        "none",
        normalizer=ScoreNormalizer(distributed=True) if normalizer is None else normalizer,
    )
