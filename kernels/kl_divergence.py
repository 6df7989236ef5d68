"""Kullback-Leibler divergence of two softmaxes, that of a student's logits from that of a teacher's.

For logits s and t, temperature T, M = max(x) and Z = sum exp((x - M) / T) of either, p = exp((t - M_t) / T) / Z_t and
q = exp((s - M_s) / T) / Z_s are the probabilities, and a row is

    loss = sum p (log p - log q) = sum p ((t - M_t) - (s - M_s)) / T + log(Z_s / Z_t)
    ds   = (q - p) / T dloss

M and Z are kept apart: M / T + log Z, rounded to fp32, would lose the digits of Z where the logits are large, and two
distributions that are nearly equal differ by little else. Where p is 0, the class adds 0, be q 0 too.

Fewest bytes, for b bytes per student's logit and t per teacher's: the forward reads b + t and writes 20 per row; the
backward reads b + t and writes b.
"""

import math

import torch
import triton
import triton.language as tl
from fastfeed.kernels.reduction import reduced
from fastfeed.kernels.wide import bounds, empty_rows_like, load_wide, rows_of, shape_of_pairs, store_wide


@triton.jit
def _finite(maximum):
    # A row that is all -inf has no finite maximum: shift by 0 there, or -inf - -inf makes a NaN.
    return tl.where(maximum == -float("inf"), 0.0, maximum)


@triton.jit
def kl_divergence_kernel(
    student,  # [R, C], contiguous
    teacher,  # [R, C], contiguous
    loss,  # [R], written
    state,  # [4, R] fp32, written: M_s, Z_s, M_t, Z_t
    R,
    C,
    inverse,  # 1 / T
    scale,  # of the loss
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

    # Two online softmaxes (Milakov and Gimelshein, 2018), and the sum of exp((t - M_t) / T) times the difference of
    # what is below the maxima, all of it for the maxima so far.
    running_s = tl.full([ROWS], -float("inf"), tl.float32)
    running_t = tl.full([ROWS], -float("inf"), tl.float32)
    total_s = tl.zeros([ROWS], tl.float32)
    total_t = tl.zeros([ROWS], tl.float32)
    cross = tl.zeros([ROWS], tl.float32)
    for tile in range(0, C if ALIGNED else C + VEC - 1, BLOCK):
        offsets = tile + tl.arange(0, BLOCK)[None, :]
        s = load_wide(student + first, offsets, lead, end, whole, -float("inf"), TAIL)
        t = load_wide(teacher + first, offsets, lead, end, whole, -float("inf"), TAIL)
        higher_s = tl.maximum(running_s, tl.max(s, axis=1))
        higher_t = tl.maximum(running_t, tl.max(t, axis=1))
        shift_s = _finite(higher_s)
        shift_t = _finite(higher_t)
        s = (s - shift_s[:, None]) * inverse
        t = (t - shift_t[:, None]) * inverse
        exp_t = tl.exp(t)
        moved = ((_finite(running_t) - shift_t) - (_finite(running_s) - shift_s)) * inverse
        fade = tl.exp((running_t - shift_t) * inverse)
        # A class whose probability turns out to be 0 adds 0, though its difference was infinite.
        cross = tl.where(fade == 0.0, 0.0, (cross + total_t * moved) * fade)
        cross += tl.sum(tl.where(exp_t == 0.0, 0.0, exp_t * (t - s)), axis=1)
        total_s = total_s * tl.exp((running_s - shift_s) * inverse) + tl.sum(tl.exp(s), axis=1)
        total_t = total_t * fade + tl.sum(exp_t, axis=1)
        running_s = higher_s
        running_t = higher_t

    value = (cross / total_t + tl.log(total_s / total_t)) * scale
    tl.store(loss + row, value.to(loss.dtype.element_ty))
    tl.store(state + row, _finite(running_s))
    tl.store(state + R + row, total_s)
    tl.store(state + R + R + row, _finite(running_t))
    tl.store(state + R + R + R + row, total_t)


@triton.jit
def kl_divergence_backward_kernel(
    student,  # as for the forward
    teacher,
    state,
    grad_loss,  # [R], or one
    grad_student,  # [R, C], contiguous, written
    grad_stride,
    R,
    C,
    inverse,
    scale,  # of the gradient
    VEC: tl.constexpr,
    TAIL: tl.constexpr,
    ALIGNED: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = tl.minimum(tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS), R - 1)
    grad = tl.load(grad_loss + row * grad_stride).to(tl.float32)[:, None] * scale
    maximum_s = tl.load(state + row)[:, None]
    per_s = (1.0 / tl.load(state + R + row))[:, None]
    maximum_t = tl.load(state + R + R + row)[:, None]
    per_t = (1.0 / tl.load(state + R + R + R + row))[:, None]
    first, lead, end, whole = bounds(row[:, None], R, C, VEC, TAIL)

    for tile in range(0, C if ALIGNED else C + VEC - 1, BLOCK):
        offsets = tile + tl.arange(0, BLOCK)[None, :]
        s = load_wide(student + first, offsets, lead, end, whole, -float("inf"), TAIL)
        t = load_wide(teacher + first, offsets, lead, end, whole, -float("inf"), TAIL)
        q = tl.exp((s - maximum_s) * inverse) * per_s
        p = tl.exp((t - maximum_t) * inverse) * per_t
        # Scaled before rounding to 16 bits: a loss scale then costs no precision.
        value = ((q - p) * grad).to(grad_student.dtype.element_ty)
        store_wide(grad_student + first, offsets, value, lead, end, VEC, ALIGNED)


def forward(
    student: torch.Tensor, teacher: torch.Tensor, temperature: float, reduction: str, dtype: torch.dtype
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the loss, times the square of the temperature, and what the backward needs of the rows.

    Args:
        student: [N, C] or [N, C, d1, ...] float32, float16 or bfloat16 logits; not empty.
        teacher: likewise, of the same shape.
        temperature: above 0.
        reduction: "batchmean", the sum divided by N; "sum" or "none".
        dtype: of the loss.

    Returns:
        loss: [] or, for "none", [N] or [N, d1, ...].
        state: [4, R] fp32: of the R rows the maximum and the sum of exponentials of the student and of the teacher.
    """
    s, t = rows_of(student), rows_of(teacher)
    rows, classes = s.shape
    state = torch.empty(4, rows, dtype=torch.float32, device=s.device)
    shape = student.shape[:1] + student.shape[2:]
    per_row = torch.empty(shape, dtype=dtype if reduction == "none" else torch.float32, device=s.device)
    tiles = shape_of_pairs(s, t)
    scale = temperature**2
    if reduction == "batchmean":  # the mean over rows, of which an image has many, is not that over the batch
        scale *= math.prod(student.shape[2:])
    with torch.cuda.device_of(s):  # Triton launches on the current device
        kl_divergence_kernel[(triton.cdiv(rows, tiles["ROWS"]),)](
            s, t, per_row, state, rows, classes, 1 / temperature, scale, **tiles
        )
        if reduction == "none":
            return per_row, state
        return reduced(per_row, None, None, reduction == "batchmean", dtype), state


def backward(
    grad_loss: torch.Tensor,
    student: torch.Tensor,
    teacher: torch.Tensor,
    state: torch.Tensor,
    temperature: float,
    reduction: str,
) -> torch.Tensor:
    """Return the gradient of the student's logits, in their dtype; its rows lie side by side.

    Args, where they are not those of `forward`:
        grad_loss: [] or, for "none", [N] or [N, d1, ...].
        state: of `forward`.
    """
    s, t = rows_of(student), rows_of(teacher)
    rows, classes = s.shape
    grad_student = empty_rows_like(student)
    if grad_loss.numel() == 1 or not any(grad_loss.stride()):  # a sum's gradient is one value, expanded
        grad_stride = 0
    else:
        grad_loss, grad_stride = grad_loss.contiguous(), 1
    tiles = shape_of_pairs(s, t)
    scale = temperature
    if reduction == "batchmean":
        scale /= student.shape[0]
    with torch.cuda.device_of(s):
        kl_divergence_backward_kernel[(triton.cdiv(rows, tiles["ROWS"]),)](
            s, t, state, grad_loss, grad_student, grad_stride, rows, classes, 1 / temperature, scale, **tiles
        )
    return grad_student
