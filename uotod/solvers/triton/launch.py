"""Costs and marginals in, entropic transport plans by one launch of a Triton kernel out."""

import importlib.util
import os

import torch
from torch import Tensor

from uotod.solvers.scaling import Penalties, log_range
from uotod.solvers.sinkhorn import NUM_ITER, SLOW_UNSEEN, TOL, Transport, blank, solve_sinkhorn, sweep_contraction

MOST_COLUMNS = 512
MOST_NEWTON_COLUMNS = 128  # the linear system of a step is solved in registers


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
    """Solve the problem of `solve_sinkhorn` by the same method, all of a batch in one launch.

    A program of the GPU repeats the sweeps or Newton steps of one image until that image is finished. The host waits
    for nothing, so that a CUDA graph can capture the call once it has been compiled: at the first call with a dtype,
    penalties, `tol` and a power of two that the number of columns does not exceed. Potentials and column masses are
    float64, as are differences of costs and potentials: on GPUs with few units for it that may be what limits. More
    than 512 columns, or more than 128 where Newton steps are taken, go to `solve_sinkhorn`.

    Memory: what is returned, and registers.

    Args:
        cost: (B, K, P) float32 or float64 on a CUDA device; `inf` forbids a pair.
        column_mass: (B, K) marginals; a column of mass 0 stays empty. Not read where `reg_target` is 0.
        active: (B, K) bool, False for a column that is absent.
        reg: weight of the entropy, one number or (B,); with a tensor, Newton steps are taken.
        reg_pred: weight of the predictions' marginals, in [0, inf].
        reg_target: weight of the columns' marginals, in [0, inf].
        num_iter: most sweeps or Newton steps of an image.
        tol: an image is finished when a sweep would move at most this mass in any column.

    Returns:
        As `solve_sinkhorn`.

    Raises:
        ImportError: Triton is not installed.
        ValueError: the tensors are not on a CUDA device. With `TRITON_INTERPRET=1` in the environment before Triton is
            imported, its interpreter runs the kernel on the CPU, slowly.

    References:
        P. Tillet et al., "Triton: an intermediate language and compiler for tiled neural network computations", MAPL
        2019.
    """
    if importlib.util.find_spec("triton") is None:
        raise ImportError('solver="triton" needs Triton: pip install "uotod[triton]"')
    if not cost.is_cuda and os.environ.get("TRITON_INTERPRET") != "1":
        raise ValueError(f"solver='triton' needs tensors on a CUDA device, got {cost.device}: use solver='torch'")
    columns = cost.shape[1]
    known = None if isinstance(reg, Tensor) else reg
    newton = sweep_contraction(Penalties(reg_pred, reg_target), known) > SLOW_UNSEEN
    if columns > (MOST_NEWTON_COLUMNS if newton else MOST_COLUMNS):
        return solve_sinkhorn(cost, column_mass, active, reg, reg_pred, reg_target, num_iter=num_iter, tol=tol)
    cost = cost.contiguous()
    out = blank(cost)
    if cost.numel():
        regs = reg if isinstance(reg, Tensor) else torch.full_like(out.residual, reg, dtype=torch.float64)
        _launch(cost, column_mass, active, regs.double(), reg_pred, reg_target, num_iter, tol, newton, out)
    return out


def _launch(
    cost: Tensor,
    column_mass: Tensor,
    active: Tensor,
    reg: Tensor,
    reg_pred: float,
    reg_target: float,
    num_iter: int,
    tol: float,
    newton: bool,
    out: Transport,
) -> None:
    from uotod.solvers.triton.sinkhorn_kernel import solve_images

    images, columns, preds = cost.shape
    eps, (low, high) = torch.finfo(cost.dtype).eps, log_range(cost.dtype)
    padded = max(16, 1 << (columns - 1).bit_length())  # `tl.dot` takes 16 and more
    # eight entries of a block a thread: sixteen leave the registers. A thread of Newton's method needs twice as many.
    warps = 8 if newton and padded < MOST_NEWTON_COLUMNS else 16
    block = (2048 if newton else 4096) // padded
    with torch.cuda.device(cost.device if cost.is_cuda else -1):  # Triton launches on the current device
        solve_images[(images,)](
            cost,
            column_mass.contiguous(),
            active.contiguous().view(torch.uint8),
            reg.contiguous(),
            *out,
            columns,
            preds,
            num_iter,
            pred_penalty=float(reg_pred),
            target_penalty=float(reg_target),
            tol=float(tol),
            attainable=max(float(tol), 8 * eps),
            eps=eps,
            low=low,
            high=high,
            newton=newton,
            alignment=4 if preds % 4 == 0 else 1,
            K=padded,
            width=block,
            num_warps=warps,
            enable_fp_fusion=True,
        )
