"""OTA, optimal transport assignment: the number of classes in, its criterion out."""

from torch import nn

from uotod.loss import DetectionLoss, GIoULoss, Normalizer, Objectness, PositiveNormalizer, SigmoidFocalLoss
from uotod.match import OTA, Matcher
from uotod.recipes.dialect import Losses, Weights, choose_matcher, choose_parts


def ota(
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
    r"""Build the criterion of OTA: FCOS with a branch for the IoU, and optimal transport in place of its assignment.

    ============== ================================================================================
    matcher        `OTA()`: supplies from the 20 largest IoUs, IoU cost 1.5, radius 2.5
    classification focal loss, :math:`\alpha = 0.25, \gamma = 2`
    localisation   2 · GIoU
    IoU            0.5 · binary cross-entropy of matched predictions to the IoU of box and target
    normaliser     `PositiveNormalizer(distributed=True)`: matched predictions, at least 1, mean
                   over the ranks
    ============== ================================================================================

    Its input has `pred_logits` (B, P, C) without a background class, `pred_boxes` (B, P, 4), xyxy in pixels, and
    `pred_objectness` (B, P), the logit of the IoU; `anchors` are `Points` with strides.

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

    Differences: the transport problem is solved, where the published code takes 50 sweeps; see `OTA`.

    References:
        Ge et al., "OTA: optimal transport assignment for object detection", CVPR 2021, secs. 3 and 4.1 (the numbers
        are those of the published formulas).

    Examples:
        >>> import torch
        >>> from uotod.utils import Points
        >>> points = Points.from_levels([(4, 4), (2, 2)], strides=[8, 16])
        >>> boxes = torch.cat((points.centers - 10, points.centers + 10), -1)[None]
        >>> input = {"pred_logits": torch.zeros(1, 20, 3), "pred_boxes": boxes, "pred_objectness": torch.zeros(1, 20)}
        >>> target = {"boxes": torch.tensor([[[2.0, 2.0, 22.0, 22.0]]]), "labels": torch.tensor([[1]])}
        >>> terms = ota(3).terms(input, target, points)
        >>> [(name, round(float(terms[name]), 4)) for name in ("loss_cls", "loss_loc", "loss_obj")]
        [('loss_cls', 1.213), ('loss_loc', 0.9569), ('loss_obj', 0.3466)]
    """
    published = {
        "cls": (SigmoidFocalLoss(alpha=0.25, reduction="none"), 1.0),
        "loc": (GIoULoss(reduction="none"), 2.0),
        "obj": (nn.BCEWithLogitsLoss(reduction="none"), 0.5),
    }
    parts = choose_parts(num_classes, losses, weights, published)
    return DetectionLoss(
        parts.term("cls"),
        parts.localization(),
        choose_matcher(matcher, OTA, box_format, nonfinite=nonfinite),
        "none",
        extra_terms=[Objectness(parts.term("obj"), quality="iou", background=False)],
        normalizer=PositiveNormalizer(distributed=True) if normalizer is None else normalizer,
        num_classes=num_classes,
        box_format=box_format,
        validate=validate,
    )
