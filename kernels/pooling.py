"""How the pools of [N, C, H, W] go through memory: what their kernels share. A row is one channel of one sample.

- Channels-last: a program takes some channels of a sample, which lie side by side, and walks over the positions.
- Contiguous: the H W elements of a row lie side by side, and one row after the other.
  - Long rows: a program takes some rows and walks along them; loads are as wide as H W allows.
  - Short rows: 7 x 7 is the common one, and rows of 49 elements begin at any address. But ROWS rows, one after the
    other, are as well aligned as can be: a program loads them as one flat vector, 128 bits at a time, and then turns
    that, through shared memory, into a tile in which every thread holds a whole row, and needs no other to reduce it.
"""

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl

NUM_WARPS = 4
# Rows of up to so many elements are short: a thread holds one in registers.
SHORT = 64
# Short rows a program takes: one for each thread.
SHORT_ROWS = 32 * NUM_WARPS
# Elements a program takes at a time of long rows, 32 a thread, and of one of them.
LONG_TILE = 4096
LONG_BLOCK = 1024
# Positions a program takes at a time, channels-last: in other threads, and in the registers of one, whose loads are
# under way together.
LANES = 16
DEPTH = 4


@triton.jit
def short_rows(values, S: tl.constexpr, COLUMNS: tl.constexpr, ROWS: tl.constexpr):
    """Turn ROWS rows of S elements, one after the other, into [COLUMNS, ROWS]; columns from S on are to be masked."""
    i = tl.arange(0, COLUMNS * ROWS)
    index = (i % ROWS) * S + tl.minimum(i // ROWS, S - 1)
    return tl.reshape(tl.gather(values, index, 0), [COLUMNS, ROWS])


class Kernels(NamedTuple):
    """The kernels of a pool, for each way through memory.

    All take the arguments of `launch`, and then

    - short: rows, rows * S, and C, S, COLUMNS, ROWS, BLOCK: BLOCK elements hold ROWS rows, reduced as [COLUMNS, ROWS];
    - long: rows, S, and C, ROWS, BLOCK: [ROWS, BLOCK] elements at a time; images of another size compile nothing anew;
    - channels_last: S, and C, DEPTH, LANES, CHANNELS: [DEPTH * LANES, CHANNELS] elements at a time.
    """

    short: Any
    long: Any
    channels_last: Any
    short_warps: int = NUM_WARPS  # more, where 64 elements a thread would not go into its registers


def launch(kernels: Kernels, x: torch.Tensor, *arguments: Any, **constants: Any) -> None:
    """Launch the kernel for x [N, C, H, W], which is contiguous or channels-last."""
    samples, channels, height, width = x.shape
    rows, length = samples * channels, height * width
    if rows == 0:
        return
    constants["C"] = channels
    with torch.cuda.device_of(x):  # Triton launches on the current device
        if not x.is_contiguous():
            block = min(triton.next_power_of_2(channels), 64)
            positions = triton.next_power_of_2(length)
            lanes = min(positions, LANES)
            kernels.channels_last[(samples * triton.cdiv(channels, block),)](
                *arguments,
                length,
                **constants,
                DEPTH=min(positions // lanes, DEPTH),
                LANES=lanes,
                CHANNELS=block,
                num_warps=max(1, lanes * block // 256),
            )
        elif length <= SHORT:
            kernels.short[(triton.cdiv(rows, SHORT_ROWS),)](
                *arguments,
                rows,
                rows * length,
                **constants,
                S=length,
                COLUMNS=triton.next_power_of_2(length),
                ROWS=SHORT_ROWS,
                BLOCK=triton.next_power_of_2(SHORT_ROWS * length),
                num_warps=kernels.short_warps,
            )
        else:
            block = min(triton.next_power_of_2(length), LONG_BLOCK)
            count = LONG_TILE // block
            kernels.long[(triton.cdiv(rows, count),)](
                *arguments, rows, length, **constants, ROWS=count, BLOCK=block, num_warps=NUM_WARPS
            )
