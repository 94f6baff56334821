"""Hard negative mining: background masses and losses in, the masses that are kept out."""

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from uotod.check import is_traced, reads_values
from uotod.solvers.opaque import on_values
from uotod.solvers.operator import operator

Array = NDArray[np.floating]


def mine_hard_negatives(
    background: Tensor, loss: Tensor, num_pos: Tensor, ratio: float, min_negatives: float = 0.0
) -> Tensor:
    r"""Keep the background mass of the hardest predictions of each image, up to a multiple of its positive mass.

    Predictions are taken in the order of decreasing loss, the lowest index first on ties, until
    `max(ratio · N_pos, min_negatives)` is reached exactly: the last one is kept in part. For hard plans this is the
    rule of SSD, three negatives for a positive at `ratio=3`.

    Args:
        background: (B, P) background mass.
        loss: (B, P) background loss of each prediction.
        num_pos: (B,) positive mass of each image.
        ratio: negative mass for a unit of positive mass.
        min_negatives: negative mass that an image keeps even without positives.

    Returns:
        (B, P) kept background mass, at most `background`.

    References:
        Liu et al., "SSD", ECCV 2016, sec. 2.2; De Plaen et al., CVPR 2023, for fractional mass.

    Examples:
        >>> mine_hard_negatives(torch.ones(1, 4), torch.tensor([[1.0, 4.0, 3.0, 2.0]]), torch.tensor([0.5]), ratio=3.0)
        tensor([[0.0000, 1.0000, 0.5000, 0.0000]])
    """
    limit = (ratio * num_pos.double()).clamp(min=min_negatives)
    (kept,) = on_values(lambda *given: (_keep(*given),), (background, loss, limit))
    return kept


def _keep(background: Tensor, loss: Tensor, limit: Tensor) -> Tensor:
    """Return the kept mass (B, P) of hard negatives, up to the (B,) limits."""
    if is_traced(loss) and loss.device.type == "cpu":
        kept_mass: Tensor = _operator(background, loss, limit)
        return kept_mass
    if not reads_values(loss, validate=False):
        return _keep_sorted(background, loss.masked_fill(background <= 0, -torch.inf), limit)
    kept = np.zeros(background.shape, dtype=np.float64)
    for mass, hardness, most, row in zip(
        background.detach().numpy(), loss.detach().numpy(), limit.tolist(), kept, strict=True
    ):
        _keep_hardest(mass, np.where(mass > 0, hardness, -np.inf), most, row)
    return torch.from_numpy(kept).to(background.dtype)


_operator = operator(
    "mine_hard_negatives(Tensor background, Tensor loss, Tensor limit) -> Tensor",
    _keep,
    lambda background, *_: torch.empty_like(background),
)


def _keep_sorted(background: Tensor, hardness: Tensor, limit: Tensor) -> Tensor:
    """Return the kept mass (B, P) by a sort of all predictions, without a look at any value."""
    order = hardness.argsort(dim=1, descending=True, stable=True)
    sorted_mass = background.gather(1, order).double()  # float32 sums of thousands of masses would lose the last one
    room = limit.unsqueeze(1) - (sorted_mass.cumsum(1) - sorted_mass)
    kept = torch.minimum(sorted_mass, room.clamp(min=0)).to(background.dtype)
    return torch.zeros_like(background).scatter(1, order, kept)


def _keep_hardest(mass: Array, hardness: Array, limit: float, kept: Array) -> None:
    """Write the kept mass of one image, whose hardest predictions alone are sorted, into `kept`; all are (P,)."""
    preds = len(mass)
    if not preds or not limit > 0:
        return
    count = math.ceil(min(limit, preds))  # enough if each has the mass 1; below, more are taken if they have less
    if np.isnan(hardness.max()):  # harder than any number, but equal to none
        count = preds
    while True:
        found = _hardest(hardness, count)
        sorted_mass = mass[found].astype(np.float64)  # float32 sums of thousands would lose the last one
        total = sorted_mass.cumsum()
        if count >= preds or total[-1] >= limit:
            break
        count *= 4
    kept[found] = np.minimum(sorted_mass, np.maximum(limit - (total - sorted_mass), 0))


def _hardest(hardness: Array, count: int) -> NDArray[np.int64]:
    """Return the hardest `count` predictions and those that tie the last one, the hardest and then the lowest first."""
    preds = len(hardness)
    if count >= preds:
        return np.lexsort((-hardness, ~np.isnan(hardness)))
    found = np.flatnonzero(hardness >= np.partition(hardness, preds - count)[preds - count])
    return found[np.argsort(-hardness[found], kind="stable")]
