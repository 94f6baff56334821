"""The criteria of other libraries on the problems of `workloads`, each a function from nothing to its loss.

A peer that is not installed is left out; `missing` says which. Losses are those of the published recipes, so that ours
can be compared with them number by number before anything is timed.
"""

from collections.abc import Callable
from importlib.util import find_spec

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.workloads import Problem, Workload
from uotod.utils import box_iou, box_xyxy_to_cxcywh

Criterion = Callable[[], Tensor]


def peers(workload: Workload, problem: Problem) -> dict[str, Criterion]:
    """Return the peers that are installed and that know the kind of the workload."""
    found: dict[str, Criterion] = {}
    if workload.kind == "detr" and find_spec("transformers"):
        found["transformers"] = _transformers_detr(workload, problem)
    if workload.kind == "dino" and find_spec("transformers"):
        found["transformers"] = _transformers_deformable_detr(workload, problem)
    if workload.kind == "ssd":
        found["loop over images"] = _ssd_by_image(problem)
    if workload.kind == "yolo" and find_spec("ultralytics"):
        found["ultralytics"] = _ultralytics(workload, problem)
    return found


def missing() -> list[str]:
    """Return the names of the peers that are not installed."""
    return [name for name in ("transformers", "ultralytics") if not find_spec(name)]


def _transformers_detr(workload: Workload, problem: Problem) -> Criterion:
    from transformers.loss.loss_for_object_detection import HungarianMatcher, ImageLoss

    matcher = HungarianMatcher(class_cost=1, bbox_cost=5, giou_cost=2)
    criterion = ImageLoss(matcher, workload.classes, eos_coef=0.1, losses=["labels", "boxes"])
    return _transformers(criterion, problem, {"loss_ce": 1.0, "loss_bbox": 5.0, "loss_giou": 2.0})


def _transformers_deformable_detr(workload: Workload, problem: Problem) -> Criterion:
    from transformers.loss.loss_deformable_detr import (
        DeformableDetrHungarianMatcher,
        DeformableDetrImageLoss,
    )

    matcher = DeformableDetrHungarianMatcher(class_cost=2, bbox_cost=5, giou_cost=2)
    criterion = DeformableDetrImageLoss(matcher, workload.classes, focal_alpha=0.25, losses=["labels", "boxes"])
    return _transformers(criterion, problem, {"loss_ce": 2.0, "loss_bbox": 5.0, "loss_giou": 2.0})


def _transformers(criterion: torch.nn.Module, problem: Problem, weights: dict[str, float]) -> Criterion:
    targets = [{"class_labels": t["labels"], "boxes": box_xyxy_to_cxcywh(t["boxes"])} for t in problem.targets]

    def loss() -> Tensor:
        boxes = box_xyxy_to_cxcywh(problem.boxes)
        layers = [{"logits": x, "pred_boxes": y} for x, y in zip(problem.logits, boxes, strict=True)]
        terms = criterion({**layers[-1], "auxiliary_outputs": layers[:-1]}, targets)
        weighted = [weights[key.rstrip("_0123456789")] * value for key, value in terms.items()]
        return torch.stack(weighted).sum()

    return loss


def _ssd_by_image(problem: Problem) -> Criterion:
    """Return SSD's loss as implementations of it go: image by image, the anchor's IoU, deltas and 3:1 mining."""
    assert problem.anchors is not None
    anchors = problem.anchors.places

    def loss() -> Tensor:
        logits, boxes = problem.logits[-1], problem.boxes[-1]
        localization, labels = logits.new_zeros(()), torch.zeros(logits.shape[:2], dtype=torch.long)
        for image, target in enumerate(problem.targets):
            iou = box_iou(target["boxes"], anchors)
            value, index = iou.max(0)
            best = iou.argmax(1)
            value[best], index[best] = 2.0, torch.arange(len(best))
            positive = (value >= 0.5).nonzero().squeeze(1)
            matched = target["boxes"][index[positive]]
            localization = localization + F.smooth_l1_loss(boxes[image, positive], matched, reduction="sum")
            labels[image, positive] = target["labels"][index[positive]] + 1
        classification = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="none").view(labels.shape)
        foreground = labels > 0
        count = foreground.sum()
        negative = classification.detach().masked_fill(foreground, -torch.inf)
        rank = negative.sort(1, descending=True).indices.sort(1).indices
        kept = foreground | (rank < 3 * foreground.sum(1, keepdim=True))
        return (localization + classification[kept].sum()) / count.clamp(min=1)

    return loss


def _ultralytics(workload: Workload, problem: Problem) -> Criterion:
    from ultralytics.utils.metrics import bbox_iou
    from ultralytics.utils.tal import TaskAlignedAssigner

    assert problem.anchors is not None
    assigner = TaskAlignedAssigner(topk=10, num_classes=workload.classes, alpha=0.5, beta=6.0)
    points = problem.anchors.centers  # type: ignore[union-attr]
    count = max(len(t["labels"]) for t in problem.targets)
    labels = torch.zeros(len(problem.targets), count, 1)
    boxes = torch.zeros(len(problem.targets), count, 4)
    mask = torch.zeros(len(problem.targets), count, 1)
    for image, target in enumerate(problem.targets):
        n = len(target["labels"])
        labels[image, :n, 0], boxes[image, :n], mask[image, :n] = target["labels"].float(), target["boxes"], 1.0

    def loss() -> Tensor:
        logits, predicted = problem.logits[-1], problem.boxes[-1]
        _, matched, scores, foreground, _ = assigner(
            logits.detach().sigmoid(), 640 * predicted.detach(), 640 * points, labels, 640 * boxes, mask
        )
        total = scores.sum().clamp(min=1)
        classification = F.binary_cross_entropy_with_logits(logits, scores, reduction="none").sum() / total
        weight = scores.sum(-1)[foreground]
        overlap = bbox_iou(predicted[foreground], matched[foreground] / 640, xywh=False, CIoU=True).squeeze(-1)
        return classification + ((1 - overlap) * weight).sum() / total

    return loss
