"""OTA, optimal transport assignment: the number of classes in, its criterion out."""

from torch import nn

from uotod.check import check_integer
from uotod.loss import DetectionLoss, GIoULoss, Normalizer, PositiveNormalizer, SigmoidFocalLoss
from uotod.match import OTA, Matcher
from uotod.recipes.dialect import weigh


def ota(
    num_classes: int,
    *,
    matcher: Matcher | None = None,
    cls_loss: nn.Module | None = None,
    loc_loss: nn.Module | None = None,
    obj_loss: nn.Module | None = None,
    normalizer: Normalizer | None = None,
    cls_weight: float = 1.0,
    loc_weight: float = 2.0,
    obj_weight: float = 0.5,
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
        num_classes: C, at least 1; nothing else depends on it.
        matcher: in place of the matcher.
        cls_loss: in place of the focal loss, under the same weight.
        loc_loss: in place of GIoU, under the same weight.
        obj_loss: in place of the binary cross-entropy of the IoU, under the same weight.
        normalizer: in place of the normaliser.
        cls_weight: weight of classification.
        loc_weight: weight of localisation.
        obj_weight: weight of the loss of the IoU.

    Raises:
        TypeError: a part is of the wrong type.
        ValueError: `num_classes` or a weight is out of its range.

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
    check_integer("num_classes", num_classes, low=1)
    return DetectionLoss(
        weigh("cls", cls_loss, SigmoidFocalLoss(alpha=0.25, reduction="none"), cls_weight),
        weigh("loc", loc_loss, GIoULoss(reduction="none"), loc_weight),
        OTA() if matcher is None else matcher,
        "none",
        normalizer=PositiveNormalizer(distributed=True) if normalizer is None else normalizer,
        obj_loss_module=weigh("obj", obj_loss, nn.BCEWithLogitsLoss(reduction="none"), obj_weight),
        obj_quality="iou",
        obj_background=False,
    )
