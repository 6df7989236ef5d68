"""The sum of squares of many gradients, and how many of their elements are not finite, in one launch.

Fewest bytes: each gradient, read once. The sum can overflow while every element is finite, so that is counted apart.
"""

import triton
import triton.language as tl
from fastfeed.kernels.multi_tensor import (
    COLUMNS,
    LAYOUT,
    NUMEL,
    REDUCTION,
    dtype_of,
    find_tensor,
    load_block,
    number_of_layouts,
    unscaled,
)

PROGRAMS = 1024  # at most; a constant, so that the order of the sum is the same on every GPU
NUM_WARPS = 4
BLOCK = 2048


@triton.constexpr_function
def _vector_of(layouts, index):
    """Elements of a 128-bit vector of gradients."""
    return 4 if layouts.split(";")[index].split()[1] == "fp32" else 8


@triton.jit
def _chunk_sums(
    grad, start, count, scale,
    LAYOUTS: tl.constexpr, INDEX: tl.constexpr, SCALED: tl.constexpr, ALIGNED: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    VECTOR: tl.constexpr = _vector_of(LAYOUTS, INDEX) if ALIGNED else 1
    count = count // VECTOR * VECTOR
    squares = tl.zeros([BLOCK], tl.float32)
    infinite = tl.zeros([BLOCK], tl.float32)
    for begin in range(0, count, BLOCK):
        offsets = begin + tl.arange(0, BLOCK)
        g = load_block(grad, start, offsets, offsets < count, dtype_of(LAYOUTS, INDEX, 1), ALIGNED)
        infinite += tl.where(g - g == 0, 0.0, 1.0)
        g = unscaled(g, scale, SCALED)
        squares += g * g
    return tl.sum(squares, axis=0), tl.sum(infinite, axis=0)


@triton.jit(
    do_not_specialize=["num_tensors", "num_chunks", "per_program", "reduction"],
    do_not_specialize_on_alignment=["gradients", "finished", "total", "grad_scale"],
)
def gradient_norm_kernel(
    rows,  # [T, COLUMNS]
    first_chunks,  # [T + 1] int32
    gradients,  # [T] int64 addresses
    finished,  # one int32, zero before and after
    partial_sums,  # [PROGRAMS, 2] fp32, written
    total,  # [2] fp32, written: the sum of squares, and the elements that are not finite
    grad_scale,  # one fp32 that divides the gradients, or None
    num_tensors,
    num_chunks,
    per_program,
    reduction,  # of the gradients that count here
    LAYOUTS: tl.constexpr,
    CHUNK: tl.constexpr,
    BLOCK: tl.constexpr,
    PROGRAMS: tl.constexpr,
):
    """Each program adds up a stretch of chunks, and the last one what all have found, in their order."""
    program = tl.program_id(0)
    scale = 1.0
    if grad_scale is not None:
        scale = tl.load(grad_scale)
    first = program * per_program
    tensor = find_tensor(first_chunks, num_tensors, first)
    squares = 0.0
    infinite = 0.0
    for chunk in range(first, tl.minimum(first + per_program, num_chunks)):
        while tl.load(first_chunks + tensor + 1) <= chunk:
            tensor += 1
        row = rows + tensor * COLUMNS
        grad = tl.load(gradients + tensor)
        if (grad != 0) & (tl.load(row + REDUCTION) == reduction):
            start = (chunk - tl.load(first_chunks + tensor)).to(tl.int64) * CHUNK
            count = tl.minimum(tl.load(row + NUMEL) - start, CHUNK).to(tl.int32)
            layout = tl.load(row + LAYOUT)
            for i in tl.static_range(number_of_layouts(LAYOUTS)):
                if layout == i:
                    if (grad % 16 == 0) & (count % _vector_of(LAYOUTS, i) == 0):
                        more, bad = _chunk_sums(
                            grad, start, count, scale, LAYOUTS, i, grad_scale is not None, True, BLOCK
                        )
                    else:
                        more, bad = _chunk_sums(
                            grad, start, count, scale, LAYOUTS, i, grad_scale is not None, False, BLOCK // 4
                        )
                    squares += more
                    infinite += bad
    tl.store(partial_sums + 2 * program, squares)
    tl.store(partial_sums + 2 * program + 1, infinite)
    tl.debug_barrier()
    if tl.atomic_add(finished, 1, sem="acq_rel") == tl.num_programs(0) - 1:
        tl.store(finished, 0)
        offsets = tl.arange(0, PROGRAMS)
        mask = offsets < tl.num_programs(0)
        pointers = partial_sums + 2 * offsets
        squares = tl.sum(tl.load(pointers, mask, other=0.0, cache_modifier=".cg"), axis=0)
        infinite = tl.sum(tl.load(pointers + 1, mask, other=0.0, cache_modifier=".cg"), axis=0)
        tl.store(total, squares)
        tl.store(total + 1, infinite)
