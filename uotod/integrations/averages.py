"""Moving averages in loops that do not know them: a criterion and the terms of a training step in, averages moved."""

from collections.abc import Mapping

import torch
from torch import Tensor

from uotod.loss import Branch, Branches, DetectionLoss, MovingAverageNormalizer


def update_averages(criterion: DetectionLoss | Branches, terms: Mapping[str, Tensor]) -> None:
    """Let the moving averages of a criterion and its branches learn from the terms of a training step.

    Without gradients, or with a criterion that does not train, as in validation, nothing moves.
    """
    if not (criterion.training and torch.is_grad_enabled()):
        return
    losses = {"": criterion.main if isinstance(criterion, Branches) else criterion}
    if isinstance(criterion, Branches):
        branches = {key: x for key, x in criterion.branches.items() if isinstance(x, Branch)}
        losses |= {f"_{key.removesuffix('_outputs')}": branch.loss for key, branch in branches.items()}
    for suffix, loss in losses.items():
        for part in loss.normalizer.modules():
            if isinstance(part, MovingAverageNormalizer) and f"num_pos{suffix}" in terms:
                part.update(terms[f"num_pos{suffix}"], loss.process_group)
