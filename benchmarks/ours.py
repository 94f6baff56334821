"""Our criteria for the problems of `workloads`, set up as the peers are; others are compared with the first."""

from typing import Any

from torch import Tensor, nn

from benchmarks.contender import Contender, criterion, solver
from benchmarks.transport import make_transport, matcher
from benchmarks.workloads import Problem, Workload
from uotod import recipes
from uotod.loss import (
    Branches,
    DetectionLoss,
    GIoULoss,
    IoULoss,
    MultipleObjectiveLoss as Sum,
    PositiveNormalizer,
    SigmoidFocalCost,
    SigmoidFocalLoss,
)
from uotod.match import Hungarian, Matcher, UnbalancedSinkhorn
from uotod.utils import Anchors, Points

NONE: dict[str, Any] = {"reduction": "none"}


def ours(workload: Workload, problem: Problem) -> list[Contender]:
    """Return our contenders for a workload."""
    if workload.kind == "transport":
        given = make_transport(workload, problem)
        solve, single = matcher(given).compute_matching, given.cost.float()
        return [
            solver("uotod", "unbalanced", lambda: solve(given.cost, given.mask)),
            solver("uotod float32", "unbalanced", lambda: solve(single, given.mask), tolerance=1e-5),
        ]
    return [contender(rule, loss, workload, problem) for rule, loss in criteria(workload).items()]


def criteria(workload: Workload) -> dict[str, DetectionLoss]:
    """Return our criteria for a kind of workload by the rule of their matcher."""
    classes = workload.classes
    if workload.kind == "detr":
        return {"Hungarian": recipes.detr(classes), "unbalanced": recipes.uot_detr(classes)}
    if workload.kind == "dino":
        return {"Hungarian": _main(recipes.deformable_detr(classes))}
    if workload.kind == "retina":
        return {"IoU": recipes.retinanet(classes)}
    if workload.kind == "ssd":
        return {"IoU": recipes.ssd300(classes)}
    if workload.kind == "uot":
        return {"unbalanced": _unbalanced_ssd()}
    task_aligned = recipes.yolov8(classes, weights={"cls": 1.0, "box": 1.0, "dfl": 0.0})
    return {"task-aligned": task_aligned, "Hungarian": on_points(Hungarian)}


def contender(rule: str, loss: DetectionLoss, workload: Workload, problem: Problem) -> Contender:
    """Return a criterion of ours on a problem; a first background shifts the labels."""
    shift = int(workload.background == "first")
    targets = [{"labels": t["labels"] + shift, "boxes": t["boxes"]} for t in problem.targets]
    pairs = list(zip(problem.logits, problem.boxes, strict=True))

    def given() -> tuple[dict[str, Any], list[dict[str, Tensor]], Anchors | Points | None]:
        layers = [{"pred_logits": logits, "pred_boxes": boxes} for logits, boxes in pairs]
        return {**layers[-1], "aux_outputs": layers[:-1]}, targets, problem.anchors

    def value() -> Tensor:
        result: Tensor = loss(*given())
        return result

    return criterion("uotod", rule, lambda: loss.match(*given()), value, [problem.logits, problem.boxes])


def _main(criterion: nn.Module) -> DetectionLoss:
    assert isinstance(criterion, Branches)
    assert isinstance(criterion.main, DetectionLoss)
    return criterion.main


def _unbalanced_ssd() -> DetectionLoss:
    """Return the documented setting of the original: the cost of the paper's SSD, smooth L1 of the boxes themselves."""
    rule = UnbalancedSinkhorn(
        reg_pred=1e3,
        reg_target=1e-3,
        loc_match_module=IoULoss(**NONE),
        background_cost=0.5,
        is_anchor_based=True,
    )
    return DetectionLoss(
        nn.CrossEntropyLoss(**NONE),
        nn.SmoothL1Loss(**NONE),
        rule,
        "first",
        use_hard_negative_mining=True,
        neg_to_pos_ratio=3.0,
        normalizer=PositiveNormalizer(),
    )


def on_points(kind: type[Matcher]) -> DetectionLoss:
    """Return the losses of Deformable DETR, and a matcher of its costs; with `Hungarian` the original has it too."""
    focal = SigmoidFocalLoss(alpha=0.25, **NONE)
    boxes = Sum([nn.L1Loss(**NONE), GIoULoss(**NONE)], weights=[5.0, 2.0])
    cost = Sum([SigmoidFocalCost(alpha=0.25, **NONE)], weights=[2.0])
    return DetectionLoss(focal, boxes, kind(cls_match_module=cost, loc_match_module=boxes), "none")
