"""The sum or the mean of the losses of rows, added up in an order that depends on their number alone."""

import torch
import triton
import triton.language as tl

CHUNK = 65536  # rows whose losses one program adds up


@triton.jit
def sum_kernel(
    loss,  # [R] fp32
    count,  # [R] fp32 that the rows count in the mean, if COUNTED; else each counts 1
    sums,  # [2, programs] fp32, written, if there are several programs
    result,  # one, written by a single program
    denominator,  # one fp32, likewise, if COUNTED
    R,
    MEAN: tl.constexpr,
    COUNTED: tl.constexpr,
    LAST: tl.constexpr,  # whether there is one program
    CHUNK: tl.constexpr,
    BLOCK: tl.constexpr,
):
    chunk = tl.program_id(0).to(tl.int64) * CHUNK
    total = tl.zeros([BLOCK], tl.float32)
    counted = tl.zeros([BLOCK], tl.float32)
    for start in range(0, tl.minimum(R - chunk, CHUNK), BLOCK):
        row = chunk + start + tl.arange(0, BLOCK)
        total += tl.load(loss + row, mask=row < R, other=0.0)
        if COUNTED:
            counted += tl.load(count + row, mask=row < R, other=0.0)
        else:
            counted += tl.where(row < R, 1.0, 0.0)
    value = tl.sum(total, axis=0)
    divisor = tl.sum(counted, axis=0)
    if LAST:
        if MEAN:
            value = value / divisor
        tl.store(result, value.to(result.dtype.element_ty))
        if COUNTED:
            tl.store(denominator, divisor)
    else:
        tl.store(sums + tl.program_id(0), value)
        tl.store(sums + tl.num_programs(0) + tl.program_id(0), divisor)


def reduced(
    loss: torch.Tensor, count: torch.Tensor | None, denominator: torch.Tensor | None, mean: bool, dtype: torch.dtype
) -> torch.Tensor:
    """Return the sum, or the mean, of losses.

    Args:
        loss: of rows, fp32, contiguous.
        count: at least as many fp32: what each counts in the mean; None for 1.
        denominator: where to put what all count; goes with count.
        mean: whether to divide by it.
        dtype: of the result.
    """
    rows = loss.numel()
    result = torch.empty((), dtype=dtype, device=loss.device)
    programs = max(triton.cdiv(rows, CHUNK), 1)
    block = min(max(triton.next_power_of_2(rows), 128), 4096)
    shape = {"CHUNK": CHUNK, "BLOCK": block, "num_warps": block // 512 or 1}
    sums = loss
    if programs > 1:
        sums = torch.empty(2, programs, dtype=torch.float32, device=loss.device)
        sum_kernel[(programs,)](
            loss, count, sums, result, denominator, rows, MEAN=mean, COUNTED=count is not None, LAST=False, **shape
        )
        if denominator is None:
            denominator = torch.empty((), dtype=torch.float32, device=loss.device)
        loss, count, rows = sums[0], sums[1], programs
    sum_kernel[(1,)](
        loss, count, sums, result, denominator, rows, MEAN=mean, COUNTED=count is not None, LAST=True, **shape
    )
    return result
