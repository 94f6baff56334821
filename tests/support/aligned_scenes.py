"""Random scenes for task-aligned matching: predictions near targets, points of three levels."""

import torch
from torch import Tensor

from uotod.utils import Points

STRIDES = (8.0, 16.0, 32.0)


def scene(
    seed: int, images: int = 2, targets: int | None = None, size: int = 64, classes: int = 3, dtype=torch.float64
):
    """Return `input, target, points` with predictions about the targets, some of them small, duplicate or padding."""
    torch.manual_seed(seed)
    targets = seed % 7 if targets is None else targets
    points = Points.from_levels([(int(size // s),) * 2 for s in STRIDES], STRIDES, dtype=dtype)
    preds = len(points.centers)
    side = 2 + torch.rand(images, targets, 2, dtype=dtype) ** 2 * size
    low = torch.rand(images, targets, 2, dtype=dtype) * (size - side).clamp(min=0)
    # no border within 0.01 pixels of a point, where TOOD's implementation differs
    boxes = torch.cat((low, low + side), dim=-1).round() + 0.3
    if seed % 3 == 0 and targets > 2:
        boxes[:, 2] = boxes[:, 0]
    labels = torch.randint(0, classes, (images, targets))
    mask = torch.rand(images, targets).sort(dim=1).values < 0.8  # padding last, as the references want it
    near = points.centers[:, None, :].expand(images, -1, -1, -1) - ((boxes[..., :2] + boxes[..., 2:]) / 2)[:, None]
    if targets:
        nearest = near.norm(dim=-1).argmin(-1)  # (B, P)
        pred = boxes.gather(1, nearest.unsqueeze(-1).expand(-1, -1, 4))
        pred = pred + 3 * torch.randn(images, preds, 4, dtype=dtype)
    else:
        pred = size * torch.rand(images, preds, 4, dtype=dtype)
    pred = torch.cat((torch.minimum(pred[..., :2], pred[..., 2:]), torch.maximum(pred[..., :2], pred[..., 2:])), -1)
    logits = 2 * torch.randn(images, preds, classes, dtype=dtype) - 1
    if seed % 4 == 0:  # equal predictions tie
        pred[:, 1::2], logits[:, 1::2] = pred[:, : 2 * (preds // 2) : 2], logits[:, : 2 * (preds // 2) : 2]
    input = {"pred_logits": logits, "pred_boxes": pred}
    return input, {"labels": labels, "boxes": boxes, "mask": mask}, points


def assignment(plan: Tensor) -> tuple[Tensor, Tensor]:
    """Return the target of each prediction, or -1, and its mass."""
    if plan.shape[-1] == 1:
        return torch.full(plan.shape[:2], -1), plan.new_zeros(plan.shape[:2])
    mass, index = plan[..., :-1].max(-1)
    return index.masked_fill(mass == 0, -1), mass
