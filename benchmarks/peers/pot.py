"""Unbalanced transport by POT, an image at a time in numpy."""

import numpy as np
import ot
import torch
from torch import Tensor

from benchmarks.contender import Contender, solver
from benchmarks.transport import PENALTY, Transport, make_transport
from benchmarks.workloads import Problem, Workload

ERROR = 1e-6  # of an entry of the plan, in units where a prediction has 1


def pot(workload: Workload, problem: Problem) -> Contender:
    """Return POT with the loosest of its thresholds that leaves an error of at most 1e-6."""
    given = make_transport(workload, problem)
    exact = _solve(given, 1e-16)
    thresholds = (10.0**-power for power in range(3, 17))
    enough = next(x for x in thresholds if float((_solve(given, x) - exact).abs().max()) <= ERROR)
    return solver("POT", "unbalanced", lambda: _solve(given, enough))


def _solve(given: Transport, threshold: float) -> Tensor:
    preds = given.cost.shape[1]
    plan = torch.zeros_like(given.cost)
    for image, mask in enumerate(given.mask):
        count = int(mask.sum())
        columns = torch.cat((mask, mask.new_ones(1)))
        cost = given.cost[image, :, columns].numpy()
        rows = np.full(preds, 1 / preds)
        marginal = np.append(np.full(count, 1 / preds), (preds - count) / preds)
        found = ot.unbalanced.sinkhorn_unbalanced(
            rows,
            marginal,
            cost,
            given.reg,
            (PENALTY, PENALTY),
            reg_type="entropy",
            numItermax=100_000,
            stopThr=threshold,
        )
        plan[image, :, columns] = preds * torch.from_numpy(found)
    return plan
