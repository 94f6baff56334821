"""RetinaNet, as torchvision and as detectron2 train it: number of classes in, its criterion out."""

from functools import partial
from typing import Any

from torch import nn

from uotod.check import check_choice, check_number
from uotod.cost.alpha import Alpha
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
from uotod.recipes.dialect import Losses, Weights, choose_matcher, choose_parts


def retinanet(
    num_classes: int,
    *,
    matcher: Matcher | None = None,
    losses: Losses | None = None,
    weights: Weights | None = None,
    normalizer: Normalizer | None = None,
    style: str = "torchvision",
    positive: float | None = None,
    negative: float | None = None,
    alpha: Alpha | None = None,
    gamma: float | None = None,
    beta: float | None = None,
    nonfinite: str | None = None,
    box_format: str | None = None,
    validate: bool = False,
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
        num_classes: number of classes, without a background; compared with the logits.
        matcher: in place of the matcher.
        losses: losses by name in place of the published ones, under the same weights: "cls" and "loc". That of
            localisation is a loss of boxes; torchvision's second version has `{"loc": GIoULoss(reduction="none")}`.
        weights: weights by the same names, in place of those above.
        normalizer: in place of the normaliser.
        style: "torchvision" or "detectron2", whose numbers it has.
        positive: least IoU of a match that is not forced; None for 0.5.
        negative: IoU below which an anchor is background; None for 0.4.
        alpha: weight of positives in the focal loss, for all classes or, (C,), one for each; None for 0.25.
        gamma: its focusing exponent; None for 2.
        beta: difference at which the loss of deltas becomes linear, 0 for L1; None for that of the style.
        nonfinite: what to do with predictions that are not finite, "error" or "propagate", see `Matcher`; None for
            "error".
        box_format: "cxcywh" or "xywh" if predicted and target boxes are that, None for xyxy; a `matcher` must have the
            same.
        validate: also check values on a GPU, which synchronises.

    Raises:
        TypeError: a part is of the wrong type.
        ValueError: an argument is out of its range, a name is unknown, or an option of the matcher is given with
            `matcher`.

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
    check_choice("style", style, ("torchvision", "detectron2"))
    is_l1 = style == "torchvision"
    edge = check_number("beta", (0.0 if is_l1 else 0.1) if beta is None else beta, low=0.0)
    deltas = nn.SmoothL1Loss(beta=edge, reduction="none") if edge else nn.L1Loss(reduction="none")
    focal: dict[str, Any] = {"alpha": 0.25 if alpha is None else alpha, "gamma": 2.0 if gamma is None else gamma}
    published = {
        "cls": (SigmoidFocalLoss(**focal, reduction="none"), 1.0),
        "loc": (BoxSpace(deltas, DeltaCoder((1.0, 1.0, 1.0, 1.0))), 1.0),
    }
    parts = choose_parts(num_classes, losses, weights, published)
    parts.refuse("cls", alpha=alpha, gamma=gamma)
    parts.refuse("loc", beta=beta)
    if normalizer is None:
        normalizer = PerImageNormalizer() if is_l1 else MovingAverageNormalizer()

    rule = partial(IoUThreshold, positive=0.5, negative=0.4, force_match="low_quality", is_anchor_based=True)
    return DetectionLoss(
        parts.term("cls"),
        parts.localization(),
        choose_matcher(matcher, rule, box_format, positive=positive, negative=negative, nonfinite=nonfinite),
        "none",
        normalizer=normalizer,
        num_classes=num_classes,
        box_format=box_format,
        validate=validate,
    )
