"""Average and maximum of [N, C, H, W] over all positions, in one read; the gradient of both in one write.

With n = H W, for each channel of each sample:

    average = sum x / n        dx = daverage / n, and dmaximum more at the maximum
    maximum = max x

The maximum is the first of equal ones, or the last NaN, as PyTorch's kernels have it.

Fewest bytes, for b bytes per element: the forward reads b, the backward writes b, and needs no x. `kernels/pooling.py`
says who reads what.
"""

import torch
import triton
import triton.language as tl
from fastfeed.kernels.pooling import Kernels, launch, short_rows


@triton.jit
def _maximum(x, position, AXIS: tl.constexpr):
    """Return the maximum along an axis and its position: of the first of equal ones, or of the last NaN."""
    top = tl.max(x, AXIS)
    first = tl.min(tl.where(x == tl.expand_dims(top, AXIS), position, 2147483647), AXIS)
    nan = tl.max(tl.where(x != x, position, -1), AXIS)
    return tl.where(nan >= 0, float("nan"), top), tl.where(nan >= 0, nan, first)


@triton.jit
def _add(x, mask, position, top, argmax, total, AXIS: tl.constexpr):
    """Take in x along an axis, whose positions come after those so far."""
    x = x.to(tl.float32)
    value, where = _maximum(tl.where(mask, x, -float("inf")), position, AXIS)
    take = (value > top) | (value != value)
    top = tl.where(take, value, top)
    argmax = tl.where(take, where, argmax)
    return top, argmax, total + tl.sum(tl.where(mask, x, 0.0), AXIS)


@triton.jit
def _store(y, argmax_out, sample, channel, C, S, top, argmax, total, mask):
    tl.store(y + sample * (2 * C) + channel, (total / S).to(y.dtype.element_ty), mask=mask)
    tl.store(y + sample * (2 * C) + C + channel, top.to(y.dtype.element_ty), mask=mask)
    tl.store(argmax_out + sample * C + channel, argmax, mask=mask)


@triton.jit
def avg_max_pool_short_kernel(
    x,  # [rows, S], contiguous
    y,  # [N, 2 C], written: averages, maxima
    argmax,  # [rows] int32, written
    rows,
    elements,  # rows * S
    C: tl.constexpr,
    S: tl.constexpr,
    COLUMNS: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    first = tl.program_id(0).to(tl.int64) * ROWS
    flat = tl.arange(0, BLOCK)
    values = tl.load(x + first * S + flat, mask=(flat < ROWS * S) & (flat < elements - first * S), other=0.0)
    column = tl.arange(0, COLUMNS)[:, None]
    total = tl.zeros([ROWS], tl.float32)
    top, at, total = _add(
        short_rows(values, S, COLUMNS, ROWS), column < S, column, total - float("inf"), total.to(tl.int32), total, 0
    )
    row = first + tl.arange(0, ROWS)
    _store(y, argmax, row // C, row % C, C, S, top, at, total, row < rows)


@triton.jit
def avg_max_pool_long_kernel(
    x,  # [rows, S], contiguous
    y,  # [N, 2 C], written: averages, maxima
    argmax,  # [rows] int32, written
    rows,
    S,
    C: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    total = tl.zeros([ROWS], tl.float32)
    top = total - float("inf")
    at = tl.zeros([ROWS], tl.int32)
    for start in range(0, S, BLOCK):
        column = start + tl.arange(0, BLOCK)[None, :]
        mask = (row < rows)[:, None] & (column < S)
        values = tl.load(x + row[:, None] * S + column, mask=mask, other=0.0)
        top, at, total = _add(values, mask, column, top, at, total, 1)
    _store(y, argmax, row // C, row % C, C, S, top, at, total, row < rows)


@triton.jit
def avg_max_pool_channels_last_kernel(
    x,  # [N, S, C], contiguous
    y,  # [N, 2 C], written: averages, maxima
    argmax,  # [N, C] int32, written
    S,
    C: tl.constexpr,
    DEPTH: tl.constexpr,
    LANES: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    BLOCKS: tl.constexpr = (C + CHANNELS - 1) // CHANNELS
    sample = (tl.program_id(0) // BLOCKS).to(tl.int64)
    channel = tl.program_id(0) % BLOCKS * CHANNELS + tl.arange(0, CHANNELS)
    # Each thread has its own maximum and sum, of its positions, until the last one: no thread waits for another.
    depth = tl.arange(0, DEPTH)[:, None, None]
    lane = tl.arange(0, LANES)[None, :, None]
    total = tl.zeros([LANES, CHANNELS], tl.float32)
    top = total - float("inf")
    at = tl.zeros([LANES, CHANNELS], tl.int32)
    for start in range(0, S, DEPTH * LANES):
        position = depth * LANES + lane
        mask = (position < S - start) & (channel < C)[None, None, :]
        begin = x + (sample * S + start) * C
        values = tl.load(begin + position * C + channel[None, None, :], mask=mask, other=0.0)
        top, at, total = _add(values, mask, start + position, top, at, total, 0)
    top, at = _maximum(top, at, 0)
    _store(y, argmax, sample, channel, C, S, top, at, tl.sum(total, 0), channel < C)


@triton.jit
def _load_gradients(grad, argmax, sample, channel, C, S, mask):
    """The average's gradient, divided among S positions, the maximum's, and where that goes."""
    average = tl.load(grad + sample * (2 * C) + channel, mask=mask, other=0.0).to(tl.float32) / S
    maximum = tl.load(grad + sample * (2 * C) + C + channel, mask=mask, other=0.0).to(tl.float32)
    return average, maximum, tl.load(argmax + sample * C + channel, mask=mask, other=0)


@triton.jit
def avg_max_pool_short_backward_kernel(
    grad,  # [N, 2 C]
    argmax,  # [rows] int32
    grad_x,  # [rows, S], contiguous, written
    rows,
    elements,  # rows * S
    C: tl.constexpr,
    S: tl.constexpr,
    COLUMNS: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    first = tl.program_id(0).to(tl.int64) * ROWS
    row = first + tl.arange(0, ROWS)
    average, maximum, at = _load_gradients(grad, argmax, row // C, row % C, C, S, row < rows)
    flat = tl.arange(0, BLOCK)
    row_of = tl.minimum(flat // S, ROWS - 1)
    # The same as `flat % S == at[row_of]`, with one lookup less.
    is_maximum = tl.gather(tl.arange(0, ROWS) * S + at, row_of, 0) == flat
    dx = tl.gather(average, row_of, 0) + tl.where(is_maximum, tl.gather(maximum, row_of, 0), 0.0)
    mask = (flat < ROWS * S) & (flat < elements - first * S)
    tl.store(grad_x + first * S + flat, dx.to(grad_x.dtype.element_ty), mask=mask)


@triton.jit
def avg_max_pool_long_backward_kernel(
    grad,  # [N, 2 C]
    argmax,  # [rows] int32
    grad_x,  # [rows, S], contiguous, written
    rows,
    S,
    C: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    average, maximum, at = _load_gradients(grad, argmax, row // C, row % C, C, S, row < rows)
    for start in range(0, S, BLOCK):
        column = start + tl.arange(0, BLOCK)[None, :]
        dx = average[:, None] + tl.where(column == at[:, None], maximum[:, None], 0.0)
        mask = (row < rows)[:, None] & (column < S)
        tl.store(grad_x + row[:, None] * S + column, dx.to(grad_x.dtype.element_ty), mask=mask)


@triton.jit
def avg_max_pool_channels_last_backward_kernel(
    grad,  # [N, 2 C]
    argmax,  # [N, C] int32
    grad_x,  # [N, S, C], contiguous, written
    S,
    C: tl.constexpr,
    DEPTH: tl.constexpr,
    LANES: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    BLOCKS: tl.constexpr = (C + CHANNELS - 1) // CHANNELS
    sample = (tl.program_id(0) // BLOCKS).to(tl.int64)
    channel = tl.program_id(0) % BLOCKS * CHANNELS + tl.arange(0, CHANNELS)
    average, maximum, at = _load_gradients(grad, argmax, sample, channel, C, S, channel < C)
    lane = tl.arange(0, DEPTH * LANES)[:, None]
    for start in range(0, S, DEPTH * LANES):
        dx = average[None, :] + tl.where(start + lane == at[None, :], maximum[None, :], 0.0)
        mask = (lane < S - start) & (channel < C)[None, :]
        begin = grad_x + (sample * S + start) * C
        tl.store(begin + lane * C + channel[None, :], dx.to(grad_x.dtype.element_ty), mask=mask)


_FORWARD = Kernels(avg_max_pool_short_kernel, avg_max_pool_long_kernel, avg_max_pool_channels_last_kernel)
_BACKWARD = Kernels(
    avg_max_pool_short_backward_kernel,
    avg_max_pool_long_backward_kernel,
    avg_max_pool_channels_last_backward_kernel,
    short_warps=8,
)


def forward(x: torch.Tensor, y: torch.Tensor, argmax: torch.Tensor) -> None:
    """Pool x into y, averages and then maxima.

    Args:
        x: [N, C, H, W] of fp32, fp16 or bf16, contiguous or channels-last; H * W below 2^31.
        y: [N, 2 C, 1, 1] of the dtype of x, written.
        argmax: [N, C] int32, written: where the maxima are, 0 to H * W - 1.
    """
    launch(_FORWARD, x, x, y, argmax)


def backward(grad: torch.Tensor, argmax: torch.Tensor, grad_x: torch.Tensor) -> None:
    """Write the gradient of x, for the gradient [N, 2 C, 1, 1] of y.

    Args:
        grad: [N, 2 C, 1, 1], contiguous.
        argmax: [N, C] int32, of the forward.
        grad_x: [N, C, H, W] of the dtype of `grad`, contiguous or channels-last, written.
    """
    launch(_BACKWARD, grad_x, grad, argmax, grad_x)
