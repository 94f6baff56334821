"""Hungarian matching: costs in, the one-to-one assignment of least total cost out."""

import torch
from torch import Tensor

from uotod._plan import AssignedPlan, Plan
from uotod.match._base import PlanMatcher
from uotod.solvers.assignment import assign


class Hungarian(PlanMatcher):
    r"""Match each target to a prediction of its own, at the least total cost.

    .. math:: \min_{\sigma} \sum_{j=1}^{T_b} C_{\sigma(j)\, j}, \qquad \sigma(j) \ne \sigma(k) \text{ for } j \ne k

    The rest of the predictions goes to the background, whose cost is constant over the predictions and so cannot
    change the answer: the background column of a cost is not read. With `P < T_b` there are `P` pairs. Exact, by
    scipy: the one matcher that needs a transfer to the host, a single one for a batch and all its decoder layers.
    It is the limit of balanced transport as `reg → 0` (De Plaen et al., CVPR 2023, prop. 1).

    Args: those of `Matcher`.

    References:
        Kuhn, "The Hungarian method for the assignment problem", 1955; Carion et al., "End-to-end object detection
        with transformers", ECCV 2020, eq. 1.

    Examples:
        >>> cost = torch.tensor([[[0.1, 0.2, 9.0], [0.1, 0.9, 9.0], [0.5, 0.5, 9.0]]])
        >>> Hungarian().compute_matching(cost, torch.ones(1, 2, dtype=torch.bool))
        tensor([[[0., 1., 0.],
                 [1., 0., 0.],
                 [0., 0., 1.]]])
    """

    def _match(self, cost: Tensor, mask: Tensor) -> Plan:
        num_targets = mask.shape[1]
        pred = assign(cost[:, :num_targets], mask)  # (B, T)
        preds = cost.shape[2]
        index = torch.full((len(cost), preds + 1), num_targets, device=cost.device)
        target = torch.arange(num_targets, device=cost.device).expand_as(pred)
        index = index.scatter_(1, pred.remainder(preds + 1), target)[:, :preds]  # -1: a column to drop
        return AssignedPlan(index, cost.new_ones(index.shape), num_targets, self.background)
