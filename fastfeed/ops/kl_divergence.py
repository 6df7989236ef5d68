"""Knowledge distillation's loss: the Kullback-Leibler divergence of two softmaxes, at a temperature."""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fastfeed.ops.dense_cross_entropy import empty_rows_like, rows_lie_together
from fastfeed.ops.registration import KERNEL_DTYPES, autocasts, below_autograd, kernel_takes, register

REDUCTIONS = ("batchmean", "sum", "none")


def kl_divergence(student: Tensor, teacher: Tensor, temperature: float = 1.0, reduction: str = "batchmean") -> Tensor:
    """T**2 * KL(softmax(teacher / T) || softmax(student / T)), the distillation loss of Hinton et al., 2015.

    It is ``F.kl_div(F.log_softmax(student / T, 1), F.softmax(teacher / T, 1), reduction=reduction) * T**2`` in one
    read of both logits forward, and one backward. The factor keeps the gradients' size as T changes.

    Args:
        student: [N, C] or [N, C, d1, ...] logits; the kernels take float32, float16 and bfloat16 on a GPU, [N, C] or in
            channels-last memory format.
        teacher: of the same shape. One that wants a gradient gets it, and has the reference compute the loss.
        temperature: T, above 0.
        reduction: "batchmean", the sum over everything divided by N, as ``F.kl_div``'s; "sum"; or "none", the
            divergence of each of the N (times d1 ...), summed over the classes.

    Returns:
        A scalar or, for "none", [N] or [N, d1, ...]; as from ``F.kl_div``, of the dtype to which both promote, under
        autocast float32.

    Raises:
        ValueError: for another reduction, a temperature that is not above 0, or shapes that do not go together.
        NotImplementedError: for logits that are not floating point.
        RuntimeError: for logits on two devices.

    A class to which the teacher gives probability 0, a logit of -inf say, adds 0, also where the student's is 0 too:
    ``F.kl_div`` makes a NaN of the latter, and with ``log_target=True`` of both.
    """
    _check(student, teacher, temperature, reduction)
    dtype = torch.promote_types(student.dtype, teacher.dtype)
    if autocasts(student.device):
        dtype = torch.promote_types(dtype, torch.float32)
    if _goes_to_kernel(student, teacher):
        loss, _ = _FORWARD(student, teacher, temperature, reduction, dtype)
        return loss
    return reference(student, teacher, temperature, reduction, dtype)


def _goes_to_kernel(student: Tensor, teacher: Tensor) -> bool:
    return (
        kernel_takes(student, teacher)
        and teacher.dtype in KERNEL_DTYPES
        and not teacher.requires_grad
        and student.numel() > 0
        and rows_lie_together(student, teacher)
    )


def _check(student: Tensor, teacher: Tensor, temperature: float, reduction: str) -> None:
    if reduction == "mean":
        raise ValueError(
            "reduction is 'mean', which F.kl_div divides by N * C; 'batchmean' is the mean over the batch, 'sum' and "
            "'none' are the others"
        )
    if reduction not in REDUCTIONS:
        raise ValueError(f"{reduction!r} is not a valid value for reduction; expected 'batchmean', 'sum' or 'none'")
    if not 0 < temperature < math.inf:
        raise ValueError(f"temperature is {temperature}; expected a number above 0")
    for name, logits in (("student", student), ("teacher", teacher)):
        if not logits.is_floating_point():
            raise NotImplementedError(f"{name} is {logits.dtype}; expected floating-point logits")
    if student.dim() < 2:
        raise ValueError(f"student is {list(student.shape)}; expected [N, C] or [N, C, d1, ...]")
    if teacher.shape != student.shape:
        raise ValueError(f"teacher is {list(teacher.shape)}, student {list(student.shape)}; expected one shape")
    if teacher.device != student.device:
        raise RuntimeError(f"student is on {student.device}, teacher on {teacher.device}; expected one device")


# --- The eager reference ------------------------------------------------------------------------------------


def reference(student: Tensor, teacher: Tensor, temperature: float, reduction: str, dtype: torch.dtype) -> Tensor:
    """Return what the kernels compute, in PyTorch's ops, which can be differentiated in every way."""
    compute = torch.promote_types(torch.promote_types(student.dtype, teacher.dtype), torch.float32)
    log_q, log_p = (F.log_softmax(logits.to(compute) / temperature, dim=1) for logits in (student, teacher))
    p = log_p.exp()
    difference = (log_p - log_q).masked_fill_(p == 0, 0)  # 0 times inf, or times -inf - -inf, is 0
    loss = temperature**2 * (p * difference).sum(dim=1)
    if reduction != "none":
        loss = loss.sum()
    if reduction == "batchmean":
        loss = loss / student.shape[0]
    return loss.to(dtype)


# --- Registration -------------------------------------------------------------------------------------------


def _forward(*arguments: Any) -> tuple[Tensor, Tensor]:
    from fastfeed.kernels.kl_divergence import forward

    return forward(*arguments)


def _forward_fake(
    student: Tensor, teacher: Tensor, temperature: float, reduction: str, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    positions = student.shape[:1] + student.shape[2:]
    loss = student.new_empty(positions if reduction == "none" else (), dtype=dtype)
    return loss, student.new_empty(4, positions.numel(), dtype=torch.float32)


def _backward(*arguments: Any) -> Tensor:
    from fastfeed.kernels.kl_divergence import backward

    return backward(*arguments)


def _backward_fake(
    grad_loss: Tensor, student: Tensor, teacher: Tensor, state: Tensor, temperature: float, reduction: str
) -> Tensor:
    return empty_rows_like(student)


class _KLDivergence(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *arguments: Any) -> tuple[Tensor, Tensor]:
        with below_autograd():
            loss, state = _FORWARD(*arguments)
        ctx.save_for_backward(*arguments[:2], state)
        ctx.options = arguments[2:]
        ctx.mark_non_differentiable(state)
        ctx.set_materialize_grads(False)
        return loss, state

    @staticmethod
    def backward(ctx: Any, grad_loss: Tensor | None, _: None) -> tuple[Tensor | None, ...]:
        if grad_loss is None or not ctx.needs_input_grad[0]:
            return (None,) * 5
        student, teacher, state = ctx.saved_tensors
        if torch.is_grad_enabled():  # create_graph=True: what can be differentiated again
            loss = reference(student, teacher, *ctx.options)
            (grad,) = torch.autograd.grad(loss, student, grad_loss, create_graph=True)
        else:
            grad = _BACKWARD(grad_loss, student, teacher, state, *ctx.options[:-1])
        return (grad, *(None,) * 4)


_FORWARD = register(
    "kl_divergence(Tensor student, Tensor teacher, float temperature, str reduction, ScalarType dtype) "
    "-> (Tensor, Tensor)",
    _forward,
    _forward_fake,
    _KLDivergence,
)
_BACKWARD = register(
    "kl_divergence_backward(Tensor grad_loss, Tensor student, Tensor teacher, Tensor state, float temperature, "
    "str reduction) -> Tensor",
    _backward,
    _backward_fake,
)
