"""Two ranks of which one lacks something: for every recipe an input a rank, and the batch that holds both of them."""

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from tests.support.problems import random_boxes, random_problem
from tests.support.recipe_cases import CASES as RECIPES, CLASSES
from uotod.loss import Branch, Branches
from uotod.recipes import ALL_RECIPES
from uotod.utils import Anchors

RANKS = 2
PREDS, TARGETS, GROUPS = 26, 3, 2  # GROUPS of denoising queries, each target once in each of them
IMAGES = (2, 3)  # of the ranks
ABSENT = ("nothing", "some targets", "all targets of a rank", "all images of a rank", "a branch", "a layer")

Values = dict[str, Any]


class Part(NamedTuple):
    """What a rank has.

    Attributes:
        input: predictions, those of branches included.
        target: targets of its images.
        anchors: the same on all ranks.
    """

    input: Values
    target: dict[str, Tensor]
    anchors: Anchors


def layer(name: str, images: int, preds: int) -> Values:
    """Return the output of a decoder layer with every key that the recipe reads."""
    case = RECIPES[name]
    shape = (images, preds)
    found = {
        "pred_logits": torch.randn(*shape, CLASSES + case.background, dtype=torch.float64),
        "pred_boxes": random_boxes(*shape),
        "pred_objectness": torch.randn(*shape, dtype=torch.float64),
    }
    if case.bins:
        found["pred_dist"] = torch.randn(*shape, 4, case.bins, dtype=torch.float64)
    if case.sizes:
        found["image_size"] = torch.ones(images, 2, dtype=torch.float64)
    return found


def branches_of(criterion: nn.Module) -> dict[str, Branch]:
    """Return the branches of a recipe, none if it has a single output."""
    found = criterion.branches.items() if isinstance(criterion, Branches) else ()
    return {key: branch for key, branch in found if isinstance(branch, Branch)}


def part_of(name: str, absent: str, rank: int) -> Part:
    """Return what a rank has of the recipe's input where the second rank lacks something."""
    torch.manual_seed(len(ABSENT) * rank + ABSENT.index(absent))
    lacks = rank == 1
    images = 0 if lacks and absent == "all images of a rank" else IMAGES[rank]
    low = RECIPES[name].first_label
    target = random_problem(images, 1, TARGETS, CLASSES + 1, low=low, high=low + CLASSES, full=True).target
    counts = torch.tensor([3, 1, 2])[:images]
    if absent == "some targets":
        counts = torch.tensor([3, 0, 0] if lacks else [0, 2, 0])[:images]
    if absent == "all targets of a rank" and lacks:
        counts = torch.zeros_like(counts)
    target["mask"] = torch.arange(TARGETS) < counts[:, None]
    input = layer(name, images, PREDS) | {"aux_outputs": [layer(name, images, PREDS)]}
    for key, branch in branches_of(ALL_RECIPES[name](CLASSES)).items():
        output = layer(name, images, PREDS)
        if branch.plan == "given":
            positive = torch.arange(TARGETS).where(target["mask"], TARGETS).repeat(1, GROUPS)
            output["plan"] = nn.functional.pad(positive, (0, PREDS - GROUPS * TARGETS), value=TARGETS)
        if not (absent == "a layer" and not lacks):
            output["aux_outputs"] = [layer(name, images, PREDS)]
        if not (absent == "a branch" and lacks):
            input[key] = output
    torch.manual_seed(99)
    boxes = random_boxes(PREDS)
    stride = torch.tensor([0.1, 0.2], dtype=torch.float64)[torch.arange(PREDS) % 2]
    return Part(input, target, Anchors(boxes, stride, torch.arange(PREDS) % 2))


def union(parts: list[Part]) -> Part:
    """Return the batch of what all ranks have; a branch or layer that one of them lacks is left out."""

    def join(values: list[Any]) -> Any:
        if isinstance(values[0], dict):
            return {key: join([x[key] for x in values]) for key in values[0] if all(key in x for x in values)}
        if isinstance(values[0], list):
            return [join(list(x)) for x in zip(*values, strict=True)]
        return torch.cat(values)

    input, target = join([x.input for x in parts]), join([x.target for x in parts])
    return Part(input, target, parts[0].anchors)
