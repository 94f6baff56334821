"""FCOS, as torchvision and as mmdetection train it: the number of classes in, its criterion out."""

from torch import nn

from uotod.check import check_choice, check_integer
from uotod.loss import DetectionLoss, GIoULoss, IoULoss, Normalizer, PositiveNormalizer, SigmoidFocalLoss
from uotod.match import FCOS, Matcher
from uotod.recipes.dialect import weigh
from uotod.recipes.normalizers import CenternessNormalizer


def fcos(
    num_classes: int,
    *,
    matcher: Matcher | None = None,
    cls_loss: nn.Module | None = None,
    loc_loss: nn.Module | None = None,
    obj_loss: nn.Module | None = None,
    normalizer: Normalizer | None = None,
    style: str = "torchvision",
    cls_weight: float = 1.0,
    loc_weight: float = 1.0,
    obj_weight: float = 1.0,
) -> DetectionLoss:
    r"""Build the criterion of FCOS.

    ============== ================================================================================
    matcher        `FCOS()`: smallest target that holds the point, radius 1.5, levels by size
    classification focal loss, :math:`\alpha = 0.25, \gamma = 2`
    localisation   torchvision: GIoU; mmdetection: :math:`-\ln u`, weighted by the centerness
    centerness     binary cross-entropy of matched predictions to the centerness of their point
    normaliser     matched predictions of the batch, at least 1: `PositiveNormalizer()`. mmdetection:
                   their mean over the ranks, and for localisation the sum of their centerness, at
                   least 1e-6
    ============== ================================================================================

    Its input has `pred_logits` (B, P, C) without a background class, `pred_boxes` (B, P, 4), xyxy in pixels, and
    `pred_objectness` (B, P), the logit of the centerness; `anchors` are `Points` with strides, or anchors whose
    centres they are. detectron2's is `normalizer=MovingAverageNormalizer(initial=300)`.

    Args:
        num_classes: C, at least 1; nothing else depends on it.
        matcher: in place of the matcher; `FCOS(radius=None)` for models without centre sampling.
        cls_loss: in place of the focal loss, under the same weight.
        loc_loss: in place of the loss of boxes, under the same weight.
        obj_loss: in place of the binary cross-entropy of centerness, under the same weight.
        normalizer: in place of the normaliser.
        style: "torchvision" or "mmdetection", whose numbers it has.
        cls_weight: weight of classification.
        loc_weight: weight of localisation.
        obj_weight: weight of centerness.

    Raises:
        TypeError: a part is of the wrong type.
        ValueError: an argument is out of its range.

    Differences: those of `FCOS`.

    References:
        Tian et al., "FCOS: fully convolutional one-stage object detection", ICCV 2019, eqs. 2-3 (the numbers are those
        of torchvision's formulas and of `FCOSHead` of mmdetection 3.3).

    Examples:
        >>> import torch
        >>> from uotod.utils import Points
        >>> points = Points.from_levels([(4, 4), (2, 2)], strides=[8, 16])
        >>> boxes = torch.cat((points.centers - 10, points.centers + 10), -1)[None]
        >>> input = {"pred_logits": torch.zeros(1, 20, 3), "pred_boxes": boxes, "pred_objectness": torch.zeros(1, 20)}
        >>> target = {"boxes": torch.tensor([[[2.0, 2.0, 22.0, 22.0]]]), "labels": torch.tensor([[1]])}
        >>> terms = fcos(3).terms(input, target, points)
        >>> [(name, round(float(terms[name]), 4)) for name in ("loss_cls", "loss_loc", "loss_obj")]
        [('loss_cls', 0.7798), ('loss_loc', 0.6734), ('loss_obj', 0.6931)]
    """
    check_integer("num_classes", num_classes, low=1)
    check_choice("style", style, ("torchvision", "mmdetection"))
    is_weighted = style == "mmdetection"
    if normalizer is None:
        normalizer = CenternessNormalizer(distributed=True) if is_weighted else PositiveNormalizer()
    boxes = IoULoss(mode="log", reduction="none") if is_weighted else GIoULoss(reduction="none")
    return DetectionLoss(
        weigh("cls", cls_loss, SigmoidFocalLoss(alpha=0.25, reduction="none"), cls_weight),
        weigh("loc", loc_loss, boxes, loc_weight),
        FCOS() if matcher is None else matcher,
        "none",
        normalizer=normalizer,
        loc_quality="centerness" if is_weighted else None,
        obj_loss_module=weigh("obj", obj_loss, nn.BCEWithLogitsLoss(reduction="none"), obj_weight),
        obj_quality="centerness",
        obj_background=False,
    )
