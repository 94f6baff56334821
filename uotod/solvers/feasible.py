"""Forbidden pairs and masses in; an error out where no transport plan keeps to both."""

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from uotod.check import reads_values

MAX_FLOW = 1 << 30  # of all predictions, in the integers of scipy's algorithm
Bools = NDArray[np.bool_]


class Flow(NamedTuple):
    """The most that predictions of mass 1 can give to columns, and what keeps it from being more.

    Attributes:
        mass: in units of a prediction's.
        pred: (P,) bool, predictions that cannot give all their mass: they may go to `column` alone.
        column: (K,) bool, columns that these fill.
    """

    mass: float
    pred: Bools
    column: Bools


def check_feasible(
    cost: Tensor, column_mass: Tensor, active: Tensor, reg_pred: float, reg_target: float, validate: bool
) -> None:
    """Raise a ValueError where forbidden pairs leave no plan with the marginals that must be met.

    With one equality each prediction (or column) must have a partner, with two no set of predictions may need more than
    the columns that it may go to have: a maximum flow tells, in time that grows with the number of different rows.

    Args:
        cost: (B, K, P); `inf` forbids a pair.
        column_mass: (B, K) marginals; a column of mass 0 takes nothing unless `reg_target` is 0.
        active: (B, K) bool, False for a column that is absent.
        reg_pred: weight of the predictions' marginals, which must be met if it is infinite.
        reg_target: weight of the columns' marginals, likewise.
        validate: also read the values on a GPU.
    """
    if math.inf not in (reg_pred, reg_target) or not cost.numel() or not reads_values(cost, validate):
        return
    used = active if reg_target == 0 else active & (column_mass > 0)
    forbids = ((cost.amax(2) == math.inf) & used).any(1)  # (B,)
    if not bool(forbids.any()):
        return
    allowed = cost.isfinite() & used.unsqueeze(2)
    lonely_pred = ~allowed.any(1) & active.any(1, keepdim=True)  # (B, P)
    lonely_column = ~allowed.any(2) & used & (column_mass > 0)  # (B, K)
    for name, penalty, lonely, side in (
        ("reg_pred", reg_pred, lonely_pred, "prediction"),
        ("reg_target", reg_target, lonely_column, "column"),
    ):
        if penalty == math.inf and bool(lonely.any()):
            image, index = (int(x) for x in lonely.nonzero()[0])
            raise ValueError(
                f"cost_matrix must allow every {side} a partner with {name}=inf, got only inf in image {image}, "
                f"{side} {index}, or where no mass is wanted: infeasible"
            )
    if math.isinf(reg_pred) and math.isinf(reg_target):
        for image in forbids.nonzero().flatten().tolist():
            mass = column_mass[image].double().masked_fill(~used[image], 0.0).cpu().numpy()
            flow = largest_flow(allowed[image].cpu().numpy(), mass * (cost.shape[2] / mass.sum()))
            if flow.pred.any():
                raise ValueError(
                    f"cost_matrix must leave a plan with the marginals, got too many inf: image {image} is infeasible, "
                    f"for {flow.pred.sum()} predictions, of which the first is {flow.pred.argmax()}, may go only to "
                    f"{flow.column.sum()} columns, which take {mass[flow.column].sum():g}"
                )


def check_carries(cost: Tensor, mask: Tensor, total: Tensor, validate: bool) -> None:
    """Raise a ValueError where the pairs that a cost (B, T, P) allows carry less than `total` (B,) of mass 1 a side.

    Values are read where that does not synchronise, or to `validate`.
    """
    if not cost.numel() or not reads_values(cost, validate):
        return
    allowed = cost.isfinite() & mask.unsqueeze(2)
    for image in (allowed.sum((1, 2)) < mask.sum(1) * cost.shape[2]).nonzero().flatten().tolist():
        flow = largest_flow(allowed[image].cpu().numpy(), mask[image].double().cpu().numpy())
        if flow.mass < float(total[image]) - 1e-6:
            raise ValueError(
                f"cost_matrix must leave pairs that carry a mass of {float(total[image]):g}, got too many inf: image "
                f"{image} is infeasible, for they carry {flow.mass:g}"
            )


def largest_flow(allowed: Bools, mass: NDArray[np.float64]) -> Flow:
    """Return the largest flow from predictions of mass 1 to columns of `mass` (K,) through `allowed` (K, P) pairs."""
    from scipy.sparse import csr_array
    from scipy.sparse.csgraph import breadth_first_order, maximum_flow

    columns, preds = allowed.shape
    # predictions that may go to the same columns count together
    row, kind, times = np.unique(np.packbits(allowed, axis=0), axis=1, return_inverse=True, return_counts=True)
    kind, unit = kind.reshape(-1), MAX_FLOW // preds
    kinds = row.shape[1]
    first = np.full(kinds, preds)
    np.minimum.at(first, kind, np.arange(preds))
    column, of = np.nonzero(allowed[:, first])
    source, sink = kinds + columns, kinds + columns + 1
    # rounded up: what is lost to integers must not look infeasible
    room = np.minimum(np.ceil(mass * unit), MAX_FLOW).astype(np.int32)
    tail = np.concatenate((np.full(kinds, source), of, kinds + np.arange(columns)))
    head = np.concatenate((np.arange(kinds), kinds + column, np.full(columns, sink)))
    size = np.concatenate((times * unit, np.full(len(of), MAX_FLOW), room)).astype(np.int32)
    graph = csr_array((size, (tail, head)), shape=(sink + 1, sink + 1))
    found = maximum_flow(graph, source, sink)
    residual = graph - found.flow  # of reversed arcs, too, for flow is antisymmetric
    residual.eliminate_zeros()
    reached = np.zeros(sink + 1, dtype=np.bool_)
    reached[breadth_first_order(residual, source, return_predecessors=False)] = True
    return Flow(found.flow_value / unit, reached[kind], reached[kinds:source])
