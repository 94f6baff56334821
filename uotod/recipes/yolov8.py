"""YOLOv8: the number of classes in, its criterion out."""

from torch import nn

from uotod.loss import CIoULoss, DetectionLoss, DistributionFocalLoss, Normalizer, ScoreNormalizer
from uotod.match import Matcher, TaskAligned
from uotod.recipes.dialect import Losses, Weights, choose_matcher, choose_parts


def yolov8(
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
        num_classes: number of classes, without a background; compared with the logits.
        matcher: in place of the matcher. The mass of its plan is the soft target.
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

    Differences: a distance at or beyond the last bin is taught that bin; ultralytics teaches it a hundredth of a stride
    less. Its CIoU has an epsilon of 1e-7, in squared strides. `TaskAligned` differs as listed there, none of which
    changes the loss of finite predictions without ties. Class weights of ultralytics are
    `losses={"cls": BCEWithLogitsLoss(weight=..., reduction="none")}`.

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
    published = {
        "cls": (nn.BCEWithLogitsLoss(reduction="none"), 0.5),
        "box": (CIoULoss(reduction="none"), 7.5),
        "dfl": (DistributionFocalLoss(reduction="none"), 1.5),
    }
    parts = choose_parts(num_classes, losses, weights, published)
    return DetectionLoss(
        parts.term("cls"),
        parts.localization(),
        choose_matcher(matcher, TaskAligned, box_format, nonfinite=nonfinite),
        "none",
        normalizer=ScoreNormalizer() if normalizer is None else normalizer,
        num_classes=num_classes,
        box_format=box_format,
        validate=validate,
    )
