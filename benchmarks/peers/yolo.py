"""The step of YOLOv8 in ultralytics: its assigner, and the classification and CIoU terms of its loss."""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.contender import Contender, criterion
from benchmarks.workloads import Problem, Workload


def ultralytics(workload: Workload, problem: Problem) -> Contender:
    """Return the criterion with weights of 1 and without the distribution focal loss."""
    from ultralytics.utils.metrics import bbox_iou
    from ultralytics.utils.tal import TaskAlignedAssigner

    assert problem.anchors is not None
    assigner = TaskAlignedAssigner(topk=10, num_classes=workload.classes, alpha=0.5, beta=6.0)
    points = problem.anchors.centers  # type: ignore[union-attr]
    padded = problem.padded()
    mask = padded["mask"].unsqueeze(-1).float()
    labels, boxes = padded["labels"].unsqueeze(-1).float(), padded["boxes"]
    predicted = problem.boxes[-1]
    logits = problem.logits[-1]

    def match() -> Any:
        return assigner(logits.detach().sigmoid(), 640 * predicted.detach(), 640 * points, labels, 640 * boxes, mask)

    def loss() -> Tensor:
        _, matched, scores, foreground, _ = match()
        total = scores.sum().clamp(min=1)
        classification = F.binary_cross_entropy_with_logits(logits, scores, reduction="none").sum() / total
        weight = scores.sum(-1)[foreground]
        overlap = bbox_iou(predicted[foreground], matched[foreground] / 640, xywh=False, CIoU=True).squeeze(-1)
        value: Tensor = classification + ((1 - overlap) * weight).sum() / total
        return value

    torch.set_num_threads(1)  # its import may have set another number
    return criterion("ultralytics", "task-aligned", match, loss, [problem.logits, problem.boxes])
