"""The matching and the losses of SSD and RetinaNet in torchvision."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from benchmarks.contender import Contender, criterion
from benchmarks.peers.loops import RETINA_WEIGHTS, SSD_WEIGHTS, TOLERANCE, places_of, regression_output, targets_of
from benchmarks.workloads import Problem, Workload


def torchvision(workload: Workload, problem: Problem) -> Contender:
    """Return torchvision's matching and loss, of the regression output that its heads have."""
    matcher, losses = (_torchvision_retina if workload.kind == "retina" else _torchvision_ssd)()
    places = places_of(problem)
    targets = targets_of(workload, problem)
    deltas = regression_output(workload, problem)
    anchors = [places] * len(targets)

    def match() -> list[Tensor]:
        from torchvision.ops import box_iou as their_iou

        return [matcher(their_iou(target["boxes"], places)) for target in targets]

    def loss() -> Tensor:
        output = {"cls_logits": problem.logits[-1], "bbox_regression": deltas}
        return torch.stack(list(losses(targets, output, anchors, match()).values())).sum()

    return criterion("torchvision", "IoU", match, loss, [problem.logits, deltas], tolerance=TOLERANCE)


def _torchvision_ssd() -> tuple[Callable[[Tensor], Tensor], Callable[..., dict[str, Tensor]]]:
    from torchvision.models.detection import _utils
    from torchvision.models.detection.ssd import SSD

    parts = SimpleNamespace(box_coder=_utils.BoxCoder(SSD_WEIGHTS), neg_to_pos_ratio=3)  # what the loss reads of SSD
    return _utils.SSDMatcher(0.5), lambda *given: SSD.compute_loss(parts, *given)


def _torchvision_retina() -> tuple[Callable[[Tensor], Tensor], Callable[..., dict[str, Tensor]]]:
    from torchvision.models.detection import _utils
    from torchvision.models.detection.retinanet import (
        RetinaNetClassificationHead,
        RetinaNetHead,
        RetinaNetRegressionHead,
    )

    heads: Any = SimpleNamespace(
        classification_head=SimpleNamespace(BETWEEN_THRESHOLDS=_utils.Matcher.BETWEEN_THRESHOLDS),
        regression_head=SimpleNamespace(box_coder=_utils.BoxCoder(RETINA_WEIGHTS), _loss_type="l1"),
    )
    for head, kind in (
        (heads.classification_head, RetinaNetClassificationHead),
        (heads.regression_head, RetinaNetRegressionHead),
    ):
        head.compute_loss = kind.compute_loss.__get__(head)
    return _utils.Matcher(0.5, 0.4, allow_low_quality_matches=True), RetinaNetHead.compute_loss.__get__(heads)
