"""YOLOX: the number of classes in, its criterion out."""

from torch import nn

from uotod.geometry.coders import DeltaCoder
from uotod.loss import BoxSpace, Classification, DetectionLoss, IoULoss, Normalizer, Objectness, PositiveNormalizer
from uotod.match import Matcher, SimOTA
from uotod.recipes.dialect import Losses, Weights, choose_matcher, choose_parts


def yolox(
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
    r"""Build the criterion of YOLOX.

    ============== ================================================================================
    matcher        `SimOTA()`: dynamic k of the 10 largest IoUs, costs 1 and 3, radius 1.5
    classification binary cross-entropy of matched predictions only, to the IoU `u` at the
                   target's class and 0 elsewhere
    objectness     binary cross-entropy of all predictions, 1 for the matched ones
    localisation   5 · (1 − u²), and `l1_weight` · L1 of the offsets, 1 in the last epochs
    normaliser     `PositiveNormalizer()`: matched predictions of the batch, at least 1
    ============== ================================================================================

    Its input has `pred_logits` (B, P, C) without a background class, `pred_boxes` (B, P, 4), xyxy in pixels, and
    `pred_objectness` (B, P), a logit; `anchors` are `Points` with strides. For the last 15 epochs, without strong
    augmentation, build it anew with `l1_weight=1.0`: L1 of the centre in strides and of the logarithm of the size.

    Args:
        num_classes: number of classes, without a background; compared with the logits.
        matcher: in place of the matcher. mmdetection has `SimOTA(region="box_and_center", radius=2.5, penalty=1e5,
            eps=1e-7)`.
        losses: losses by name in place of the published ones, under the same weights: "cls", "box", "l1" and "obj"; or
            "loc", in place of the sum of the boxes, with weight 1.
        weights: weights by the same names, in place of those above; with 0 a part of the sum is left out.
        normalizer: in place of the normaliser; mmdetection's is the mean over the ranks.
        nonfinite: what to do with predictions that are not finite, "error" or "propagate", see `Matcher`; None for
            "error".
        box_format: "cxcywh" or "xywh" if predicted and target boxes are that, None for xyxy; a `matcher` must have the
            same.
        validate: also check values on a GPU, which synchronises.

    Raises:
        TypeError: a part is of the wrong type.
        ValueError: an argument is out of its range, a name is unknown, or an option of the matcher is given with
            `matcher`.

    Differences: those of `SimOTA`; an image without candidates is ordinary input.

    References:
        Ge et al., "YOLOX: exceeding YOLO series in 2021", arXiv 2107.08430, sec. 2.1 (the numbers are those of
        `YOLOXHead` of mmdetection 3.3 with its matcher).

    Examples:
        >>> import torch
        >>> from uotod.utils import Points
        >>> points = Points.from_levels([(4, 4), (2, 2)], strides=[8, 16])
        >>> boxes = torch.cat((points.centers - 10, points.centers + 10), -1)[None]
        >>> input = {"pred_logits": torch.zeros(1, 20, 3), "pred_boxes": boxes, "pred_objectness": torch.zeros(1, 20)}
        >>> target = {"boxes": torch.tensor([[[2.0, 2.0, 22.0, 22.0]]]), "labels": torch.tensor([[1]])}
        >>> terms = yolox(3).terms(input, target, points)
        >>> [(name, round(float(terms[name]), 4)) for name in ("loss_cls", "loss_loc", "loss_obj")]
        [('loss_cls', 2.0794), ('loss_loc', 3.014), ('loss_obj', 3.4657)]
    """
    # relative to the cell of a point, deltas are the offsets that the head predicts
    offsets = BoxSpace(nn.L1Loss(reduction="none"), DeltaCoder(weights=(1.0, 1.0, 1.0, 1.0)))
    published = {
        "cls": (nn.BCEWithLogitsLoss(reduction="none"), 1.0),
        "box": (IoULoss(mode="square", reduction="none"), 5.0),
        "l1": (offsets, 0.0),
        "obj": (nn.BCEWithLogitsLoss(reduction="none"), 1.0),
    }
    parts = choose_parts(num_classes, losses, weights, published)
    return DetectionLoss(
        Classification(parts.term("cls"), quality="iou", background=False),
        parts.localization(),
        choose_matcher(matcher, SimOTA, box_format, nonfinite=nonfinite),
        "none",
        extra_terms=[Objectness(parts.term("obj"))],
        normalizer=PositiveNormalizer() if normalizer is None else normalizer,
        num_classes=num_classes,
        box_format=box_format,
        validate=validate,
    )
