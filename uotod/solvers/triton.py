"""Costs and marginals in, entropic transport plans out, by one launch of a Triton kernel."""

import importlib.util
import math
import os

import torch
from torch import Tensor

from uotod.solvers._scaling import log_range
from uotod.solvers.sinkhorn import NUM_ITER, SLOW, TOL, Transport, blank, solve_sinkhorn

MOST_COLUMNS = {True: 128, False: 512}  # with Newton steps, whose system is solved in registers, and without


def solve_triton(
    cost: Tensor,
    column_mass: Tensor,
    active: Tensor,
    reg: float | Tensor,
    reg_pred: float,
    reg_target: float,
    *,
    num_iter: int = NUM_ITER,
    tol: float = TOL,
) -> Transport:
    from uotod.solvers._triton_sinkhorn import solve_images
    out = blank(cost)
    images, columns, preds = cost.shape
    newton = True
    if not isinstance(reg, Tensor):
        c = 1.0
        for p in (reg_pred, reg_target):
            c *= 0 if p == 0 else 1 if math.isinf(p) else p / (p + reg)
        newton = c > SLOW
    elif reg_pred == 0 or reg_target == 0:
        newton = False
    regs = reg.double() if isinstance(reg, Tensor) else torch.full((images,), reg, dtype=torch.float64, device=cost.device)
    size = max(16, 1 << (columns - 1).bit_length())
    eps = torch.finfo(cost.dtype).eps
    low, high = log_range(cost.dtype)
    solve_images[(images,)](cost, column_mass, active.view(torch.uint8), regs, *out, columns, preds, num_iter,
        PRED=float(reg_pred), TARGET=float(reg_target), TOL=tol, ATTAINABLE=max(tol, 8 * eps), EPS=eps, LOW=low, HIGH=high,
        NEWTON=newton, ALIGN=4 if preds % 4 == 0 else 1, K=size, I=32)
    return out
