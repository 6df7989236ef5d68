"""Label-smoothed cross-entropy: ``torch.nn.functional.cross_entropy``, fused.

The op works on rows of logits and class indices; its kernel stands in ``kernels/cross_entropy.py``. Whatever the
kernel does not take goes to PyTorch's own function: the CPU, class weights, probability targets, more dimensions,
float64, forward-mode differentiation and ``torch.func``.
"""

from typing import Any

import torch
import torch.autograd.forward_ad as forward_ad
import torch.nn.functional as F
from torch import Tensor

from fastfeed.kernels import can_run

_KERNEL_DTYPES = (torch.float32, torch.float16, torch.bfloat16)


def cross_entropy(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    ignore_index: int = -100,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
) -> Tensor:
    """``torch.nn.functional.cross_entropy`` (Szegedy et al., 2016, for label smoothing), in two kernels.

    Args:
        input: [N, C] logits; the kernel takes float32, float16 and bfloat16 on a GPU.
        target: [N] int64 class indices, 0 to C - 1, or `ignore_index`; or what PyTorch takes besides.
        weight: [C] class weights.
        ignore_index: target of rows that count neither in the loss nor in the mean.
        reduction: "mean" over the rows that count, "sum" or "none".
        label_smoothing: 0 to 1.

    Returns:
        A scalar, or [N] for "none", of the input's dtype; under autocast float32, as PyTorch's.

    Raises:
        ValueError: for an unknown reduction, or shapes that do not go together.
        RuntimeError: for a label_smoothing outside 0 to 1, or a target that is neither int64 nor probabilities.
        IndexError: on the CPU, for a target that is no class.

    PyTorch's deprecated `size_average` and `reduce` are left out, here and in the order of arguments.

    Differences of the kernel from PyTorch, all deliberate: the logits of an ignored row get gradient 0 even where they
    are NaN or inf; a target that is no class gives a NaN loss, not a device-side assertion that ends the process; and
    a sum of float16 losses is rounded once, at its end.
    """
    rows = input.dim() == 2 and input.shape[1] > 0 and target.dim() == 1 and target.dtype == torch.int64
    if not rows or weight is not None or not _kernel_takes(input):
        return F.cross_entropy(input, target, weight, None, ignore_index, None, reduction, label_smoothing)
    if reduction not in ("mean", "sum", "none"):
        raise ValueError(f"{reduction!r} is not a valid value for reduction; expected 'mean', 'sum' or 'none'")
    if not 0.0 <= label_smoothing <= 1.0:
        raise RuntimeError(f"label_smoothing is {label_smoothing}; expected a value from 0.0 to 1.0")
    if input.shape[0] != target.shape[0]:
        raise ValueError(
            f"Expected input batch_size ({input.shape[0]}) to match target batch_size ({target.shape[0]})."
        )
    if input.device != target.device:
        raise RuntimeError(f"input is on {input.device}, target on {target.device}; expected one device")

    loss, _, _ = torch.ops.fastfeed.cross_entropy_forward(
        input.contiguous(), target.contiguous(), ignore_index, label_smoothing
    )
    if reduction == "none":
        result = loss
    elif reduction == "sum":
        result = loss.sum()
    else:
        result = loss.sum() / (target != ignore_index).sum()
    autocast = torch.is_autocast_enabled(input.device.type)
    return result if autocast else result.to(input.dtype)


def _kernel_takes(input: Tensor) -> bool:
    if not can_run(input.device) or input.dtype not in _KERNEL_DTYPES:
        return False
    if torch.compiler.is_compiling():
        return True
    # The op knows reverse mode alone: forward mode would silently lose its tangent, torch.func fail obscurely.
    transformed = torch._C._functorch.is_functorch_wrapped_tensor(input)
    return not transformed and forward_ad.unpack_dual(input).tangent is None


# --- The eager reference: what the kernel computes, and the op where it is called without one -----------------


def _forward_reference(
    logits: Tensor, target: Tensor, ignore_index: int, smoothing: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Return (loss, maximum, log_sum), [N] each, in float32 or, for float64 logits, in float64."""
    x = logits.to(_compute_dtype(logits.dtype))
    ignored = target == ignore_index
    y = target.masked_fill(ignored, 0)
    log_p = x.log_softmax(dim=1)
    maximum, highest = x.max(dim=1)
    log_sum = -log_p.gather(1, highest[:, None])[:, 0]
    loss = (smoothing - 1) * log_p.gather(1, y[:, None])[:, 0]
    if smoothing > 0:  # 0 * -inf would be NaN
        loss -= smoothing * log_p.mean(dim=1)
    return loss.masked_fill(ignored, 0), maximum, log_sum


def _backward_reference(
    grad_loss: Tensor,
    logits: Tensor,
    target: Tensor,
    maximum: Tensor,
    log_sum: Tensor,
    ignore_index: int,
    smoothing: float,
) -> Tensor:
    """Return the gradient [N, C] of the logits."""
    ignored = target == ignore_index
    y = target.masked_fill(ignored, 0)
    grad = logits.to(maximum.dtype).softmax(dim=1)  # exp(x - maximum - log_sum)
    if smoothing > 0:
        grad -= smoothing / logits.shape[1]
    grad.scatter_add_(1, y[:, None], grad.new_full((len(y), 1), smoothing - 1))
    return grad.mul_(grad_loss[:, None]).masked_fill_(ignored[:, None], 0).to(logits.dtype)


# --- Registration -------------------------------------------------------------------------------------------

_library = torch.library.Library("fastfeed", "FRAGMENT")
_library.define(
    "cross_entropy_forward(Tensor logits, Tensor target, int ignore_index, float smoothing) -> (Tensor, Tensor, Tensor)"
)
_library.define(
    "cross_entropy_backward(Tensor grad_loss, Tensor logits, Tensor target, Tensor maximum, Tensor log_sum, "
    "int ignore_index, float smoothing) -> Tensor"
)


def _forward(logits: Tensor, target: Tensor, ignore_index: int, smoothing: float) -> tuple[Tensor, Tensor, Tensor]:
    if logits.device.type == "cpu":
        _check_targets(target, logits.shape[1], ignore_index)
    if can_run(logits.device) and logits.dtype in _KERNEL_DTYPES:
        from fastfeed.kernels.cross_entropy import forward

        return forward(logits, target, ignore_index, smoothing)
    return _forward_reference(logits, target, ignore_index, smoothing)


def _backward(
    grad_loss: Tensor,
    logits: Tensor,
    target: Tensor,
    maximum: Tensor,
    log_sum: Tensor,
    ignore_index: int,
    smoothing: float,
) -> Tensor:
    if can_run(logits.device) and logits.dtype in _KERNEL_DTYPES:
        from fastfeed.kernels.cross_entropy import backward

        return backward(grad_loss.contiguous(), logits, target, maximum, log_sum, ignore_index, smoothing)
    return _backward_reference(grad_loss, logits, target, maximum, log_sum, ignore_index, smoothing)


def _forward_fake(logits: Tensor, target: Tensor, ignore_index: int, smoothing: float) -> tuple[Tensor, Tensor, Tensor]:
    loss = logits.new_empty(logits.shape[0], dtype=_compute_dtype(logits.dtype))
    return loss, torch.empty_like(loss), torch.empty_like(loss)


def _backward_fake(grad_loss: Tensor, logits: Tensor, *saved_and_options: Any) -> Tensor:
    return torch.empty_like(logits)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    logits, target, ctx.ignore_index, ctx.smoothing = inputs
    _, maximum, log_sum = output
    ctx.mark_non_differentiable(maximum, log_sum)
    ctx.save_for_backward(logits, target, maximum, log_sum)


def _differentiate(ctx: Any, grad_loss: Tensor, *_: Tensor | None) -> tuple[Tensor | None, ...]:
    grad = torch.ops.fastfeed.cross_entropy_backward(grad_loss, *ctx.saved_tensors, ctx.ignore_index, ctx.smoothing)
    return grad, None, None, None


def _refuse_double_backward(ctx: Any, *grads: Tensor) -> None:
    raise RuntimeError(
        "fastfeed.functional.cross_entropy cannot be differentiated twice. Use torch.nn.functional.cross_entropy for "
        "this loss"
    )


for _key in ("CPU", "CUDA"):
    _library.impl("cross_entropy_forward", _forward, _key)
    _library.impl("cross_entropy_backward", _backward, _key)
torch.library.register_fake("fastfeed::cross_entropy_forward", _forward_fake, lib=_library)
torch.library.register_fake("fastfeed::cross_entropy_backward", _backward_fake, lib=_library)
torch.library.register_autograd(
    "fastfeed::cross_entropy_forward", _differentiate, setup_context=_setup_context, lib=_library
)
torch.library.register_autograd("fastfeed::cross_entropy_backward", _refuse_double_backward, lib=_library)


def _compute_dtype(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


def _check_targets(target: Tensor, classes: int, ignore_index: int) -> None:
    wrong = (target != ignore_index) & ((target < 0) | (target >= classes))
    if wrong.any():
        value = int(target[wrong][0])
        raise IndexError(
            f"Target {value} is out of bounds: expected 0 to {classes - 1}, or ignore_index {ignore_index}"
        )
