"""Generalized-mean pooling of [N, C, H, W]: one read forward, one read and one write backward.

With a = max(x, eps), n = H W and M = max a, for each channel of each sample:

    y  = M (sum (a / M)^p / n)^(1/p)
    dx = dy / n r^(p-1) where x >= eps, and 0 elsewhere, with r = a / y
    dp = sum dy y / (p n) sum r^p ln r, the outer sum over all channels that share p

Dividing by M, or by y, keeps powers from overflowing, and logarithms exact where they count: the largest elements
decide, and their logarithms are near 0. M is not known before the end, so the sum is that for the maximum so far,
and is scaled down when a larger one comes.

Fewest bytes, for b bytes per element: the forward reads b, the backward reads b and writes b. `kernels/pooling.py`
says who reads what.
"""

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from fastfeed.kernels import interpreted
from fastfeed.kernels.pooling import Kernels, launch, short_rows

_INTERPRETED = tl.constexpr(interpreted())
_LN_2 = tl.constexpr(0.6931471805599453)


@triton.jit
def _log2(x):
    """log2(x) within 2^-22 from 0.5 to 2, and 2 units in the last place elsewhere, in one instruction.

    tl.log2 takes 28, and with them the pools would wait for arithmetic, not for memory.
    """
    if _INTERPRETED:
        return tl.log2(x)
    else:
        return tl.inline_asm_elementwise("lg2.approx.ftz.f32 $0, $1;", "=f,f", [x], tl.float32, True, 1)


@triton.jit
def _clamp(x, eps):
    return tl.maximum(x.to(tl.float32), eps, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def _inverse(top):
    """1 / top, but 1 for inf: inf / inf would be NaN. Exact, because the fast division gives 0 above 2^126."""
    return tl.where(top == float("inf"), 1.0, tl.div_rn(1.0, top))


@triton.jit
def _exponent(p, exponent, channel, PER_CHANNEL: tl.constexpr):
    """The exponent of each channel: of the tensor p, which holds one or one for each, or else the number."""
    if p is None:
        return tl.zeros_like(channel).to(tl.float32) + exponent
    else:
        return tl.load(p + channel * PER_CHANNEL).to(tl.float32)


@triton.jit
def _add(a, mask, top, total, p, AXIS: tl.constexpr):
    """Add (a / top)^p along an axis to `total`, after raising `top` to the maximum. NaN goes into `total` alone."""
    higher = tl.maximum(top, tl.max(a, AXIS))
    inverse = _inverse(higher)
    power = tl.exp2(_log2(a * tl.expand_dims(inverse, AXIS)) * tl.expand_dims(p, AXIS))
    total = total * tl.exp2(_log2(top * inverse) * p) + tl.sum(tl.where(mask, power, 0.0), AXIS)
    return higher, total


@triton.jit
def _mean(top, total, n, p):
    return top * tl.exp2(_log2(total / n) / p)


@triton.jit
def _differentiate(a, inverse_y, p_minus_1):
    """Return r^(p-1) and r^p log2(r), r = a / y."""
    r = a * inverse_y
    log = _log2(r)
    power = tl.exp2(log * p_minus_1)
    return power, power * r * log


@triton.jit
def gem_pool_short_kernel(
    x,  # [rows, S], contiguous
    p,  # None, [1], or [C]
    y,  # [rows], written, rounded to its dtype
    mean,  # [rows] fp32, written: y as it was before, for the backward
    exponent,
    eps,
    rows,
    elements,  # rows * S
    C: tl.constexpr,
    S: tl.constexpr,
    PER_CHANNEL: tl.constexpr,
    COLUMNS: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    first = tl.program_id(0).to(tl.int64) * ROWS
    flat = tl.arange(0, BLOCK)
    values = tl.load(x + first * S + flat, mask=(flat < ROWS * S) & (flat < elements - first * S), other=0.0)
    a = _clamp(short_rows(values, S, COLUMNS, ROWS), eps)
    row = first + tl.arange(0, ROWS)
    power = _exponent(p, exponent, row % C, PER_CHANNEL)
    column = tl.arange(0, COLUMNS)[:, None]
    top = tl.zeros([ROWS], tl.float32) + eps
    top, total = _add(a, column < S, top, tl.zeros_like(top), power, 0)
    value = _mean(top, total, S, power)
    tl.store(y + row, value.to(y.dtype.element_ty), mask=row < rows)
    tl.store(mean + row, value, mask=row < rows)


@triton.jit
def gem_pool_long_kernel(
    x,  # [rows, S], contiguous
    p,  # None, [1], or [C]
    y,  # [rows], written, rounded to its dtype
    mean,  # [rows] fp32, written
    exponent,
    eps,
    rows,
    S,
    C: tl.constexpr,
    PER_CHANNEL: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    power = _exponent(p, exponent, row % C, PER_CHANNEL)
    top = tl.zeros([ROWS], tl.float32) + eps
    total = tl.zeros_like(top)
    for start in range(0, S, BLOCK):
        column = start + tl.arange(0, BLOCK)[None, :]
        mask = (row < rows)[:, None] & (column < S)
        a = _clamp(tl.load(x + row[:, None] * S + column, mask=mask, other=0.0), eps)
        top, total = _add(a, mask, top, total, power, 1)
    value = _mean(top, total, S, power)
    tl.store(y + row, value.to(y.dtype.element_ty), mask=row < rows)
    tl.store(mean + row, value, mask=row < rows)


@triton.jit
def gem_pool_channels_last_kernel(
    x,  # [N, S, C], contiguous
    p,  # None, [1], or [C]
    y,  # [N, C], written, rounded to its dtype
    mean,  # [N, C] fp32, written
    exponent,
    eps,
    S,
    C: tl.constexpr,
    PER_CHANNEL: tl.constexpr,
    DEPTH: tl.constexpr,
    LANES: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    BLOCKS: tl.constexpr = (C + CHANNELS - 1) // CHANNELS
    sample = (tl.program_id(0) // BLOCKS).to(tl.int64)
    channel = tl.program_id(0) % BLOCKS * CHANNELS + tl.arange(0, CHANNELS)
    present = channel < C
    power = _exponent(p, exponent, tl.where(present, channel, 0), PER_CHANNEL)
    # Each thread has its own maximum and sum, of its positions, until the last one: no thread waits for another.
    depth = tl.arange(0, DEPTH)[:, None, None]
    lane = tl.arange(0, LANES)[None, :, None]
    powers = tl.broadcast_to(power[None, :], [LANES, CHANNELS])
    top = tl.zeros([LANES, CHANNELS], tl.float32) + eps
    total = tl.zeros_like(top)
    for start in range(0, S, DEPTH * LANES):
        position = depth * LANES + lane
        mask = (position < S - start) & present[None, None, :]
        begin = x + (sample * S + start) * C
        a = _clamp(tl.load(begin + position * C + channel[None, None, :], mask=mask, other=0.0), eps)
        top, total = _add(a, mask, top, total, powers, 0)
    highest = tl.max(top, 0)
    total = tl.sum(total * tl.exp2(_log2(top * _inverse(highest)[None, :]) * powers), 0)
    value = _mean(highest, total, S, power)
    tl.store(y + sample * C + channel, value.to(y.dtype.element_ty), mask=present)
    tl.store(mean + sample * C + channel, value, mask=present)


@triton.jit
def gem_pool_short_backward_kernel(
    x,  # [rows, S], contiguous
    p,  # None, [1], or [C]
    mean,  # [rows] fp32
    grad,  # [rows], of y's dtype
    grad_x,  # [rows, S], contiguous, written; or None
    grad_p,  # [rows] fp32, written: each row's share; or None
    exponent,
    eps,
    rows,
    elements,  # rows * S
    C: tl.constexpr,
    S: tl.constexpr,
    PER_CHANNEL: tl.constexpr,
    COLUMNS: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    first = tl.program_id(0).to(tl.int64) * ROWS
    row = first + tl.arange(0, ROWS)
    power = _exponent(p, exponent, row % C, PER_CHANNEL)
    y = tl.load(mean + row, mask=row < rows, other=1.0)
    g = tl.load(grad + row, mask=row < rows, other=0.0).to(tl.float32)

    flat = tl.arange(0, BLOCK)
    mask = (flat < ROWS * S) & (flat < elements - first * S)
    values = tl.load(x + first * S + flat, mask=mask, other=0.0)
    row_of = tl.minimum(flat // S, ROWS - 1)
    if PER_CHANNEL:
        p_minus_1 = tl.gather(power - 1.0, row_of, 0)
    elif p is None:
        p_minus_1 = exponent - 1.0
    else:
        p_minus_1 = tl.load(p).to(tl.float32) - 1.0
    dx, log = _differentiate(_clamp(values, eps), tl.gather(tl.div_rn(1.0, y), row_of, 0), p_minus_1)
    if grad_x is not None:
        dx = tl.where(values.to(tl.float32) >= eps, tl.gather(g / S, row_of, 0) * dx, 0.0)
        tl.store(grad_x + first * S + flat, dx.to(grad_x.dtype.element_ty), mask=mask)
    if grad_p is not None:
        column = tl.arange(0, COLUMNS)[:, None]
        logs = tl.sum(tl.where(column < S, short_rows(log, S, COLUMNS, ROWS), 0.0), 0)
        tl.store(grad_p + row, g * y / power * (logs * (_LN_2 / S)), mask=row < rows)


@triton.jit
def gem_pool_long_backward_kernel(
    x,  # [rows, S], contiguous
    p,  # None, [1], or [C]
    mean,  # [rows] fp32
    grad,  # [rows], of y's dtype
    grad_x,  # [rows, S], contiguous, written; or None
    grad_p,  # [rows] fp32, written: each row's share; or None
    exponent,
    eps,
    rows,
    S,
    C: tl.constexpr,
    PER_CHANNEL: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    power = _exponent(p, exponent, row % C, PER_CHANNEL)
    y = tl.load(mean + row, mask=row < rows, other=1.0)
    g = tl.load(grad + row, mask=row < rows, other=0.0).to(tl.float32)
    inverse_y = tl.div_rn(1.0, y)[:, None]
    logs = tl.zeros([ROWS], tl.float32)
    for start in range(0, S, BLOCK):
        column = start + tl.arange(0, BLOCK)[None, :]
        mask = (row < rows)[:, None] & (column < S)
        values = tl.load(x + row[:, None] * S + column, mask=mask, other=0.0).to(tl.float32)
        dx, log = _differentiate(_clamp(values, eps), inverse_y, power[:, None] - 1.0)
        if grad_x is not None:
            dx = tl.where(values >= eps, (g / S)[:, None] * dx, 0.0)
            tl.store(grad_x + row[:, None] * S + column, dx.to(grad_x.dtype.element_ty), mask=mask)
        if grad_p is not None:
            logs += tl.sum(tl.where(mask, log, 0.0), 1)
    if grad_p is not None:
        tl.store(grad_p + row, g * y / power * (logs * (_LN_2 / S)), mask=row < rows)


@triton.jit
def gem_pool_channels_last_backward_kernel(
    x,  # [N, S, C], contiguous
    p,  # None, [1], or [C]
    mean,  # [N, C] fp32
    grad,  # [N, C], of y's dtype
    grad_x,  # [N, S, C], contiguous, written; or None
    grad_p,  # [N, C] fp32, written: each channel's share; or None
    exponent,
    eps,
    S,
    C: tl.constexpr,
    PER_CHANNEL: tl.constexpr,
    DEPTH: tl.constexpr,
    LANES: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    BLOCKS: tl.constexpr = (C + CHANNELS - 1) // CHANNELS
    sample = (tl.program_id(0) // BLOCKS).to(tl.int64)
    channel = tl.program_id(0) % BLOCKS * CHANNELS + tl.arange(0, CHANNELS)
    present = channel < C
    power = _exponent(p, exponent, tl.where(present, channel, 0), PER_CHANNEL)
    y = tl.load(mean + sample * C + channel, mask=present, other=1.0)
    g = tl.load(grad + sample * C + channel, mask=present, other=0.0).to(tl.float32)
    inverse_y = tl.div_rn(1.0, y)[None, None, :]
    depth = tl.arange(0, DEPTH)[:, None, None]
    lane = tl.arange(0, LANES)[None, :, None]
    logs = tl.zeros([LANES, CHANNELS], tl.float32)
    for start in range(0, S, DEPTH * LANES):
        position = depth * LANES + lane
        mask = (position < S - start) & present[None, None, :]
        begin = (sample * S + start) * C
        offset = position * C + channel[None, None, :]
        values = tl.load(x + begin + offset, mask=mask, other=0.0).to(tl.float32)
        dx, log = _differentiate(_clamp(values, eps), inverse_y, (power - 1.0)[None, None, :])
        if grad_x is not None:
            dx = tl.where(values >= eps, (g / S)[None, None, :] * dx, 0.0)
            tl.store(grad_x + begin + offset, dx.to(grad_x.dtype.element_ty), mask=mask)
        if grad_p is not None:
            logs += tl.sum(tl.where(mask, log, 0.0), 0)
    if grad_p is not None:
        tl.store(grad_p + sample * C + channel, g * y / power * (tl.sum(logs, 0) * (_LN_2 / S)), mask=present)


_FORWARD = Kernels(gem_pool_short_kernel, gem_pool_long_kernel, gem_pool_channels_last_kernel)
_BACKWARD = Kernels(
    gem_pool_short_backward_kernel,
    gem_pool_long_backward_kernel,
    gem_pool_channels_last_backward_kernel,
    short_warps=8,
)


def _per_channel(p: torch.Tensor | None) -> bool:
    return p is not None and p.numel() > 1


def forward(
    x: torch.Tensor, p: torch.Tensor | None, y: torch.Tensor, mean: torch.Tensor, exponent: float, eps: float
) -> None:
    """Pool x into y, rounded to its dtype, and into mean, for `backward`.

    Args:
        x: [N, C, H, W] of fp32, fp16 or bf16, contiguous or channels-last.
        p: exponents [C], or one; None for `exponent`.
        y: [N, C, 1, 1], written.
        mean: [N, C] fp32, written.
        exponent: the exponent, if `p` is None.
        eps: what smaller elements are raised to.
    """
    launch(_FORWARD, x, x, p, y, mean, exponent, eps, PER_CHANNEL=_per_channel(p))


def backward(
    grad: torch.Tensor,
    x: torch.Tensor,
    p: torch.Tensor | None,
    mean: torch.Tensor,
    exponent: float,
    eps: float,
    output_mask: Sequence[bool],
) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    """Return the gradients of x, like x, and of p, like p; None for those that `output_mask` leaves out.

    The gradient of p is summed in a fixed order, in fp32.
    """
    grad_x = torch.empty_like(x) if output_mask[0] else None
    grad_p = torch.empty_like(mean) if output_mask[1] else None
    arguments = (x, p, mean, grad.contiguous(), grad_x, grad_p, exponent, eps)
    launch(_BACKWARD, x, *arguments, PER_CHANNEL=_per_channel(p))
    if p is not None and grad_p is not None:
        grad_p = grad_p.sum(dim=0) if _per_channel(p) else grad_p.sum()
        grad_p = grad_p.view(p.shape).to(p.dtype)
    return grad_x, grad_p
