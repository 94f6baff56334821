"""The criteria of DETR and Deformable DETR in transformers."""

from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.contender import Contender, criterion
from benchmarks.workloads import Problem, Workload
from uotod.utils import box_xyxy_to_cxcywh


def transformers(workload: Workload, problem: Problem) -> Contender:
    """Return the criterion with the published weights; its model hands it boxes as centre and size."""
    matcher, losses, weights = (_detr if workload.kind == "detr" else _deformable_detr)(workload.classes)
    targets = [{"class_labels": t["labels"], "boxes": box_xyxy_to_cxcywh(t["boxes"])} for t in problem.targets]
    boxes = box_xyxy_to_cxcywh(problem.boxes).detach().requires_grad_()

    def outputs() -> list[dict[str, Tensor]]:
        return [{"logits": x, "pred_boxes": y} for x, y in zip(problem.logits, boxes, strict=True)]

    def match() -> list[Any]:
        return [matcher(layer, targets) for layer in outputs()]

    def loss() -> Tensor:
        layers = outputs()
        terms = losses({**layers[-1], "auxiliary_outputs": layers[:-1]}, targets)
        weighted = [weights[key.rstrip("_0123456789")] * value for key, value in terms.items()]
        return torch.stack(weighted).sum()

    return criterion("transformers", "Hungarian", match, loss, [problem.logits, boxes])


def _detr(classes: int) -> tuple[nn.Module, nn.Module, dict[str, float]]:
    from transformers.loss.loss_for_object_detection import HungarianMatcher, ImageLoss

    matcher = HungarianMatcher(class_cost=1, bbox_cost=5, giou_cost=2)
    losses = ImageLoss(matcher, classes, eos_coef=0.1, losses=["labels", "boxes"])
    return matcher, losses, {"loss_ce": 1.0, "loss_bbox": 5.0, "loss_giou": 2.0}


def _deformable_detr(classes: int) -> tuple[nn.Module, nn.Module, dict[str, float]]:
    from transformers.loss.loss_deformable_detr import DeformableDetrHungarianMatcher, DeformableDetrImageLoss

    matcher = DeformableDetrHungarianMatcher(class_cost=2, bbox_cost=5, giou_cost=2)
    losses = DeformableDetrImageLoss(matcher, classes, focal_alpha=0.25, losses=["labels", "boxes"])
    return matcher, losses, {"loss_ce": 2.0, "loss_bbox": 5.0, "loss_giou": 2.0}
