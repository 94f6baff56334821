"""Detectors with a softmax on anchors, SSD and its unbalanced transport: number of classes in, the criterion out."""

from functools import partial
from typing import Any

from torch import nn

from uotod.check import check_number
from uotod.geometry.coders import DeltaCoder
from uotod.loss import BoxSpace, DetectionLoss, IoULoss, Normalizer, PositiveNormalizer
from uotod.match import IoUThreshold, Matcher, UnbalancedSinkhorn
from uotod.match.schedule import Schedule
from uotod.recipes.dialect import Losses, Weights, choose_matcher, choose_parts

SSD_WEIGHTS = (10.0, 10.0, 5.0, 5.0)  # the inverse of the variances 0.1 and 0.2


def ssd300(
    num_classes: int,
    *,
    matcher: Matcher | None = None,
    losses: Losses | None = None,
    weights: Weights | None = None,
    normalizer: Normalizer | None = None,
    iou_threshold: float | None = None,
    beta: float | None = None,
    neg_to_pos_ratio: float = 3.0,
    min_negatives: float = 0.0,
    nonfinite: str | None = None,
    box_format: str | None = None,
    validate: bool = False,
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
    targets, or without positives, contributes nothing. A target without area is refused, or ignored where
    `target["ignore"]` says so.

    Args:
        num_classes: number of classes of objects, labelled 1 to `num_classes`; compared with the logits, which have one
            more.
        matcher: in place of the matcher.
        losses: losses by name in place of the published ones, under the same weights: "cls" and "loc". That of
            localisation is a loss of boxes.
        weights: weights by the same names, in place of those above.
        normalizer: in place of the normaliser.
        iou_threshold: least IoU of a match that is not forced; None for 0.5.
        beta: difference at which the smooth L1 loss becomes linear; None for 1.
        neg_to_pos_ratio: negatives kept for a positive, in each image.
        min_negatives: negatives kept in an image even without positives.
        nonfinite: what to do with predictions that are not finite, "error" or "propagate", see `Matcher`; None for
            "error".
        box_format: "cxcywh" or "xywh" if predicted and target boxes are that, None for xyxy; a `matcher` must have the
            same.
        validate: also check values on a GPU, which synchronises.

    Raises:
        TypeError: a part is of the wrong type.
        ValueError: an argument is out of its range, a name is unknown, or an option of the matcher is given with
            `matcher`.

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

    def rule(iou_threshold: float = 0.5, **options: Any) -> IoUThreshold:
        return IoUThreshold(positive=iou_threshold, force_match="best", is_anchor_based=True, **options)

    return _softmax_on_anchors(
        num_classes,
        choose_matcher(matcher, rule, box_format, iou_threshold=iou_threshold, nonfinite=nonfinite),
        losses,
        weights,
        normalizer,
        beta,
        neg_to_pos_ratio,
        min_negatives,
        box_format,
        validate,
    )


def uot_ssd(
    num_classes: int,
    *,
    matcher: Matcher | None = None,
    losses: Losses | None = None,
    weights: Weights | None = None,
    normalizer: Normalizer | None = None,
    reg_pred: float | Schedule | None = None,
    reg_target: float | Schedule | None = None,
    reg_dimless: float | Schedule | None = None,
    background_cost: float | Schedule | None = None,
    beta: float | None = None,
    neg_to_pos_ratio: float = 3.0,
    min_negatives: float = 0.0,
    nonfinite: str | None = None,
    box_format: str | None = None,
    validate: bool = False,
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
        num_classes: number of classes of objects, labelled 1 to `num_classes`; compared with the logits, which have one
            more.
        matcher: in place of the matcher.
        losses: losses by name in place of the published ones, under the same weights: "cls" and "loc". That of
            localisation is a loss of boxes.
        weights: weights by the same names, in place of those above.
        normalizer: in place of the normaliser.
        reg_pred: :math:`\tau_1`, the penalty on the mass of the predictions; None for 100.
        reg_target: :math:`\tau_2`, the penalty on the mass of the targets; None for 0.01.
        reg_dimless: :math:`\varepsilon_0`; the entropic regularisation is :math:`\varepsilon_0 / (\ln(2 P) + 1)`; None
            for 0.12.
        background_cost: cost of the background; None for 0.5.
        beta: difference at which the smooth L1 loss becomes linear; None for 1.
        neg_to_pos_ratio: background mass kept for a unit of positive mass, in each image.
        min_negatives: background mass kept in an image even without positives.
        nonfinite: what to do with predictions that are not finite, "error" or "propagate", see `Matcher`; None for
            "error".
        box_format: "cxcywh" or "xywh" if predicted and target boxes are that, None for xyxy; a `matcher` must have the
            same.
        validate: also check values on a GPU, which synchronises.

    Raises:
        TypeError: a part is of the wrong type.
        ValueError: an argument is out of its range, a name is unknown, or an option of the matcher is given with
            `matcher`.

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
    published: dict[str, Any] = {"reg_pred": 100.0, "reg_target": 0.01, "reg_dimless": 0.12, "background_cost": 0.5}
    overlap = IoULoss(reduction="none")
    rule = partial(UnbalancedSinkhorn, loc_match_module=overlap, is_anchor_based=True, **published)
    transport = {"reg_pred": reg_pred, "reg_target": reg_target, "reg_dimless": reg_dimless}
    return _softmax_on_anchors(
        num_classes,
        choose_matcher(matcher, rule, box_format, **transport, background_cost=background_cost, nonfinite=nonfinite),
        losses,
        weights,
        normalizer,
        beta,
        neg_to_pos_ratio,
        min_negatives,
        box_format,
        validate,
    )


def _softmax_on_anchors(
    num_classes: int,
    matcher: Matcher,
    losses: Losses | None,
    weights: Weights | None,
    normalizer: Normalizer | None,
    beta: float | None,
    neg_to_pos_ratio: float,
    min_negatives: float,
    box_format: str | None,
    validate: bool,
) -> DetectionLoss:
    deltas = nn.SmoothL1Loss(beta=check_number("beta", 1.0 if beta is None else beta, low=0.0), reduction="none")
    published = {
        "cls": (nn.CrossEntropyLoss(reduction="none"), 1.0),
        "loc": (BoxSpace(deltas, DeltaCoder(SSD_WEIGHTS)), 1.0),
    }
    parts = choose_parts(num_classes, losses, weights, published)
    parts.refuse("loc", beta=beta)
    return DetectionLoss(
        parts.term("cls"),
        parts.localization(),
        matcher,
        "first",
        use_hard_negative_mining=True,
        neg_to_pos_ratio=neg_to_pos_ratio,
        min_negatives=min_negatives,
        normalizer=PositiveNormalizer() if normalizer is None else normalizer,
        num_classes=num_classes,
        box_format=box_format,
        validate=validate,
    )
