"""Problems for the rules of anchors, with many ties, and the index form of their plans."""

import torch
from torch import Tensor

from tests.support.problems import Problem, random_problem

SIZES = [(30, 4), (12, 1), (9, 0), (1, 3), (3, 8), (5, 5)]


def assigned(plan: Tensor) -> list[list[int]]:
    """Return the index of the target of each prediction of a plan (B, P, T + 1), -1 for a row of zeros."""
    return torch.where(plan.sum(-1) > 0, plan.argmax(-1), -1).tolist()


def grid_boxes(*shape: int) -> Tensor:
    """Return xyxy boxes on a coarse grid, for which many overlaps tie and some boxes are equal."""
    low = torch.randint(0, 4, (*shape, 2)).double()
    return torch.cat((low, low + torch.randint(1, 4, (*shape, 2))), dim=-1)


def problem_on_a_grid(preds: int, targets: int, *, images: int = 2) -> Problem:
    """Return a random problem whose boxes lie on a coarse grid."""
    problem = random_problem(images, preds, targets)
    problem.input["pred_boxes"] = grid_boxes(images, preds)
    boxes, mask = problem.target["boxes"], problem.target["mask"]
    problem.target["boxes"] = grid_boxes(images, targets).where(mask.unsqueeze(-1), boxes)
    return problem
