"""The transport problem of a solver: a cost with its penalties and regularisation, for ours and for POT."""

import math
from dataclasses import dataclass

from torch import Tensor

from benchmarks.workloads import Problem, Workload
from uotod import recipes
from uotod.loss import IoULoss
from uotod.match import Matcher, UnbalancedSinkhorn

PENALTY = 1.0  # of both sides: the plain iteration needs hundreds of steps


@dataclass(frozen=True)
class Transport:
    """Problems of a batch, in float64, the precision of POT.

    Attributes:
        cost: (B, P, T + 1), each image's divided by its largest entry, `inf` for padding.
        mask: (B, T), False for padding.
        reg: weight of the entropy.
    """

    cost: Tensor
    mask: Tensor
    reg: float


def make_transport(workload: Workload, problem: Problem) -> Transport:
    """Return the transport problems that the matching of DETR or of SSD has for a batch."""
    input = {"pred_logits": problem.logits[-1].detach(), "pred_boxes": problem.boxes[-1].detach()}
    target = problem.padded()
    cost = _costs(workload).compute_cost_matrix(input, target, problem.anchors).double()
    scale = cost.masked_fill(cost.isinf(), 0.0).abs().amax((1, 2), keepdim=True)
    reg = 0.12 / (math.log(2 * cost.shape[1]) + 1)  # the default, spelt out because POT wants it
    return Transport(cost / scale, target["mask"], reg)


def matcher(transport: Transport) -> UnbalancedSinkhorn:
    """Return our solver of a problem."""
    return UnbalancedSinkhorn(
        reg_pred=PENALTY, reg_target=PENALTY, reg=transport.reg, normalize_cost_matrix=False, on_unconverged="raise"
    )


def _costs(workload: Workload) -> Matcher:
    if workload.queries == 8732:
        loss = IoULoss(reduction="none")
        return UnbalancedSinkhorn(loc_match_module=loss, is_anchor_based=True, background_cost=0.5)
    return recipes.uot_detr(workload.classes).matching_method
