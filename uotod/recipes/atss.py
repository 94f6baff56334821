"""ATSS: the number of classes in, its criterion out."""

from torch import nn

from uotod.loss import (
    DetectionLoss,
    GIoULoss,
    ImagePositiveNormalizer,
    Localization,
    Normalizer,
    Objectness,
    SigmoidFocalLoss,
)
from uotod.match import ATSS, Matcher
from uotod.recipes.dialect import Losses, Weights, choose_matcher, choose_parts


def atss(
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
    r"""Build the criterion of ATSS, adaptive training sample selection.

    ============== ================================================================================
    matcher        `ATSS()`: the 9 nearest anchors of each level, IoU above mean + deviation
    classification focal loss, :math:`\alpha = 0.25, \gamma = 2`
    localisation   2 · GIoU, weighted by the centerness of the anchor's centre in its target
    centerness     binary cross-entropy of matched predictions to that centerness
    normaliser     matched predictions, at least 1 an image; for localisation the sum of their
                   centerness, at least 1; both the mean over the ranks
    ============== ================================================================================

    Its input has `pred_logits` (B, P, C) without a background class, `pred_boxes` (B, P, 4), xyxy in pixels, and
    `pred_objectness` (B, P), the logit of the centerness; `anchors` are `Anchors` with levels, in the published models
    one square of 8 strides a cell.

    Args:
        num_classes: number of classes, without a background; compared with the logits.
        matcher: in place of the matcher.
        losses: losses by name in place of the published ones, under the same weights: "cls", "loc" and "obj".
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

    Differences: those of `ATSS`, such as its single candidates and `margin`.

    References:
        Zhang et al., "Bridging the gap between anchor-based and anchor-free detection via adaptive training sample
        selection", CVPR 2020 (the numbers are those of `ATSSHead` of mmdetection 3.3).

    Examples:
        >>> import torch
        >>> from uotod.utils import Anchors
        >>> boxes = torch.tensor([[0.0, 0, 8, 8], [8, 0, 16, 8], [16, 0, 24, 8], [0, 0, 32, 32]])
        >>> anchors = Anchors.from_levels([boxes[:3], boxes[3:]], strides=[8, 32])
        >>> input = {"pred_logits": torch.zeros(1, 4, 2), "pred_boxes": boxes[None] + 1}
        >>> input["pred_objectness"] = torch.zeros(1, 4)
        >>> target = {"boxes": torch.tensor([[[1.0, 0, 9, 8]]]), "labels": torch.tensor([[1]])}
        >>> terms = atss(2).terms(input, target, anchors)
        >>> [(name, round(float(terms[name]), 4)) for name in ("loss_cls", "loss_loc", "loss_obj")]
        [('loss_cls', 0.9531), ('loss_loc', 0.3443), ('loss_obj', 0.6931)]
    """
    published = {
        "cls": (SigmoidFocalLoss(alpha=0.25, reduction="none"), 1.0),
        "loc": (GIoULoss(reduction="none"), 2.0),
        "obj": (nn.BCEWithLogitsLoss(reduction="none"), 1.0),
    }
    parts = choose_parts(num_classes, losses, weights, published)
    return DetectionLoss(
        parts.term("cls"),
        Localization(parts.localization(), quality="centerness"),
        choose_matcher(matcher, ATSS, box_format, nonfinite=nonfinite),
        "none",
        extra_terms=[Objectness(parts.term("obj"), quality="centerness", background=False)],
        normalizer=ImagePositiveNormalizer(distributed=True) if normalizer is None else normalizer,
        num_classes=num_classes,
        box_format=box_format,
        validate=validate,
    )
