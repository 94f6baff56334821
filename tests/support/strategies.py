"""Strategies of hypothesis: what it may choose of a detection problem in, batches of images and their matchers out.

An example is an image. Each draw is a batch of them, so that 50 draws try 1,000 images; hypothesis
chooses the structure (sizes, the kind of boxes, what is padding) and the seed of the numbers, and shrinks these.
"""

from collections.abc import Callable
from dataclasses import replace

import torch
from hypothesis import strategies as st
from torch import Tensor, nn

from tests.support.matcher_cases import CASES
from tests.support.problems import Problem
from uotod.loss import (
    ByTerm,
    Classification,
    DetectionLoss,
    GIoULoss,
    ImagePositiveNormalizer,
    MassNormalizer,
    MovingAverageNormalizer,
    MultipleObjectiveLoss,
    Normalizer,
    PerImageNormalizer,
    PositiveNormalizer,
    ScoreNormalizer,
    SigmoidFocalLoss,
    TargetNormalizer,
    TotalMassNormalizer,
)
from uotod.match import ALL_MATCHERS, Matcher
from uotod.utils import Anchors

IMAGES = 20  # of a draw
CLASSES = 5  # the first and the last one may be that of the background
# Solvers of POT and of partial transport loop over images and iterations: a tenth and a quarter of the examples.
SLOW = {"BalancedPOT": 2, "PartialOT": 5, "PartialOT-part": 5, "UnbalancedPOT": 2}
# The same loops behind another argument, or thousands of iterations a second time: the contract tests have them.
LEFT_OUT = {"BalancedPOT-log", "BalancedSinkhorn-pot", "UnbalancedSinkhorn-pot"}
NAMES = sorted(ALL_MATCHERS)
VARIANTS = {name: [x for x in CASES if x.split("-")[0] == name and x not in LEFT_OUT] for name in NAMES}
NONE = {"reduction": "none"}
BOXES = MultipleObjectiveLoss([nn.L1Loss(**NONE), GIoULoss(**NONE)], [5.0, 2.0])
HEADS: dict[str, tuple[str, Callable[[], nn.Module]]] = {  # position of the background, classification loss
    "softmax": ("first", lambda: nn.CrossEntropyLoss(**NONE)),
    "weighted softmax": ("last", lambda: nn.CrossEntropyLoss(torch.tensor([0.5, 1.0, 2.0, 0.7, 0.1]), **NONE)),
    "sigmoid": ("none", lambda: nn.BCEWithLogitsLoss(**NONE)),
    "focal": ("none", lambda: SigmoidFocalLoss(**NONE)),
    "taught quality": ("none", lambda: Classification(nn.BCEWithLogitsLoss(**NONE), quality="iou")),
}
NORMALIZERS: dict[str, Callable[[], Normalizer]] = {
    "mass": MassNormalizer,
    "total": TotalMassNormalizer,
    "targets": TargetNormalizer,
    "positives": PositiveNormalizer,
    "positives of images": ImagePositiveNormalizer,
    "scores": ScoreNormalizer,
    "images": PerImageNormalizer,
    "average": MovingAverageNormalizer,
    "by term": lambda: ByTerm(TargetNormalizer(), cls=MassNormalizer()),
}


def apart(*shape: int) -> Tensor:
    """Return boxes that all hold the middle of the unit square, so that no two overlaps are 0, hence tie."""
    low, high = 0.02 + 0.44 * torch.rand(*shape, 2), 0.54 + 0.44 * torch.rand(*shape, 2)
    return torch.cat((low, high), dim=-1)


def anywhere(*shape: int) -> Tensor:
    """Return boxes of sides between 0.02 and 0.6; many do not overlap."""
    size = 0.02 + 0.58 * torch.rand(*shape, 2)
    low = torch.rand(*shape, 2) * (1 - size)
    return torch.cat((low, low + size), dim=-1)


def lattice(*shape: int) -> Tensor:
    """Return boxes whose corners are multiples of a quarter: equal, touching and empty ones."""
    corners = torch.randint(0, 5, (*shape, 2, 2)).to(torch.get_default_dtype()).sort(-2).values
    return corners.flatten(-2) / 4


KINDS: dict[str, Callable[..., Tensor]] = {"apart": apart, "anywhere": anywhere, "lattice": lattice}
FREE_OF_TIES = ("apart",)


def make_problem(
    seed: int, images: int, preds: int, targets: int, kind: str, present: float, dtype: torch.dtype = torch.float64
) -> Problem:
    """Return a problem without labels of a background; under the mask lies poison, NaN and labels out of range.

    Args:
        seed: of all numbers.
        images, preds, targets: sizes; the largest number of targets of an image.
        kind: of boxes, a name in `KINDS`.
        present: the share of targets that are there.
        dtype: of boxes and logits. The numbers are those of float32.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        boxes = KINDS[kind]
        mask = torch.rand(images, targets) < present
        places = boxes(images, targets).to(dtype)
        places[..., 2:] += 0.25 * (places[..., 2:] == places[..., :2])  # a target has an area, a prediction may lack it
        labels = torch.randint(1, CLASSES - 1, (images, targets))
        logits = 2 * torch.randn(images, preds, CLASSES)
        if kind == "lattice":
            logits = logits.round()
        pred_boxes, anchors = boxes(images, preds), boxes(preds)
        stride = torch.tensor([0.125, 0.25], dtype=dtype)[torch.arange(preds) % 2]
    input = {"pred_logits": logits.to(dtype), "pred_boxes": pred_boxes.to(dtype)}
    target = {
        "labels": labels.masked_fill(~mask, -100),
        "boxes": places.masked_fill(~mask.unsqueeze(-1), torch.nan),
        "mask": mask,
    }
    return Problem(input, target, Anchors(anchors.to(dtype), stride, torch.arange(preds) % 2))


@st.composite
def problems(draw: st.DrawFn, images: int = IMAGES, kinds: tuple[str, ...] = tuple(KINDS)) -> Problem:
    """Return a batch of so many images, small and often crowded: from 1 prediction and 0 targets on."""
    preds, targets = draw(st.integers(1, 8), label="P"), draw(st.integers(0, 4), label="T")
    kind = draw(st.sampled_from(kinds), label="kind")
    present = draw(st.sampled_from((0.7, 1.0, 0.3)), label="present")
    seed = draw(st.integers(0, 2**31 - 1), label="seed")
    return make_problem(seed, images, preds, targets, kind, present)


def variants(name: str) -> st.SearchStrategy[str]:
    """Return the cases of a matcher by its name."""
    return st.sampled_from(VARIANTS[name])


@st.composite
def matched_problems(
    draw: st.DrawFn, name: str, kinds: tuple[str, ...] = tuple(KINDS), scale_free: bool = False
) -> tuple[Matcher, Problem]:
    """Return a matcher in one of its settings and a batch for it; with `scale_free` costs that know no unit."""
    case = draw(variants(name), label="case")
    matcher = CASES[case].build()
    if scale_free:
        forget_units(matcher)
    return matcher, draw(problems(SLOW.get(case, IMAGES), kinds), label="problem")


@st.composite
def criteria(draw: st.DrawFn, name: str, reduction: str = "mean") -> tuple[DetectionLoss, Problem]:
    """Return a criterion with the matcher of that name, and a batch for it whose predictions want a gradient."""
    matcher, problem = draw(matched_problems(name))
    position, head = HEADS[draw(st.sampled_from(sorted(HEADS)), label="head")]
    ratio = draw(st.sampled_from((None, 1.5)), label="mining")
    normalizer = None
    if reduction == "mean":
        normalizer = NORMALIZERS[draw(st.sampled_from(sorted(NORMALIZERS)), label="normalizer")]()
    for value in problem.input.values():
        value.requires_grad_()
    criterion = DetectionLoss(
        head(),
        BOXES,
        matcher,
        position,
        use_hard_negative_mining=ratio is not None,
        neg_to_pos_ratio=ratio,
        reduction=reduction,
        normalizer=normalizer,
    )
    return criterion, problem


def forget_units(matcher: nn.Module) -> None:
    """Replace costs in the unit of the boxes by GIoU, which has none."""
    for module in matcher.modules():
        if isinstance(module, Matcher) and isinstance(module._modules.get("loc_match_module"), nn.Module):
            module.loc_match_module = GIoULoss(reduction="none")


def orders(count: int) -> st.SearchStrategy[Tensor]:
    """Return the orders of so many things."""
    return st.permutations(range(count)).map(lambda x: torch.tensor(x, dtype=torch.long))


def some_images(problem: Problem, images: Tensor) -> Problem:
    """Return the problem of some of its images."""
    return Problem(
        {k: x[images] for k, x in problem.input.items()},
        {k: x[images] for k, x in problem.target.items()},
        problem.anchors,
    )


def in_dtype(problem: Problem, dtype: torch.dtype) -> Problem:
    """Return the problem with its real numbers in another dtype."""
    move = lambda values: {k: x.to(dtype) if x.is_floating_point() else x for k, x in values.items()}  # noqa: E731
    return Problem(move(problem.input), move(problem.target), problem.anchors.to(dtype))


def in_units(problem: Problem, unit: float) -> Problem:
    """Return the problem with every length divided by a unit."""
    scale = lambda values: {k: x / unit if k.endswith("boxes") else x for k, x in values.items()}  # noqa: E731
    anchors = problem.anchors
    assert isinstance(anchors.stride, Tensor)
    return Problem(
        scale(problem.input),
        scale(problem.target),
        Anchors(anchors.boxes / unit, anchors.stride / unit, anchors.level, anchors.num_levels),
    )


def nudged(problem: Problem, step: float, seed: int) -> Problem:
    """Return the problem with logits and predicted boxes moved by about `step`."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        moved = {k: x + step * (2 * torch.rand_like(x) - 1) for k, x in problem.input.items()}
        size = (problem.anchors.boxes[:, 2:] - problem.anchors.boxes[:, :2]).repeat(1, 2)
        boxes = problem.anchors.boxes + step * size * (2 * torch.rand_like(size) - 1)
    return replace(problem, input=moved, anchors=replace(problem.anchors, boxes=boxes))


def plan_of(matcher: Matcher, problem: Problem) -> Tensor:
    """Return the plan (B, P, T + 1) of a problem."""
    plan: Tensor = matcher(problem.input, problem.target, problem.anchors)
    return plan
