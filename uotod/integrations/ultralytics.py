"""Detectors of ultralytics: a trainer in, one that trains with a criterion or a matcher of this library out."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from uotod.loss import DetectionLoss
from uotod.match import Matcher
from uotod.recipes import yolov8
from uotod.utils import Points, box_cxcywh_to_xyxy, distribution_to_box, pad_targets

# terms of the criterion by the names under which a trainer logs them, in its order
NAMES = {"box_loss": "loss_loc_box", "cls_loss": "loss_cls", "dfl_loss": "loss_loc_dfl"}


def trainer(
    base: type | None = None, *, criterion: DetectionLoss | None = None, matcher: Matcher | None = None
) -> type:
    """Return a class for `YOLO(...).train(trainer=...)` that trains YOLOv8 or YOLO11 with this library.

    The loss of the model and of its moving average is that of the criterion, in training and validation. Checkpoints
    hold nothing of it, and load where this library is not installed.

    Args:
        base: a subclass of `DetectionTrainer` of ultralytics; None for that itself.
        criterion: of boxes, xyxy in pixels, with `pred_dist` beside them and `Points` as anchors; by default
            `recipes.yolov8` with the gains of the training.
        matcher: in place of the matcher of that default.

    Raises:
        TypeError: the base is no trainer of detectors, or the criterion no `DetectionLoss`; in training, a model has
            no distribution of sides or two heads (YOLOv10, YOLO26).
        ValueError: a criterion is given with a matcher.
    """
    from ultralytics.models.yolo.detect import DetectionTrainer

    base = DetectionTrainer if base is None else base
    if not isinstance(base, type) or not issubclass(base, DetectionTrainer):
        raise TypeError(f"base must be a subclass of ultralytics' DetectionTrainer, got {base!r}")
    if criterion is not None and not isinstance(criterion, DetectionLoss):
        raise TypeError(f"criterion must be a DetectionLoss, got {criterion!r}")
    if criterion is not None and matcher is not None:
        raise ValueError("matcher and criterion cannot be given together: the criterion has a matcher of its own")

    def set_model_attributes(self: Any) -> None:
        base.set_model_attributes(self)  # type: ignore[attr-defined]
        self.model.criterion = CriterionLoss(self.model, criterion, matcher)

    return type(f"Uotod{base.__name__}", (base,), {"set_model_attributes": set_model_attributes})


def set_matcher(loss: Any, matcher: Matcher) -> Any:
    """Let a loss of ultralytics take its pairs from a matcher of this library, and return it.

    What the matcher gives to a target is the score that classification learns, and the weight of its boxes. A
    prediction has the target to which it gives most.

    Args:
        loss: a `v8DetectionLoss`; of a model with two heads, one of `loss.one2many` and `loss.one2one`.
        matcher: the matcher; its boxes are xyxy in pixels.

    Raises:
        TypeError: the loss has no assigner, or the matcher is none.
    """
    if not hasattr(loss, "assigner"):
        raise TypeError(
            f"loss must have an assigner, as v8DetectionLoss has, got {type(loss).__name__}: of a loss of two heads "
            "pass loss.one2many or loss.one2one"
        )
    if not isinstance(matcher, Matcher):
        raise TypeError(f"matcher must be a Matcher, got {matcher!r}")
    loss.assigner = Assigner(matcher, [float(x) for x in loss.stride])
    return loss


class Assigner:
    """A matcher in the place of an assigner of ultralytics.

    Args:
        matcher: the matcher.
        strides: of the levels, the finest first.
    """

    def __init__(self, matcher: Matcher, strides: list[float]) -> None:
        self.matcher, self.strides = matcher, strides

    def __call__(
        self,
        pd_scores: Tensor,
        pd_bboxes: Tensor,
        anc_points: Tensor,
        gt_labels: Tensor,
        gt_bboxes: Tensor,
        mask_gt: Tensor,
        **others: Any,
    ) -> tuple[Tensor, ...]:
        """Return labels, boxes and scores of the targets of predictions, which of them have one, and which."""
        labels = gt_labels.squeeze(-1).long()
        target = {"labels": labels, "boxes": gt_bboxes, "mask": mask_gt.squeeze(-1).bool()}
        input = {"pred_logits": pd_scores.logit(eps=1e-6), "pred_boxes": pd_bboxes}
        plan = self.matcher(input, target, Points(anc_points, _strides(anc_points, self.strides)))
        images, preds, classes = pd_scores.shape
        mass = plan[..., : gt_bboxes.shape[1]]
        if not mass.shape[-1]:
            none = torch.zeros(images, preds, dtype=torch.long, device=plan.device)
            return none + classes, torch.zeros_like(pd_bboxes), torch.zeros_like(pd_scores), none.bool(), none
        share, index = mass.max(-1)
        found = share > 0
        boxes = gt_bboxes.gather(1, index.unsqueeze(-1).expand(-1, -1, 4))
        label = labels.gather(1, index)
        scores = torch.zeros_like(pd_scores).scatter(-1, label.unsqueeze(-1), share.to(pd_scores).unsqueeze(-1))
        return label.masked_fill(~found, classes), boxes, scores, found, index


class CriterionLoss:
    """What a model of ultralytics calls as its `criterion`: no module, so that the model holds no part of it.

    Args:
        model: the model, which has the gains of the training in `args`.
        criterion: the criterion, None for the published one.
        matcher: in place of the matcher of that, or None.
    """

    def __init__(self, model: Any, criterion: DetectionLoss | None, matcher: Matcher | None) -> None:
        head, gains = model.model[-1], model.args
        if getattr(head, "one2one_cv2", None) is not None or getattr(head, "reg_max", 1) < 2:
            raise TypeError(
                "model must have one head with a distribution of sides, as YOLOv8 and YOLO11 have, got "
                f"{type(head).__name__} with reg_max={getattr(head, 'reg_max', None)}"
            )
        if criterion is None:
            weights = {"box": gains.box, "cls": gains.cls, "dfl": gains.dfl}
            criterion = yolov8(head.nc, matcher=matcher, weights=weights)
        self.criterion = criterion.to(next(model.parameters()).device)
        self.strides, self.bins = [float(x) for x in head.stride], int(head.reg_max)

    def __repr__(self) -> str:
        return f"DetectionLoss of uotod with {type(self.criterion.matching_method).__name__}"

    def __call__(self, preds: Any, batch: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the terms times the number of images, and the terms as they are logged."""
        outputs = preds[1] if isinstance(preds, tuple) else preds
        logits, features = outputs["scores"].transpose(1, 2), outputs["feats"]
        dist = outputs["boxes"].transpose(1, 2).unflatten(-1, (4, self.bins))
        shapes = [(int(x.shape[2]), int(x.shape[3])) for x in features]
        points = Points.from_levels(shapes, self.strides, dtype=torch.float32, device=logits.device)
        assert isinstance(points.stride, Tensor)
        boxes = distribution_to_box(dist.float(), points.centers, points.stride)
        size = logits.new_tensor([shapes[0][1], shapes[0][0]], dtype=torch.float32) * self.strides[0]
        input = {"pred_logits": logits, "pred_boxes": boxes, "pred_dist": dist}
        self.criterion.to(logits.device)
        terms = self.criterion.terms(input, _targets(batch, len(logits), size), points)
        found = torch.stack([terms[name] for name in NAMES.values() if name in terms])
        names = [key for key, name in NAMES.items() if name in terms]
        return found * len(logits), dict(zip(names, found.detach(), strict=True))


def _targets(batch: dict[str, Tensor], images: int, size: Tensor) -> dict[str, Tensor]:
    """Return padded targets in pixels of a batch whose boxes, centre and size, are fractions of the image."""
    image = batch["batch_idx"].to(size.device).long()
    boxes = box_cxcywh_to_xyxy(batch["bboxes"].to(size)) * size.repeat(2)
    labels = batch["cls"].to(size.device).long().flatten()
    return pad_targets([{"labels": labels[image == i], "boxes": boxes[image == i]} for i in range(images)])


def _strides(points: Tensor, strides: list[float]) -> Tensor:
    """Return the stride of each point, which lies in the middle of its cell, level after level."""
    levels = torch.tensor(strides, device=points.device, dtype=points.dtype)
    starts = (points.unsqueeze(1) == levels.unsqueeze(1) / 2).all(-1)  # (P, L), the first cell of a level
    return levels[starts.long().cumsum(0).ge(1).long().sum(1) - 1]
