"""Philox-4x32-10, the counter-based generator behind every random choice of the pipeline.

A value is a function of (key, counter) alone, so a sample's parameters do not depend on which samples were
drawn before it. Source: Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011.
"""

from typing import Any

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


def standard_normal(words: Uint32) -> npt.NDArray[np.float32]:
    """Map random words to standard normal numbers by inversion, sqrt(2) * erfinv(x) with x uniform in (-1, 1).

    The upper 24 bits of a word are used; results lie within 5.42 of 0. csrc/finish.h computes the same in the same
    order, with the same bits.

    Source of the polynomials: M. Giles, "Approximating the erfinv function", GPU Computing Gems, 2010.

    Args:
        words: of any shape.
    """
    f32 = np.float32
    x = ((words >> 8).astype(np.int64) * 2 + 1 - 2**24).astype(f32) * f32(2.0**-24)
    w = -_logarithm((1 - x) * (1 + x))
    central = _polynomial(
        w - f32(2.5),
        *(2.81022636e-08, 3.43273939e-07, -3.5233877e-06, -4.39150654e-06, 0.00021858087),
        *(-0.00125372503, -0.00417768164, 0.246640727, 1.50140941),
    )
    tail = _polynomial(
        np.sqrt(np.maximum(w, 0)) - f32(3),
        *(-0.000200214257, 0.000100950558, 0.00134934322, -0.00367342844, 0.00573950773),
        *(-0.0076224613, 0.00943887047, 1.00167406, 2.83297682),
    )
    return f32(1.41421356) * (np.where(w < 5, central, tail) * x)


def _logarithm(values: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    bits = values.view(np.int32) - np.int32(0x3F3504F3)
    exponent = (bits >> 23).astype(np.float32)
    z = ((bits & 0x007FFFFF) + np.int32(0x3F3504F3)).view(np.float32) - np.float32(1)
    p = _polynomial(
        z,
        *(7.0376836292e-2, -1.1514610310e-1, 1.1676998740e-1, -1.2420140846e-1, 1.4249322787e-1),
        *(-1.6668057665e-1, 2.0000714765e-1, -2.4999993993e-1, 3.3333331174e-1),
    )
    z2 = z * z
    return _fma(exponent, np.float32(0.693147180559945), z + _fma(p * z, z2, np.float32(-0.5) * z2))


def _polynomial(x: npt.NDArray[np.float32], *coefficients: float) -> npt.NDArray[np.float32]:
    p = np.full_like(x, coefficients[0])
    for c in coefficients[1:]:
        p = _fma(p, x, np.float32(c))
    return p


def _fma(a: npt.NDArray[np.float32], b: Any, c: Any) -> npt.NDArray[np.float32]:
    # The product is exact in fp64. The sum is rounded to odd there, so that it never becomes a tie of fp32 that the
    # exact sum is not: S. Boldo and G. Melquiond, "Emulation of a FMA and correctly rounded sums", IEEE TC 2008.
    product, c = a.astype(np.float64) * np.float64(b), np.float64(c)
    total = product + c
    part = total - product
    error = (product - (total - part)) + (c - part)
    even = total.view(np.int64) % 2 == 0
    total = np.where((error != 0) & even, np.nextafter(total, np.copysign(np.inf, error)), total)
    return total.astype(np.float32)
