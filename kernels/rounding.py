"""Stochastic rounding to bf16: up or down with the probabilities that make the mean exact.

The random bits come from Philox 4x32 with 7 rounds, the fewest that pass all of TestU01's BigCrush (Salmon et al.,
Parallel Random Numbers: As Easy as 1, 2, 3, 2011). One call gives the bits of four elements. Nothing is kept between
calls, so whoever has the same seed, step, parameter and element has the same bits.
"""

import triton
import triton.language as tl

ROUNDS = tl.constexpr(7)


@triton.jit
def random_bits(seed, step, number, start, BLOCK: tl.constexpr):
    """32 random bits for each of the elements `start` to `start + BLOCK` of parameter `number`.

    `start` is a multiple of BLOCK, and so the upper half of the counter is one for all of them.
    """
    first = start.to(tl.int64) // 4
    low = (first & 0xFFFFFFFF).to(tl.uint32) + tl.arange(0, BLOCK // 4).to(tl.uint32)
    high = (first >> 32).to(tl.uint32) + tl.zeros_like(low)
    step = step.to(tl.uint32) + tl.zeros_like(low)
    number = number.to(tl.uint32) + tl.zeros_like(low)
    a, b, c, d = tl.philox(seed, low, high, step, number, ROUNDS)
    return tl.interleave(tl.interleave(a, c), tl.interleave(b, d))


@triton.jit
def other_bits(bits):
    """Other bits from the same: an odd factor maps 32 bits onto themselves, and stirs the upper half."""
    return (bits * 0x9E3779B1) >> 16


@triton.jit
def stochastically_rounded(x, bits):
    """fp32 -> the fp32 that bf16 can hold next to it, above or below, by the lower half of `bits`."""
    raw = x.to(tl.uint32, bitcast=True)
    rounded = ((raw + (bits & 0xFFFF)) & 0xFFFF0000).to(tl.float32, bitcast=True)
    return tl.where(x == x, rounded, x)  # the carry would turn some NaNs into zeros
