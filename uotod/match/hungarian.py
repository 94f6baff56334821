"""Hungarian matching: costs in, the assignment of least total cost out, one to one or one to several."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional

from uotod.check import check_integer
from uotod.match.base import Matcher, shared
from uotod.match.schedule import Schedule
from uotod.plan import Plan
from uotod.scene.scene import Scene
from uotod.solvers.assignment import assign_predictions


class Hungarian(Matcher):
    r"""Match each target to a prediction of its own, or to several, at the least total cost.

    .. math:: \min_{S_1, \dots, S_{T_b} \text{ disjoint}} \sum_{j=1}^{T_b} \sum_{i \in S_j} C_{ij}, \qquad |S_j| = k_b

    The rest of the predictions goes to the background, whose cost is constant over the predictions and so cannot
    change the answer: the background column of a cost is not read. With `P < T_b` there are `P` pairs. Exact, by
    scipy: the one matcher that needs a transfer to the host, a single one for a batch and all its decoder layers.
    At the defaults, where `k_b = 1`, it is the limit of balanced transport as `reg → 0` (De Plaen et al., CVPR 2023,
    prop. 1).

    Where several assignments cost the same, the solver's choice among them is deterministic; it is the lowest index
    where all pairs tie, and no index is promised elsewhere.

    Time O((k T)² P) an image on the host at worst; the matrix of one image at a time is repeated there `k` times.

    Args:
        copies: predictions `k` that a target takes in one assignment: the second set of queries of H-DETR (5), the
            `MixedMatcher` of Align-DETR, the `TopkHungarianAssigner` of DDQ. An image with too few predictions for
            that has `k_b = max(min(copies, P // T_b), 1)`, as DDQ, so that no target takes a second prediction while
            another has none; Align-DETR lowers `k` to `P // (2 T_b)`, H-DETR not at all.
        groups: number of equal runs of predictions, each assigned on its own, so that a target is matched once a
            group (Group DETR; LW-DETR and RF-DETR have 13). Only while `training` is True, as it is until `eval()` is
            called on the matcher or on a module that holds it: then all predictions are one group, for inference
            keeps the queries of one group. `P` and `T_b` above are those of a group.
        rounds: assignments in turn, each of the predictions that are left (top-k of D-FINE). The first is that of
            `rounds=1`; the last may find too few predictions and then matches the cheapest ones.

    The other arguments are those of `Matcher`.

    Raises:
        ValueError: both `copies` and `rounds` exceed 1 (either goes with `groups`); at the call, `groups` does not
            divide `P`.

    References:
        Kuhn, "The Hungarian method for the assignment problem", 1955; Carion et al., "End-to-end object detection
        with transformers", ECCV 2020, eq. 1; Jia et al., "DETRs with hybrid matching", CVPR 2023 (copies); Zhang et
        al., "Dense distinct query for end-to-end object detection", CVPR 2023 (copies); Chen et al., "Group DETR",
        ICCV 2023 (groups); Peng et al., "D-FINE", ICLR 2025 (rounds).

    Examples:
        >>> import torch
        >>> cost = torch.tensor([[[0.1, 0.2, 9.0], [0.1, 0.9, 9.0], [0.5, 0.5, 9.0], [0.2, 0.8, 9.0]]])
        >>> Hungarian().compute_matching(cost, torch.ones(1, 2, dtype=torch.bool))
        tensor([[[0., 1., 0.],
                 [1., 0., 0.],
                 [0., 0., 1.],
                 [0., 0., 1.]]])
        >>> Hungarian(copies=2).compute_matching(cost, torch.ones(1, 2, dtype=torch.bool)).argmax(-1)
        tensor([[1, 0, 1, 0]])
    """

    def __init__(
        self,
        *,
        copies: int = 1,
        groups: int = 1,
        rounds: int = 1,
        cls_match_module: nn.Module | None = None,
        loc_match_module: nn.Module | None = None,
        background: bool = True,
        background_cost: float | Schedule = 10.0,
        is_anchor_based: bool = False,
        nonfinite: str = "error",
        ignore_threshold: float = 0.5,
        class_weight: Sequence[float] | Tensor | None = None,
        validate: bool = False,
        box_format: str | None = None,
    ) -> None:
        super().__init__(**shared(Matcher, locals()))
        self.copies = check_integer("copies", copies, low=1)
        self.groups = check_integer("groups", groups, low=1)
        self.rounds = check_integer("rounds", rounds, low=1)
        if copies > 1 and rounds > 1:
            raise ValueError(f"at most one of copies and rounds may exceed 1, got copies={copies} and rounds={rounds}")

    def extra_repr(self) -> str:
        """Return the arguments for `repr`."""
        return f"copies={self.copies}, groups={self.groups}, rounds={self.rounds}"

    @property
    def reads_cost_alone(self) -> bool:
        """Whether the number of predictions is not read."""
        return self.copies == 1 and self._groups == 1

    @property
    def _groups(self) -> int:
        return self.groups if self.training else 1

    def refuse_labels(self, scene: Scene) -> None:
        """Leave labels that are not allowed to the plan, where they cross to the host with the cost."""

    def plan(self, scene: Scene) -> Plan:
        cost, wrong = self.cost(scene), scene.wrong_labels
        if wrong is not None:
            rows = functional.pad(wrong, (0, cost.shape[1] - wrong.shape[1])).unsqueeze(-1)
            cost = cost.masked_fill(rows, -math.inf)
        try:
            return self.match(cost, scene.mask)
        except ValueError:
            scene.check_values()  # which tells what is wrong with them
            raise

    def match(self, cost: Tensor, mask: Tensor) -> Plan:
        num_targets = mask.shape[1]
        return Plan.from_index(self._assign(cost[:, :num_targets], mask), num_targets, self.background, cost.dtype)

    def _assign(self, cost: Tensor, mask: Tensor) -> Tensor:
        """Return the target (B, P) of each prediction, T for none."""
        groups, preds = self._groups, cost.shape[2]
        if preds % groups:
            raise ValueError(f"groups must divide the number of predictions P, got groups={groups} and P={preds}")
        return assign_predictions(cost, mask, copies=self.copies, groups=groups, rounds=self.rounds)
