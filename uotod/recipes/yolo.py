"""YOLO as its first and its third version train it: number of classes in, the criterion out."""

from functools import partial

from torch import nn

from uotod.check import check_choice
from uotod.geometry.cell_coder import CellCoder
from uotod.loss import (
    BoxSpace,
    Classification,
    ConfidenceLoss,
    DetectionLoss,
    MultipleObjectiveLoss,
    Normalizer,
    Objectness,
    PositiveNormalizer,
)
from uotod.match import GridCell, Matcher
from uotod.recipes.dialect import Losses, Weights, choose_matcher, choose_parts


def yolo(
    num_classes: int,
    *,
    matcher: Matcher | None = None,
    losses: Losses | None = None,
    weights: Weights | None = None,
    normalizer: Normalizer | None = None,
    style: str = "v3",
    reduction: str = "mean",
    nonfinite: str | None = None,
    box_format: str | None = None,
    validate: bool = False,
) -> DetectionLoss:
    r"""Build the criterion of YOLO v3 or v1.

    ============== ============================================= ==========================================
    part           v3                                            v1
    ============== ============================================= ==========================================
    matcher        `GridCell()`: the anchor of the most similar  `GridCell(choose="prediction",
                   shape; the rest is ignored from an IoU of     negative=None)`: the box of the largest IoU
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
        num_classes: number of classes, without a background; compared with the logits.
        matcher: in place of the matcher.
        losses: losses by name in place of the published ones, under the same weights: "cls", "loc" and "obj". That of
            localisation is a loss of boxes, such as `CIoULoss` (YOLO v4).
        weights: weights in place of those above: "cls", "loc", "obj" for matched predictions and, unless `losses`
            replace it, "noobj" for the background.
        normalizer: in place of the normaliser.
        style: "v3" or "v1".
        reduction: "mean", over the matched predictions of the batch, or "sum", as in the papers.
        nonfinite: what to do with predictions that are not finite, "error" or "propagate", see `Matcher`; None for
            "error".
        box_format: "cxcywh" or "xywh" if predicted and target boxes are that, None for xyxy; a `matcher` must have the
            same.
        validate: also check values on a GPU, which synchronises.

    Raises:
        TypeError: a part is of the wrong type.
        ValueError: an argument is out of its range, a name is unknown, or an option of the matcher is given with
            `matcher`.

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
    check_choice("style", style, ("v1", "v3"))
    first = style == "v1"
    kind, size = ("mse", "sqrt") if first else ("bce", "log")
    rule = partial(GridCell, choose="prediction", negative=None) if first else GridCell
    published: dict[str, tuple[nn.Module | None, float]] = {
        "cls": (nn.MSELoss(reduction="none") if first else nn.BCEWithLogitsLoss(reduction="none"), 1.0),
        "loc": (BoxSpace(nn.MSELoss(reduction="none"), CellCoder(size)), 5.0 if first else 1.0),
        "obj": (ConfidenceLoss(kind=kind, reduction="none"), 1.0),
    }
    if losses is None or "obj" not in losses:
        published["noobj"] = (None, 0.5 if first else 1.0)
    parts = choose_parts(num_classes, losses, weights, published)
    confidence = parts.term("obj")
    if "obj" not in parts.given:  # its two weights are in it
        both = {"positive_weight": parts.weights["obj"], "negative_weight": parts.weights["noobj"]}
        confidence = ConfidenceLoss(kind=kind, **both, reduction="none")
    if normalizer is None and reduction == "mean":
        normalizer = PositiveNormalizer()
    return DetectionLoss(
        Classification(_named(parts.term("cls")), background=False),
        _named(parts.localization()),
        choose_matcher(matcher, rule, box_format, nonfinite=nonfinite),
        "none",
        reduction=reduction,
        extra_terms=[Objectness(confidence, quality="iou" if first else None)],
        normalizer=normalizer,
        num_classes=num_classes,
        box_format=box_format,
        unit_boxes=first,
        validate=validate,
    )


def _named(loss: nn.Module) -> nn.Module:
    """Return a loss as a sum, whose parts are reported by name."""
    return loss if isinstance(loss, MultipleObjectiveLoss) else MultipleObjectiveLoss([loss])
