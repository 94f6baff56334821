"""YOLO26: the number of classes in, the criterion of its one-to-one and one-to-many heads out."""

from dataclasses import dataclass
from functools import partial

from torch import nn

from uotod.check import check_integer
from uotod.loss import BoxSpace, Branch, Branches, CIoULoss, DetectionLoss, Normalizer, ScoreNormalizer
from uotod.match import Matcher, TaskAligned
from uotod.recipes.dialect import Losses, Weights, choose_matcher, choose_parts


def yolo26(
    num_classes: int,
    *,
    matcher: Matcher | None = None,
    losses: Losses | None = None,
    weights: Weights | None = None,
    normalizer: Normalizer | None = None,
    epochs: int = 100,
    nonfinite: str | None = None,
    box_format: str | None = None,
    validate: bool = False,
) -> Branches:
    r"""Build the criterion of YOLO26, whose two heads are trained together.

    ============== =================================================================================
    one-to-one     `TaskAligned(topk=7, topk2=1)`, times :math:`1 - \lambda`
    one-to-many    `TaskAligned()`, times :math:`\lambda`, which falls linearly from 0.8 in the first
                   epoch to 0.1 in the last
    classification 0.5 · binary cross-entropy to the soft target :math:`\hat s`
    localisation   7.5 · CIoU + 0.375 · L1 of the corners in fractions of the image (1.5 times the
                   mean of the four sides), both weighted by :math:`\hat s`
    normaliser     `ScoreNormalizer()` in each head: :math:`\max(1, \sum \hat s)` over the batch, of
                   this process
    ============== =================================================================================

    Its input are the predictions of the one-to-one head, with those of the other as the dict `one2many_outputs`: each
    has `pred_logits` (B, P, C) without a background class and `pred_boxes` (B, P, 4), xyxy in pixels. `image_size`
    (B, 2) is width and height of the images. `anchors` are `Points` with strides in pixels. Call
    `criterion.set_step(epoch)` before each epoch, counted from 0.

    As with `yolov8` the loss is that of the batch; ultralytics returns it times the number of images. The terms of the
    heads contain :math:`\lambda`.

    Args:
        num_classes: number of classes, without a background; compared with the logits.
        matcher: in place of the matcher of the one-to-one head. The mass of its plan is the soft target.
        losses: losses by name in place of the published ones, under the same weights: "cls", "box" and "l1"; or "loc",
            in place of the sum of the boxes, with weight 1.
        weights: weights by the same names, in place of those above; with 0 a part of the sum is left out. Without "l1"
            `image_size` is not needed.
        normalizer: in place of the normaliser of the one-to-one head.
        epochs: number of epochs of the training, over which the weights of the heads change.
        nonfinite: what to do with predictions that are not finite, "error" or "propagate", see `Matcher`; None for
            "error".
        box_format: "cxcywh" or "xywh" if predicted and target boxes are that, None for xyxy; a `matcher` must have the
            same.
        validate: also check values on a GPU, which synchronises.

    Raises:
        TypeError: a part is of the wrong type.
        ValueError: an argument is out of its range, a name is unknown, or an option of the matcher is given with
            `matcher`.

    Differences: those of `yolov8`.

    References:
        Jocher et al., "Ultralytics YOLO26", 2026 (the numbers are those of its `E2ELoss`, 8.4).

    Examples:
        >>> import torch
        >>> from uotod.utils import Points
        >>> points = Points.from_levels([(4, 4), (2, 2)], strides=[8, 16])
        >>> boxes = torch.cat((points.centers - 8, points.centers + 8), -1)[None]
        >>> one = {"pred_logits": torch.zeros(1, 20, 3), "pred_boxes": boxes}
        >>> target = {"boxes": torch.tensor([[[2.0, 2.0, 22.0, 22.0]]]), "labels": torch.tensor([[1]])}
        >>> criterion = yolo26(3, epochs=10)
        >>> input = one | {"one2many_outputs": one, "image_size": torch.tensor([[32.0, 32.0]])}
        >>> criterion.set_step(9)
        >>> terms = criterion.terms(input, target, points)
        >>> [(name, round(float(terms[name]), 2)) for name in ("loss_loc_box", "loss_loc_box_one2many")]
        [('loss_loc_box', 1.56), ('loss_loc_box_one2many', 0.2)]
    """
    check_integer("epochs", epochs, low=1)
    corners = BoxSpace(nn.L1Loss(reduction="none"), "xyxy", image_size="input")
    published = {
        "cls": (nn.BCEWithLogitsLoss(reduction="none"), 0.5),
        "box": (CIoULoss(reduction="none"), 7.5),
        "l1": (corners, 0.375),
    }
    parts = choose_parts(num_classes, losses, weights, published)

    def head(matcher: Matcher, normalizer: Normalizer) -> DetectionLoss:
        return DetectionLoss(
            parts.term("cls"),
            parts.localization(),
            matcher,
            "none",
            normalizer=normalizer,
            num_classes=num_classes,
            box_format=box_format,
            validate=validate,
        )

    rule = partial(TaskAligned, topk=7, topk2=1)
    one = head(
        choose_matcher(matcher, rule, box_format, nonfinite=nonfinite),
        ScoreNormalizer() if normalizer is None else normalizer,
    )
    many = head(TaskAligned(nonfinite=one.matching_method.nonfinite, box_format=box_format), ScoreNormalizer())
    share = Share(epochs)
    return Branches(one, main_weight=share.of_one, one2many_outputs=Branch(many, share))


@dataclass(frozen=True)
class Share:
    """The weight of the one-to-many head in each epoch.

    Attributes:
        epochs: number of epochs.
    """

    epochs: int

    def __call__(self, epoch: int) -> float:
        """Return the weight, which falls linearly from 0.8 to 0.1."""
        return 0.1 + 0.7 * max(1 - epoch / max(self.epochs - 1, 1), 0)

    def of_one(self, epoch: int) -> float:
        """Return the weight of the one-to-one head, what is left to 1."""
        return 1 - self(epoch)
