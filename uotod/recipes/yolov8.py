"""YOLOv8: the number of classes in, its criterion out."""

from torch import nn

from uotod.check import check_integer
from uotod.loss import (
    CIoULoss,
    DetectionLoss,
    DistributionFocalLoss,
    Normalizer,
    ScoreNormalizer,
)
from uotod.match import Matcher, TaskAligned
from uotod.recipes.dialect import weigh, weighted_sum


def yolov8(
    num_classes: int,
    *,
    matcher: Matcher | None = None,
    cls_loss: nn.Module | None = None,
    loc_loss: nn.Module | None = None,
    dfl_loss: nn.Module | None = None,
    normalizer: Normalizer | None = None,
    cls_weight: float = 0.5,
    loc_weight: float = 7.5,
    dfl_weight: float = 1.5,
) -> DetectionLoss:
    r"""Build the criterion of YOLOv8, also that of YOLO11.

    ============== =================================================================================
    matcher        `TaskAligned()`: 10 predictions a target, :math:`t = s^{0.5} u^6` with the CIoU,
                   whose normalised scores :math:`\hat s` are the mass of the plan
    classification 0.5 · binary cross-entropy to the soft target :math:`\hat s`
    localisation   7.5 · CIoU + 1.5 · distribution focal loss, both weighted by :math:`\hat s`
    normaliser     `ScoreNormalizer()`: :math:`\max(1, \sum \hat s)` over the batch, of this process
    ============== =================================================================================

    Its input has `pred_logits` (B, P, C) without a background class, `pred_boxes` (B, P, 4), xyxy in pixels, and
    `pred_dist` (B, P, 4, 16), the logits of the distances, from which `uotod.utils.distribution_to_box` makes the
    boxes. `anchors` are `Points` with strides in pixels.

    The loss is that of the batch. ultralytics returns three terms, each times the number of images: `B · loss_cls`,
    `B · loss_loc_box` and `B · loss_loc_dfl` of `terms` are its classification, box and distribution terms, and `B`
    times the loss is their sum, which it differentiates.

    Args:
        num_classes: C, at least 1; nothing else depends on it.
        matcher: in place of the matcher. The mass of its plan is the soft target.
        cls_loss: in place of the binary cross-entropy, under the same weight.
        loc_loss: in place of CIoU, under the same weight.
        dfl_loss: in place of the distribution focal loss, under the same weight.
        normalizer: in place of the normaliser.
        cls_weight: weight of classification.
        loc_weight: weight of the loss of boxes.
        dfl_weight: weight of the distribution focal loss; with 0 `pred_dist` is not needed.

    Raises:
        TypeError: a part is of the wrong type.
        ValueError: `num_classes` or a weight is out of its range.

    Differences: a distance at or beyond the last bin is taught that bin; ultralytics teaches it a hundredth of a stride
    less. Its boxes are in strides, ours in pixels, which matters to `eps = 1e-7` only. `TaskAligned` differs as listed
    there, none of which changes the loss of finite predictions without ties. Class weights of ultralytics are
    `cls_loss=BCEWithLogitsLoss(weight=..., reduction="none")`.

    References:
        Jocher et al., "Ultralytics YOLO", 2023 (the numbers are those of its `v8DetectionLoss`, 8.4); Feng et al.,
        "TOOD", ICCV 2021; Li et al., "Generalized focal loss", NeurIPS 2020.

    Examples:
        >>> import torch
        >>> from uotod.utils import Points, distribution_to_box
        >>> points = Points.from_levels([(4, 4), (2, 2)], strides=[8, 16])
        >>> logits, dist = torch.zeros(1, 20, 3), torch.zeros(1, 20, 4, 4)
        >>> boxes = distribution_to_box(dist, points.centers, points.stride)
        >>> target = {"boxes": torch.tensor([[[2.0, 2.0, 22.0, 22.0]]]), "labels": torch.tensor([[1]])}
        >>> criterion = yolov8(3)
        >>> terms = criterion.terms({"pred_logits": logits, "pred_boxes": boxes, "pred_dist": dist}, target, points)
        >>> [(name, round(float(terms[name]), 2)) for name in ("loss_cls", "loss_loc_box", "loss_loc_dfl")]
        [('loss_cls', 20.79), ('loss_loc_box', 1.85), ('loss_loc_dfl', 1.56)]
    """
    check_integer("num_classes", num_classes, low=1)
    losses = {
        "box": CIoULoss(reduction="none") if loc_loss is None else loc_loss,
        "dfl": DistributionFocalLoss(reduction="none") if dfl_loss is None else dfl_loss,
    }
    return DetectionLoss(
        weigh("cls", cls_loss, nn.BCEWithLogitsLoss(reduction="none"), cls_weight),
        weighted_sum(losses, {"loc_weight": loc_weight, "dfl_weight": dfl_weight}),
        TaskAligned() if matcher is None else matcher,
        "none",
        normalizer=ScoreNormalizer() if normalizer is None else normalizer,
    )
