"""Label-smoothed cross-entropy of [N, C] logits and class indices, one program per row.

With M = max(x), L = log sum exp(x - M), s = label smoothing and y the target class:

    loss = (1 - s) (M - x[y] + L) + s (M - mean(x) + L)
    dx   = (exp(x - M - L) - (1 - s) [c == y] - s / C) * dloss

M and L are kept apart: their sum, rounded to fp32, would lose L's digits where the logits are large.

Fewest bytes, for b bytes per logit: the forward reads b per logit and writes 12 per row; the backward reads b and
writes b. C is a compile-time constant, so that the compiler knows how rows are aligned and loads 128 bits at a
time when C allows it; a network has one or two values of C, each compiled once.
"""

import torch
import triton
import triton.language as tl

# Columns a program holds at a time. One tile up to this width; wider rows loop, still reading each logit once.
MAX_BLOCK = 4096


@triton.jit
def cross_entropy_forward_kernel(
    logits,  # [N, C], contiguous
    target,  # [N] int64
    loss,  # [N] fp32, written
    maximum,  # [N] fp32, written, for the backward
    log_sum,  # [N] fp32, written, for the backward
    ignore_index,
    smoothing,
    C: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    y = tl.load(target + row)
    x_row = logits + row * C
    columns = tl.arange(0, BLOCK)

    # Online softmax (Milakov and Gimelshein, 2018): a running maximum, and the sum of exp(x - maximum).
    running = -float("inf")
    total = 0.0
    x_sum = 0.0
    for start in range(0, C, BLOCK):
        mask = start + columns < C
        x = tl.load(x_row + start + columns, mask=mask, other=-float("inf")).to(tl.float32)
        higher = tl.maximum(running, tl.max(x, axis=0))
        # A row that so far is all -inf has no finite maximum: shift by 0 there, or -inf - -inf makes a NaN.
        shift = tl.where(higher == -float("inf"), 0.0, higher)
        total = total * tl.exp(running - shift) + tl.sum(tl.exp(x - shift), axis=0)
        running = higher
        x_sum += tl.sum(tl.where(mask, x, 0.0), axis=0)
    row_maximum = tl.where(running == -float("inf"), 0.0, running)
    row_log_sum = tl.log(total)

    # A target that names no class must not read outside the row; its loss is NaN, and nothing is synchronised.
    valid = (y >= 0) & (y < C)
    x_y = tl.load(x_row + y, mask=valid, other=float("nan")).to(tl.float32)
    value = (1.0 - smoothing) * (row_maximum - x_y + row_log_sum)
    if smoothing != 0.0:  # 0 * -inf would be NaN
        value += smoothing * (row_maximum - x_sum / C + row_log_sum)
    tl.store(loss + row, tl.where(y == ignore_index, 0.0, value))
    tl.store(maximum + row, row_maximum)
    tl.store(log_sum + row, row_log_sum)


@triton.jit
def cross_entropy_backward_kernel(
    logits,  # [N, C], contiguous
    target,  # [N] int64
    maximum,  # [N] fp32
    log_sum,  # [N] fp32
    grad_loss,  # [N] fp32
    grad_logits,  # [N, C], contiguous, written
    ignore_index,
    smoothing,
    C: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    y = tl.load(target + row)
    row_maximum = tl.load(maximum + row)
    row_log_sum = tl.load(log_sum + row)
    scale = tl.load(grad_loss + row)
    valid = (y >= 0) & (y < C)
    scale = tl.where(valid, scale, float("nan"))
    ignored = y == ignore_index
    columns = tl.arange(0, BLOCK)
    for start in range(0, C, BLOCK):
        c = start + columns
        mask = c < C
        x = tl.load(logits + row * C + c, mask=mask, other=0.0).to(tl.float32)
        # Scaled before rounding to 16 bits: a loss scale then costs no precision.
        p = tl.exp(x - row_maximum - row_log_sum)
        grad = (p - tl.where(c == y, 1.0 - smoothing, 0.0) - smoothing / C) * scale
        # An ignored row gets exactly 0, even where its logits are not finite.
        grad = tl.where(ignored, 0.0, grad)
        tl.store(grad_logits + row * C + c, grad.to(grad_logits.dtype.element_ty), mask=mask)


def _shape(classes: int) -> tuple[int, int]:
    """Return (BLOCK, num_warps): a tile of up to 32 elements a thread."""
    block = min(triton.next_power_of_2(classes), MAX_BLOCK)
    return block, max(1, min(block // 256, 8))


def forward(
    logits: torch.Tensor, target: torch.Tensor, ignore_index: int, smoothing: float
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return (loss, maximum, log_sum), [N] fp32 each, for contiguous logits [N, C] and int64 targets [N]."""
    rows, classes = logits.shape
    loss = torch.empty(rows, dtype=torch.float32, device=logits.device)
    maximum, log_sum = torch.empty_like(loss), torch.empty_like(loss)
    if rows:
        block, warps = _shape(classes)
        cross_entropy_forward_kernel[(rows,)](
            logits, target, loss, maximum, log_sum, ignore_index, smoothing, C=classes, BLOCK=block, num_warps=warps
        )
    return loss, maximum, log_sum


def backward(
    grad_loss: torch.Tensor,
    logits: torch.Tensor,
    target: torch.Tensor,
    maximum: torch.Tensor,
    log_sum: torch.Tensor,
    ignore_index: int,
    smoothing: float,
) -> torch.Tensor:
    """Return the gradient [N, C] of the logits, in their dtype, for contiguous fp32 gradients [N] of the loss."""
    rows, classes = logits.shape
    grad_logits = torch.empty_like(logits)
    if rows:
        block, warps = _shape(classes)
        cross_entropy_backward_kernel[(rows,)](
            logits,
            target,
            maximum,
            log_sum,
            grad_loss,
            grad_logits,
            ignore_index,
            smoothing,
            C=classes,
            BLOCK=block,
            num_warps=warps,
        )
    return grad_logits
