"""The Triton kernel of entropic transport: a batch of costs and marginals in, plans and potentials out, in one launch.

A program solves an image: no image waits for another, and the host for none. It repeats sweeps or takes Newton steps
until the image is finished. The buffers of the plan and of the predictions' potentials hold the kernel in the meantime.
"""

import triton
import triton.language as tl

from uotod.solvers import newton
from uotod.solvers.triton.newton_kernel import direction, dual_gradient, gaps, level_out, residual
from uotod.solvers.triton.passes import absorb, coupling, finish, first_potential, largest_cost, rate, sweep

# behind tensors, not before them: the interpreter of Triton 3.7 takes a constexpr times a tensor for a constexpr
ANNEAL_FROM, ANNEAL_RATIO = tl.constexpr(newton.ANNEAL_FROM), tl.constexpr(newton.ANNEAL_RATIO)
LOOSE, FARTHEST = tl.constexpr(newton.LOOSE), tl.constexpr(newton.FARTHEST)
LONGEST, FARTHEST_HORIZON = tl.constexpr(newton.LONGEST), tl.constexpr(newton.FARTHEST_HORIZON)
LARGEST_BLIND, LONG = tl.constexpr(newton.LARGEST_BLIND), tl.constexpr(newton.LONG)
ANY_GAP, LARGEST_GAP = tl.constexpr(newton.ANY_GAP), tl.constexpr(newton.LARGEST_GAP)
LENGTHEN, SHORTEN = tl.constexpr(newton.LENGTHEN), tl.constexpr(newton.SHORTEN)


@triton.jit(do_not_specialize=["columns", "preds", "num_iter"])
def solve_images(
    cost,  # (B, columns, preds)
    column_mass,  # (B, columns)
    active,  # (B, columns) uint8
    regs,  # (B,) float64
    plan,  # (B, columns, preds)
    pred_potential,  # (B, preds)
    target_potential,  # (B, columns)
    iterations,  # (B,) int64
    residuals,  # (B,)
    columns,
    preds,
    num_iter,
    pred_penalty: tl.constexpr,
    target_penalty: tl.constexpr,
    tol: tl.constexpr,
    attainable: tl.constexpr,
    eps: tl.constexpr,  # of the dtype, and its log_range
    low: tl.constexpr,
    high: tl.constexpr,
    newton: tl.constexpr,
    alignment: tl.constexpr,  # divides preds
    K: tl.constexpr,  # columns, padded
    width: tl.constexpr,  # predictions of a block
):
    """Solve the problem of `solve_sinkhorn` for the image of each program."""
    image = tl.program_id(0).to(tl.int64)
    preds = tl.multiple_of(preds, alignment)
    cost += image * columns * preds
    plan += image * columns * preds
    pred_potential += image * preds
    reg = tl.load(regs + image)
    column = tl.arange(0, K)
    real = column < columns

    mass = tl.load(column_mass + image * columns + column, mask=real, other=0.0).to(tl.float64)
    used = tl.load(active + image * columns + column, mask=real, other=0) != 0
    positive = mass > 0
    if pred_penalty == float("inf") and target_penalty == float("inf"):
        # float32 masses add up to P only to rounding, and what is missing would remain as a residual
        mass *= preds / tl.maximum(tl.sum(tl.where(used, mass, 0.0), 0), 1e-300)
    if target_penalty != 0:
        used = used & positive
    log_mass = tl.log(tl.where(used & positive, mass, 1.0))

    if newton:
        potential, live, steps, left = _take_newton_steps(
            cost,
            plan,
            pred_potential,
            used,
            log_mass,
            columns,
            preds,
            reg,
            num_iter,
            pred_penalty,
            target_penalty,
            tol,
            attainable,
            eps,
            low,
            high,
            K,
            width,
        )
    else:
        potential, live, steps, left = _repeat_sweeps(
            cost,
            plan,
            pred_potential,
            used,
            log_mass,
            preds,
            reg,
            num_iter,
            pred_penalty,
            target_penalty,
            attainable,
            low,
            high,
            K,
            width,
        )
    mass, largest = finish(
        cost, plan, pred_potential, real, used, preds, potential, reg, pred_penalty, low, high, K, width
    )
    _, moved = gaps(mass, potential, live, log_mass, reg, target_penalty)
    left = tl.where(left < float("inf"), left, residual(moved, mass))
    ceiling = tl.exp(tl.full([], high - 15, tl.float64))
    left = tl.where(largest > ceiling, float("inf"), left)  # masses may have been cut off
    tl.store(target_potential + image * columns + column, potential.to(target_potential.dtype.element_ty), mask=real)
    tl.store(iterations + image, steps)
    tl.store(residuals + image, left.to(residuals.dtype.element_ty))


@triton.jit
def _repeat_sweeps(
    cost,
    kernel,
    log_row,
    used,
    log_mass,
    preds,
    reg,
    num_iter,
    pred_penalty: tl.constexpr,
    target_penalty: tl.constexpr,
    attainable: tl.constexpr,
    low: tl.constexpr,
    high: tl.constexpr,
    K: tl.constexpr,
    width: tl.constexpr,
):
    """Return the potential at which a sweep moves nothing, the live columns, the sweeps and the residual."""
    potential, live = first_potential(cost, used, log_mass, preds, reg, pred_penalty, target_penalty, K, width)
    absorb(cost, kernel, log_row, used, preds, potential, reg, pred_penalty, low, high, K, width)
    reference = potential
    steps = tl.full([], 0, tl.int64)
    left = tl.full([], float("inf"), tl.float64)
    while (steps < num_iter) & (left > attainable):
        gain = tl.exp((potential - reference) / reg)
        mass = sweep(kernel, log_row, used, preds, gain, reg, pred_penalty, K, width)
        gap, moved = gaps(mass, potential, live, log_mass, reg, target_penalty)
        left = residual(moved, mass)
        if left > attainable:
            steps += 1
            potential += reg * gap
            if tl.max(tl.abs(potential - reference), 0) > reg * FARTHEST:
                absorb(cost, kernel, log_row, used, preds, potential, reg, pred_penalty, low, high, K, width)
                reference = potential
    return potential, live, steps, tl.where(left > attainable, float("inf"), left)


@triton.jit
def _take_newton_steps(
    cost,
    kernel,
    log_row,
    used,
    log_mass,
    columns,
    preds,
    reg,
    num_iter,
    pred_penalty: tl.constexpr,
    target_penalty: tl.constexpr,
    tol: tl.constexpr,
    attainable: tl.constexpr,
    eps: tl.constexpr,
    low: tl.constexpr,
    high: tl.constexpr,
    K: tl.constexpr,
    width: tl.constexpr,
):
    """Return the potential, the live columns, the steps and the residual (inf where it has to be measured)."""
    level = reg
    coarsest = largest_cost(cost, used, preds, pred_penalty, target_penalty, K, width) * ANNEAL_FROM
    while level / ANNEAL_RATIO <= coarsest:
        level /= ANNEAL_RATIO
    candidate, live = first_potential(cost, used, log_mass, preds, level, pred_penalty, target_penalty, K, width)
    absorb(cost, kernel, log_row, used, preds, candidate, level, pred_penalty, low, high, K, width)
    reference, absorbed = candidate, level

    # what led to the candidate, and what is known at the last accepted potential
    step, horizon = tl.zeros_like(candidate), tl.full([], LONGEST, tl.float64)
    slope, trusted = tl.full([], 0.0, tl.float64), tl.full([], 1, tl.int1)
    potential, mass, gap, gradient = candidate, step, step, step
    merit, left = tl.full([], float("inf"), tl.float64), tl.full([], float("inf"), tl.float64)
    coupled = tl.full([K, K], 0.0, tl.float32)
    before, level_before = step, tl.full([], float("inf"), tl.float64)

    steps, done = tl.full([], 0, tl.int64), tl.full([], 0, tl.int1)
    while (steps < num_iter) & (done == 0):
        steps += 1
        if (absorbed != level) | (tl.max(tl.abs(candidate - reference), 0) > level * FARTHEST):
            absorb(cost, kernel, log_row, used, preds, candidate, level, pred_penalty, low, high, K, width)
            reference, absorbed = candidate, level
        gain = tl.exp((candidate - reference) / level)
        new_mass = sweep(kernel, log_row, used, preds, gain, level, pred_penalty, K, width)
        new_gap, moved = gaps(new_mass, candidate, live, log_mass, level, target_penalty)
        new_gradient = dual_gradient(new_mass, candidate, live, log_mass, target_penalty)
        new_merit, new_left = tl.max(tl.abs(new_gap), 0), residual(moved, new_mass)

        # a candidate is accepted if the concave dual rises to it
        end = tl.sum(new_gradient * step, 0)
        shrinks = (new_merit < merit) & (new_left <= left) & (slope + end > 0)
        # the dual may rise to where a column starves, by far more than a step can mend
        starves = new_merit > tl.maximum(tl.max(tl.abs(step), 0) * LARGEST_GAP, ANY_GAP)
        accepted = trusted | ((slope > 0) & (((end >= 0) & (starves == 0)) | shrinks))
        done = (level <= reg) & (left <= attainable) & (accepted == 0)
        if accepted:
            potential, mass, gap, gradient = candidate, new_mass, new_gap, new_gradient
            rounding = eps * tl.maximum(mass - 1, 0.0)
            stalled = (new_left <= attainable) & (new_left >= left / 2)
            done = (level <= reg) & ((tl.max(moved - rounding, 0) <= tol) | stalled)
            merit, left = new_merit, new_left
            if done == 0:
                coupled = coupling(kernel, log_row, used, preds, gain, level, pred_penalty, K, width)

        if done == 0:
            shorter = tl.minimum(horizon / 2, tl.max(tl.abs(step), 0) * SHORTEN / tl.maximum(merit, 1e-300))
            pred, pred_left = rate(pred_penalty, level)
            leak = pred_left + pred * rate(target_penalty, level)[1]
            farthest = tl.minimum(tl.maximum(1 / tl.maximum(leak, 1 / FARTHEST_HORIZON), LONGEST), FARTHEST_HORIZON)
            farthest = tl.where(leak > 0, farthest, LONGEST)
            horizon = tl.minimum(tl.maximum(tl.where(accepted, horizon * LENGTHEN, shorter), 1.0), farthest)
            is_sweep = horizon < 1.5
            shift, levelled, raised = level_out(mass, gap, gradient, live, level, pred_penalty, target_penalty)
            step = levelled
            if is_sweep == 0:
                step = direction(
                    coupled, mass, levelled, live, horizon, level, columns, pred_penalty, target_penalty, K
                )
            # nothing judges the step to the next level, and one that goes far may starve columns there
            near = (merit <= LOOSE) & (tl.max(tl.abs(step), 0) <= LARGEST_BLIND) & (horizon >= LONG)
            finer = accepted & (level > reg) & (near | (left <= tol))
            if finer:
                step = tl.minimum(tl.maximum(step, -LARGEST_BLIND), LARGEST_BLIND)
            candidate = tl.where(live, potential + level * (step + shift), potential)
            slope, trusted = tl.sum(raised * step, 0), is_sweep | finer
            if finer:
                # along a line through the solutions of two levels
                finest = tl.maximum(level * ANNEAL_RATIO, reg)
                solution = candidate
                candidate += (solution - before) * ((finest - level) / (level - level_before))
                before, level_before, level = solution, level, finest
    return potential, live, steps, tl.where(done, left, float("inf"))
