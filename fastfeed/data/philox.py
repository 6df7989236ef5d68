"""Philox-4x32-10, the counter-based generator behind every random choice of the pipeline.

A value is a function of (key, counter) alone, so a sample's parameters do not depend on which samples were
drawn before it. Source: Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011.
"""

import numpy as np
import numpy.typing as npt

Uint32 = npt.NDArray[np.uint32]
Float64 = npt.NDArray[np.float64]

_M0, _M1 = np.uint64(0xD2511F53), np.uint64(0xCD9E8D57)
_W0, _W1 = np.uint32(0x9E3779B9), np.uint32(0xBB67AE85)
_SHIFT, _LOW = np.uint64(32), np.uint64(0xFFFFFFFF)


def philox(key: int, counter: Uint32) -> Uint32:
    """Return four random words for each counter.

    Args:
        key: 64 bits, taken modulo 2**64.
        counter: [..., 4] uint32, least significant word first.

    Returns:
        [..., 4] uint32.
    """
    k0, k1 = np.uint32(key & 0xFFFFFFFF), np.uint32(key >> 32 & 0xFFFFFFFF)
    c0, c1, c2, c3 = (counter[..., i].astype(np.uint64) for i in range(4))
    with np.errstate(over="ignore"):  # the key schedule wraps by design
        for _ in range(10):
            p0, p1 = _M0 * c0, _M1 * c2
            c0, c1, c2, c3 = p1 >> _SHIFT ^ c1 ^ k0, p1 & _LOW, p0 >> _SHIFT ^ c3 ^ k1, p0 & _LOW
            k0, k1 = k0 + _W0, k1 + _W1
    return np.stack([c0, c1, c2, c3], axis=-1).astype(np.uint32)


def uniform(words: Uint32) -> Float64:
    """Map random words to [0, 1): multiples of 2**-32, so the end is never reached, not even after rounding."""
    return words.astype(np.float64) * 2.0**-32
