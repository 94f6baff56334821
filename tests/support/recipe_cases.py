"""What tests of all recipes share: problems that each can read, and the losses and weights that it publishes."""

import torch
from torch import Tensor, nn

from tests.support.problems import Problem, random_problem
from uotod.loss import Branches, DetectionLoss

CLASSES = 3
BACKGROUND = ("detr", "ssd300", "uot_detr", "uot_ssd")  # a class of the logits is the background
BINS = {"d_fine": 33, "deim": 33, "gfl": 17, "yolov8": 16}
SUMS = ("d_fine", "deformable_detr", "deim", "detr", "dino", "group_detr", "h_detr", "rt_detr")
SUMS += ("uot_deformable_detr", "uot_detr")  # of sets: their loss of boxes is that of L1 and GIoU


def of_set(cls: float) -> dict[str, float]:
    return {"cls": cls, "l1": 5.0, "giou": 2.0}


PUBLISHED: dict[str, dict[str, float]] = {  # weights by name
    "atss": {"cls": 1.0, "loc": 2.0, "obj": 1.0},
    "d_fine": of_set(1.0) | {"fgl": 0.15, "dist": 1.5},
    "deformable_detr": of_set(2.0),
    "deim": of_set(1.0) | {"fgl": 0.15, "dist": 1.5},
    "detr": of_set(1.0),
    "dino": of_set(1.0),
    "fcos": {"cls": 1.0, "loc": 1.0, "obj": 1.0},
    "gfl": {"cls": 1.0, "box": 2.0, "dfl": 0.25},
    "group_detr": of_set(1.0),
    "h_detr": of_set(2.0),
    "ota": {"cls": 1.0, "loc": 2.0, "obj": 0.5},
    "retinanet": {"cls": 1.0, "loc": 1.0},
    "rt_detr": of_set(1.0),
    "rtmdet": {"cls": 1.0, "loc": 2.0},
    "ssd300": {"cls": 1.0, "loc": 1.0},
    "tood": {"cls": 1.0, "loc": 2.0},
    "uot_deformable_detr": of_set(2.0),
    "uot_detr": of_set(2.0),
    "uot_ssd": {"cls": 1.0, "loc": 1.0},
    "yolo": {"cls": 1.0, "loc": 1.0, "obj": 1.0, "noobj": 1.0},
    "yolov8": {"cls": 0.5, "box": 7.5, "dfl": 1.5},
    "yolox": {"cls": 1.0, "box": 5.0, "l1": 0.0, "obj": 1.0},
}
COSTS = {name: of_set(2.0) for name in SUMS} | {"detr": of_set(1.0), "uot_deformable_detr": of_set(5.0)}


def problem_for(name: str, classes: int = CLASSES, preds: int = 26, targets: int = 3, extra: int = 0) -> Problem:
    """Return a problem with every key that the recipe reads, and `extra` logits too many."""
    first = int(name in ("ssd300", "uot_ssd"))
    logits = classes + (name in BACKGROUND) + extra
    problem = random_problem(2, preds, targets, logits, low=first, high=first + classes, full=True)
    problem.input["pred_objectness"] = torch.randn(2, preds, dtype=torch.float64).requires_grad_()
    if name in BINS:
        problem.input["pred_dist"] = torch.randn(2, preds, 4, BINS[name], dtype=torch.float64).requires_grad_()
    return problem


def layered(name: str, **options: int) -> Problem:
    """Return a problem with two decoder layers."""
    problem, earlier = problem_for(name, **options), problem_for(name, **options)
    problem.input["aux_outputs"] = [earlier.input]  # type: ignore[assignment]
    return problem


def main_of(criterion: nn.Module) -> DetectionLoss:
    main = criterion.main if isinstance(criterion, Branches) else criterion
    assert isinstance(main, DetectionLoss)
    return main


def value_of(criterion: nn.Module, problem: Problem) -> Tensor:
    loss: Tensor = criterion(problem.input, problem.target, problem.anchors)
    return loss


def published_losses(name: str, main: DetectionLoss) -> dict[str, nn.Module]:
    """Return the losses of a recipe by the names of its dialect, as they are before their weights."""
    found: dict[str, nn.Module] = {}
    for term in main.all_terms:
        parts = {part.name: part.module for part in term.parts}
        if term.name == "dist":
            found["dist"] = term.module.loss
        elif term.name == "loc" and "loc" not in PUBLISHED[name]:
            found |= parts | {"loc": term.module}
        else:
            (found[term.name],) = parts.values()
    return found
