"""Matchers in the place of the assigners of Ultralytics: what its losses hand over in, what they expect out."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from uotod.geometry.boxes import box_cxcywh_to_xyxy, full_precision
from uotod.match import Matcher
from uotod.utils import Points


class Assigner(nn.Module):
    """A matcher in the place of a `TaskAlignedAssigner`.

    Args:
        matcher: the matcher.
        strides: strides of the feature maps, in pixels.
        classes: number of classes.
    """

    def __init__(self, matcher: Matcher, strides: Sequence[float], classes: int) -> None:
        super().__init__()
        self.matcher = matcher
        self.strides = strides
        self.classes = classes

    @torch.no_grad()
    def forward(
        self, scores: Tensor, boxes: Tensor, points: Tensor, labels: Tensor, target_boxes: Tensor, mask: Tensor
    ) -> tuple[Tensor, ...]:
        """Return label, box and scores of the target of each prediction, whether it has one, and which."""
        targets, scores = target_boxes.shape[1], full_precision(scores)
        if not targets:
            nothing = torch.zeros_like(scores[..., 0], dtype=torch.long)
            return nothing + self.classes, torch.zeros_like(boxes), torch.zeros_like(scores), nothing.bool(), nothing
        least = torch.finfo(scores.dtype)
        input = {"pred_logits": scores.clamp(least.tiny, 1 - least.eps).logit(), "pred_boxes": boxes}
        target = {"labels": labels.squeeze(-1).long(), "boxes": target_boxes, "mask": mask.squeeze(-1).bool()}
        mass = self.matcher(input, target, Points(points, self._stride(points)))[..., :targets]  # (B, P, T)
        best, index = mass.max(-1)
        label = target["labels"].gather(1, index)
        of_class = nn.functional.one_hot(target["labels"].clamp(min=0), self.classes).to(mass.dtype)
        box = target_boxes.gather(1, index.unsqueeze(-1).expand(-1, -1, 4))
        return label, box, mass @ of_class, best > 0, index

    def _stride(self, points: Tensor) -> Tensor:
        """Return the stride of each point; feature maps have numbers of points as the inverse squares of strides."""
        shares = torch.tensor([1 / stride**2 for stride in self.strides], dtype=torch.float64)
        counts = (shares / shares.sum() * len(points)).round().long()
        if int(counts.sum()) != len(points):
            raise ValueError(f"points must be those of feature maps with strides {self.strides}, got {len(points)}")
        return torch.tensor(self.strides, dtype=points.dtype).repeat_interleave(counts).to(points.device)


class PairMatcher(nn.Module):
    """A matcher in the place of a `HungarianMatcher` of Ultralytics.

    Args:
        matcher: the matcher.
    """

    def __init__(self, matcher: Matcher) -> None:
        super().__init__()
        self.matcher = matcher

    def forward(
        self, boxes: Tensor, logits: Tensor, target_boxes: Tensor, labels: Tensor, counts: list[int]
    ) -> list[tuple[Tensor, Tensor]]:
        """Return for each image the predictions that have a target, and which, counted over all images.

        Raises:
            ValueError: the plan splits the mass of a prediction.
        """
        target = targets_of(labels, target_boxes, counts)
        input = {"pred_logits": logits, "pred_boxes": box_cxcywh_to_xyxy(boxes)}
        plan = self.matcher(input, target)[..., : max(counts, default=0)].cpu()
        if ((plan != 0) & (plan != 1)).any():
            raise ValueError(
                "matcher must match whole predictions, for the loss of RT-DETR in Ultralytics knows pairs only, got a "
                f"plan of {type(self.matcher).__name__} that splits their mass; set_criterion and trainer take it"
            )
        pairs, first = [], 0
        for image, count in zip(plan, counts, strict=True):
            pred, index = image[:, :count].nonzero(as_tuple=True)
            pairs.append((pred, index + first))
            first += count
        return pairs


def targets_of(labels: Tensor, boxes: Tensor, counts: Sequence[int]) -> list[dict[str, Tensor]]:
    """Return the targets of each image from those of all, boxes as centre and size."""
    found = zip(torch.split(labels, list(counts)), torch.split(box_cxcywh_to_xyxy(boxes), list(counts)), strict=True)
    return [{"labels": x, "boxes": y} for x, y in found]
