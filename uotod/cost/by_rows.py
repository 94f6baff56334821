"""The cost of all pairs from a module that knows rows only: as many rows at once as stay bounded."""

import torch
from torch import Tensor, nn

MAX_MODULE_ELEMENTS = 1 << 18  # of the rows handed at once to a module without a fast path


def cost_by_rows(module: nn.Module, preds: Tensor, targets: Tensor, name: str) -> Tensor:
    """Return the cost (B, T, P) of (B, P, N) predictions against the targets (B, T, ...) of the same images.

    Raises:
        ValueError: the module, which `name` calls by its argument, does not return one loss a row.
    """
    images, num_targets, num_preds = len(preds), targets.shape[1], preds.shape[1]
    total, size = images * num_targets * num_preds, max(MAX_MODULE_ELEMENTS // max(preds.shape[2], 1), 1)
    cost: Tensor | None = None
    for start in range(0, total, size):
        pair = torch.arange(start, min(start + size, total), device=preds.device)
        image, target, pred = pair // (num_targets * num_preds), pair // num_preds % num_targets, pair % num_preds
        loss = sum_rows(module(preds[image, pred], targets[image, target]), len(pair), name)
        if cost is None:  # at once, for small results among the temporaries would keep those from being given back
            cost = loss.new_empty(total)
        cost[start : start + len(pair)] = loss
    return (preds.new_empty(0) if cost is None else cost).view(images, num_targets, num_preds)


def sum_rows(loss: Tensor, rows: int, name: str) -> Tensor:
    """Return one value a row from a loss of shape (rows,) or (rows, ...).

    Raises:
        ValueError: the loss has another number of rows.
    """
    if loss.dim() == 0 or loss.shape[0] != rows:
        raise ValueError(f"{name} must return one loss a row, ({rows},) or ({rows}, K), got {tuple(loss.shape)}")
    return loss.flatten(1).sum(1) if loss.dim() > 1 else loss
