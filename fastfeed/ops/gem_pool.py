"""Generalized-mean pooling.

The kernels stand in ``kernels/gem_pool.py``. What they do not take goes to the reference: the CPU, float64, second
derivatives, forward-mode differentiation and ``torch.func``.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fastfeed.ops.pooling import check_input, dense, empty_pool
from fastfeed.ops.registration import KERNEL_DTYPES, below_autograd, kernel_takes, register

_SMALLEST = torch.finfo(torch.float32).tiny


def gem_pool2d(x: Tensor, p: float | Tensor = 3.0, eps: float = 1e-6) -> Tensor:
    """Generalized-mean (GeM) pooling (Radenović et al., TPAMI 2018) over all positions: (mean(max(x, eps)^p))^(1/p).

    p = 1 is average pooling, and the larger p is, the nearer it comes to max pooling. On a GPU it is one kernel forward
    and one backward, which reads x once and gives the gradients of x and of p.

    Args:
        x: [N, C, H, W] or [C, H, W], floating point; contiguous and channels-last are read as they lie.
        p: the exponent, above 0: a number, or a tensor with one element, or [C], one for each channel. The values of a
            tensor are not checked: the host would have to wait for the GPU.
        eps: what smaller elements are raised to, above 0.

    Returns:
        [N, C, 1, 1] or [C, 1, 1], of the dtype of ``x ** p``: that of x, unless p is a tensor with a dimension and of a
        wider dtype; and float32 for half-precision x under CUDA's autocast. The arithmetic is float32, or float64 where
        the result is.

    Raises:
        RuntimeError: for x of other dimensions, without positions or channels, or not of floating point (as
            ``torch.nn.functional.adaptive_max_pool2d``), p of another shape, or on another device.
        TypeError: for p that is neither a number nor a tensor of floating point.
        ValueError: for a number p or an eps that is not above 0, or not finite.

    The composite of PyTorch's ops that it stands for overflows in float16, at x = 50 and p = 3 already, and underflows
    where all of a channel is small; here only the result need be in the dtype's range. An element equal to eps gets a
    gradient, as from ``torch.clamp`` up to PyTorch 2.13.
    """
    check_input(x, "gem_pool2d")
    _check_options(x, p, eps)
    exponents = p if isinstance(p, Tensor) else None
    dtype = _result_dtype(x, p)
    if not _kernel_takes(x, exponents):
        return gem_pool2d_reference(x, p, eps, dtype)
    y, _ = torch.ops.fastfeed.gem_pool2d(dense(x), exponents, 1.0 if exponents is not None else float(p), eps, dtype)
    return y if x.dim() == 4 else y[0]


def _check_options(x: Tensor, p: float | Tensor, eps: float) -> None:
    if not _SMALLEST <= eps < math.inf:
        raise ValueError(f"eps is {eps}; expected a finite number, at least {_SMALLEST:.2e}, the smallest of float32")
    if not isinstance(p, Tensor):
        if isinstance(p, bool) or not isinstance(p, (int, float)):
            raise TypeError(f"p is {p!r}; expected a number, or a tensor with one element or one for each channel")
        if not 0 < p < math.inf:
            raise ValueError(f"p is {p}; expected a finite number above 0")
        return
    channels = x.shape[-3]
    if not p.is_floating_point():
        raise TypeError(f"p is a tensor of {p.dtype}; expected floating point")
    if p.numel() != 1 and p.shape != (channels,):
        raise RuntimeError(
            f"p has shape {list(p.shape)}; expected one element, or [{channels}], one for each channel of x"
        )
    if p.device != x.device:
        raise RuntimeError(f"x is on {x.device}, p on {p.device}; expected one device")


def _result_dtype(x: Tensor, p: float | Tensor) -> torch.dtype:
    """The dtype of ``x ** p``. Not torch.result_type, which torch.compile does not trace."""
    dtype = torch.promote_types(x.dtype, p.dtype) if isinstance(p, Tensor) and p.dim() > 0 else x.dtype
    # CUDA's autocast has pow in float32; the CPU's leaves it alone.
    autocast = x.is_cuda and torch.is_autocast_enabled("cuda")
    return torch.promote_types(dtype, torch.float32) if autocast else dtype


def _kernel_takes(x: Tensor, p: Tensor | None) -> bool:
    return kernel_takes(x, p) and (p is None or p.dtype in KERNEL_DTYPES)


# --- The eager reference --------------------------------------------------------------------------------------


def gem_pool2d_reference(x: Tensor, p: float | Tensor, eps: float, dtype: torch.dtype) -> Tensor:
    """What the kernels compute, as a differentiable composite of PyTorch's ops."""
    compute = torch.promote_types(dtype, torch.float32)
    # A hair below eps: whether clamp gives an element at its bound a gradient depends on the version of PyTorch.
    a = x.to(compute).clamp(min=eps * (1 - 2 * torch.finfo(compute).eps))
    # Any constant leaves the value and its derivatives as they are; the maximum keeps powers within 0 to 1.
    scale = a.detach().amax(dim=(-2, -1), keepdim=True)
    scale = scale.masked_fill(scale == math.inf, 1)
    ratio = a / scale
    if isinstance(p, Tensor):
        p = p.to(compute).view(-1, 1, 1)
        powers = (ratio.log() * p).exp()  # pow takes twice the time of both, unless the exponent is a number
    else:
        powers = ratio.pow(p)
    return (scale * powers.mean(dim=(-2, -1), keepdim=True).pow(1 / p)).to(dtype)


# --- Registration ---------------------------------------------------------------------------------------------


class _GemPool2d(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, p: Tensor | None, exponent: float, eps: float, dtype: torch.dtype
    ) -> tuple[Tensor, Tensor]:
        with below_autograd():
            y, mean = torch.ops.fastfeed.gem_pool2d(x, p, exponent, eps, dtype)
        ctx.save_for_backward(x, p, mean)
        ctx.options = (exponent, eps)
        ctx.mark_non_differentiable(mean)
        ctx.set_materialize_grads(False)
        return y, mean

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None, _: None) -> tuple[Tensor | None, ...]:
        if grad is None:
            return (None,) * 5
        x, p, mean = ctx.saved_tensors
        exponent, eps = ctx.options
        wanted = ctx.needs_input_grad[:2]
        if torch.is_grad_enabled():  # create_graph=True: the gradients are to be differentiated in their turn
            inputs = [tensor for tensor, want in zip((x, p), wanted, strict=True) if want]
            y = gem_pool2d_reference(x, exponent if p is None else p, eps, grad.dtype)
            grads = iter(torch.autograd.grad(y, inputs, grad, create_graph=True))
            return *(next(grads) if want else None for want in wanted), None, None, None
        grads_or_empty = torch.ops.fastfeed.gem_pool2d_backward(grad, x, p, mean, exponent, eps, wanted)
        return *(g if want else None for g, want in zip(grads_or_empty, wanted, strict=True)), None, None, None


def _forward(x: Tensor, p: Tensor | None, exponent: float, eps: float, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    from fastfeed.kernels.gem_pool import forward

    y, mean = _empty_results(x, p, exponent, eps, dtype)
    forward(x, p, y, mean, exponent, eps)
    return y, mean


def _empty_results(
    x: Tensor, p: Tensor | None, exponent: float, eps: float, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    return empty_pool(x, x.shape[1], dtype), x.new_empty(x.shape[:2], dtype=torch.float32)


def _backward(
    grad: Tensor,
    x: Tensor,
    p: Tensor | None,
    mean: Tensor,
    exponent: float,
    eps: float,
    output_mask: Sequence[bool],
) -> tuple[Tensor, Tensor]:
    from fastfeed.kernels.gem_pool import backward

    grad_x, grad_p = backward(grad, x, p, mean, exponent, eps, output_mask)
    return x.new_empty(0) if grad_x is None else grad_x, x.new_empty(0) if grad_p is None else grad_p


def _backward_fake(
    grad: Tensor,
    x: Tensor,
    p: Tensor | None,
    mean: Tensor,
    exponent: float,
    eps: float,
    output_mask: Sequence[bool],
) -> tuple[Tensor, Tensor]:
    grad_x, grad_p = (
        x.new_empty(0) if like is None or not want else torch.empty_like(like)
        for like, want in zip((x, p), output_mask, strict=True)
    )
    return grad_x, grad_p


# `exponent` is what p is, where that is None. The second result is the first, [N, C], before it was rounded to `dtype`.
register(
    "gem_pool2d(Tensor x, Tensor? p, float exponent, float eps, ScalarType dtype) -> (Tensor, Tensor)",
    _forward,
    _empty_results,
    _GemPool2d,
)
# A gradient that is not asked for is a tensor without elements.
register(
    "gem_pool2d_backward(Tensor grad, Tensor x, Tensor? p, Tensor mean, float exponent, float eps, bool[2] output_mask)"
    " -> (Tensor, Tensor)",
    _backward,
    _backward_fake,
)
