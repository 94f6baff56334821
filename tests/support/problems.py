"""Random detection problems for the tests: predictions, targets and masks."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from uotod.utils import Anchors


def random_boxes(*shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    """Return xyxy boxes inside the unit square with sizes between 0.05 and 0.5."""
    size = 0.05 + 0.45 * torch.rand(*shape, 2, dtype=dtype)
    low = torch.rand(*shape, 2, dtype=dtype) * (1 - size)
    return torch.cat((low, low + size), dim=-1)


def jittered(boxes: Tensor) -> Tensor:
    """Return each xyxy box with its sides moved by up to a tenth of its size."""
    size = (boxes[..., 2:] - boxes[..., :2]).repeat(*[1] * (boxes.dim() - 1), 2)
    return boxes + 0.1 * size * (2 * torch.rand_like(boxes) - 1)


@dataclass
class Problem:
    input: dict[str, Tensor]
    target: dict[str, Tensor]
    anchors: Anchors

    def to(self, device: torch.device) -> "Problem":
        move = lambda values: {k: v.detach().to(device).requires_grad_(v.requires_grad) for k, v in values.items()}  # noqa: E731
        return Problem(move(self.input), move(self.target), self.anchors.to(device))


def mapped(problem: Problem, function: Callable[[Tensor], Tensor]) -> Problem:
    """Return the problem with a function applied to all floating tensors, those of earlier decoder layers included."""

    def of(values: dict) -> dict:
        found = {}
        for key, x in values.items():
            if key == "aux_outputs":
                found[key] = [of(layer) for layer in x]
            else:
                found[key] = function(x) if x.is_floating_point() else x
        return found

    places = problem.anchors
    anchors = Anchors(function(places.boxes), function(places.stride), places.level, places.num_levels)
    return Problem(of(problem.input), of(problem.target), anchors)


def random_problem(
    images: int = 2,
    preds: int = 12,
    targets: int = 4,
    classes: int = 5,
    *,
    low: int = 1,
    high: int | None = None,
    full: bool = False,
    dtype: torch.dtype = torch.float64,
) -> Problem:
    """Return a problem with labels in [low, high) and a mask that is not a prefix; a third of it is padding.

    Three in five predictions lie near a target, and each anchor near a prediction of one of the images. What lies
    under the mask is poison: NaN boxes and labels out of range.
    """
    high = classes if high is None else high
    mask = torch.ones(images, targets, dtype=torch.bool) if full else torch.rand(images, targets) > 1 / 3
    places = random_boxes(images, targets, dtype=dtype)
    boxes = places.masked_fill(~mask.unsqueeze(-1), float("nan"))
    labels = torch.randint(low, high, (images, targets)).masked_fill(~mask, -100)
    logits = 2 * torch.randn(images, preds, classes, dtype=dtype)
    pred_boxes = random_boxes(images, preds, dtype=dtype)
    if targets:
        nearest = torch.randint(targets, (images, preds, 1)).expand(-1, -1, 4)
        near = torch.rand(images, preds, 1) < 0.6
        pred_boxes = torch.where(near, jittered(places.gather(1, nearest)), pred_boxes)
    own = torch.arange(preds) % max(images, 1)  # the image whose prediction an anchor is near
    anchors = jittered(pred_boxes[own, torch.arange(preds)]) if images else random_boxes(preds, dtype=dtype)
    stride = torch.tensor([0.1, 0.2], dtype=dtype)[torch.arange(preds) % 2]
    return Problem(
        {"pred_logits": logits.requires_grad_(), "pred_boxes": pred_boxes.requires_grad_()},
        {"labels": labels, "boxes": boxes, "mask": mask},
        Anchors(anchors, stride, torch.arange(preds) % 2),
    )


def permuted(problem: Problem, preds: Tensor, targets: Tensor) -> Problem:
    """Return the problem with predictions and targets in another order."""
    anchors = problem.anchors
    assert isinstance(anchors.stride, Tensor)
    assert anchors.level is not None
    return Problem(
        {k: v[:, preds] for k, v in problem.input.items()},
        {k: v[:, targets] for k, v in problem.target.items()},
        Anchors(anchors.boxes[preds], anchors.stride[preds], anchors.level[preds]),
    )


def matched(plan: Tensor) -> Tensor:
    """Return a plan (B, P, T + 1) that gives some mass to targets; a rule that matches nothing proves nothing."""
    assert (plan[..., :-1] > 1e-3).any()
    return plan
