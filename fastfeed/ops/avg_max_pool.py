"""Average and maximum pooling in one.

The kernels stand in ``kernels/avg_max_pool.py``. What they do not take goes to the reference: the CPU, float64,
forward-mode differentiation and ``torch.func``.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fastfeed.ops.pooling import check_input, dense, empty_pool, is_channels_last
from fastfeed.ops.registration import below_autograd, kernel_takes, register


def avg_max_pool2d(x: Tensor) -> Tensor:
    """The average and the maximum over all positions, one after the other along the channels.

    ``torch.cat((F.adaptive_avg_pool2d(x, 1), F.adaptive_max_pool2d(x, 1)), 1)``, which timm calls "catavgmax"; on a GPU
    one kernel forward, which reads x once, and one backward, which does not need x.

    Args:
        x: [N, C, H, W] or [C, H, W], floating point; contiguous and channels-last are read as they lie.

    Returns:
        [N, 2 C, 1, 1] or [2 C, 1, 1], of the dtype of x: averages, then maxima. Half precision is summed in float32. A
        maximum's gradient goes to the first of equal ones, and to the last NaN where there are NaN, as PyTorch's does.

    Raises:
        RuntimeError: for x of other dimensions, without positions or channels, or not of floating point (as
            ``torch.nn.functional.adaptive_max_pool2d``).
    """
    check_input(x, "avg_max_pool2d")
    if not kernel_takes(x):
        return avg_max_pool2d_reference(x)
    y, _ = torch.ops.fastfeed.avg_max_pool2d(dense(x))
    return y if x.dim() == 4 else y[0]


def avg_max_pool2d_reference(x: Tensor) -> Tensor:
    """What the kernels compute, as a differentiable composite of PyTorch's ops."""
    return torch.cat((F.adaptive_avg_pool2d(x, 1), F.adaptive_max_pool2d(x, 1)), dim=-3)


# --- Registration ---------------------------------------------------------------------------------------------


class _AvgMaxPool2d(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> tuple[Tensor, Tensor]:
        with below_autograd():
            y, argmax = torch.ops.fastfeed.avg_max_pool2d(x)
        ctx.save_for_backward(argmax)
        ctx.plane = (x.shape[2], x.shape[3], is_channels_last(x))
        ctx.mark_non_differentiable(argmax)
        ctx.set_materialize_grads(False)
        return y, argmax

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None, _: None) -> Tensor | None:
        if grad is None:
            return None
        (argmax,) = ctx.saved_tensors
        if torch.is_grad_enabled():  # create_graph=True: the gradient is to be differentiated in its turn
            return _gradient_reference(grad, argmax, *ctx.plane)
        return torch.ops.fastfeed.avg_max_pool2d_backward(grad, argmax, *ctx.plane)


def _gradient_reference(grad: Tensor, argmax: Tensor, height: int, width: int, channels_last: bool) -> Tensor:
    """The gradient of x, which is linear in that of the result, as a differentiable composite of PyTorch's ops."""
    average, maximum = grad.flatten(2).chunk(2, dim=1)
    spread = (average / (height * width)).expand(-1, -1, height * width)
    grad_x = spread.scatter_add(2, argmax[:, :, None].long(), maximum).unflatten(2, (height, width))
    return grad_x.contiguous(memory_format=torch.channels_last if channels_last else torch.contiguous_format)


def _forward(x: Tensor) -> tuple[Tensor, Tensor]:
    from fastfeed.kernels.avg_max_pool import forward

    y, argmax = _empty_results(x)
    forward(x, y, argmax)
    return y, argmax


def _empty_results(x: Tensor) -> tuple[Tensor, Tensor]:
    return empty_pool(x, 2 * x.shape[1], x.dtype), x.new_empty(x.shape[:2], dtype=torch.int32)


def _backward(grad: Tensor, argmax: Tensor, height: int, width: int, channels_last: bool) -> Tensor:
    from fastfeed.kernels.avg_max_pool import backward

    grad_x = _empty_gradient(grad, argmax, height, width, channels_last)
    backward(grad.contiguous(), argmax, grad_x)
    return grad_x


def _empty_gradient(grad: Tensor, argmax: Tensor, height: int, width: int, channels_last: bool) -> Tensor:
    return torch.empty(
        (*argmax.shape, height, width),
        dtype=grad.dtype,
        device=grad.device,
        memory_format=torch.channels_last if channels_last else torch.contiguous_format,
    )


# The second result is where the maxima are, as int32 [N, C].
register("avg_max_pool2d(Tensor x) -> (Tensor, Tensor)", _forward, _empty_results, _AvgMaxPool2d)
register(
    "avg_max_pool2d_backward(Tensor grad, Tensor argmax, SymInt height, SymInt width, bool channels_last) -> Tensor",
    _backward,
    _empty_gradient,
)
