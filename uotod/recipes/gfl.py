"""GFL, generalized focal loss: the number of classes in, its criterion out."""

from uotod.loss import (
    Classification,
    DetectionLoss,
    DistributionFocalLoss,
    GIoULoss,
    ImagePositiveNormalizer,
    Localization,
    Normalizer,
    QualityFocalLoss,
)
from uotod.match import ATSS, Matcher
from uotod.recipes.dialect import Losses, Weights, choose_matcher, choose_parts


def gfl(
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
    r"""Build the criterion of GFL.

    ============== ================================================================================
    matcher        `ATSS()`: the 9 nearest anchors of each level, IoU above mean + deviation
    classification quality focal loss, :math:`\beta = 2`, to the IoU of predicted box and target
    localisation   2 · GIoU + 0.25 · distribution focal loss, both weighted by the largest score of
                   the prediction, without gradient
    normaliser     matched predictions, at least 1 an image; for localisation the sum of their
                   scores, at least 1; both the mean over the ranks
    ============== ================================================================================

    Its input has `pred_logits` (B, P, C) without a background class, `pred_boxes` (B, P, 4), xyxy in pixels, and
    `pred_dist` (B, P, 4, 17), the logits of the distances, from which `uotod.utils.distribution_to_box` makes the
    boxes. `anchors` are `Anchors` with strides, in the published models one square of 8 strides a cell.

    Args:
        num_classes: number of classes, without a background; compared with the logits.
        matcher: in place of the matcher.
        losses: losses by name in place of the published ones, under the same weights: "cls", "box" and "dfl"; or "loc",
            in place of the sum of the boxes, with weight 1.
        weights: weights by the same names, in place of those above; with 0 a part of the sum is left out. Without "dfl"
            `pred_dist` is not needed.
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

    Differences: those of `ATSS`. A distance at or beyond the last bin is taught that bin, in mmdetection a tenth of a
    stride less.

    References:
        Li et al., "Generalized focal loss: learning qualified and distributed bounding boxes for dense object
        detection", NeurIPS 2020, sec. 3 (the numbers are those of `GFLHead` of mmdetection 3.3).

    Examples:
        >>> import torch
        >>> from uotod.utils import Anchors, Points, distribution_to_box
        >>> points, dist = Points.from_levels([(4, 4), (2, 2)], strides=[8, 16]), torch.zeros(1, 20, 4, 4)
        >>> half = points.stride[:, None]
        >>> anchors = Anchors(torch.cat((points.centers - half, points.centers + half), -1), points.stride)
        >>> boxes = distribution_to_box(dist, points.centers, points.stride)
        >>> input = {"pred_logits": torch.zeros(1, 20, 3), "pred_boxes": boxes, "pred_dist": dist}
        >>> target = {"boxes": torch.tensor([[[3.0, 4.0, 23.0, 20.0]]]), "labels": torch.tensor([[1]])}
        >>> terms = gfl(3).terms(input, target, anchors)
        >>> [(name, round(float(terms[name]), 4)) for name in ("loss_cls", "loss_loc_box", "loss_loc_dfl")]
        [('loss_cls', 10.2261), ('loss_loc_box', 0.4444), ('loss_loc_dfl', 0.1733)]
    """
    published = {
        "cls": (QualityFocalLoss(reduction="none"), 1.0),
        "box": (GIoULoss(reduction="none"), 2.0),
        "dfl": (DistributionFocalLoss(reduction="none"), 0.25),
    }
    parts = choose_parts(num_classes, losses, weights, published)
    return DetectionLoss(
        Classification(parts.term("cls"), quality="iou"),
        Localization(parts.localization(), quality="score"),
        choose_matcher(matcher, ATSS, box_format, nonfinite=nonfinite),
        "none",
        normalizer=ImagePositiveNormalizer(distributed=True) if normalizer is None else normalizer,
        num_classes=num_classes,
        box_format=box_format,
        validate=validate,
    )
