"""Self-distillation of stacked decoder layers: predictions and a plan in, the loss of each layer out."""

import torch
from torch import Tensor

from uotod.criterion.quality import pair_quality
from uotod.loss.fine_grained import DistillationLoss
from uotod.plan import DensePlan, Plan
from uotod.scene.predictions import Scene


def distillation_losses(module: DistillationLoss, scene: Scene, plan: Plan, validate: bool) -> Tensor:
    """Return the loss (1, L) of teaching each layer the distributions of the final one; that of the final one is 0.

    A matched prediction counts by the IoU of its pair, that of several by their mean, weighted with the mass.

    Raises:
        ValueError: there are no distributions.
    """
    predictions, layers = scene.predictions, scene.layers
    if predictions.dist is None:
        raise ValueError("input must have the key 'pred_dist' with a distillation_module")
    quality, mass = pair_quality("quality", "iou", scene, plan, None, validate), plan.positive_mass()
    assert quality is not None
    if isinstance(plan, DensePlan):
        quality = (plan.positive * quality).sum(1) / torch.where(mass > 0, mass, 1)
    quality = quality.masked_fill(mass <= 0, float("nan"))
    *students, teacher = predictions.dist.chunk(layers)
    logits = predictions.logits.chunk(layers)[-1]
    zero = predictions.dist[..., :0].sum()
    losses = [
        module(student, teacher, logits, rows) if predictions.has_dist(i) else zero
        for i, (student, rows) in enumerate(zip(students, quality.chunk(layers), strict=False))
    ]
    return torch.stack([*losses, zero])[None]
