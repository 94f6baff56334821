"""YOLO as its first and its third version train it: number of classes in, the criterion out."""

from torch import nn

from uotod.check import check_choice, check_integer, check_number
from uotod.geometry.cell_coder import CellCoder
from uotod.loss import BoxSpace, ConfidenceLoss, DetectionLoss, MultipleObjectiveLoss, Normalizer, PositiveNormalizer
from uotod.match import GridCell, Matcher

WEIGHTS = {"v1": (5.0, 1.0, 0.5, 1.0), "v3": (1.0, 1.0, 1.0, 1.0)}  # coord, obj, noobj, class


def yolo(
    num_classes: int,
    *,
    style: str = "v3",
    matcher: Matcher | None = None,
    cls_loss: nn.Module | None = None,
    loc_loss: nn.Module | None = None,
    obj_loss: nn.Module | None = None,
    normalizer: Normalizer | None = None,
    lambda_coord: float | None = None,
    lambda_obj: float | None = None,
    lambda_noobj: float | None = None,
    lambda_class: float | None = None,
    reduction: str = "mean",
) -> DetectionLoss:
    r"""Build the criterion of YOLO v3 or v1.

    ============== ============================================= ==========================================
    part           v3                                            v1
    ============== ============================================= ==========================================
    matcher        `GridCell()`: the anchor of the most similar  `GridCell(choose="prediction",
                   shape; the rest is ignored from an IoU of     ignore=None)`: the box of the largest IoU
                   0.5 on
    classification 1 · binary cross-entropy, of matched pairs    1 · squared error, of matched pairs only
                   only
    localisation   1 · squared error of the offset in the cell   5 · squared error of the offset in the
                   and of :math:`\ln w, \ln h`                   cell and of :math:`\sqrt w, \sqrt h`
    objectness     1 · cross-entropy to 1, 1 · to 0 for the      1 · squared error to the IoU, 0.5 · to 0
                   background                                    for the background
    normaliser     `PositiveNormalizer()`, or `reduction="sum"`  the same
    ============== ============================================= ==========================================

    Its input has `pred_logits` (B, P, C) without a background class, `pred_boxes` (B, P, 4), xyxy, and
    `pred_objectness` (B, P); for v1 both scores are values, not logits, and boxes are fractions of the image. `anchors`
    are `Anchors` with strides, for v1 `Points` or cells, one for each prediction of a cell. On one grid with one
    prediction a cell it is `uotod.loss.YOLOLoss`, number for number: `obj_quality="iou"` for v1, and for v3
    `YOLOLoss(1, 1, 1, 1, size="log", confidence="bce", classes="bce")` with the ignored cells marked.

    Args:
        num_classes: C, at least 1; nothing else depends on it.
        style: "v3" or "v1".
        matcher: in place of the matcher.
        cls_loss: in place of the loss of classes, under the same weight.
        loc_loss: in place of the loss of boxes, under the same weight; a loss of boxes such as `CIoULoss` (YOLO v4).
        obj_loss: in place of the loss of objectness; its weights are its own.
        normalizer: in place of the normaliser.
        lambda_coord: weight of localisation; None for that of the style, as for the others.
        lambda_obj: weight of the objectness of matched predictions.
        lambda_noobj: weight of the objectness of the background.
        lambda_class: weight of classification.
        reduction: "mean", over the matched predictions of the batch, or "sum", as in the papers.

    Raises:
        TypeError: a part is of the wrong type.
        ValueError: a number is out of its range, or a combination has no meaning.

    Differences: each target has a prediction of its own, see `GridCell`. The authors' program for v3 also weighs the
    box by 2 minus its area, which no paper states.

    References:
        Redmon et al., "You only look once", CVPR 2016, eq. 3; Redmon and Farhadi, "YOLOv3: an incremental improvement",
        2018, sec. 2.1. The numbers are those of these formulas.

    Examples:
        >>> import torch
        >>> from uotod.utils import Points
        >>> cells = Points.from_levels([(2, 2)], strides=[0.5])
        >>> boxes = torch.tensor([0.0, 0.0, 0.5, 0.5]).expand(1, 4, 4)
        >>> input = {"pred_logits": torch.zeros(1, 4, 2), "pred_boxes": boxes, "pred_objectness": torch.zeros(1, 4)}
        >>> target = {"boxes": boxes[:, :1], "labels": torch.tensor([[1]])}
        >>> terms = yolo(2, style="v1").terms(input, target, cells)
        >>> terms["loss_cls"], terms["loss_loc"], terms["loss_obj"]
        (tensor(1.), tensor(0.), tensor(1.))
    """
    check_integer("num_classes", num_classes, low=1)
    check_choice("style", style, ("v1", "v3"))
    given = (lambda_coord, lambda_obj, lambda_noobj, lambda_class)
    coord, obj, noobj, classes = (p if g is None else g for g, p in zip(given, WEIGHTS[style], strict=True))
    first = style == "v1"
    if matcher is None:
        matcher = GridCell(choose="prediction", negative=None) if first else GridCell()
    if cls_loss is None:
        cls_loss = nn.MSELoss(reduction="none") if first else nn.BCEWithLogitsLoss(reduction="none")
    if loc_loss is None:
        loc_loss = BoxSpace(nn.MSELoss(reduction="none"), CellCoder("sqrt" if first else "log"))
    if obj_loss is None:
        obj_loss = ConfidenceLoss(
            kind="mse" if first else "bce",
            positive_weight=check_number("lambda_obj", obj, low=0.0),
            negative_weight=check_number("lambda_noobj", noobj, low=0.0),
            reduction="none",
        )
    if normalizer is None and reduction == "mean":
        normalizer = PositiveNormalizer()
    return DetectionLoss(
        MultipleObjectiveLoss([cls_loss], [check_number("lambda_class", classes, low=0.0)]),
        MultipleObjectiveLoss([loc_loss], [check_number("lambda_coord", coord, low=0.0)]),
        matcher,
        "none",
        reduction=reduction,
        normalizer=normalizer,
        obj_loss_module=obj_loss,
        obj_quality="iou" if first else None,
        cls_background=False,
    )
