"""Our criteria for the problems of `workloads`, set up as the peers are."""

from collections.abc import Callable

from torch import Tensor, nn

from benchmarks.workloads import Problem, Workload
from uotod import recipes
from uotod.loss import DetectionLoss, GIoULoss, PositiveNormalizer
from uotod.match import IoUThreshold, UnbalancedSinkhorn

Criterion = Callable[[], Tensor]
NONE = {"reduction": "none"}


def criteria(workload: Workload) -> dict[str, nn.Module]:
    """Return our criteria for a kind of workload; the first has the loss of the peers."""
    classes = workload.classes
    if workload.kind == "detr":
        return {"uotod": recipes.detr(classes), "uotod, UnbalancedSinkhorn": recipes.uot_detr(classes)}
    if workload.kind == "dino":
        return {"uotod": recipes.deformable_detr(classes)}
    if workload.kind == "retina":
        return {"uotod": recipes.retinanet(classes)}
    if workload.kind == "yolo":
        return {"uotod": recipes.yolov8(classes, cls_weight=1.0, loc_weight=1.0, dfl_weight=0.0)}
    losses = nn.CrossEntropyLoss(**NONE), nn.SmoothL1Loss(**NONE)  # on boxes, as the loop over images
    mining = {"use_hard_negative_mining": True, "neg_to_pos_ratio": 3.0, "normalizer": PositiveNormalizer()}
    anchors = {"is_anchor_based": True, "loc_match_module": GIoULoss(**NONE), "background_cost": 0.5}
    return {
        "uotod": DetectionLoss(*losses, IoUThreshold(is_anchor_based=True), "first", **mining),
        "uotod, UnbalancedSinkhorn": DetectionLoss(
            *losses, UnbalancedSinkhorn(reg_pred=1e3, reg_target=1e-3, **anchors), "first", **mining
        ),
    }


def step(criterion: nn.Module, workload: Workload, problem: Problem) -> Criterion:
    """Return the loss of a problem as a function of nothing, the shift of labels by a first background included."""
    shift = int(workload.kind == "ssd")
    targets = [{"labels": t["labels"] + shift, "boxes": t["boxes"]} for t in problem.targets]

    def loss() -> Tensor:
        pairs = zip(problem.logits, problem.boxes, strict=True)
        layers = [{"pred_logits": logits, "pred_boxes": boxes} for logits, boxes in pairs]
        return criterion({**layers[-1], "aux_outputs": layers[:-1]}, targets, problem.anchors)

    return loss
