"""Checks of a cost before it is matched, and what becomes of predictions that are not finite."""

import math

import torch
from torch import Tensor

from uotod.check import reads_values
from uotod.geometry.boxes import full_precision
from uotod.scene.predictions import Scene


def check_cost(cost_matrix: Tensor, target_mask: Tensor, background: bool, validate: bool) -> Tensor:
    """Return a public cost (B, P, K) as a contiguous target-major one, (B, K, P), in at least float32.

    Raises:
        TypeError: an argument is not a tensor of the right dtype.
        ValueError: shapes do not fit, or the cost holds NaN or -inf.
    """
    if not isinstance(cost_matrix, Tensor) or not cost_matrix.is_floating_point():
        found = cost_matrix.dtype if isinstance(cost_matrix, Tensor) else type(cost_matrix).__name__
        raise TypeError(f"cost_matrix must be a tensor of a floating dtype, got {found}")
    if not isinstance(target_mask, Tensor) or target_mask.dtype != torch.bool:
        found = target_mask.dtype if isinstance(target_mask, Tensor) else type(target_mask).__name__
        raise TypeError(f"target_mask must be a tensor of dtype torch.bool, got {found}")
    layout = "(B, P, T + 1)" if background else "(B, P, T)"
    columns = cost_matrix.shape[-1] - background if cost_matrix.dim() == 3 else -1
    if columns < 0 or target_mask.shape != (cost_matrix.shape[0], columns):
        raise ValueError(
            f"cost_matrix must have shape {layout} and target_mask (B, T), "
            f"got {tuple(cost_matrix.shape)} and {tuple(target_mask.shape)}"
        )
    if cost_matrix.device != target_mask.device:
        raise ValueError(f"target_mask must be on {cost_matrix.device} like cost_matrix, got {target_mask.device}")
    cost = full_precision(cost_matrix.detach()).transpose(1, 2).clone(memory_format=torch.contiguous_format)
    cost[:, :columns].masked_fill_(~target_mask.unsqueeze(-1), math.inf)
    check_cost_values("cost_matrix", cost, validate)
    return cost


def check_cost_values(name: str, cost: Tensor, validate: bool) -> None:
    """Raise a ValueError if a target-major cost (B, K, P) holds NaN or -inf, which no plan can mean."""
    if not cost.numel() or not reads_values(cost, validate) or bool(cost.amin() > -math.inf):
        return  # the minimum of values with a NaN is NaN
    bad = cost.isnan() | (cost == -math.inf)
    image, column, pred = (int(x) for x in bad.nonzero()[0])
    value = float(cost[image, column, pred])
    raise ValueError(
        f"{name} must not hold NaN or -inf, got {value} in image {image}, prediction {pred}, column {column}"
    )


def finite_predictions(scene: Scene) -> Tensor:
    """Return the (B, P) bool mask of predictions without NaN or infinity."""
    predictions = scene.predictions
    finite = predictions.logits.isfinite().all(-1) & predictions.boxes.isfinite().all(-1)
    if predictions.objectness is not None:
        finite = finite & predictions.objectness.isfinite()
    return finite if predictions.dist is None else finite & predictions.dist.isfinite().all(-1).all(-1)


def replace_nonfinite(cost: Tensor, scene: Scene, background_cost: float) -> Tensor:
    """Give predictions that are not finite a finite cost (B, T, P) above that of any set of finite pairs."""
    if not cost.numel():
        return cost
    bad = ~finite_predictions(scene)  # (B, P)
    valid = scene.mask.unsqueeze(-1) & ~bad.unsqueeze(1) & cost.isfinite()
    some = valid.flatten(1).any(1)[:, None, None]
    high = cost.masked_fill(~valid, -math.inf).amax((1, 2), keepdim=True).where(some, 0.0)
    low = cost.masked_fill(~valid, math.inf).amin((1, 2), keepdim=True).where(some, 0.0)
    high, low = high.clamp(min=background_cost), low.clamp(max=background_cost)
    count = scene.mask.sum(1)[:, None, None]
    worst = high + (count + 1) * (high - low + 1)
    return torch.where(bad.unsqueeze(1), worst, cost)
