"""Cross-entropy with probabilities as targets, one row of them for each row of logits.

`fastfeed.functional.cross_entropy` comes here with what the kernels of ``kernels/dense_cross_entropy.py`` take. All
else is PyTorch's: the reference is ``torch.nn.functional.cross_entropy`` itself.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fastfeed.ops.registration import KERNEL_DTYPES, autocasts, below_autograd, kernel_takes, register


def rows_lie_together(*tensors: Tensor) -> bool:
    """Whether the classes of each position lie side by side: [N, C], or [N, C, d1, ...] in channels-last memory format.

    An [N, C] of other strides counts too: a copy of it costs less than what the kernels save.
    """
    return all(tensor.dim() == 2 or tensor.movedim(1, -1).is_contiguous() for tensor in tensors)


def goes_to_kernel(
    input: Tensor, target: Tensor, weight: Tensor | None, ignore_index: int, reduction: str, smoothing: float
) -> bool:
    """Whether the kernels take a call. What is wrong with others shows in PyTorch's function."""
    if not kernel_takes(input, target, weight) or input.dim() < 2 or input.numel() == 0:
        return False
    if reduction not in ("mean", "sum", "none") or not 0 <= smoothing <= 1 or ignore_index >= 0:
        return False
    if target.shape != input.shape or target.dtype not in KERNEL_DTYPES or target.device != input.device:
        return False
    if weight is not None and (
        weight.shape != input.shape[1:2]
        or weight.dtype not in KERNEL_DTYPES
        or weight.device != input.device
        or weight.requires_grad
    ):
        return False
    return rows_lie_together(input, target)


def dense_cross_entropy(
    input: Tensor, target: Tensor, weight: Tensor | None, reduction: str, smoothing: float
) -> Tensor:
    """Return the loss of probabilities, for what `goes_to_kernel` says yes to.

    With q = weight * ((1 - smoothing) * target + smoothing / C), the loss of a row is -sum q log softmax(input).

    Args:
        input: [N, C] or [N, C, d1, ...] logits.
        target: of the same shape; it need not add up to 1, and may want a gradient.
        weight: [C], or None.
        reduction: "mean" over the rows, whatever their weights; "sum" or "none".
        smoothing: 0 to 1.

    Returns:
        [] or, for "none", [N] or [N, d1, ...]; as PyTorch's, of the dtype to which the arguments promote, under
        autocast float32.
    """
    dtype = torch.promote_types(input.dtype, target.dtype)
    if weight is not None:
        dtype = torch.promote_types(dtype, weight.dtype)
    if autocasts(input.device):
        dtype = torch.float32
    loss, _ = _FORWARD(input, target, weight, reduction, smoothing, dtype)
    return loss


# --- The eager reference ------------------------------------------------------------------------------------


def reference(
    input: Tensor, target: Tensor, weight: Tensor | None, reduction: str, smoothing: float, dtype: torch.dtype
) -> Tensor:
    """Return what the kernels compute, in PyTorch's ops, which can be differentiated in every way."""
    compute = torch.promote_types(torch.promote_types(input.dtype, target.dtype), torch.float32)
    loss = F.cross_entropy(
        input.to(compute),
        target.to(compute),
        None if weight is None else weight.to(compute),
        reduction=reduction,
        label_smoothing=smoothing,
    )
    return loss.to(dtype)


# --- Registration -------------------------------------------------------------------------------------------


def _forward(*arguments: Any) -> tuple[Tensor, Tensor]:
    from fastfeed.kernels.dense_cross_entropy import forward

    return forward(*arguments)


def _forward_fake(
    input: Tensor, target: Tensor, weight: Tensor | None, reduction: str, smoothing: float, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    positions = input.shape[:1] + input.shape[2:]
    loss = input.new_empty(positions if reduction == "none" else (), dtype=dtype)
    return loss, input.new_empty(3, positions.numel(), dtype=torch.float32)


def _backward(*arguments: Any) -> tuple[Tensor, Tensor]:
    from fastfeed.kernels.dense_cross_entropy import backward

    return backward(*arguments)


def _backward_fake(
    grad_loss: Tensor,
    input: Tensor,
    target: Tensor,
    weight: Tensor | None,
    state: Tensor,
    reduction: str,
    smoothing: float,
    target_grad: bool,
) -> tuple[Tensor, Tensor]:
    return empty_rows_like(input), empty_rows_like(target) if target_grad else target.new_empty(0)


def empty_rows_like(input: Tensor) -> Tensor:
    """Return an empty tensor of the shape of [N, C] or [N, C, d1, ...] with the classes side by side in memory."""
    return input.new_empty(input.movedim(1, -1).shape).movedim(-1, 1)


class _DenseCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *arguments: Any) -> tuple[Tensor, Tensor]:
        with below_autograd():
            loss, state = _FORWARD(*arguments)
        ctx.save_for_backward(*arguments[:3], state)
        ctx.options = arguments[3:]
        ctx.mark_non_differentiable(state)
        ctx.set_materialize_grads(False)
        return loss, state

    @staticmethod
    def backward(ctx: Any, grad_loss: Tensor | None, _: None) -> tuple[Tensor | None, ...]:
        wanted = ctx.needs_input_grad[:2]
        if grad_loss is None or not any(wanted):
            return (None,) * 6
        *tensors, state = ctx.saved_tensors
        if torch.is_grad_enabled():  # create_graph=True: what can be differentiated again
            loss = reference(*tensors, *ctx.options)
            inputs = [tensor for tensor, want in zip(tensors, wanted, strict=False) if want]
            found = iter(torch.autograd.grad(loss, inputs, grad_loss, create_graph=True))
            grads = [next(found) if want else None for want in wanted]
        else:
            computed = _BACKWARD(grad_loss, *tensors, state, *ctx.options[:-1], wanted[1])
            grads = [grad if want else None for grad, want in zip(computed, wanted, strict=True)]
        return (*grads, *(None,) * 4)


_FORWARD = register(
    "dense_cross_entropy(Tensor input, Tensor target, Tensor? weight, str reduction, float smoothing, "
    "ScalarType dtype) -> (Tensor, Tensor)",
    _forward,
    _forward_fake,
    _DenseCrossEntropy,
)
_BACKWARD = register(
    "dense_cross_entropy_backward(Tensor grad_loss, Tensor input, Tensor target, Tensor? weight, Tensor state, "
    "str reduction, float smoothing, bool target_grad) -> (Tensor, Tensor)",
    _backward,
    _backward_fake,
)
