"""Online hard example mining: which rows of a batch count, and the sum or the mean of their losses.

One program holds all rows. The hardness of the k-th hardest row is found bit by bit, from the highest: 32 counts of the
rows that are at least so hard. There is no sorting, nothing is waited for, and of rows that are equally hard those with
the smaller index count.

Fewest bytes: 9 per row read, 4 written.
"""

import torch
import triton
import triton.language as tl

MAX_ROWS = 8192  # that a program holds in its registers


@triton.jit
def ohem_kernel(
    loss,  # [R] fp32
    hardness,  # [R] fp32
    valid,  # [R] bool
    result,  # one, or [R] if EACH, written
    factor,  # [R] fp32, written: what the gradient of each loss is
    R,
    count,  # of the hardest rows, which count
    threshold,  # harder rows count in any case, if THRESHOLD
    THRESHOLD: tl.constexpr,
    MEAN: tl.constexpr,
    EACH: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = tl.arange(0, BLOCK)
    inside = row < R
    hard = tl.load(hardness + row, mask=inside, other=0.0) + 0.0  # -0 is as hard as 0
    counts = (tl.load(valid + row, mask=inside, other=0) != 0) & inside

    # Integers in the order of the floats; NaN is the hardest, so that it is not lost.
    bits = hard.to(tl.int32, bitcast=True)
    key = bits ^ ((bits >> 31) & 0x7FFFFFFF)
    key = tl.where(hard != hard, 0x7FFFFFFF, key)
    key = tl.where(counts, key, -0x80000000)
    wanted = tl.minimum(count, tl.sum(counts.to(tl.int32), axis=0))
    lowest = tl.full((), -0x80000000, tl.int32)
    for i in range(32):
        higher = lowest ^ (tl.full((), 1, tl.int32) << (31 - i))
        enough = tl.sum((key >= higher).to(tl.int32), axis=0) >= wanted
        lowest = tl.where(enough, higher, lowest)
    above = (key > lowest) & counts
    ties = (key == lowest) & counts
    room = wanted - tl.sum(above.to(tl.int32), axis=0)
    kept = above | (ties & (tl.cumsum(ties.to(tl.int32), axis=0) <= room))
    if THRESHOLD:
        kept = kept | ((tl.load(hardness + row, mask=inside, other=0.0) > threshold) & counts)

    kept_value = tl.where(kept, tl.load(loss + row, mask=inside, other=0.0), 0.0)
    share = tl.where(kept, 1.0, 0.0)
    if MEAN:
        number = tl.sum(share, axis=0)
        share = tl.where(kept, 1.0 / number, 0.0)
        tl.store(result, (tl.sum(kept_value, axis=0) / number).to(result.dtype.element_ty))
    elif EACH:
        tl.store(result + row, kept_value.to(result.dtype.element_ty), mask=inside)
    else:
        tl.store(result, tl.sum(kept_value, axis=0).to(result.dtype.element_ty))
    tl.store(factor + row, share, mask=inside)


def ohem(
    loss: torch.Tensor,
    hardness: torch.Tensor,
    valid: torch.Tensor,
    count: int,
    threshold: float | None,
    reduction: str,
    dtype: torch.dtype,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the loss of the rows that count, and the factor of each row's loss in it.

    Args:
        loss: [R] fp32, contiguous, R at most MAX_ROWS.
        hardness: [R] fp32, contiguous.
        valid: [R] bool, contiguous: rows that may count.
        count: of the hardest rows.
        threshold: of the hardness above which rows count in any case; None for none.
        reduction: "mean", "sum" or "none".
        dtype: of the result.
    """
    rows = loss.numel()
    result = torch.empty((rows,) if reduction == "none" else (), dtype=dtype, device=loss.device)
    factor = torch.empty_like(loss)
    block = triton.next_power_of_2(max(rows, 1))
    with torch.cuda.device_of(loss):
        ohem_kernel[(1,)](
            loss, hardness, valid, result, factor, rows, count, threshold or 0.0, THRESHOLD=threshold is not None,
            MEAN=reduction == "mean", EACH=reduction == "none", BLOCK=block, num_warps=max(1, min(block // 256, 16)),
        )  # fmt: skip
    return result, factor
