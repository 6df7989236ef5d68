"""Cross-entropy of logits and probabilities: label-smoothed, weighted.

For targets t, class weights w and label smoothing s, with q = w ((1 - s) t + s / C), M = max(x) and
L = log sum exp(x - M), a row is

    loss = sum(q) L - sum q (x - M)
    dx   = (sum(q) exp(x - M - L) - q) dloss
    dt   = w (1 - s) (M - x + L) dloss

M and L are kept apart: their sum, rounded to fp32, would lose L's digits where the logits are large. Nothing is left
out where q is 0: 0 * inf is NaN here, as it is in PyTorch.

Fewest bytes, for b bytes per logit and t per probability: the forward reads b + t per logit and writes 12 per row; the
backward reads b + t and writes b, and t more if the target wants a gradient.
"""

import torch
import triton
import triton.language as tl
from fastfeed.kernels.reduction import reduced
from fastfeed.kernels.wide import bounds, empty_rows_like, load_wide, rows_of, shape_of_pairs, store_wide


@triton.jit
def _weights(weight, c, here, WEIGHTED: tl.constexpr):
    w = 1.0
    if WEIGHTED:
        w = tl.load(weight + c, mask=here, other=0.0).to(tl.float32)
    return w


@triton.jit
def dense_cross_entropy_kernel(
    logits,  # [R, C], contiguous
    target,  # [R, C], contiguous
    weight,  # [C], if WEIGHTED
    loss,  # [R], written
    state,  # [3, R] fp32, written: M, L, sum(q)
    R,
    C,
    smoothing,
    WEIGHTED: tl.constexpr,
    VEC: tl.constexpr,  # elements of a vector
    TAIL: tl.constexpr,  # whether R * C is no multiple of VEC
    ALIGNED: tl.constexpr,  # whether C is
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    # The rows that the last program has too many are the last row again. What there is one of for each row is kept as
    # a vector: a thread would load, and compute, what is [ROWS, 1] once for each of its columns.
    row = tl.minimum(tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS), R - 1)
    first, lead, end, whole = bounds(row[:, None], R, C, VEC, TAIL)

    # Online softmax (Milakov and Gimelshein, 2018): a running maximum, the sum of exp(x - maximum) and, here, that of
    # q (x - maximum).
    running = tl.full([ROWS], -float("inf"), tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    below = tl.zeros([ROWS], tl.float32)
    mass = tl.zeros([ROWS], tl.float32)
    for tile in range(0, C if ALIGNED else C + VEC - 1, BLOCK):
        offsets = tile + tl.arange(0, BLOCK)[None, :]
        inside = (offsets >= lead) & (offsets < end)
        x = load_wide(logits + first, offsets, lead, end, whole, -float("inf"), TAIL)
        t = load_wide(target + first, offsets, lead, end, whole, 0.0, TAIL)
        w = _weights(weight, offsets - lead, inside, WEIGHTED)
        q = tl.where(inside, w * ((1.0 - smoothing) * t + smoothing / C), 0.0)
        higher = tl.maximum(running, tl.max(x, axis=1))
        # A row that so far is all -inf has no finite maximum: shift by 0 there, or -inf - -inf makes a NaN.
        before = tl.where(running == -float("inf"), 0.0, running)
        shift = tl.where(higher == -float("inf"), 0.0, higher)
        total = total * tl.exp(running - shift) + tl.sum(tl.exp(x - shift[:, None]), axis=1)
        below += mass * (before - shift) + tl.sum(tl.where(inside, q * (x - shift[:, None]), 0.0), axis=1)
        mass += tl.sum(q, axis=1)
        running = higher
    log_sum = tl.log(total)

    tl.store(loss + row, (mass * log_sum - below).to(loss.dtype.element_ty))
    tl.store(state + row, tl.where(running == -float("inf"), 0.0, running))
    tl.store(state + R + row, log_sum)
    tl.store(state + R + R + row, mass)


@triton.jit
def dense_cross_entropy_backward_kernel(
    logits,  # as for the forward
    target,
    weight,
    state,
    grad_loss,  # [R], or one
    grad_logits,  # [R, C], contiguous, written
    grad_target,  # [R, C], contiguous, written if TARGET_GRAD
    grad_stride,
    R,
    C,
    smoothing,
    WEIGHTED: tl.constexpr,
    MEAN: tl.constexpr,
    TARGET_GRAD: tl.constexpr,
    VEC: tl.constexpr,
    TAIL: tl.constexpr,
    ALIGNED: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = tl.minimum(tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS), R - 1)
    scale = tl.load(grad_loss + row * grad_stride).to(tl.float32)[:, None]
    if MEAN:
        scale /= R
    maximum = tl.load(state + row)[:, None]
    log_sum = tl.load(state + R + row)[:, None]
    mass = tl.load(state + R + R + row)[:, None]
    first, lead, end, whole = bounds(row[:, None], R, C, VEC, TAIL)

    for tile in range(0, C if ALIGNED else C + VEC - 1, BLOCK):
        offsets = tile + tl.arange(0, BLOCK)[None, :]
        inside = (offsets >= lead) & (offsets < end)
        x = load_wide(logits + first, offsets, lead, end, whole, -float("inf"), TAIL)
        t = load_wide(target + first, offsets, lead, end, whole, 0.0, TAIL)
        w = _weights(weight, offsets - lead, inside, WEIGHTED)
        q = w * ((1.0 - smoothing) * t + smoothing / C)
        # Scaled before rounding to 16 bits: a loss scale then costs no precision.
        dx = (mass * tl.exp(x - maximum - log_sum) - q) * scale
        store_wide(grad_logits + first, offsets, dx.to(grad_logits.dtype.element_ty), lead, end, VEC, ALIGNED)
        if TARGET_GRAD:
            dt = w * (1.0 - smoothing) * (maximum - x + log_sum) * scale
            store_wide(grad_target + first, offsets, dt.to(grad_target.dtype.element_ty), lead, end, VEC, ALIGNED)


def forward(
    logits: torch.Tensor,
    target: torch.Tensor,
    weight: torch.Tensor | None,
    reduction: str,
    smoothing: float,
    dtype: torch.dtype,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the loss, and what the backward needs of the rows.

    Args:
        logits: [N, C] or [N, C, d1, ...] float32, float16 or bfloat16; C at least 1.
        target: probabilities, likewise, of the same shape.
        weight: [C], or None.
        reduction: "mean" over the rows, "sum" or "none".
        smoothing: 0 to 1.
        dtype: of the loss.

    Returns:
        loss: [] or, for "none", [N] or [N, d1, ...].
        state: [3, R] fp32: of the R rows the maximum, the logarithm of the sum of exponentials, and the sum of q.
    """
    x, t = rows_of(logits), rows_of(target)
    weight = None if weight is None else weight.contiguous()
    rows, classes = x.shape
    state = torch.empty(3, rows, dtype=torch.float32, device=x.device)
    shape = logits.shape[:1] + logits.shape[2:]
    per_row = torch.empty(shape, dtype=dtype if reduction == "none" else torch.float32, device=x.device)
    tiles = shape_of_pairs(x, t)
    with torch.cuda.device_of(x):  # Triton launches on the current device
        if rows:
            dense_cross_entropy_kernel[(triton.cdiv(rows, tiles["ROWS"]),)](
                x, t, weight, per_row, state, rows, classes, smoothing, WEIGHTED=weight is not None, **tiles
            )
        if reduction == "none":
            return per_row, state
        return reduced(per_row, None, None, reduction == "mean", dtype), state


def backward(
    grad_loss: torch.Tensor,
    logits: torch.Tensor,
    target: torch.Tensor,
    weight: torch.Tensor | None,
    state: torch.Tensor,
    reduction: str,
    smoothing: float,
    target_grad: bool,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the gradients of the logits and of the target, in their dtypes; their rows lie side by side.

    Args, where they are not those of `forward`:
        grad_loss: [] or, for "none", [N] or [N, d1, ...].
        state: of `forward`.
        target_grad: whether the target wants a gradient, which else is [0].
    """
    x, t = rows_of(logits), rows_of(target)
    weight = None if weight is None else weight.contiguous()
    rows, classes = x.shape
    grad_logits = empty_rows_like(logits)
    grad_target = empty_rows_like(target) if target_grad else target.new_empty(0)
    if not rows:
        return grad_logits, grad_target
    if grad_loss.numel() == 1 or not any(grad_loss.stride()):  # a sum's gradient is one value, expanded
        grad_stride = 0
    else:
        grad_loss, grad_stride = grad_loss.contiguous(), 1
    tiles = shape_of_pairs(x, t)
    with torch.cuda.device_of(x):
        dense_cross_entropy_backward_kernel[(triton.cdiv(rows, tiles["ROWS"]),)](
            x, t, weight, state, grad_loss, grad_logits, grad_target, grad_stride, rows, classes, smoothing,
            WEIGHTED=weight is not None, MEAN=reduction == "mean", TARGET_GRAD=target_grad, **tiles,
        )  # fmt: skip
    return grad_logits, grad_target
