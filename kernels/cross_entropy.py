"""Cross-entropy of logits and class indices, one or two of them per row: label-smoothed, weighted, or focal.

With M = max(x), L = log sum exp(x - M), and for a label y the negative log-likelihood l(y) = M - x[y] + L, a row is

    loss = (1 - s) (share_a w_a l(a) + share_b w_b l(b)) + (share_a + share_b) s / C sum_c w_c l(c)
    dx   = ((k_a + k_b + u sum(w)) exp(x - M - L) - k_a [c == a] - k_b [c == b] - u w_c) dloss

with s = label smoothing, w = class weights, k_y = (1 - s) share_y w_y and u = (share_a + share_b) s / C. A row of one
label has share_a = 1, one of two lam and 1 - lam; an ignored label has share 0. The focal loss has (1 - p) ** gamma l
in place of l, and its derivative by l in k_y.

M and L are kept apart: their sum, rounded to fp32, would lose L's digits where the logits are large.

Fewest bytes, for b bytes per logit: the forward reads b per logit and writes 16 per row; the backward reads b and
writes b. There are two pairs of kernels. Long rows whose logits lie side by side have a program each, which loads 128
bits at a time wherever the row begins: it starts at the last boundary of a vector before the row, and throws away what
is not of it. Short rows, and the pixels of images [N, C, H, W], whose logits lie apart, share a program.
"""

import math
from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from fastfeed.kernels.labels import coefficients, labels, loss_of_labels
from fastfeed.kernels.reduction import reduced
from fastfeed.kernels.wide import bounds, load_wide, shape_of_rows, store_wide, vectors

SHORT = 128  # classes up to which rows share a program


@triton.jit
def _places(S, BLOCK_S: tl.constexpr):
    """Return the image of a program, its first position in there, and which of the positions from there on exist."""
    tiles = (S + BLOCK_S - 1) // BLOCK_S
    n = (tl.program_id(0) // tiles).to(tl.int64)
    first = (tl.program_id(0) % tiles).to(tl.int64) * BLOCK_S
    return n, first, first + tl.arange(0, BLOCK_S) < S


@triton.jit
def cross_entropy_rows_kernel(
    logits,  # [R, C], contiguous
    target,  # [R] int64 or uint8
    other,  # [R] likewise, if MIXED
    lam,  # [R] or one, if MIXED
    weight,  # [C], if WEIGHTED
    loss,  # [R], written
    state,  # [3, R] fp32 and two more, written: see `forward`
    lam_stride,
    R,
    C,
    ignore_index,
    smoothing,
    gamma,
    MIXED: tl.constexpr,
    WEIGHTED: tl.constexpr,
    SMOOTHED: tl.constexpr,
    FOCAL: tl.constexpr,
    VEC: tl.constexpr,  # elements of 16 bytes
    TAIL: tl.constexpr,  # whether R * C is no multiple of VEC
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    start = row * C
    first, lead, end, whole = bounds(row, R, C, VEC, TAIL)
    # Before the row is gone through: what is loaded here waits for nothing but the labels.
    _, share_a, w_a, x_a, _, share_b, w_b, x_b = labels(
        target, other, lam, row, row * lam_stride, row < R, weight, logits + start, 1, ignore_index, C, MIXED, WEIGHTED
    )

    # Online softmax (Milakov and Gimelshein, 2018): a running maximum, the sum of exp(x - maximum) and, for the
    # smoothing, that of w (x - maximum).
    running = -float("inf")
    total = 0.0
    below = 0.0
    weight_sum = 0.0
    for tile in range(0, end, BLOCK):
        offsets = tile + tl.arange(0, BLOCK)
        x = load_wide(logits + first, offsets, lead, end, whole, -float("inf"), TAIL)
        higher = tl.maximum(running, tl.max(x, axis=0))
        # A row that so far is all -inf has no finite maximum: shift by 0 there, or -inf - -inf makes a NaN.
        shift = tl.where(higher == -float("inf"), 0.0, higher)
        total = total * tl.exp(running - shift) + tl.sum(tl.exp(x - shift), axis=0)
        if SMOOTHED:
            inside = (offsets >= lead) & (offsets < end)
            w = tl.where(inside, 1.0, 0.0)
            if WEIGHTED:
                w = tl.load(weight + offsets - lead, mask=inside, other=0.0).to(tl.float32)
            below += tl.where(tile == 0, 0.0, weight_sum * (running - shift))
            below += tl.sum(tl.where(inside, w * (x - shift), 0.0), axis=0)
            weight_sum += tl.sum(w, axis=0)
        running = higher
    maximum = tl.where(running == -float("inf"), 0.0, running)
    log_sum = tl.log(total)

    value, count = loss_of_labels(
        maximum - x_a + log_sum, share_a, w_a, maximum - x_b + log_sum, share_b, w_b, weight_sum * log_sum - below,
        smoothing, C, gamma, MIXED, SMOOTHED, FOCAL,
    )  # fmt: skip
    tl.store(loss + row, value.to(loss.dtype.element_ty))
    tl.store(state + row, count)
    tl.store(state + R + row, maximum)
    tl.store(state + R + R + row, log_sum)
    # Written in any case, and what all count by the reduction again: outputs hold no leftovers of other tensors.
    tl.store(state + R + R + R, 0.0, mask=tl.program_id(0) == 0)
    tl.store(state + R + R + R + 1, weight_sum, mask=tl.program_id(0) == 0)


@triton.jit
def cross_entropy_rows_backward_kernel(
    logits,  # as for the forward
    target,
    other,
    lam,
    weight,
    state,
    grad_loss,  # [R], or one
    grad_logits,  # [R, C], contiguous, written
    lam_stride,
    grad_stride,
    R,
    C,
    ignore_index,
    smoothing,
    gamma,
    MIXED: tl.constexpr,
    WEIGHTED: tl.constexpr,
    SMOOTHED: tl.constexpr,
    FOCAL: tl.constexpr,
    MEAN: tl.constexpr,
    VEC: tl.constexpr,
    TAIL: tl.constexpr,
    ALIGNED: tl.constexpr,  # whether C is a multiple of VEC
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    start = row * C
    first, lead, end, whole = bounds(row, R, C, VEC, TAIL)
    scale = tl.load(grad_loss + row * grad_stride).to(tl.float32)
    if MEAN:
        scale /= tl.load(state + R + R + R)
    maximum = tl.load(state + R + row)
    log_sum = tl.load(state + R + R + row)
    a, share_a, w_a, x_a, b, share_b, w_b, x_b = labels(
        target, other, lam, row, row * lam_stride, row < R, weight, logits + start, 1, ignore_index, C, MIXED, WEIGHTED
    )
    at_a, at_b, of_all, uniform, empty = coefficients(
        maximum - x_a + log_sum, share_a, w_a, maximum - x_b + log_sum, share_b, w_b, state + R + R + R + 1,
        smoothing, C, gamma, MIXED, SMOOTHED, FOCAL,
    )  # fmt: skip
    # An ignored row gets exactly 0, whatever its logits, which need not be read; so does one whose loss did not count.
    empty = empty | (scale == 0.0)
    whole = tl.multiple_of(tl.where(empty, 0, whole), VEC)
    read_end = tl.where(empty, 0, end)

    for tile in range(0, end, BLOCK):
        offsets = tile + tl.arange(0, BLOCK)
        x = load_wide(logits + first, offsets, lead, read_end, whole, -float("inf"), TAIL)
        c = offsets - lead
        grad = of_all * tl.exp(x - maximum - log_sum) - tl.where(c == a, at_a, 0.0)
        if MIXED:
            grad -= tl.where(c == b, at_b, 0.0)
        if SMOOTHED:
            w = 1.0
            if WEIGHTED:
                w = tl.load(weight + c, mask=(c >= 0) & (c < C), other=0.0).to(tl.float32)
            grad -= uniform * w
        # Scaled before rounding to 16 bits: a loss scale then costs no precision.
        grad = tl.where(empty, 0.0, grad * scale).to(grad_logits.dtype.element_ty)
        store_wide(grad_logits + first, offsets, grad, lead, end, VEC, ALIGNED)


@triton.jit
def cross_entropy_tile_kernel(
    logits,  # [N, C, S] by its strides
    target,  # [N, S] int64 or uint8
    other,  # [N, S] likewise, if MIXED
    lam,  # by its strides over N and S, if MIXED
    weight,  # [C], if WEIGHTED
    loss,  # [N, S], written
    state,  # [3, N * S] fp32 and two more, written
    lam_stride,
    lam_step,
    R,  # N * S
    S,
    C,
    item_stride,
    class_stride,
    step,
    ignore_index,
    smoothing,
    gamma,
    MIXED: tl.constexpr,
    WEIGHTED: tl.constexpr,
    SMOOTHED: tl.constexpr,
    FOCAL: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_S: tl.constexpr,
):
    n, first, here = _places(S, BLOCK_S)
    s = tl.arange(0, BLOCK_S)
    at = n * S + first + s
    x_first = logits + n * item_stride + first * step
    _, share_a, w_a, x_a, _, share_b, w_b, x_b = labels(
        target, other, lam, at, n * lam_stride + (first + s) * lam_step, here, weight, x_first + s * step,
        class_stride, ignore_index, C, MIXED, WEIGHTED,
    )  # fmt: skip

    # 32 bits within a tile: 64 for each of its elements would take the registers.
    places = tl.arange(0, BLOCK_C)[:, None] * class_stride + s[None, :] * step
    running = tl.full([BLOCK_S], -float("inf"), tl.float32)
    total = tl.zeros([BLOCK_S], tl.float32)
    below = tl.zeros([BLOCK_S], tl.float32)
    weight_sum = 0.0
    for tile in range(0, C, BLOCK_C):
        c = tile + tl.arange(0, BLOCK_C)[:, None]
        mask = (c < C) & here[None, :]
        x_tile = x_first + tl.cast(tile, tl.int64) * class_stride
        x = tl.load(x_tile + places, mask=mask, other=-float("inf")).to(tl.float32)
        higher = tl.maximum(running, tl.max(x, axis=0))
        shift = tl.where(higher == -float("inf"), 0.0, higher)
        total = total * tl.exp(running - shift) + tl.sum(tl.exp(x - shift[None, :]), axis=0)
        if SMOOTHED:
            w = tl.where(c < C, 1.0, 0.0)
            if WEIGHTED:
                w = tl.load(weight + c, mask=c < C, other=0.0).to(tl.float32)
            below += tl.where(tile == 0, 0.0, weight_sum * (running - shift))
            below += tl.sum(tl.where(mask, w * (x - shift[None, :]), 0.0), axis=0)
            weight_sum += tl.sum(w)
        running = higher
    maximum = tl.where(running == -float("inf"), 0.0, running)
    log_sum = tl.log(total)

    value, count = loss_of_labels(
        maximum - x_a + log_sum, share_a, w_a, maximum - x_b + log_sum, share_b, w_b, weight_sum * log_sum - below,
        smoothing, C, gamma, MIXED, SMOOTHED, FOCAL,
    )  # fmt: skip
    tl.store(loss + at, value.to(loss.dtype.element_ty), mask=here)
    tl.store(state + at, count, mask=here)
    tl.store(state + R + at, maximum, mask=here)
    tl.store(state + R + R + at, log_sum, mask=here)
    # Written in any case, and what all count by the reduction again: outputs hold no leftovers of other tensors.
    tl.store(state + R + R + R, 0.0, mask=tl.program_id(0) == 0)
    tl.store(state + R + R + R + 1, weight_sum, mask=tl.program_id(0) == 0)


@triton.jit
def cross_entropy_tile_backward_kernel(
    logits,  # as for the forward
    target,
    other,
    lam,
    weight,
    state,
    grad_loss,  # [N, S], or one
    grad_logits,  # with the strides of logits, written
    lam_stride,
    lam_step,
    grad_stride,
    R,
    S,
    C,
    item_stride,
    class_stride,
    step,
    ignore_index,
    smoothing,
    gamma,
    MIXED: tl.constexpr,
    WEIGHTED: tl.constexpr,
    SMOOTHED: tl.constexpr,
    FOCAL: tl.constexpr,
    MEAN: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_S: tl.constexpr,
):
    n, first, here = _places(S, BLOCK_S)
    s = tl.arange(0, BLOCK_S)
    at = n * S + first + s
    x_first = n * item_stride + first * step
    scale = tl.load(grad_loss + at * grad_stride, mask=here, other=0.0).to(tl.float32)
    if MEAN:
        scale /= tl.load(state + R + R + R)
    maximum = tl.load(state + R + at, mask=here, other=0.0)
    log_sum = tl.load(state + R + R + at, mask=here, other=0.0)
    a, share_a, w_a, x_a, b, share_b, w_b, x_b = labels(
        target, other, lam, at, n * lam_stride + (first + s) * lam_step, here, weight, logits + x_first + s * step,
        class_stride, ignore_index, C, MIXED, WEIGHTED,
    )  # fmt: skip
    at_a, at_b, of_all, uniform, empty = coefficients(
        maximum - x_a + log_sum, share_a, w_a, maximum - x_b + log_sum, share_b, w_b, state + R + R + R + 1,
        smoothing, C, gamma, MIXED, SMOOTHED, FOCAL,
    )  # fmt: skip
    # An ignored row gets exactly 0, whatever its logits; so does one whose loss did not count.
    empty = empty | (scale == 0.0)

    places = tl.arange(0, BLOCK_C)[:, None] * class_stride + s[None, :] * step
    for tile in range(0, C, BLOCK_C):
        c = tile + tl.arange(0, BLOCK_C)[:, None]
        mask = (c < C) & here[None, :]
        x_tile = x_first + tl.cast(tile, tl.int64) * class_stride
        x = tl.load(logits + x_tile + places, mask=mask, other=-float("inf")).to(tl.float32)
        grad = of_all[None, :] * tl.exp(x - maximum[None, :] - log_sum[None, :])
        grad -= tl.where(c == a[None, :], at_a[None, :], 0.0)
        if MIXED:
            grad -= tl.where(c == b[None, :], at_b[None, :], 0.0)
        if SMOOTHED:
            w = 1.0
            if WEIGHTED:
                w = tl.load(weight + c, mask=c < C, other=0.0).to(tl.float32)
            grad -= uniform[None, :] * w
        grad = tl.where(empty[None, :], 0.0, grad * scale[None, :]).to(grad_logits.dtype.element_ty)
        tl.store(grad_logits + x_tile + places, grad, mask=mask)


@dataclass(frozen=True)
class _Layout:
    """Where the logits lie: [N, C, S] by their strides, in which rows of [R, C] are N = 1."""

    logits: torch.Tensor
    items: int
    positions: int
    strides: tuple[int, int, int]  # of items, classes, positions

    @property
    def rows(self) -> int:
        return self.items * self.positions

    @property
    def is_long(self) -> bool:
        return self.strides[1] == 1 and self.logits.shape[1] > SHORT


def _layout(logits: torch.Tensor) -> _Layout:
    n, classes, *sides = logits.shape
    positions = math.prod(sides)
    if positions == 1:
        logits = logits.contiguous()  # rows, whatever the strides were: the kernel of long ones takes no other layout
    if logits.movedim(1, -1).is_contiguous():  # rows [R, C], or channels-last images
        return _Layout(logits, 1, n * positions, (0, 1, classes))
    return _Layout(logits.contiguous(), n, positions, (classes * positions, positions, 1))


def _strides_of_lam(lam: torch.Tensor | None, layout: _Layout, n: int) -> tuple[torch.Tensor | None, int, int]:
    """Return lam, one for all or one for each of `n` samples, and its strides over items and positions."""
    if lam is None or lam.numel() <= 1:
        return lam, 0, 0
    if layout.items == n and n > 1:
        return lam, lam.stride(0), 0
    pixels = layout.positions // n
    if pixels > 1:
        lam = lam[:, None].expand(n, pixels).reshape(-1)
    return lam, 0, lam.stride(0)


def forward(
    logits: torch.Tensor,
    target: torch.Tensor,
    other: torch.Tensor | None,
    lam: torch.Tensor | None,
    weight: torch.Tensor | None,
    ignore_index: int,
    reduction: str,
    smoothing: float,
    gamma: float,
    dtype: torch.dtype,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the loss, and what the backward needs of the rows.

    Args:
        logits: [N, C] or [N, C, d1, ...] float32, float16 or bfloat16.
        target: [N] or [N, d1, ...] int64 or uint8, 0 to C - 1, or `ignore_index`; the loss of any other is NaN.
        other: the second labels, likewise, or None.
        lam: [N], [1] or [] weights of the first labels; with `other`.
        weight: [C], or None.
        ignore_index: of labels that do not count.
        reduction: "mean", "sum" or "none".
        smoothing: 0 to 1.
        gamma: of the focal loss; 0 for none.
        dtype: of the loss.

    Returns:
        loss: [] or, for "none", like target.
        state: [3 R + 2] fp32: of the R rows what each counts in the mean, the maxima, and the logarithms of the sums;
            then what all count, for a reduction; and, if smoothed, the sum of the weights.
    """
    layout = _layout(logits)
    weight = None if weight is None else weight.contiguous()
    rows, classes = layout.rows, logits.shape[1]
    new_state = torch.empty if rows else torch.zeros
    state = new_state(3 * rows + 2, dtype=torch.float32, device=logits.device)
    per_row = torch.empty(target.shape, dtype=dtype if reduction == "none" else torch.float32, device=logits.device)
    lam, lam_stride, lam_step = _strides_of_lam(lam, layout, logits.shape[0])
    tensors = layout.logits, target.contiguous(), None if other is None else other.contiguous(), lam, weight
    flags = {"MIXED": other is not None, "WEIGHTED": weight is not None, "SMOOTHED": smoothing > 0, "FOCAL": gamma > 0}
    with torch.cuda.device_of(logits):  # Triton launches on the current device
        if rows and layout.is_long:
            wide = vectors(logits)
            block, warps = shape_of_rows(classes, wide["VEC"], held=2 if weight is None else 1)
            cross_entropy_rows_kernel[(rows,)](
                *tensors, per_row, state, lam_step, rows, classes, ignore_index, smoothing, gamma,
                **flags, **wide, BLOCK=block, num_warps=warps,
            )  # fmt: skip
        elif rows:
            block_c, block_s = _shape_of_tiles(layout)
            grid = (layout.items * triton.cdiv(layout.positions, block_s),)
            cross_entropy_tile_kernel[grid](
                *tensors, per_row, state, lam_stride, lam_step, rows, layout.positions, classes, *layout.strides,
                ignore_index, smoothing, gamma, **flags, BLOCK_C=block_c, BLOCK_S=block_s,
            )  # fmt: skip
        if reduction == "none":
            return per_row, state
        return reduced(per_row, state, state[3 * rows :], reduction == "mean", dtype), state


def backward(
    grad_loss: torch.Tensor,
    logits: torch.Tensor,
    target: torch.Tensor,
    other: torch.Tensor | None,
    lam: torch.Tensor | None,
    weight: torch.Tensor | None,
    state: torch.Tensor,
    ignore_index: int,
    reduction: str,
    smoothing: float,
    gamma: float,
) -> torch.Tensor:
    """Return the gradient of the logits, in their dtype and, where they are dense, memory format.

    Args, where they are not those of `forward`:
        grad_loss: [] or, for "none", like target.
        state: of `forward`.
    """
    layout = _layout(logits)
    weight = None if weight is None else weight.contiguous()
    rows, classes = layout.rows, logits.shape[1]
    grad_logits = torch.empty_like(layout.logits)
    if not rows:
        return grad_logits
    if grad_loss.numel() == 1 or not any(grad_loss.stride()):  # a sum's gradient is one value, expanded
        grad_stride = 0
    else:
        grad_loss, grad_stride = grad_loss.contiguous(), 1
    lam, lam_stride, lam_step = _strides_of_lam(lam, layout, logits.shape[0])
    tensors = layout.logits, target.contiguous(), None if other is None else other.contiguous(), lam, weight, state
    flags = {
        "MIXED": other is not None,
        "WEIGHTED": weight is not None,
        "SMOOTHED": smoothing > 0,
        "FOCAL": gamma > 0,
        "MEAN": reduction == "mean",
    }
    with torch.cuda.device_of(logits):
        if layout.is_long:
            wide = vectors(logits)
            block, warps = shape_of_rows(classes, wide["VEC"])
            cross_entropy_rows_backward_kernel[(rows,)](
                *tensors, grad_loss, grad_logits, lam_step, grad_stride, rows, classes, ignore_index,
                smoothing, gamma, **flags, **wide, ALIGNED=classes % wide["VEC"] == 0, BLOCK=block,
                num_warps=warps,
            )  # fmt: skip
        else:
            block_c, block_s = _shape_of_tiles(layout)
            grid = (layout.items * triton.cdiv(layout.positions, block_s),)
            cross_entropy_tile_backward_kernel[grid](
                *tensors, grad_loss, grad_logits, lam_stride, lam_step, grad_stride, rows, layout.positions,
                classes, *layout.strides, ignore_index, smoothing, gamma, **flags, BLOCK_C=block_c, BLOCK_S=block_s,
            )  # fmt: skip
    return grad_logits


def _shape_of_tiles(layout: _Layout) -> tuple[int, int]:
    """Return (BLOCK_C, BLOCK_S): up to 32 elements for each of 128 threads."""
    classes = triton.next_power_of_2(layout.logits.shape[1])
    if layout.strides[1] == 1:  # short rows
        return classes, max(1024 // classes, 1)  # a thread has something of many rows, and holds much for each
    block_c = min(classes, 8)
    while (block_c - 1) * layout.strides[1] >= 2**31:  # offsets within a tile have 32 bits
        block_c //= 2
    return block_c, min(triton.next_power_of_2(layout.positions), 512)
