"""Random problems of dense detectors with leaves for a gradient, and their images for the slow loops."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from tests.oracles.recipes import Image
from tests.support.aligned_scenes import scene
from uotod.utils import Anchors, Points, distribution_to_box


@dataclass
class DenseScene:
    """A problem whose predictions depend on `leaves`."""

    leaves: dict[str, Tensor]
    input: dict[str, Tensor]
    target: dict[str, Tensor]
    points: Points
    stride: Tensor = field(init=False)

    def __post_init__(self) -> None:
        assert isinstance(self.points.stride, Tensor)
        self.stride = self.points.stride

    def anchors(self) -> Anchors:
        """Return a square of 4 strides around each point."""
        half = 2 * self.stride[:, None]
        centers = self.points.centers
        return Anchors(torch.cat((centers - half, centers + half), dim=-1), self.stride)

    def images(self) -> list[Image]:
        """Return each image without its padding."""
        result = []
        for b, mask in enumerate(self.target["mask"]):
            labels, boxes = (self.target[k][b][mask] for k in ("labels", "boxes"))
            extra = [self.input[k][b] if k in self.input else None for k in ("pred_dist", "pred_objectness")]
            logits, pred_boxes = (self.input[k][b] for k in ("pred_logits", "pred_boxes"))
            result.append(Image(logits, pred_boxes, self.points.centers, self.stride, labels, boxes, *extra))
        return result

    def gradient(self, loss: Tensor) -> list[Tensor]:
        """Return the gradient of the loss for each leaf."""
        leaves = list(self.leaves.values())
        found = torch.autograd.grad(loss, leaves, allow_unused=True, retain_graph=True)
        return [torch.zeros_like(x) if g is None else g for x, g in zip(leaves, found, strict=True)]


def dense_scene(seed: int, *, dist: bool = False, dtype: torch.dtype = torch.float64, size: int = 64) -> DenseScene:
    """Return a scene with logits, objectness and boxes, the boxes the expectations of distributions with `dist`."""
    input, target, points = scene(seed, images=1 + seed % 3, targets=seed % 7, dtype=dtype, size=size)
    leaves = {"logits": input["pred_logits"].requires_grad_()}
    boxes = input["pred_boxes"]
    leaves["objectness"] = torch.randn(boxes.shape[:2], dtype=dtype).requires_grad_()
    result = {"pred_logits": leaves["logits"], "pred_objectness": leaves["objectness"]}
    if dist:
        stride = points.stride
        assert isinstance(stride, Tensor)
        center = points.centers
        sides = torch.cat((center - boxes[..., :2], boxes[..., 2:] - center), -1) / stride[:, None]
        peak = -((torch.arange(16, dtype=dtype) - sides.unsqueeze(-1)) ** 2) / 2
        leaves["dist"] = (peak.clamp(min=-8) + 0.3 * torch.randn_like(peak)).requires_grad_()
        result |= {"pred_dist": leaves["dist"], "pred_boxes": distribution_to_box(leaves["dist"], center, stride)}
    else:
        leaves["boxes"] = boxes.requires_grad_()
        result["pred_boxes"] = boxes
    return DenseScene(leaves, result, target, points)


def check_terms(
    criterion: nn.Module,
    problem: DenseScene,
    expected: Mapping[str, Tensor],
    *,
    anchors: Anchors | None = None,
    rtol: float = 1e-9,
) -> None:
    """Compare the named terms of a criterion, their sum, and its gradient for every leaf."""
    places = problem.points if anchors is None else anchors
    terms = criterion.terms(problem.input, problem.target, places)  # type: ignore[operator]
    for name, value in expected.items():
        torch.testing.assert_close(terms[name], value, rtol=rtol, atol=rtol, msg=lambda m, n=name: f"{n}: {m}")
    total = sum(expected.values(), torch.zeros_like(terms["loss"]))
    torch.testing.assert_close(terms["loss"], total, rtol=rtol, atol=rtol)
    check_gradients(problem, terms["loss"], total, rtol)


def check_gradients(problem: DenseScene, loss: Tensor, expected: Tensor, rtol: float) -> None:
    """Compare the gradients of two losses for every leaf."""
    for name, ours, theirs in zip(problem.leaves, problem.gradient(loss), problem.gradient(expected), strict=True):
        scale = float(theirs.abs().max()) or 1.0
        torch.testing.assert_close(ours, theirs, rtol=rtol, atol=rtol * scale, msg=lambda m, n=name: f"{n}: {m}")
