"""The arithmetic of the optimizers, on blocks in registers; multi_tensor.py brings the blocks and takes them back.

The order of operations, and the exact division and root, are those of torch's fused optimizers, where torch has the
optimizer. A rule takes the parameter, the gradient (unscaled, clipped, negated to maximize) and states, all in fp32,
and `h`, its scalars, which a function beside it works out once per program from the row of the parameter group, the
parameter's step and its learning rate.
"""

import triton
import triton.language as tl
from fastfeed.kernels.special import one_minus_exp

# The columns of a parameter group's row; a rule reads those that its optimizer has. Momentum is BETA1, and what
# dampening leaves is ONE_MINUS_BETA1. Weight decay is added to the gradient (L2), or taken off the parameter (DECAY).
SIGN = tl.constexpr(0)
L2 = tl.constexpr(1)
DECAY = tl.constexpr(2)
BETA1 = tl.constexpr(3)
ONE_MINUS_BETA1 = tl.constexpr(4)
LOG_BETA1 = tl.constexpr(5)
BETA2 = tl.constexpr(6)
ONE_MINUS_BETA2 = tl.constexpr(7)
LOG_BETA2 = tl.constexpr(8)
EPS = tl.constexpr(9)
NESTEROV = tl.constexpr(10)
TRUST = tl.constexpr(11)
ADAPTS = tl.constexpr(12)
EMA_WEIGHT = tl.constexpr(13)
LR = tl.constexpr(14)
SCALARS = tl.constexpr(16)  # a row's length


@triton.jit
def lerp(a, b, weight, one_minus_weight):
    """torch.lerp's two forms: each is exact at its own end of the weight's range."""
    return tl.where(weight < 0.5, a + weight * (b - a), b - one_minus_weight * (b - a))


@triton.jit
def _with_l2(g, p, l2):
    return tl.where(l2 == 0, g, g + l2 * p)  # 0 * inf is not 0


@triton.jit
def _decayed(p, decay):
    return tl.where(decay == 0, p, p - decay * p)


@triton.jit
def sgd_scalars(group, step, lr):
    return (
        tl.load(group + L2),
        tl.load(group + BETA1),
        tl.load(group + ONE_MINUS_BETA1),
        tl.load(group + NESTEROV),
        step,
        lr,
        1.0,
    )


@triton.jit
def sgd(p, g, momentum_buffer, h, MOMENTUM: tl.constexpr):
    """torch.optim.SGD; the first momentum buffer of a parameter is its gradient, without dampening."""
    l2, momentum, one_minus_dampening, nesterov, step, lr, ratio = h
    g = _with_l2(g, p, l2) * ratio
    if MOMENTUM:
        momentum_buffer = tl.where(step == 1, g, momentum * momentum_buffer + one_minus_dampening * g)
        g = tl.where(nesterov != 0, g + momentum * momentum_buffer, momentum_buffer)
    return p - lr * g, momentum_buffer


@triton.jit
def lars_scalars(group, step, lr, param_norm, gradient_norm):
    """SGD's, and what its gradient is multiplied by: trust |p| / (|g| + weight_decay |p| + eps).

    The factor is 1 where a norm is 0, and where the group does not adapt.
    """
    l2, momentum, one_minus_dampening, nesterov, step, lr, _ = sgd_scalars(group, step, lr)
    plain = (param_norm == 0) | (gradient_norm == 0) | (tl.load(group + ADAPTS) == 0)
    divisor = tl.where(plain, 1.0, gradient_norm + l2 * param_norm + tl.load(group + EPS))
    ratio = tl.where(plain, 1.0, tl.div_rn(tl.load(group + TRUST) * param_norm, divisor))
    return l2, momentum, one_minus_dampening, nesterov, step, lr, ratio


@triton.jit
def adam_scalars(group, step, lr):
    return (
        tl.load(group + L2),
        lr * tl.load(group + DECAY),
        tl.load(group + BETA1),
        tl.load(group + ONE_MINUS_BETA1),
        tl.load(group + BETA2),
        tl.load(group + ONE_MINUS_BETA2),
        tl.load(group + EPS),
        tl.div_rn(lr, one_minus_exp(step * tl.load(group + LOG_BETA1))),
        tl.sqrt_rn(one_minus_exp(step * tl.load(group + LOG_BETA2))),
    )


@triton.jit
def adam(p, g, exp_avg, exp_avg_sq, max_exp_avg_sq, h, AMSGRAD: tl.constexpr):
    """torch.optim.Adam and AdamW, which differ in where the group's weight decay stands."""
    l2, decay, beta1, one_minus_beta1, beta2, one_minus_beta2, eps, step_size, sqrt_bias_correction2 = h
    g = _with_l2(g, p, l2)
    p = _decayed(p, decay)
    exp_avg = lerp(exp_avg, g, one_minus_beta1, beta1)
    exp_avg_sq = beta2 * exp_avg_sq + one_minus_beta2 * g * g
    if AMSGRAD:
        max_exp_avg_sq = tl.maximum(max_exp_avg_sq, exp_avg_sq, propagate_nan=tl.PropagateNan.ALL)
        root = tl.sqrt_rn(max_exp_avg_sq)
    else:
        root = tl.sqrt_rn(exp_avg_sq)
    p -= tl.div_rn(step_size * exp_avg, tl.div_rn(root, sqrt_bias_correction2) + eps)
    return p, exp_avg, exp_avg_sq, max_exp_avg_sq


@triton.jit
def lamb_scalars(group, step, lr):
    return (
        tl.load(group + L2),
        tl.load(group + BETA1),
        tl.load(group + ONE_MINUS_BETA1),
        tl.load(group + BETA2),
        tl.load(group + ONE_MINUS_BETA2),
        tl.load(group + EPS),
        one_minus_exp(step * tl.load(group + LOG_BETA1)),
        tl.sqrt_rn(one_minus_exp(step * tl.load(group + LOG_BETA2))),
    )


@triton.jit
def lamb_moments(g, exp_avg, exp_avg_sq, h):
    """LAMB's first pass writes these."""
    _, beta1, one_minus_beta1, beta2, one_minus_beta2, _, _, _ = h
    return lerp(exp_avg, g, one_minus_beta1, beta1), beta2 * exp_avg_sq + one_minus_beta2 * g * g


@triton.jit
def lamb_update(p, exp_avg, exp_avg_sq, h):
    """LAMB's update before the trust ratio, from moments that hold this step's gradient already."""
    l2, _, _, _, _, eps, bias_correction1, sqrt_bias_correction2 = h
    denominator = tl.div_rn(tl.sqrt_rn(exp_avg_sq), sqrt_bias_correction2) + eps
    return _with_l2(tl.div_rn(tl.div_rn(exp_avg, bias_correction1), denominator), p, l2)


@triton.jit
def lamb_ratio(group, param_norm, update_norm):
    """|p| / |u|; 1 where either is 0, and where the group does not adapt."""
    plain = (param_norm == 0) | (update_norm == 0) | (tl.load(group + ADAPTS) == 0)
    return tl.where(plain, 1.0, tl.div_rn(param_norm, tl.where(plain, 1.0, update_norm)))


@triton.jit
def lion_scalars(group, step, lr):
    return (
        lr * tl.load(group + DECAY),
        tl.load(group + BETA1),
        tl.load(group + ONE_MINUS_BETA1),
        tl.load(group + BETA2),
        tl.load(group + ONE_MINUS_BETA2),
        lr,
    )


@triton.jit
def lion(p, g, exp_avg, h):
    """The sign of one average is the update; another average is kept."""
    decay, beta1, one_minus_beta1, beta2, one_minus_beta2, lr = h
    mixed = lerp(exp_avg, g, one_minus_beta1, beta1)
    sign = tl.where(mixed > 0, 1.0, tl.where(mixed < 0, -1.0, 0.0))
    return _decayed(p, decay) - lr * sign, lerp(exp_avg, g, one_minus_beta2, beta2)
