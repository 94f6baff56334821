"""RetinaNet, as torchvision and as detectron2 train it: number of classes in, its criterion out."""

from torch import nn

from uotod.check import check_choice, check_integer, check_number
from uotod.geometry.coders import DeltaCoder
from uotod.loss import (
    BoxSpace,
    DetectionLoss,
    MovingAverageNormalizer,
    Normalizer,
    PerImageNormalizer,
    SigmoidFocalLoss,
)
from uotod.match import IoUThreshold, Matcher


def retinanet(
    num_classes: int,
    *,
    matcher: Matcher | None = None,
    cls_loss: nn.Module | None = None,
    loc_loss: nn.Module | None = None,
    normalizer: Normalizer | None = None,
    style: str = "torchvision",
    positive: float = 0.5,
    negative: float = 0.4,
    alpha: float = 0.25,
    gamma: float = 2.0,
    beta: float | None = None,
) -> DetectionLoss:
    """Build the criterion of RetinaNet.

    ============== ====================================================================================
    matcher        `IoUThreshold(positive=0.5, negative=0.4, force_match="low_quality")` on the anchors;
                   those in between are ignored
    classification focal loss (α = 0.25, γ = 2), sigmoid, without a background class
    localisation   of the deltas from the anchors, times (1, 1, 1, 1): L1 in torchvision, smooth L1 with
                   β = 0.1 in detectron2
    weights        1 and 1
    normaliser     torchvision: `PerImageNormalizer()`, positive anchors of each image, then the mean
                   over the images; detectron2: `MovingAverageNormalizer(momentum=0.9, initial=100)`
    ============== ====================================================================================

    Its input has `pred_logits` (B, P, C) and `pred_boxes` (B, P, 4), the decoded boxes, xyxy in any unit; labels are
    0 to C - 1. `anchors` are the (P, 4) anchors in the same unit. With `style="detectron2"` call
    `criterion.normalizer.update(terms["num_pos"])` after each training step: the average is not moved by a forward
    pass.

    Args:
        num_classes: C, at least 1; nothing else depends on it.
        matcher: in place of the matcher.
        cls_loss: in place of the focal loss.
        loc_loss: in place of the loss of deltas, a loss of boxes.
        normalizer: in place of the normaliser.
        style: "torchvision" or "detectron2", whose numbers it has.
        positive: least IoU of a match that is not forced.
        negative: IoU below which an anchor is background.
        alpha: weight of positives in the focal loss.
        gamma: its focusing exponent.
        beta: difference at which the loss of deltas becomes linear, 0 for L1; None for that of the style.

    Raises:
        TypeError: a part is of the wrong type.
        ValueError: a number is out of its range.

    Differences: an IoU of 0 is no match of low quality; elsewhere a target that overlaps no anchor makes every anchor
    positive. Deltas of targets narrower than 0.001 anchors are bounded.

    References:
        Lin et al., "Focal loss for dense object detection", ICCV 2017, sec. 4; torchvision, `RetinaNet.compute_loss`;
        detectron2, `RetinaNet.losses`.

    Examples:
        >>> import torch
        >>> anchors = torch.tensor([[0.0, 0.0, 4.0, 4.0], [4.0, 4.0, 8.0, 8.0]])
        >>> target = {"boxes": anchors[None, :1], "labels": torch.tensor([[1]])}
        >>> input = {"pred_logits": torch.zeros(1, 2, 2), "pred_boxes": anchors[None] + 1.0}
        >>> terms = retinanet(2).terms(input, target, anchors)
        >>> terms["loss_cls"], terms["loss_loc"]  # the box is off by a quarter of its anchor, twice
        (tensor(0.4332), tensor(0.5000))
    """
    check_integer("num_classes", num_classes, low=1)
    check_choice("style", style, ("torchvision", "detectron2"))
    if beta is None:
        beta = 0.0 if style == "torchvision" else 0.1
    check_number("beta", beta, low=0.0)
    if matcher is None:
        matcher = IoUThreshold(positive=positive, negative=negative, force_match="low_quality", is_anchor_based=True)
    if cls_loss is None:
        cls_loss = SigmoidFocalLoss(alpha=alpha, gamma=gamma, reduction="none")
    if loc_loss is None:
        deltas = nn.SmoothL1Loss(beta=beta, reduction="none") if beta else nn.L1Loss(reduction="none")
        loc_loss = BoxSpace(deltas, DeltaCoder((1.0, 1.0, 1.0, 1.0)))
    if normalizer is None:
        normalizer = PerImageNormalizer() if style == "torchvision" else MovingAverageNormalizer()
    return DetectionLoss(cls_loss, loc_loss, matcher, "none", normalizer=normalizer)
