"""Detectors of torchvision with losses of this library: a model in, the same with another training loss out."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from uotod.check import Described
from uotod.geometry.boxes import full_precision
from uotod.integrations.averages import update_averages
from uotod.loss import CIoULoss, DetectionLoss, DIoULoss, GIoULoss
from uotod.match import FCOS, IoUThreshold, Matcher
from uotod.recipes import fcos, retinanet, ssd300
from uotod.utils import Points

SUPPORTED = "SSD (SSDlite too), RetinaNet (v1 and v2) or FCOS of torchvision.models.detection"
KEYS = {"cls": "classification", "loc": "bbox_regression", "obj": "bbox_ctrness"}  # of their terms


def set_criterion(model: Any, criterion: DetectionLoss | None = None, *, matcher: Matcher | None = None) -> Any:
    """Give a detector of torchvision another loss in training; what it does in evaluation is untouched.

    The criterion gets the anchors of the model and its boxes, decoded by the coder of the model, all in pixels, and the
    targets as they are. FCOS hands over `Points`, whose strides are the sizes of its anchors, and the centerness as
    `pred_objectness`. The losses come back under the keys of torchvision.

    Without a criterion it is the published one with the numbers of this very model: `recipes.ssd300`,
    `recipes.retinanet` or `recipes.fcos`. Predictions that are not finite make its loss NaN, as in torchvision.

    The model can be copied and pickled with its loss, and its `state_dict` is what it was. `del model.compute_loss`
    brings the loss of torchvision back, as scripting needs it.

    Args:
        model: the detector: SSD, SSDlite, RetinaNet (v1 or v2) or FCOS.
        criterion: a loss for it; of SSD with `bg_class_position="first"`, of the others with "none".
        matcher: in place of the matcher of the published criterion.

    Returns:
        The model.

    Raises:
        ImportError: torchvision is not installed.
        TypeError: the model is another one, or has parts whose numbers are not known; an argument has the wrong type.
        ValueError: both a criterion and a matcher are given, or the criterion does not fit the model.

    Examples:
        >>> from torchvision.models.detection import ssd300_vgg16  # doctest: +SKIP
        >>> model = set_criterion(ssd300_vgg16(), matcher=UnbalancedSinkhorn(...))  # doctest: +SKIP
    """
    build, background = _family(model)
    if criterion is None:
        criterion = build(model, _classes(model), matcher)
    elif matcher is not None:
        raise ValueError("criterion and matcher cannot be given together: the criterion has a matcher")
    _check_criterion(criterion, background)
    model.compute_loss = TrainingLoss(criterion, model.box_coder)
    return model


class TrainingLoss:
    """What a model calls in place of its `compute_loss`: a criterion, and the coder of the model.

    It is no module, so that the parameters and the `state_dict` of the model stay what they are.

    Args:
        criterion: the loss.
        coder: the coder of the model.
    """

    def __init__(self, criterion: DetectionLoss, coder: Any) -> None:
        self.criterion = criterion
        self.coder = coder

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.criterion!r})"

    def __call__(
        self, targets: Sequence[Mapping[str, Tensor]], outputs: Mapping[str, Tensor], anchors: Sequence[Tensor], *_: Any
    ) -> dict[str, Tensor]:
        """Return the losses by the keys of torchvision; what it calls this with beside them is not needed."""
        terms = self.criterion.to(outputs["cls_logits"].device).terms(*self.convert(targets, outputs, anchors))
        update_averages(self.criterion, terms)
        found = (term.name for term in self.criterion.all_terms)
        return {KEYS.get(name, name): terms[f"loss_{name}"] for name in found}

    def convert(
        self, targets: Sequence[Mapping[str, Tensor]], outputs: Mapping[str, Tensor], anchors: Sequence[Tensor]
    ) -> tuple[dict[str, Tensor], list[dict[str, Tensor]], Tensor | Points]:
        """Return input, target and anchors as a criterion takes them; see `__call__`."""
        values = full_precision(outputs["bbox_regression"])  # which the coder would round the anchors to
        input = {"pred_logits": outputs["cls_logits"], "pred_deltas": values}
        target, places = [dict(image) for image in targets], torch.stack(list(anchors)).to(values.dtype)
        if "bbox_ctrness" not in outputs:
            boxes = self.coder.decode_single(values.flatten(0, 1), places.flatten(0, 1)).view_as(values)
            return input | {"pred_boxes": boxes}, target, places
        input |= {
            "pred_boxes": self.coder.decode(values, places),
            "pred_objectness": outputs["bbox_ctrness"].squeeze(-1),
        }
        first = places[0]  # of all images, for they are padded to one size
        return input, target, Points((first[:, :2] + first[:, 2:]) / 2, first[:, 2] - first[:, 0])


class DeltaLoss(Described):
    """The loss of predicted deltas against those of the target, as the coder of a model encodes it.

    Nothing is decoded, so that there is a gradient also where the coder bounds a size.

    Args:
        loss: a loss of values with `reduction="none"`.
        coder: the coder of the model.

    Shape:
        pred_deltas, target_boxes, anchors: (N, 4). Output: (N, 4).
    """

    needs = ("pred_deltas", "target_boxes", "anchors")

    def __init__(self, loss: nn.Module, coder: Any) -> None:
        super().__init__()
        self.loss = loss
        self.coder = coder

    def forward(self, pred_deltas: Tensor, target_boxes: Tensor, anchors: Tensor) -> Tensor:
        """Return the loss of each value."""
        loss: Tensor = self.loss(pred_deltas, self.coder.encode_single(target_boxes, anchors))
        return loss


Build = Callable[[Any, int, Matcher | None], DetectionLoss]


def _family(model: Any) -> tuple[Build, str]:
    """Return what builds the published criterion of a model, and where its logits have the background."""
    try:
        from torchvision.models.detection import fcos as points, retinanet as net, ssd
    except ImportError as error:
        raise ImportError("set_criterion needs torchvision: pip install torchvision") from error
    families: list[tuple[type, Build, str]] = [
        (ssd.SSD, _ssd, "first"),
        (net.RetinaNet, _retinanet, "none"),
        (points.FCOS, _fcos, "none"),
    ]
    for family, build, background in families:
        if isinstance(model, family):
            return build, background
    raise TypeError(f"model must be {SUPPORTED}, got {type(model).__name__}")


def _check_criterion(criterion: DetectionLoss, background: str) -> None:
    """Raise an error unless a criterion reads logits and boxes as the model has them."""
    if not isinstance(criterion, DetectionLoss):
        raise TypeError(f"criterion must be a DetectionLoss, got {criterion!r} of type {type(criterion).__name__}")
    if criterion.bg_class_position != background:
        raise ValueError(
            f"criterion must have bg_class_position={background!r} like the model, got {criterion.bg_class_position!r}"
        )
    for name in ("box_format", "target_format"):
        if getattr(criterion, name) not in (None, "xyxy"):
            raise ValueError(f"criterion must have {name}=None, for boxes are xyxy, got {getattr(criterion, name)!r}")


def _classes(model: Any) -> int:
    """Return the number of logits of a model."""
    head = getattr(model.head, "classification_head", None)
    classes = getattr(head, "num_columns", getattr(head, "num_classes", None))
    if not isinstance(classes, int):
        raise TypeError(
            "model.head must be that of torchvision, whose number of classes is known, got "
            f"{type(model.head).__name__}; give a criterion"
        )
    return classes


def _iou_threshold(model: Any, kind: str) -> Callable[..., IoUThreshold]:
    """Return a matcher with the thresholds of a model, whose matcher must be the one that torchvision calls `kind`."""
    from torchvision.models.detection import _utils

    rule = model.proposal_matcher
    if type(rule) is not getattr(_utils, kind):
        raise TypeError(
            f"model.proposal_matcher must be the {kind} of torchvision, whose rule is known, got "
            f"{type(rule).__name__}; give a matcher or a criterion"
        )
    thresholds = {"positive": rule.high_threshold, "negative": rule.low_threshold}
    return partial(IoUThreshold, **thresholds, is_anchor_based=True, nonfinite="propagate")


def _ssd(model: Any, logits: int, matcher: Matcher | None) -> DetectionLoss:
    if matcher is None:
        matcher = _iou_threshold(model, "SSDMatcher")(force_match="best")
    loss = DeltaLoss(nn.SmoothL1Loss(reduction="none"), model.box_coder)
    return ssd300(logits - 1, matcher=matcher, losses={"loc": loss}, neg_to_pos_ratio=model.neg_to_pos_ratio)


def _retinanet(model: Any, logits: int, matcher: Matcher | None) -> DetectionLoss:
    head: Any = getattr(model.head, "regression_head", None)
    losses: dict[str, Callable[[], nn.Module]] = {
        "l1": lambda: DeltaLoss(nn.L1Loss(reduction="none"), head.box_coder),
        "smooth_l1": lambda: DeltaLoss(nn.SmoothL1Loss(reduction="none"), head.box_coder),
        "giou": lambda: GIoULoss(reduction="none"),  # v2
        "diou": lambda: DIoULoss(reduction="none"),
        "ciou": lambda: CIoULoss(reduction="none"),
    }
    kind = getattr(head, "_loss_type", None)
    if kind not in losses:
        raise TypeError(
            f"model.head.regression_head must be that of torchvision with a loss among {[*losses]}, got "
            f"{type(head).__name__} with {kind!r}; give a criterion"
        )
    if matcher is None:
        lowest = "low_quality" if model.proposal_matcher.allow_low_quality_matches else None
        matcher = _iou_threshold(model, "Matcher")(force_match=lowest)
    return retinanet(logits, matcher=matcher, losses={"loc": losses[kind]()})


def _fcos(model: Any, logits: int, matcher: Matcher | None) -> DetectionLoss:
    rule = FCOS(radius=model.center_sampling_radius, nonfinite="propagate") if matcher is None else matcher
    return fcos(logits, matcher=rule)
