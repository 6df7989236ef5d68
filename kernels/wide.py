"""Rows of a contiguous matrix, loaded 128 bits at a time wherever they begin.

A program starts at the last boundary of a vector before its row, and throws away what is not of it: so rows of an odd
length, too, are read by whole vectors, if the matrix itself begins at a multiple of 16 bytes.
"""

from typing import Any

import torch
import triton
import triton.language as tl

MAX_BLOCK = 4096  # elements that a program of one row holds at a time; it walks over longer rows
SHORT = 128  # elements up to which rows share a program, of kernels that know how


@triton.jit
def bounds(row, R, C, VEC: tl.constexpr, TAIL: tl.constexpr):
    """Return where a row's first vector begins, and from there: where the row begins, ends, and where vectors do."""
    start = row * C
    lead = (start % VEC).to(tl.int32)
    end = lead + C
    vectors = (end + VEC - 1) // VEC
    if TAIL:  # the last row's last vector would reach beyond the tensor
        vectors = tl.where(row == R - 1, end // VEC, vectors)
    return start // VEC * VEC, lead, end, vectors * VEC  # multiplied last: the compiler sees whole vectors


@triton.jit
def load_wide(row, offsets, lead, end, whole, other, TAIL: tl.constexpr):
    """Load a tile of a row that begins `lead` elements after `row`, which is aligned.

    All vectors up to `whole` may be read, also where they hold something else; the rest of the row is read singly.
    """
    x = tl.load(row + offsets, mask=offsets < whole, other=other)
    if TAIL:
        x = tl.where(offsets < whole, x, tl.load(row + offsets, mask=(offsets >= whole) & (offsets < end), other=other))
    return tl.where((offsets >= lead) & (offsets < end), x.to(tl.float32), other)


@triton.jit
def store_wide(row, offsets, value, lead, end, VEC: tl.constexpr, ALIGNED: tl.constexpr):
    """Store a tile of a row: whole vectors at once, and singly what shares one with a neighbouring row."""
    if ALIGNED:  # whether the rows' length is a multiple of VEC
        tl.store(row + offsets, value, mask=offsets < end // VEC * VEC)
    else:
        low = (lead + VEC - 1) // VEC * VEC
        high = end // VEC * VEC
        tl.store(row + offsets, value, mask=(offsets >= low) & (offsets < high))
        edge = (offsets < low) | (offsets >= high)
        tl.store(row + offsets, value, mask=edge & (offsets >= lead) & (offsets < end))


def vectors(matrix: torch.Tensor) -> dict[str, Any]:
    """Return how a matrix [R, C] lies in vectors of 16 bytes."""
    vec = 16 // matrix.element_size()
    return {"VEC": vec, "TAIL": matrix.numel() % vec != 0}


def shape_of_rows(columns: int, vec: int, held: int = 2) -> tuple[int, int]:
    """Return (BLOCK, num_warps): a tile of up to 8 * `held` elements a thread, 1 or 2 by what is held for each."""
    width = columns if columns % vec == 0 else columns + vec - 1  # with what lies before a row in its first vector
    block = min(triton.next_power_of_2(width), held * MAX_BLOCK // 2)
    return block, max(1, min(block // 256, 8))


def rows_of(x: torch.Tensor) -> torch.Tensor:
    """Return [N, C] or [N, C, d1, ...] as contiguous rows [R, C]; a copy, unless they lie side by side in memory."""
    return x.movedim(1, -1).reshape(-1, x.shape[1]).contiguous()


def empty_rows_like(x: torch.Tensor) -> torch.Tensor:
    """Return an empty tensor of the shape of [N, C] or [N, C, d1, ...] whose rows lie side by side in memory."""
    return x.new_empty(x.movedim(1, -1).shape).movedim(-1, 1)


def shape_of_pairs(a: torch.Tensor, b: torch.Tensor) -> dict[str, Any]:
    """Return how a program holds rows of two matrices [R, C], possibly of different dtypes: one row, or several short.

    Both are read in steps of the same number of elements, the vector of the smaller dtype: no vector of either then
    begins off its boundary. What is shorter than a vector is read singly.
    """
    columns = a.shape[1]
    vec = 16 // min(a.element_size(), b.element_size())
    vec = vec if columns >= vec else 1
    block, warps = shape_of_rows(columns, vec, held=1)
    rows = 1
    if block <= SHORT:
        rows, warps = 1024 // block, 4
    return {
        "VEC": vec,
        "TAIL": a.numel() % vec != 0,
        "ALIGNED": columns % vec == 0,
        "ROWS": rows,
        "BLOCK": block,
        "num_warps": warps,
    }
