"""Detectors of Ultralytics with losses of this library: a trainer class in, one whose model has another loss out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from uotod.geometry.boxes import box_cxcywh_to_xyxy, full_precision
from uotod.geometry.coders import DistanceCoder
from uotod.integrations.assigners import Assigner, PairMatcher, targets_of
from uotod.integrations.averages import update_averages
from uotod.loss import (
    BoxSpace,
    Branches,
    CIoULoss,
    DetectionLoss,
    DistributionFocalLoss,
    MultipleObjectiveLoss,
)
from uotod.match import Matcher
from uotod.recipes import rt_detr, yolo26, yolov8
from uotod.utils import Points, distribution_to_box

Criterion = DetectionLoss | Branches
Values = dict[str, Any]

SUPPORTED = "a model of Ultralytics for boxes: YOLOv8, YOLOv10, YOLO11, YOLO26 or RT-DETR"


def trainer(base: Any = None, *, criterion: Criterion | None = None, matcher: Matcher | None = None) -> Any:
    """Return a trainer whose model, and the moving average of it, have another loss, for `YOLO(…).train(trainer=…)`.

    What it saves does not hold the loss, and loads where this library is not installed. Schedules follow the epoch.

    Args:
        base: a `DetectionTrainer` of Ultralytics, `RTDETRTrainer` for RT-DETR; None for `DetectionTrainer` itself.
        criterion: see `set_criterion`.
        matcher: see `set_criterion`.

    Returns:
        A subclass of `base`.

    Raises:
        ImportError: Ultralytics is not installed.
        TypeError: `base` is no such trainer, or an argument has the wrong type; in training: the model is another one.
        ValueError: both a criterion and a matcher are given.

    Examples:
        >>> from ultralytics import YOLO  # doctest: +SKIP
        >>> YOLO("yolo11n.yaml").train(trainer=trainer(matcher=UnbalancedSinkhorn(...)), data=...)  # doctest: +SKIP
    """
    _require()
    from ultralytics.models.yolo.detect import DetectionTrainer
    from ultralytics.utils.torch_utils import unwrap_model

    parent: Any = DetectionTrainer if base is None else base
    if not (isinstance(parent, type) and issubclass(parent, DetectionTrainer)):
        raise TypeError(f"base must be a DetectionTrainer of Ultralytics, or a subclass of it, got {base!r}")
    _check_choice(criterion, matcher)

    class Trainer(parent):  # type: ignore[misc]
        """A trainer with a loss of uotod."""

        def set_model_attributes(self) -> None:
            _head(unwrap_model(self.model))  # an error before data is read
            super().set_model_attributes()

        def _setup_train(self, *args: Any, **kwargs: Any) -> None:
            super()._setup_train(*args, **kwargs)
            model = set_criterion(unwrap_model(self.model), criterion, matcher=matcher)
            model.criterion.set_step(self.start_epoch)  # where a resumed training starts
            _attach(self.ema.ema, model.criterion)  # one loss, whose epoch and averages are those of the training

        def save_model(self) -> Any:
            average = self.ema.ema
            kept, average.criterion = average.criterion, None
            try:
                return super().save_model()
            finally:
                average.criterion = kept

    Trainer.__name__ = Trainer.__qualname__ = f"Criterion{parent.__name__}"
    return Trainer


def set_criterion(model: Any, criterion: Criterion | None = None, *, matcher: Matcher | None = None) -> Any:
    """Give a model of Ultralytics another loss: its attribute `criterion`, for a loop of one's own.

    The criterion gets boxes, points and strides in pixels, of distributions their logits as `pred_dist`, and the size
    of the images as `image_size`; of RT-DETR boxes as fractions of the image, the encoder's queries as the first of the
    `aux_outputs`, and denoising queries with their plan as `dn_outputs`. A second, one-to-many head is
    `one2many_outputs`. As in Ultralytics the loss of a YOLO is that of the batch times the number of images.

    Without a criterion it is the published one with the gains, the epochs and the class weights of this very model:
    `recipes.yolov8`, `recipes.yolo26` or `recipes.rt_detr`. Predictions that are not finite make its loss NaN, of which
    the trainers of Ultralytics recover.

    Args:
        model: the `DetectionModel` or `RTDETRDetectionModel`, its `args` those of a training; its head must be
            `Detect`, `v10Detect` or `RTDETRDecoder`.
        criterion: a loss for it.
        matcher: in place of the matcher of the published criterion; where there are two heads, of the one-to-one head.

    Returns:
        The model.

    Raises:
        ImportError: Ultralytics is not installed.
        TypeError: the model is another one, or an argument has the wrong type.
        ValueError: both a criterion and a matcher are given, or the model has no gains.
    """
    _require()
    _check_choice(criterion, matcher)
    head = _head(model)
    if not hasattr(head, "reg_max"):
        if criterion is None:
            options: Values = {"nonfinite": "propagate"} if matcher is None else {"matcher": matcher}
            criterion = rt_detr(head.nc, style="ultralytics", **options)
        return _attach(model, RTDETRLoss(criterion))
    criterion = _published(_student(model), head, matcher) if criterion is None else criterion
    return _attach(model, YOLOLoss(criterion, head.stride.tolist(), head.reg_max))


def set_matcher(loss: Any, matcher: Matcher) -> Any:
    """Exchange the assigner of a loss of Ultralytics, and leave everything else to it.

    A YOLO's loss has one target a prediction: where a plan splits the mass of one, its classes get all of it, but its
    box learns the target of the largest mass, weighted by all. That of RT-DETR knows pairs only. `set_criterion` has
    neither restriction.

    Args:
        loss: a `v8DetectionLoss`, or `one2many` or `one2one` of an `E2ELoss`; or an `RTDETRDetectionLoss`.
        matcher: the matcher. It gets boxes, points and strides in pixels, of RT-DETR boxes as fractions of the image.

    Returns:
        The loss.

    Raises:
        ImportError: Ultralytics is not installed.
        TypeError: the loss is another one, or `matcher` no matcher.
    """
    _require()
    from ultralytics.models.utils.loss import RTDETRDetectionLoss
    from ultralytics.utils.loss import v8DetectionLoss

    if not isinstance(matcher, Matcher):
        raise TypeError(f"matcher must be a Matcher, got {matcher!r} of type {type(matcher).__name__}")
    if type(loss) is v8DetectionLoss:
        loss.assigner = Assigner(matcher, loss.stride.tolist(), loss.nc)
    elif type(loss) is RTDETRDetectionLoss:
        loss.matcher = PairMatcher(matcher)
    else:
        raise TypeError(
            "loss must be a v8DetectionLoss (of an E2ELoss its one2many or one2one) or an RTDETRDetectionLoss of "
            f"Ultralytics, got {type(loss).__name__}"
        )
    return loss


class ModelLoss:
    """What a model of Ultralytics calls as its `criterion`.

    It is no module, so that the parameters and the `state_dict` of the model stay what they are.

    Args:
        criterion: the loss.
    """

    def __init__(self, criterion: Criterion) -> None:
        self.criterion = criterion
        self.updates = 0

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.criterion!r})"

    def set_step(self, step: int) -> None:
        """Set the epoch at which schedules are read."""
        self.updates = step
        self.criterion.set_step(step)

    def update(self) -> None:
        """Count an epoch, as the trainers of Ultralytics do at its end."""
        self.set_step(self.updates + 1)


class YOLOLoss(ModelLoss):
    """The loss of a `Detect` head.

    Args:
        criterion: the loss.
        strides: strides of the feature maps, in pixels.
        bins: number of bins of the distance of a side; 1 for the distance itself.
    """

    def __init__(self, criterion: Criterion, strides: Sequence[float], bins: int) -> None:
        super().__init__(criterion)
        self.strides = strides
        self.bins = bins

    def __call__(self, preds: Any, batch: Mapping[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the loss, times the number of images, and what is shown of it."""
        input, target, points = self.convert(preds, batch)
        logits = input["pred_logits"]
        terms = self.criterion.to(logits.device).terms(input, target, points)
        update_averages(self.criterion, terms)
        return terms["loss"] * len(logits), self._shown(terms)

    def convert(self, preds: Any, batch: Mapping[str, Tensor]) -> tuple[Values, list[dict[str, Tensor]], Points]:
        """Return input, target and anchors as a criterion takes them."""
        heads = preds[1] if isinstance(preds, tuple) else preds
        first = heads.get("one2one", heads)
        shapes = [x.shape[2:] for x in first["feats"]]
        height, width = (int(n * self.strides[0]) for n in shapes[0])
        points = Points.from_levels(shapes, self.strides, device=first["scores"].device)
        input = self._predictions(first, points)
        if "one2many" in heads:
            input["one2many_outputs"] = self._predictions(heads["one2many"], points)
        images = len(input["pred_logits"])
        size = points.centers.new_tensor([width, height])
        input["image_size"] = size.expand(images, -1)
        image, labels, boxes = (batch[key].to(size.device) for key in ("batch_idx", "cls", "bboxes"))
        image = image.long().view(-1)
        order, counts = image.argsort(stable=True), torch.bincount(image, minlength=images).tolist()
        return input, targets_of(labels.long().view(-1)[order], (boxes * size.repeat(2))[order], counts), points

    def _predictions(self, head: Mapping[str, Tensor], points: Points) -> Values:
        sides = full_precision(head["boxes"].transpose(1, 2))  # (B, P, 4 * bins)
        input = {"pred_logits": head["scores"].transpose(1, 2)}
        assert isinstance(points.stride, Tensor)
        if self.bins == 1:
            return input | {"pred_boxes": DistanceCoder(by_stride=True).decode(sides, points.centers, points.stride)}
        dist = sides.reshape(*sides.shape[:2], 4, self.bins)
        return input | {"pred_dist": dist, "pred_boxes": distribution_to_box(dist, points.centers, points.stride)}

    def _shown(self, terms: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the parts of the loss of the head that predicts, by the names of Ultralytics, without its weight."""
        whole = self.criterion
        main, weight = (whole.main, whole.main_weight or 1.0) if isinstance(whole, Branches) else (whole, 1.0)
        shown = {}
        for term in main.all_terms:
            parts = [f"{term.name}_{part.name}" for part in term.parts]
            for name in parts if len(parts) > 1 else [term.name]:
                key = {"loc": "box"}.get(name, name.removeprefix("loc_"))
                shown[f"{key}_loss"] = terms[f"loss_{name}"].detach() / weight
        return shown


class RTDETRLoss(ModelLoss):
    """The loss of an `RTDETRDecoder`."""

    def __call__(
        self,
        preds: tuple[Tensor, Tensor],
        batch: Mapping[str, Any],
        dn_bboxes: Tensor | None = None,
        dn_scores: Tensor | None = None,
        dn_meta: Mapping[str, Any] | None = None,
    ) -> dict[str, Tensor]:
        """Return the losses that are shown, and the rest; the model adds them up."""
        input, target = self.convert(preds, batch, dn_bboxes, dn_scores, dn_meta)
        terms = self.criterion.to(preds[0].device).terms(input, target)
        update_averages(self.criterion, terms)
        zero, boxes = terms["loss"].new_zeros(()), terms.get("loss_loc")
        shown = {
            "loss_giou": terms.get("loss_loc_giou", zero),
            "loss_class": terms.get("loss_cls", zero),
            "loss_bbox": terms.get("loss_loc_l1", zero if boxes is None else boxes - terms.get("loss_loc_giou", zero)),
        }
        return shown | {"loss_other": terms["loss"] - sum(shown.values())}

    def convert(
        self,
        preds: tuple[Tensor, Tensor],
        batch: Mapping[str, Any],
        dn_bboxes: Tensor | None = None,
        dn_scores: Tensor | None = None,
        dn_meta: Mapping[str, Any] | None = None,
    ) -> tuple[Values, list[dict[str, Tensor]]]:
        """Return input and target as a criterion takes them."""
        counts = list(batch["gt_groups"])
        targets = targets_of(batch["cls"], batch["bboxes"], counts)
        input = _layers(*preds)
        if dn_meta is not None and dn_bboxes is not None and dn_scores is not None:
            plan = torch.full(dn_scores.shape[1:3], max(counts))
            first = 0
            for row, place, index, count in zip(plan, dn_meta["dn_pos_idx"], dn_meta["dn_gt_idx"], counts, strict=True):
                row[place] = index.repeat(dn_meta["dn_num_group"]) - first
                first += count
            input["dn_outputs"] = _layers(dn_bboxes, dn_scores) | {"plan": plan.to(dn_scores.device)}
        return input, targets


def _layers(boxes: Tensor, logits: Tensor) -> Values:
    """Return the input of (L, B, P, ...) decoder layers, of which the last is the final one."""
    corners = box_cxcywh_to_xyxy(full_precision(boxes))
    *earlier, final = ({"pred_logits": x, "pred_boxes": y} for x, y in zip(logits, corners, strict=True))
    return final | {"aux_outputs": earlier}


def _head(model: Any) -> Any:
    """Return the head of a model that is supported, `Detect` or `RTDETRDecoder`."""
    from ultralytics.nn.modules.head import Detect, RTDETRDecoder, v10Detect

    layers = getattr(_student(model), "model", None)
    head: Any = layers[-1] if isinstance(layers, nn.Sequential) else None
    if type(head) in (Detect, v10Detect, RTDETRDecoder):  # subclasses have other outputs: masks, keypoints, angles
        return head
    found = type(model).__name__ + ("" if head is None else f" with the head {type(head).__name__}")
    raise TypeError(f"model must be {SUPPORTED}, got {found}")


def _published(model: Any, head: Any, matcher: Matcher | None) -> Criterion:
    """Return the criterion of a `Detect` head with the numbers of its model."""
    args = getattr(model, "args", None)
    given = args if isinstance(args, Mapping) else vars(args) if hasattr(args, "__dict__") else {}
    two_heads = getattr(head, "one2one_cv2", None) is not None
    missing = [name for name in ("box", "cls", "dfl", *(["epochs"] if two_heads else [])) if name not in given]
    if missing:
        raise ValueError(f"model.args must hold the numbers of a training, got none for {missing}; or give a criterion")
    weight = getattr(model, "class_weights", None)
    sides: dict[str, nn.Module] = {"dfl": DistributionFocalLoss(reduction="none")}
    if head.reg_max == 1:  # the mean of the four sides
        sides = {"l1": BoxSpace(nn.L1Loss(reduction="none"), "xyxy", image_size="input")}
    gains = [given["box"], given["dfl"] / 4 if "l1" in sides else given["dfl"]]
    losses = {
        "cls": nn.BCEWithLogitsLoss(weight=None if weight is None else weight.view(-1).float(), reduction="none"),
        "loc": MultipleObjectiveLoss({"box": CIoULoss(reduction="none")} | sides, gains),
    }
    options: Values = {"losses": losses, "weights": {"cls": given["cls"]}}
    options |= {"nonfinite": "propagate"} if matcher is None else {"matcher": matcher}
    if two_heads:
        return yolo26(head.nc, epochs=given["epochs"], **options)
    return yolov8(head.nc, **options)


def _attach(model: Any, loss: ModelLoss) -> Any:
    learns = _student(model)
    learns._modules.pop("criterion", None)  # theirs may be a module, in whose place nothing else can be assigned
    learns.criterion = loss
    return model


def _student(model: Any) -> Any:
    """Return the model that is trained, where it learns from another one."""
    return getattr(model, "student_model", model)


def _check_choice(criterion: Criterion | None, matcher: Matcher | None) -> None:
    if criterion is not None and not isinstance(criterion, (DetectionLoss, Branches)):
        raise TypeError(
            f"criterion must be a DetectionLoss or Branches, got {criterion!r} of type {type(criterion).__name__}"
        )
    if matcher is not None and not isinstance(matcher, Matcher):
        raise TypeError(f"matcher must be a Matcher, got {matcher!r} of type {type(matcher).__name__}")
    if criterion is not None and matcher is not None:
        raise ValueError("criterion and matcher cannot be given together: the criterion has a matcher")


def _require() -> None:
    try:
        import ultralytics  # noqa: F401
    except ImportError as error:
        raise ImportError("this needs Ultralytics: pip install ultralytics") from error
