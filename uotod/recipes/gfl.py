"""GFL, generalized focal loss: the number of classes in, its criterion out."""

from torch import nn

from uotod.check import check_integer
from uotod.loss import (
    DetectionLoss,
    DistributionFocalLoss,
    GIoULoss,
    Normalizer,
    QualityFocalLoss,
)
from uotod.match import ATSS, Matcher
from uotod.recipes.dialect import weigh, weighted_sum
from uotod.recipes.normalizers import AnchorNormalizer


def gfl(
    num_classes: int,
    *,
    matcher: Matcher | None = None,
    cls_loss: nn.Module | None = None,
    loc_loss: nn.Module | None = None,
    dfl_loss: nn.Module | None = None,
    normalizer: Normalizer | None = None,
    cls_weight: float = 1.0,
    loc_weight: float = 2.0,
    dfl_weight: float = 0.25,
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
        num_classes: C, at least 1; nothing else depends on it.
        matcher: in place of the matcher.
        cls_loss: in place of the quality focal loss, under the same weight.
        loc_loss: in place of GIoU, under the same weight.
        dfl_loss: in place of the distribution focal loss, under the same weight.
        normalizer: in place of the normaliser.
        cls_weight: weight of classification.
        loc_weight: weight of the loss of boxes.
        dfl_weight: weight of the distribution focal loss; with 0 `pred_dist` is not needed.

    Raises:
        TypeError: a part is of the wrong type.
        ValueError: `num_classes` or a weight is out of its range.

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
    check_integer("num_classes", num_classes, low=1)
    losses = {
        "box": GIoULoss(reduction="none") if loc_loss is None else loc_loss,
        "dfl": DistributionFocalLoss(reduction="none") if dfl_loss is None else dfl_loss,
    }
    return DetectionLoss(
        weigh("cls", cls_loss, QualityFocalLoss(reduction="none"), cls_weight),
        weighted_sum(losses, {"loc_weight": loc_weight, "dfl_weight": dfl_weight}),
        ATSS() if matcher is None else matcher,
        "none",
        normalizer=AnchorNormalizer(distributed=True) if normalizer is None else normalizer,
        quality="iou",
        loc_quality="score",
    )
