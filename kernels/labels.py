"""Class indices, one or two per row: what they count for, and what their losses and gradients are made of.

The formulas stand in ``cross_entropy.py``. All arguments are scalars of one row, or vectors of several.
"""

import triton
import triton.language as tl
from fastfeed.kernels.special import one_minus_exp


@triton.jit
def _label(target, at, here, part, weight, x_at, class_stride, ignore_index, C, WEIGHTED: tl.constexpr):
    """Return a label, what it counts for, its weight and its logit; NaN where it is no class."""
    y = tl.load(target + at, mask=here, other=0).to(tl.int64)
    is_class = (y >= 0) & (y < C)
    share = tl.where(y == ignore_index, 0.0, tl.where(is_class, part, float("nan")))
    w = 1.0
    if WEIGHTED:
        # An ignored class may weigh inf, as the inverse of its frequency: 0 * inf would be NaN.
        w = tl.load(weight + y, mask=is_class & here & (y != ignore_index), other=0.0).to(tl.float32)
    x = tl.load(x_at + y * class_stride, mask=is_class & here, other=float("nan")).to(tl.float32)
    return y, share, w, x


@triton.jit
def labels(
    target, other, lam, at, lam_at, here, weight, x_at, class_stride, ignore_index, C, MIXED: tl.constexpr,
    WEIGHTED: tl.constexpr,
):  # fmt: skip
    """Return both labels as `_label` does; the second is the first again where there is one."""
    part = 1.0
    if MIXED:
        part = tl.load(lam + lam_at, mask=here, other=1.0).to(tl.float32)
    a, share_a, w_a, x_a = _label(target, at, here, part, weight, x_at, class_stride, ignore_index, C, WEIGHTED)
    if MIXED:
        b, share_b, w_b, x_b = _label(
            other, at, here, 1.0 - part, weight, x_at, class_stride, ignore_index, C, WEIGHTED
        )
    else:
        b, share_b, w_b, x_b = a, share_a * 0.0, w_a, x_a
    return a, share_a, w_a, x_a, b, share_b, w_b, x_b


@triton.jit
def _focus(nll, gamma):
    """Return (1 - p) ** gamma of p = exp(-nll), and the derivative of that times nll by nll."""
    p = tl.exp(-nll)
    rest = one_minus_exp(-nll)
    power = tl.where(gamma == 0.0, 1.0, tl.exp(gamma * tl.log(rest)))  # log 0 is -inf, and its exp 0
    # nll / (1 - p) goes to 1 where both go to 0.
    ratio = tl.where(rest > 0.0, nll / rest, 1.0)
    slope = power + gamma * p * power * tl.where(nll == float("inf"), 0.0, ratio)
    return power, tl.where(p == 0.0, power, slope)  # where nll is inf, 0 * inf is not NaN


@triton.jit
def _part_of_loss(nll, share, w, gamma, FOCAL: tl.constexpr):
    value = share * w * nll
    if FOCAL:
        power, _ = _focus(nll, gamma)
        value *= power
    return tl.where(share == 0.0, 0.0, value)  # of an ignored label, whatever its logit


@triton.jit
def _part_of_gradient(nll, share, w, gamma, FOCAL: tl.constexpr):
    value = share * w
    if FOCAL:
        _, slope = _focus(nll, gamma)
        value *= slope
    return tl.where(share == 0.0, 0.0, value)


@triton.jit
def loss_of_labels(
    lse_a, share_a, w_a, lse_b, share_b, w_b, of_all, smoothing, C, gamma, MIXED: tl.constexpr,
    SMOOTHED: tl.constexpr, FOCAL: tl.constexpr,
):  # fmt: skip
    """Return the loss of rows, and what they count for in the mean."""
    value = _part_of_loss(lse_a, share_a, w_a, gamma, FOCAL)
    share = share_a
    count = share_a * w_a
    if MIXED:
        value += _part_of_loss(lse_b, share_b, w_b, gamma, FOCAL)
        share += share_b
        count = share  # as for probabilities: weights have no part in the mean
    if SMOOTHED:
        value = (1.0 - smoothing) * value + smoothing / C * share * of_all
    return tl.where(share == 0.0, 0.0, value), count


@triton.jit
def coefficients(
    nll_a, share_a, w_a, nll_b, share_b, w_b, weight_sum, smoothing, C, gamma, MIXED: tl.constexpr,
    SMOOTHED: tl.constexpr, FOCAL: tl.constexpr,
):  # fmt: skip
    """Return k_a, k_b, the factor of the softmax, u, and whether the gradient is 0 whatever the logits are."""
    at_a = (1.0 - smoothing) * _part_of_gradient(nll_a, share_a, w_a, gamma, FOCAL)
    at_b = share_b * 0.0
    share = share_a
    if MIXED:
        at_b = (1.0 - smoothing) * _part_of_gradient(nll_b, share_b, w_b, gamma, FOCAL)
        share += share_b
    of_all = at_a + at_b
    uniform = share * 0.0
    if SMOOTHED:
        uniform = smoothing / C * share
        of_all += uniform * tl.load(weight_sum)
    return at_a, at_b, of_all, uniform, share == 0.0
