"""Device functions of the Triton solver: passes over the costs of one image in, its marginals or plan out.

A pass walks over the predictions in blocks of `K` columns (padded to a power of two) by `width` predictions. What it
reads and writes in global memory is `cost`, `kernel` and `plan` (K, P) and `log_row` and `pred_potential` (P,); all of
size `K` is float64 and stays in registers. The quantities are those of `uotod.solvers.scaling`.
"""

import triton
import triton.language as tl


@triton.jit
def rate(penalty: tl.constexpr, reg):
    """Return `penalty / (penalty + reg)` and its complement."""
    if penalty == float("inf"):
        kept, left = tl.full([], 1.0, tl.float64), tl.full([], 0.0, tl.float64)
    else:
        exact = tl.full([], penalty, tl.float64)  # a literal would be rounded to float32
        kept, left = exact / (exact + reg), reg / (exact + reg)
    return kept, left


@triton.jit
def largest_cost(
    cost, used, preds, pred_penalty: tl.constexpr, target_penalty: tl.constexpr, K: tl.constexpr, width: tl.constexpr
):
    """Return the largest absolute cost of an allowed pair, float64; the lesser penalty where pairs are forbidden."""
    largest = tl.full([K, width], 0.0, cost.dtype.element_ty)
    allowed, living = tl.full([K, width], 0, tl.int32), tl.full([width], 0, tl.int32)
    for start in range(0, preds, width):
        block = _load(cost, used, preds, start, float("inf"), K, width)
        largest = tl.maximum(largest, tl.where(block == float("inf"), 0.0, tl.abs(block)))
        allowed += tl.where(block < float("inf"), 1, 0)
        living += tl.where(tl.min(block, 0) < float("inf"), 1, 0)
    found = tl.max(tl.max(largest, 1), 0).to(tl.float64)
    if pred_penalty < target_penalty:
        penalty: tl.constexpr = pred_penalty
    else:
        penalty: tl.constexpr = target_penalty
    if penalty < float("inf"):
        count = tl.sum(allowed, 1)
        forbids = tl.max(tl.where((count > 0) & (count < tl.sum(living, 0)), 1, 0), 0)
        found = tl.where(forbids > 0, tl.maximum(found, tl.full([], penalty, tl.float64)), found)
    return found


@triton.jit
def first_potential(
    cost,
    used,
    log_mass,
    preds,
    reg,
    pred_penalty: tl.constexpr,
    target_penalty: tl.constexpr,
    K: tl.constexpr,
    width: tl.constexpr,
):
    """Return the potentials (K,) after a sweep from 0 with maxima for log-sum-exps, and which columns take mass."""
    pred, pred_left = rate(pred_penalty, reg)
    target, _ = rate(target_penalty, reg)
    excess = tl.full([K, width], float("inf"), cost.dtype.element_ty)
    for start in range(0, preds, width):
        block = _load(cost, used, preds, start, float("inf"), K, width)
        least = tl.min(block, 0)
        least = tl.where(least == float("inf"), 0.0, least)
        excess = tl.minimum(excess, block - (pred.to(least.dtype) * least)[None, :])
    least_in_column = tl.min(excess, 1).to(tl.float64)
    live = least_in_column < float("inf")
    log_column = pred_left * tl.log(preds.to(tl.float64)) - tl.where(live, least_in_column, 0.0) / reg
    return tl.where(live, reg * target * (log_mass - log_column), 0.0), live


@triton.jit
def absorb(
    cost,
    kernel,
    log_row,
    used,
    preds,
    potential,
    reg,
    pred_penalty: tl.constexpr,
    low: tl.constexpr,
    high: tl.constexpr,
    K: tl.constexpr,
    width: tl.constexpr,
):
    """Write the plan at a potential, but for the rows' factors, and the logarithms of the rows' largest entries."""
    pred, pred_left = rate(pred_penalty, reg)
    for start in range(0, preds, width):
        exponent, best, _ = _exponents(cost, used, preds, potential, reg, pred, pred_left, start, K, width)
        _store(kernel, used, preds, start, _exp(exponent, low, high).to(kernel.dtype.element_ty), K, width)
        index = start + tl.arange(0, width)
        value = tl.minimum(pred_left * best, high).to(log_row.dtype.element_ty)
        tl.store(log_row + index, value, mask=index < preds)
    tl.debug_barrier()  # other threads of this program read what these wrote


@triton.jit
def sweep(kernel, log_row, used, preds, gain, reg, pred_penalty: tl.constexpr, K: tl.constexpr, width: tl.constexpr):
    """Return the columns' masses (K,) once the predictions' marginals are met."""
    pred, _ = rate(pred_penalty, reg)
    mass = tl.full([K, width], 0.0, kernel.dtype.element_ty)  # summed over the predictions at the end
    total = tl.full([width], 0.0, tl.float64)
    for start in range(0, preds, width):
        block = _load(kernel, used, preds, start, 0.0, K, width)
        row, scale = _rows(block, log_row, preds, gain, pred, start, pred_penalty, width)
        mass += block * scale[None, :]
        total += (row * scale).to(tl.float64)
    return complete(tl.sum(mass, 1).to(tl.float64) * gain, tl.sum(total, 0), K)


@triton.jit
def coupling(kernel, log_row, used, preds, gain, reg, pred_penalty: tl.constexpr, K: tl.constexpr, width: tl.constexpr):
    """Return `M` (K, K), how columns share predictions, 0 on the diagonal: float32, as it only directs steps."""
    pred, _ = rate(pred_penalty, reg)
    shared = tl.full([K, K], 0.0, tl.float32)
    for start in range(0, preds, width):
        block = _load(kernel, used, preds, start, 0.0, K, width)
        row, scale = _rows(block, log_row, preds, gain, pred, start, pred_penalty, width)
        block *= gain.to(block.dtype)[:, None] * tl.sqrt(scale / row)[None, :]
        block = block.to(tl.float32)
        shared += tl.dot(block, tl.trans(block), input_precision="ieee")
    # halves may differ in their last bits, more than what leaks: the system would have no M-matrix
    shared = 0.5 * (shared + tl.trans(shared))
    column = tl.arange(0, K)
    return tl.where(column[:, None] == column[None, :], 0.0, shared)


@triton.jit
def finish(
    cost,
    plan,
    pred_potential,
    real,
    used,
    preds,
    potential,
    reg,
    pred_penalty: tl.constexpr,
    low: tl.constexpr,
    high: tl.constexpr,
    K: tl.constexpr,
    width: tl.constexpr,
):
    """Write the plan and the predictions' potentials; return the columns' masses (K,) and the largest row."""
    pred, pred_left = rate(pred_penalty, reg)
    mass = tl.full([K, width], 0.0, plan.dtype.element_ty)
    total, largest = tl.full([width], 0.0, tl.float64), tl.full([width], 0.0, plan.dtype.element_ty)
    for start in range(0, preds, width):
        exponent, best, dead = _exponents(cost, used, preds, potential, reg, pred, pred_left, start, K, width)
        block = _exp(exponent, low, high).to(plan.dtype.element_ty)
        log_largest = tl.minimum(pred_left * best, high).to(block.dtype)
        row, scale = _scale(tl.sum(block, 0), log_largest, dead == 0, pred, pred_penalty)
        block *= scale[None, :]
        mass += block
        total += (row * scale).to(tl.float64)
        largest = tl.maximum(largest, row * scale)
        _store(plan, real, preds, start, tl.where(exponent <= low, 0.0, block).to(plan.dtype.element_ty), K, width)
        index = start + tl.arange(0, width)
        value = tl.where(dead, 0.0, -reg * pred * (tl.log(row).to(tl.float64) + pred * best))
        tl.store(pred_potential + index, value.to(pred_potential.dtype.element_ty), mask=index < preds)
    return complete(tl.sum(mass, 1).to(tl.float64), tl.sum(total, 0), K), tl.max(largest, 0)


@triton.jit
def complete(mass, total, K: tl.constexpr):
    """Return the masses, one that outweighs all others as what they leave of the total: its own sum is blurred."""
    largest, column = tl.max(mass, 0), tl.argmax(mass, 0)
    others = tl.sum(mass, 0) - largest
    heaviest = tl.where(largest > others, total - others, largest)
    mass = tl.where(tl.arange(0, K) == column, heaviest, mass)
    return tl.maximum(mass, tl.full([], 1e-300, tl.float64))


@triton.jit
def _exponents(cost, used, preds, potential, reg, pred, pred_left, start, K: tl.constexpr, width: tl.constexpr):
    """Return the logarithms of a block of the kernel, each row's largest `(g − C) / reg + log P`, and the dead rows."""
    log_preds = tl.log(preds.to(tl.float64))
    # float64: rounding (g − C) / reg in float32 loses the plan's digits once C / reg is in the hundreds
    excess = _load(cost, used, preds, start, float("inf"), K, width).to(tl.float64) - potential[:, None]
    least = tl.min(excess, 0)
    dead = least == float("inf")
    least = tl.where(dead, 0.0, least)
    excess -= (pred * least + pred_left * reg * log_preds)[None, :]
    return (excess * (-1 / reg)).to(cost.dtype.element_ty), log_preds - least / reg, dead


@triton.jit
def _exp(exponent, low: tl.constexpr, high: tl.constexpr):
    """Return the exponentials between the ends of the range, 0 for a forbidden pair."""
    inside = tl.exp(tl.minimum(tl.maximum(exponent, low), high))
    return tl.where(exponent == -float("inf"), 0.0, inside)


@triton.jit
def _rows(block, log_row, preds, gain, pred, start, pred_penalty: tl.constexpr, width: tl.constexpr):
    """Return the sums of a block's rows after the gain, and the factors that meet their marginals."""
    index = start + tl.arange(0, width)
    row = tl.sum(block * gain.to(block.dtype)[:, None], 0)
    log_largest = tl.load(log_row + index, mask=index < preds, other=0.0)
    return _scale(row, log_largest, row > 0, pred, pred_penalty)


@triton.jit
def _scale(row, log_largest, some, pred, pred_penalty: tl.constexpr):
    """Return sums of rows, 1 where there is nothing, and the factors that meet their marginals, 0 there."""
    row = tl.where(some, row, 1.0)
    scale = 1 / row
    if pred_penalty != float("inf"):  # a GPU's logarithm is less exact, and equal rows would be off by the same
        scale = tl.exp((log_largest - tl.log(row)) * pred.to(row.dtype))
    return row, tl.where(some, scale, 0.0)


@triton.jit
def _load(source, used, preds, start, other: tl.constexpr, K: tl.constexpr, width: tl.constexpr):
    """Return a block (K, width) of (K, P) entries; what stands in an unused column is not read."""
    column, pred = tl.arange(0, K), start + tl.arange(0, width)
    wanted = used[:, None] & (pred < preds)[None, :]
    return tl.load(source + column[:, None] * preds + pred[None, :], mask=wanted, other=other)


@triton.jit
def _store(goal, inside, preds, start, block, K: tl.constexpr, width: tl.constexpr):
    column, pred = tl.arange(0, K), start + tl.arange(0, width)
    wanted = inside[:, None] & (pred < preds)[None, :]
    tl.store(goal + column[:, None] * preds + pred[None, :], block, mask=wanted)
