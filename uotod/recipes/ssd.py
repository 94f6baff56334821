"""Detectors with a softmax on anchors, SSD and its unbalanced transport: number of classes in, the criterion out."""

from torch import nn

from uotod.check import check_integer, check_number
from uotod.geometry.coders import DeltaCoder
from uotod.loss import BoxSpace, DetectionLoss, IoULoss, Normalizer, PositiveNormalizer
from uotod.match import IoUThreshold, Matcher, UnbalancedSinkhorn

SSD_WEIGHTS = (10.0, 10.0, 5.0, 5.0)  # the inverse of the variances 0.1 and 0.2


def ssd300(
    num_classes: int,
    *,
    matcher: Matcher | None = None,
    cls_loss: nn.Module | None = None,
    loc_loss: nn.Module | None = None,
    normalizer: Normalizer | None = None,
    iou_threshold: float = 0.5,
    beta: float = 1.0,
    neg_to_pos_ratio: float = 3.0,
) -> DetectionLoss:
    """Build the criterion of SSD (SSD300, and SSD512 alike).

    ============== ====================================================================================
    matcher        `IoUThreshold(positive=0.5, force_match="best")` on the anchors
    classification cross-entropy, the background first; the three hardest negatives for a positive
    localisation   smooth L1 (β = 1) of the deltas from the anchors, times (10, 10, 5, 5)
    weights        1 and 1
    normaliser     `PositiveNormalizer()`: the number of positive anchors of the batch, for both
    ============== ====================================================================================

    Its input has `pred_logits` (B, P, C + 1), class 0 the background, and `pred_boxes` (B, P, 4), the decoded boxes,
    xyxy in any unit; labels are 1 to C. `anchors` are the (P, 4) default boxes in the same unit. An image without
    targets, or without positives, contributes nothing.

    Args:
        num_classes: C, the classes of objects, at least 1; nothing else depends on it.
        matcher: in place of the matcher.
        cls_loss: in place of the cross-entropy.
        loc_loss: in place of the smooth L1 loss of deltas, a loss of boxes.
        normalizer: in place of the normaliser.
        iou_threshold: least IoU of a match that is not forced.
        beta: difference at which the smooth L1 loss becomes linear.
        neg_to_pos_ratio: negatives kept for a positive, in each image.

    Raises:
        TypeError: a part is of the wrong type.
        ValueError: a number is out of its range.

    Differences: two targets that share their best anchor each get one of their own; where the anchor is written twice,
    one of them is left without any. Of negatives of equal loss the lowest index is kept.

    References:
        Liu et al., "SSD: single shot multibox detector", ECCV 2016, sec. 2.2; torchvision, `SSD.compute_loss` (whose
        numbers these are).

    Examples:
        >>> import torch
        >>> anchors = torch.tensor([[0.0, 0.0, 4.0, 4.0], [4.0, 4.0, 8.0, 8.0]])
        >>> target = {"boxes": anchors[None, :1], "labels": torch.tensor([[2]])}
        >>> terms = ssd300(2).terms({"pred_logits": torch.zeros(1, 2, 3), "pred_boxes": anchors[None]}, target, anchors)
        >>> terms["loss_cls"], terms["loss_loc"]  # 2 ln 3: a positive and a negative
        (tensor(2.1972), tensor(0.))
    """
    return _softmax_on_anchors(
        num_classes,
        IoUThreshold(positive=iou_threshold, force_match="best", is_anchor_based=True) if matcher is None else matcher,
        cls_loss,
        loc_loss,
        normalizer,
        beta,
        neg_to_pos_ratio,
    )


def uot_ssd(
    num_classes: int,
    *,
    matcher: Matcher | None = None,
    cls_loss: nn.Module | None = None,
    loc_loss: nn.Module | None = None,
    normalizer: Normalizer | None = None,
    reg_pred: float = 100.0,
    reg_target: float = 0.01,
    reg_dimless: float = 0.12,
    background_cost: float = 0.5,
    beta: float = 1.0,
    neg_to_pos_ratio: float = 3.0,
) -> DetectionLoss:
    r"""Build the criterion of SSD with unbalanced optimal transport in place of its two-stage matching.

    ============== ====================================================================================
    matcher        `UnbalancedSinkhorn(reg_pred=100, reg_target=0.01)`, the cost of a pair 1 − IoU of
                   anchor and target and that of the background 0.5
    classification cross-entropy, the background first; three units of background mass, from the
                   hardest prediction down, for a unit of positive mass
    localisation   smooth L1 (β = 1) of the deltas from the anchors, times (10, 10, 5, 5)
    weights        1 and 1, times the mass of the pair
    normaliser     `PositiveNormalizer()`: the positive mass of the batch, for both
    ============== ====================================================================================

    Its input is that of `ssd300`. `reg_target` goes from the matching to the closest target at 0, the nearest to SSD's
    own rule, to balanced transport at infinity; 10 makes non-maximum suppression almost superfluous (the paper's table
    2). As `reg_dimless` and `reg_target` tend to 0 and `reg_pred` to infinity this is `ssd300` without forced matches.

    Args:
        num_classes: C, the classes of objects, at least 1; nothing else depends on it.
        matcher: in place of the matcher; the four arguments of the transport are not read then.
        cls_loss: in place of the cross-entropy.
        loc_loss: in place of the smooth L1 loss of deltas, a loss of boxes.
        normalizer: in place of the normaliser.
        reg_pred: :math:`\tau_1`, the penalty on the mass of the predictions.
        reg_target: :math:`\tau_2`, the penalty on the mass of the targets.
        reg_dimless: :math:`\varepsilon_0`; the entropic regularisation is :math:`\varepsilon_0 / (\ln(2 P) + 1)`.
        background_cost: cost of the background.
        beta: difference at which the smooth L1 loss becomes linear.
        neg_to_pos_ratio: background mass kept for a unit of positive mass, in each image.

    Raises:
        TypeError: a part is of the wrong type.
        ValueError: a number is out of its range.

    Differences: the transport is solved to convergence instead of for 20 iterations, and the cost of each image is
    divided by its own largest entry. The ratio of negatives is reached exactly, the last one in part.

    References:
        De Plaen et al., "Unbalanced optimal transport: a unified framework for object detection", CVPR 2023, sec. 4 and
        tables 1 and 2.

    Examples:
        >>> import torch
        >>> anchors = torch.tensor([[0.0, 0.0, 4.0, 4.0], [0.0, 0.0, 4.0, 2.0], [4.0, 4.0, 8.0, 8.0]])
        >>> target = {"boxes": anchors[None, :1], "labels": torch.tensor([[2]])}
        >>> input = {"pred_logits": torch.zeros(1, 3, 3), "pred_boxes": anchors[None]}
        >>> uot_ssd(2).matching_method(input, target, anchors).round(decimals=2)
        tensor([[[1.0000, 0.0000],
                 [0.4600, 0.5400],
                 [0.0000, 1.0000]]])
    """
    if matcher is None:
        matcher = UnbalancedSinkhorn(
            reg_pred=reg_pred,
            reg_target=reg_target,
            reg_dimless=reg_dimless,
            loc_match_module=IoULoss(eps=0.0, reduction="none"),
            background_cost=background_cost,
            is_anchor_based=True,
        )
    return _softmax_on_anchors(num_classes, matcher, cls_loss, loc_loss, normalizer, beta, neg_to_pos_ratio)


def _softmax_on_anchors(
    num_classes: int,
    matcher: Matcher,
    cls_loss: nn.Module | None,
    loc_loss: nn.Module | None,
    normalizer: Normalizer | None,
    beta: float,
    neg_to_pos_ratio: float,
) -> DetectionLoss:
    check_integer("num_classes", num_classes, low=1)
    check_number("beta", beta, low=0.0)
    if loc_loss is None:
        loc_loss = BoxSpace(nn.SmoothL1Loss(beta=beta, reduction="none"), DeltaCoder(SSD_WEIGHTS))
    return DetectionLoss(
        nn.CrossEntropyLoss(reduction="none") if cls_loss is None else cls_loss,
        loc_loss,
        matcher,
        "first",
        use_hard_negative_mining=True,
        neg_to_pos_ratio=neg_to_pos_ratio,
        normalizer=PositiveNormalizer() if normalizer is None else normalizer,
    )
