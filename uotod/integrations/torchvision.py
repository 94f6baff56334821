"""Detectors of torchvision: a model in, the same model trained by a criterion of this library out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from uotod.geometry.coders import DeltaCoder
from uotod.loss import BoxSpace, CIoULoss, DetectionLoss, DIoULoss, GIoULoss
from uotod.match import Matcher
from uotod.recipes import fcos, retinanet, ssd300
from uotod.utils import Points

N = "none"
# terms of the criterion by the names of the model's losses
NAMES = {"classification": "loss_cls", "bbox_regression": "loss_loc", "bbox_ctrness": "loss_obj"}


def set_criterion(model: Any, criterion: DetectionLoss | None = None, *, matcher: Matcher | None = None) -> Any:
    """Let a detector of torchvision train with a criterion of this library, and return it.

    In training the model returns the losses of the criterion under its own names, and a further one for each term that
    it has no name for. Evaluation, parameters and checkpoints stay as they are. To undo it, `del model.compute_loss`.

    Args:
        model: an `SSD` (SSDlite is one), a `RetinaNet` of either version or an `FCOS`.
        criterion: of boxes, xyxy in pixels, on the model's anchors; for SSD with the background first. By default that
            of the model: its recipe, with the model's thresholds, coder, kind of box loss and share of negatives.
        matcher: in place of the matcher of that default.

    Raises:
        TypeError: the model is none of these, or the criterion is no `DetectionLoss`.
        ValueError: a criterion is given with a matcher, or the model has a box loss that is not known.
    """
    if criterion is not None and not isinstance(criterion, DetectionLoss):
        raise TypeError(f"criterion must be a DetectionLoss, got {criterion!r}")
    if criterion is not None and matcher is not None:
        raise ValueError("matcher and criterion cannot be given together: the criterion has a matcher of its own")
    kind = _kind(model)
    criterion = _published(kind, model, matcher) if criterion is None else criterion
    coder = model.box_coder if kind == "fcos" else _coder(model)
    model.compute_loss = CriterionLoss(criterion.to(next(model.parameters()).device), coder, kind)
    return model


class CriterionLoss:
    """What a detector of torchvision calls as its `compute_loss`: no module, so that the model holds no part of it.

    Args:
        criterion: the criterion.
        coder: what makes boxes of the model's regression.
        kind: "ssd", "retinanet" or "fcos".
    """

    def __init__(self, criterion: DetectionLoss, coder: Any, kind: str) -> None:
        self.criterion, self.coder, self.kind = criterion, coder, kind

    def __repr__(self) -> str:
        return f"DetectionLoss of uotod with {type(self.criterion.matching_method).__name__}, in a model of {self.kind}"

    def __call__(
        self,
        targets: list[dict[str, Tensor]],
        head_outputs: dict[str, Tensor],
        anchors: list[Tensor],
        levels: Sequence[int] = (),
    ) -> dict[str, Tensor]:
        """Return the losses by the names of the model; `levels` are the anchors of each level of FCOS."""
        boxes = torch.stack(anchors)
        input = {"pred_logits": head_outputs["cls_logits"]}
        input["pred_boxes"] = self.coder.decode(head_outputs["bbox_regression"], boxes)
        if "bbox_ctrness" in head_outputs:
            input["pred_objectness"] = head_outputs["bbox_ctrness"].squeeze(-1)
        target = [{"labels": image["labels"], "boxes": image["boxes"]} for image in targets]
        self.criterion.to(boxes.device)
        terms = self.criterion.terms(input, target, _points(boxes[0], levels) if self.kind == "fcos" else boxes)
        own = {term: name for name, term in NAMES.items()}
        wanted = [f"loss_{term.name}" for term in self.criterion.all_terms]
        return {own.get(name, name): terms[name] for name in wanted}


def _points(cells: Tensor, levels: Sequence[int]) -> Points:
    """Return the points of the (P, 4) cells of all levels, each of its own stride."""
    level = torch.arange(len(levels), device=cells.device).repeat_interleave(torch.tensor(levels, device=cells.device))
    stride = cells[:, 2] - cells[:, 0]
    return Points((cells[:, :2] + cells[:, 2:]) / 2, stride, level, num_levels=len(levels))


def _kind(model: Any) -> str:
    """Return what kind of detector a model is, by its class."""
    names = {cls.__name__ for cls in type(model).__mro__ if cls.__module__.startswith("torchvision.models.detection.")}
    for name in ("SSD", "RetinaNet", "FCOS"):
        if name in names:
            return name.lower()
    raise TypeError(
        "model must be an SSD, a RetinaNet or an FCOS of torchvision.models.detection, got one of "
        f"{type(model).__name__}: call a criterion of your own on what its heads return"
    )


def _published(kind: str, model: Any, matcher: Matcher | None) -> DetectionLoss:
    """Return the criterion with the model's numbers."""
    head = model.head.classification_head
    if kind == "fcos":
        return fcos(head.num_classes, matcher=matcher)
    thresholds: dict[str, Any] = {}
    if kind == "ssd":
        if matcher is None:
            thresholds = {"iou_threshold": model.proposal_matcher.high_threshold}
        ratio, coder = float(model.neg_to_pos_ratio), _deltas(model, nn.SmoothL1Loss(reduction=N))
        classes = head.num_columns - 1
        return ssd300(classes, matcher=matcher, losses={"loc": coder}, neg_to_pos_ratio=ratio, **thresholds)
    if matcher is None:
        found = model.proposal_matcher
        thresholds = {"positive": found.high_threshold, "negative": found.low_threshold}
    name = getattr(model.head.regression_head, "_loss_type", "l1")
    known: dict[str, nn.Module] = {
        "l1": _deltas(model, nn.L1Loss(reduction=N)),
        "smooth_l1": _deltas(model, nn.SmoothL1Loss(reduction=N)),
        "giou": GIoULoss(reduction=N),
        "diou": DIoULoss(reduction=N),
        "ciou": CIoULoss(reduction=N),
    }
    if name not in known:
        raise ValueError(f"model must have a box loss among {sorted(known)}, got {name!r}: pass a criterion")
    return retinanet(head.num_classes, matcher=matcher, losses={"loc": known[name]}, **thresholds)


def _deltas(model: Any, loss: nn.Module) -> nn.Module:
    return BoxSpace(loss, _coder(model))


def _coder(model: Any) -> DeltaCoder:
    a, b, c, d = (float(x) for x in model.box_coder.weights)
    return DeltaCoder((a, b, c, d))
