"""Costs and supplies in, the assignment that OTA reads from the transport plan between them out."""

import math

import torch
from torch import Tensor

from uotod.solvers.sinkhorn import solve_sinkhorn

MARGIN = 40.0  # exp(-40) is no mass


def ota_match(
    cost: Tensor,
    outside: Tensor | None,
    background: Tensor,
    supply: Tensor,
    *,
    penalty: float,
    reg: float,
    num_iter: int,
    tol: float,
) -> Tensor:
    r"""Transport the supplies of targets and background to the predictions, and read off the target of each.

    With the plan `π` of balanced entropic transport, in which each prediction demands 1, target `j` supplies `s_j` and
    the background what is left, a prediction goes to

    .. math:: \arg\max_j \frac{\pi_{ij}}{\max_k \pi_{kj}} = \arg\max_j\, (f_i - C_{ij}) - \max_k (f_k - C_{kj}),

    where `f` are the potentials of the predictions; the lowest index wins ties and the background loses them. Supplies
    beyond the number of predictions are scaled down to it. All in float64; O(B·P·T) time and memory a step.

    Args:
        cost: (B, T, P); `inf` forbids a pair.
        outside: (B, T, P) bool, pairs that cost `penalty` more, or None.
        background: (B, P) cost of the background.
        supply: (B, T) how many predictions each target supplies; 0 for padding.
        penalty: finite; see `outside`. At most the spread of the costs (and 40 `reg`) is used for each column, which no
            exchange of predictions outweighs, and which is far better conditioned than 1e6.
        reg: weight of the entropy, in units of the cost.
        num_iter: most Newton steps; on a GPU so many are taken.
        tol: largest mass that a sweep may move at the solution.

    Returns:
        (B, P) index of the target, T for the background.

    References:
        Ge et al., "OTA: optimal transport assignment for object detection", CVPR 2021, secs. 3.1-3.2.
    """
    images, num_targets, preds = cost.shape
    if not num_targets or not preds:
        return torch.full((images, preds), num_targets, device=cost.device)
    full = torch.cat((cost, background.unsqueeze(1)), dim=1).double()  # (B, T + 1, P)
    forbidden = full == math.inf
    supply = torch.where(forbidden[:, :num_targets].all(2), 0.0, supply.double())
    total = supply.sum(1, keepdim=True)
    supply = torch.where(total > preds, supply * (preds / total.clamp(min=1)), supply)
    mass = torch.cat((supply, (preds - total).clamp(min=0)), dim=1)  # (B, T + 1)

    allowed = ~forbidden & (mass > 0).unsqueeze(2)
    some = allowed.flatten(1).any(1)[:, None, None]
    high = full.masked_fill(~allowed, -math.inf).amax((1, 2), keepdim=True).where(some, 0.0)
    spread = high - full.masked_fill(~allowed, math.inf).amin((1, 2), keepdim=True).where(some, 0.0)
    # a chain of exchanges that avoids a pair passes each column once, and loses at most one spread there
    enough = (mass > 0).sum(1)[:, None, None] * spread + MARGIN * reg
    if outside is not None:
        full[:, :num_targets] += torch.where(outside, enough.clamp(max=penalty), 0.0)
    # supplies that forbidden pairs leave without a way out take them at a price, and match nothing there
    finite = full.where(~forbidden, high + 2 * enough + spread)
    scale = torch.full_like(full[:, 0, 0], reg)  # a tensor: the solver may not count on costs of at most 1
    transport = solve_sinkhorn(finite, mass, mass > 0, scale, math.inf, math.inf, num_iter=num_iter, tol=tol)
    score = (transport.pred_potential.unsqueeze(1) - full).masked_fill(~allowed, -math.inf)
    score = score - score.amax(2, keepdim=True).clamp(min=torch.finfo(score.dtype).min)
    value = score.amax(1)
    # what the solver leaves open is a tie, whose lowest index wins
    index = (score >= (value - 10 * tol * reg).unsqueeze(1)).long().max(1).indices
    return torch.where(value > -math.inf, index, num_targets)
