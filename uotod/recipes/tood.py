"""TOOD: the number of classes in, its criterion out."""

from functools import partial

from uotod.loss import DetectionLoss, GIoULoss, Normalizer, QualityFocalLoss, ScoreNormalizer
from uotod.match import Matcher, TaskAligned
from uotod.recipes.dialect import Losses, Weights, choose_matcher, choose_parts


def tood(
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
        num_classes: number of classes, without a background; compared with the logits.
        matcher: in place of the matcher. The mass of its plan is the soft target.
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
    rule = partial(TaskAligned, topk=13, alpha=1.0, overlap="iou", candidates="all", min_size=None, eps=1e-7)
    published = {
        "cls": (QualityFocalLoss(reduction="none"), 1.0),
        "loc": (GIoULoss(reduction="none"), 2.0),
    }
    parts = choose_parts(num_classes, losses, weights, published)
    return DetectionLoss(
        parts.term("cls"),
        parts.localization(),
        choose_matcher(matcher, rule, box_format, nonfinite=nonfinite),
        "none",
        normalizer=ScoreNormalizer(distributed=True) if normalizer is None else normalizer,
        num_classes=num_classes,
        box_format=box_format,
        validate=validate,
    )
