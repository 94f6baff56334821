"""Every recipe of the library, one line each, with a problem that it can read and the losses that it publishes."""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from tests.support.problems import Problem, random_problem
from uotod.loss import Branches, DetectionLoss

CLASSES = 3


class Case(NamedTuple):
    weights: dict[str, float]  # as published, by the names of the terms
    costs: dict[str, float] | None = None  # the same of the matching cost, where `cost_weights` are options
    first_label: int = 0
    background: bool = False  # a class of the logits is the background
    bins: int = 0  # of the distribution of a side in `pred_dist`, where something reads it
    sizes: bool = False  # something reads the `image_size`


def of_set(cls: float) -> dict[str, float]:
    return {"cls": cls, "l1": 5.0, "giou": 2.0}


CASES = {
    "atss": Case({"cls": 1.0, "loc": 2.0, "obj": 1.0}),
    "d_fine": Case(of_set(1.0) | {"fgl": 0.15, "dist": 1.5}, of_set(2.0), bins=33),
    "deformable_detr": Case(of_set(2.0), of_set(2.0)),
    "deim": Case(of_set(1.0) | {"fgl": 0.15, "dist": 1.5}, of_set(2.0), bins=33),
    "detr": Case(of_set(1.0), of_set(1.0), background=True),
    "dino": Case(of_set(1.0), of_set(2.0)),
    "fcos": Case({"cls": 1.0, "loc": 1.0, "obj": 1.0}),
    "gfl": Case({"cls": 1.0, "box": 2.0, "dfl": 0.25}, bins=17),
    "group_detr": Case(of_set(1.0), of_set(2.0)),
    "h_detr": Case(of_set(2.0), of_set(2.0)),
    "ota": Case({"cls": 1.0, "loc": 2.0, "obj": 0.5}),
    "retinanet": Case({"cls": 1.0, "loc": 1.0}),
    "rt_detr": Case(of_set(1.0), of_set(2.0)),
    "rtmdet": Case({"cls": 1.0, "loc": 2.0}),
    "ssd300": Case({"cls": 1.0, "loc": 1.0}, first_label=1, background=True),
    "tood": Case({"cls": 1.0, "loc": 2.0}),
    "uot_deformable_detr": Case(of_set(2.0), of_set(5.0)),
    "uot_detr": Case(of_set(2.0), of_set(2.0), background=True),
    "uot_ssd": Case({"cls": 1.0, "loc": 1.0}, first_label=1, background=True),
    "yolo": Case({"cls": 1.0, "loc": 1.0, "obj": 1.0, "noobj": 1.0}),
    "yolo26": Case({"cls": 0.5, "box": 7.5, "l1": 0.375}, sizes=True),
    "yolov8": Case({"cls": 0.5, "box": 7.5, "dfl": 1.5}, bins=16),
    "yolox": Case({"cls": 1.0, "box": 5.0, "l1": 0.0, "obj": 1.0}),
}
PUBLISHED = {name: case.weights for name, case in CASES.items()}
COSTS = {name: case.costs for name, case in CASES.items() if case.costs}
SUMS = tuple(COSTS)  # of sets: their loss of boxes is that of L1 and GIoU
BINS = {name: case.bins for name, case in CASES.items() if case.bins}


def problem_for(name: str, classes: int = CLASSES, preds: int = 26, targets: int = 3, extra: int = 0) -> Problem:
    """Return a problem with every key that the recipe reads, and `extra` logits too many."""
    case = CASES[name]
    logits, low = classes + case.background + extra, case.first_label
    problem = random_problem(2, preds, targets, logits, low=low, high=low + classes, full=True)
    problem.input["pred_objectness"] = torch.randn(2, preds, dtype=torch.float64).requires_grad_()
    if case.bins:
        problem.input["pred_dist"] = torch.randn(2, preds, 4, case.bins, dtype=torch.float64).requires_grad_()
    if case.sizes:
        problem.input["image_size"] = torch.ones(2, 2, dtype=torch.float64).requires_grad_()
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
