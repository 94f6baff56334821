"""YOLOX: the number of classes in, its criterion out."""

from torch import nn

from uotod.check import check_integer
from uotod.geometry.coders import DeltaCoder
from uotod.loss import BoxSpace, DetectionLoss, IoULoss, Normalizer, PositiveNormalizer
from uotod.match import Matcher, SimOTA
from uotod.recipes.dialect import weigh, weighted_sum


def yolox(
    num_classes: int,
    *,
    matcher: Matcher | None = None,
    cls_loss: nn.Module | None = None,
    loc_loss: nn.Module | None = None,
    obj_loss: nn.Module | None = None,
    normalizer: Normalizer | None = None,
    cls_weight: float = 1.0,
    loc_weight: float = 5.0,
    obj_weight: float = 1.0,
    l1_weight: float = 0.0,
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
        num_classes: C, at least 1; nothing else depends on it.
        matcher: in place of the matcher. mmdetection has `SimOTA(region="box_and_center", radius=2.5, penalty=1e5,
            eps=1e-7)`.
        cls_loss: in place of the binary cross-entropy of classes, under the same weight.
        loc_loss: in place of the squared IoU loss, under the same weight.
        obj_loss: in place of the binary cross-entropy of objectness, under the same weight.
        normalizer: in place of the normaliser; mmdetection's is the mean over the ranks.
        cls_weight: weight of classification.
        loc_weight: weight of the loss of boxes.
        obj_weight: weight of objectness.
        l1_weight: weight of the L1 loss.

    Raises:
        TypeError: a part is of the wrong type.
        ValueError: `num_classes` or a weight is out of its range.

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
    check_integer("num_classes", num_classes, low=1)
    losses = {
        "box": IoULoss(mode="square", reduction="none") if loc_loss is None else loc_loss,
        # relative to the cell of a point, deltas are the offsets that the head predicts
        "l1": BoxSpace(nn.L1Loss(reduction="none"), DeltaCoder(weights=(1.0, 1.0, 1.0, 1.0))),
    }
    return DetectionLoss(
        weigh("cls", cls_loss, nn.BCEWithLogitsLoss(reduction="none"), cls_weight),
        weighted_sum(losses, {"loc_weight": loc_weight, "l1_weight": l1_weight}),
        SimOTA() if matcher is None else matcher,
        "none",
        normalizer=PositiveNormalizer() if normalizer is None else normalizer,
        quality="iou",
        cls_background=False,
        obj_loss_module=weigh("obj", obj_loss, nn.BCEWithLogitsLoss(reduction="none"), obj_weight),
    )
