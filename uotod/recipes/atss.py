"""ATSS: the number of classes in, its criterion out."""

from torch import nn

from uotod.check import check_integer
from uotod.loss import DetectionLoss, GIoULoss, Normalizer, SigmoidFocalLoss
from uotod.match import ATSS, Matcher
from uotod.recipes.dialect import weigh
from uotod.recipes.normalizers import AnchorNormalizer


def atss(
    num_classes: int,
    *,
    matcher: Matcher | None = None,
    cls_loss: nn.Module | None = None,
    loc_loss: nn.Module | None = None,
    obj_loss: nn.Module | None = None,
    normalizer: Normalizer | None = None,
    cls_weight: float = 1.0,
    loc_weight: float = 2.0,
    obj_weight: float = 1.0,
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
        num_classes: C, at least 1; nothing else depends on it.
        matcher: in place of the matcher.
        cls_loss: in place of the focal loss, under the same weight.
        loc_loss: in place of GIoU, under the same weight.
        obj_loss: in place of the binary cross-entropy of centerness, under the same weight.
        normalizer: in place of the normaliser.
        cls_weight: weight of classification.
        loc_weight: weight of localisation.
        obj_weight: weight of centerness.

    Raises:
        TypeError: a part is of the wrong type.
        ValueError: `num_classes` or a weight is out of its range.

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
    check_integer("num_classes", num_classes, low=1)
    return DetectionLoss(
        weigh("cls", cls_loss, SigmoidFocalLoss(alpha=0.25, reduction="none"), cls_weight),
        weigh("loc", loc_loss, GIoULoss(reduction="none"), loc_weight),
        ATSS() if matcher is None else matcher,
        "none",
        normalizer=AnchorNormalizer(distributed=True) if normalizer is None else normalizer,
        loc_quality="centerness",
        obj_loss_module=weigh("obj", obj_loss, nn.BCEWithLogitsLoss(reduction="none"), obj_weight),
        obj_quality="centerness",
        obj_background=False,
    )
