"""Hard negative mining: background masses and losses in, the masses that are kept out."""

import torch
from torch import Tensor


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
    hardness = loss.masked_fill(background <= 0, -torch.inf)
    order = hardness.argsort(dim=1, descending=True, stable=True)
    sorted_mass = background.gather(1, order).double()  # float32 sums of thousands of masses would lose the last one
    limit = (ratio * num_pos.double()).clamp(min=min_negatives).unsqueeze(1)
    room = limit - (sorted_mass.cumsum(1) - sorted_mass)
    kept = torch.minimum(sorted_mass, room.clamp(min=0)).to(background.dtype)
    return torch.zeros_like(background).scatter(1, order, kept)
