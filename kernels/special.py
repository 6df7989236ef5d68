"""Functions that Triton does not have, on the device."""

import triton
import triton.language as tl


@triton.jit
def one_minus_exp(x):
    """1 - exp(x) for x <= 0; by its Taylor series near 0, where the plain form cancels."""
    series = 1.0 + x / 8
    for k in tl.static_range(7, 1, -1):
        series = 1.0 + x / k * series
    return tl.where(x > -0.5, -x * series, 1.0 - tl.exp(x))
