"""Cross-entropy: ``torch.nn.functional.cross_entropy``, fused, and for two labels per sample.

Three kinds of target: class indices; two of them and a weight, a `fastfeed.MixedTarget`; probabilities. The first two
share an op, whose kernels stand in ``kernels/cross_entropy.py``; those for probabilities stand in
``kernels/dense_cross_entropy.py``. What no kernel takes goes to PyTorch's own function or, for a MixedTarget, to the
reference here: the CPU, float64, forward-mode differentiation and ``torch.func``, and what PyTorch refuses.
"""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fastfeed.data.mix import MixedTarget
from fastfeed.ops import dense_cross_entropy as dense
from fastfeed.ops.registration import KERNEL_DTYPES, autocasts, below_autograd, kernel_takes, register

REDUCTIONS = ("mean", "sum", "none")


def cross_entropy(
    input: Tensor,
    target: Tensor | MixedTarget,
    weight: Tensor | None = None,
    ignore_index: int = -100,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
) -> Tensor:
    """``torch.nn.functional.cross_entropy`` (Szegedy et al., 2016, for label smoothing), in three launches.

    Args:
        input: [N, C] or [N, C, d1, ...] logits; the kernels take float32, float16 and bfloat16 on a GPU.
        target: one of these.

            - [N] or [N, d1, ...] int64 class indices, 0 to C - 1, or `ignore_index`.
            - A `fastfeed.MixedTarget` of two of them, a and b, and lam, one number, or [N] for [N, d1, ...] too. The
              loss is that of the probabilities ``target.dense(C)``, which are never built. A label may be
              `ignore_index`, and counts for nothing then: the mean is over what the others count.
            - Probabilities, floating point, of the shape of the input; the kernels take [N, C], and [N, C, d1, ...]
              where both are channels-last. They may want a gradient.
        weight: [C] class weights.
        ignore_index: target of rows that count neither in the loss nor in the mean.
        reduction: "mean" over the rows that count, with class indices as much as their weights; "sum" or "none".
        label_smoothing: 0 to 1.

    Returns:
        A scalar, or, for "none", [N] or [N, d1, ...]; as PyTorch's of the input's dtype or, with probabilities, that to
        which both promote; under autocast float32.

    Raises:
        ValueError: for an unknown reduction, or shapes that do not go together.
        RuntimeError: for a label_smoothing outside 0 to 1, or a target that is neither class indices nor probabilities.
        IndexError: on the CPU, for a target that is no class; on a GPU under ``torch.autograd.detect_anomaly()``, which
            waits for the GPU.

    PyTorch's deprecated `size_average` and `reduce` are left out, here and in the order of arguments.

    Differences of the kernels from PyTorch, all deliberate: the logits of an ignored row, or of one whose loss has
    gradient 0, get gradient 0 even where they are NaN or inf; a target that is no class gives a NaN loss, not a
    device-side assertion that ends the process; and a sum of float16 losses is rounded once, at its end.
    """
    if isinstance(target, MixedTarget):
        return label_loss(input, target, weight, ignore_index, reduction, label_smoothing)
    if _goes_to_kernel(input, target, None, None, weight, reduction, label_smoothing):
        dtype = dtype_of_loss(input)
        return _fused(input, target, None, None, weight, ignore_index, reduction, label_smoothing, 0.0, dtype)
    if dense.goes_to_kernel(input, target, weight, ignore_index, reduction, label_smoothing):
        return dense.dense_cross_entropy(input, target, weight, reduction, label_smoothing)
    return F.cross_entropy(input, target, weight, None, ignore_index, None, reduction, label_smoothing)


def label_loss(
    input: Tensor,
    target: Tensor | MixedTarget,
    weight: Tensor | None,
    ignore_index: int,
    reduction: str,
    smoothing: float = 0.0,
    gamma: float = 0.0,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """Return the loss of one or two labels per row, by the kernels where they take it, else by the reference.

    Args and errors, where they are not those of `cross_entropy`:
        gamma: of the focal loss; 0 for none. It goes with no smoothing.
        dtype: of the loss, by default that of `cross_entropy`.
    """
    dtype = dtype or dtype_of_loss(input)
    a, b, lam = target if isinstance(target, MixedTarget) else (target, None, None)
    if _goes_to_kernel(input, a, b, lam, weight, reduction, smoothing):
        return _fused(input, a, b, lam, weight, ignore_index, reduction, smoothing, gamma, dtype)
    _check(input, a, b, lam, weight, reduction, smoothing)
    _check_classes(a, input.shape[1], ignore_index)
    if b is not None:
        _check_classes(b, input.shape[1], ignore_index)
    return reference(input, a, b, lam, weight, ignore_index, reduction, smoothing, gamma, dtype)


def _fused(
    input: Tensor,
    a: Tensor,
    b: Tensor | None,
    lam: Tensor | None,
    weight: Tensor | None,
    ignore_index: int,
    reduction: str,
    smoothing: float,
    gamma: float,
    dtype: torch.dtype,
) -> Tensor:
    _check_classes(a, input.shape[1], ignore_index)
    if b is not None:
        _check_classes(b, input.shape[1], ignore_index)
    loss, _ = _FORWARD(input, a, b, lam, weight, ignore_index, reduction, smoothing, gamma, dtype)
    return loss


def dtype_of_loss(input: Tensor) -> torch.dtype:
    """Return the dtype that PyTorch's cross-entropy gives."""
    return torch.float32 if autocasts(input.device) else input.dtype


def _goes_to_kernel(
    input: Tensor,
    a: Tensor,
    b: Tensor | None,
    lam: Tensor | None,
    weight: Tensor | None,
    reduction: str,
    smoothing: float,
) -> bool:
    """Whether the kernels take a call. What is wrong with others shows elsewhere: in PyTorch's function, say."""
    if not kernel_takes(input, a, b, weight, lam) or input.dim() < 2 or input.shape[1] == 0:
        return False
    if reduction not in REDUCTIONS or not 0 <= smoothing <= 1:
        return False
    shape = input.shape[:1] + input.shape[2:]
    for labels in (a, b):
        if labels is not None and not (
            labels.shape == shape and labels.dtype in (torch.int64, torch.uint8) and labels.device == input.device
        ):
            return False
    if lam is not None and (lam.requires_grad or lam.device != input.device or lam.shape not in ((), (1,), shape[:1])):
        return False
    if weight is None:
        return True
    # PyTorch refuses weights of another dtype, which autocast converts.
    dtypes = KERNEL_DTYPES if autocasts(input.device) else (input.dtype,)
    same = weight.shape == input.shape[1:2] and weight.dtype in dtypes and weight.device == input.device
    return same and not weight.requires_grad


def _check(
    input: Tensor,
    a: Tensor,
    b: Tensor | None,
    lam: Tensor | None,
    weight: Tensor | None,
    reduction: str,
    smoothing: float,
) -> None:
    """Raise, as `cross_entropy` says, for what does not go together."""
    if reduction not in REDUCTIONS:
        raise ValueError(f"{reduction!r} is not a valid value for reduction; expected 'mean', 'sum' or 'none'")
    if not 0.0 <= smoothing <= 1.0:
        raise RuntimeError(f"label_smoothing is {smoothing}; expected a value from 0.0 to 1.0")
    if input.dim() < 2:
        raise ValueError(f"input is {list(input.shape)}; expected [N, C] or [N, C, d1, ...]")
    expected = [input.shape[0], *input.shape[2:]]
    for name, labels in (("target", a), ("target.b", b)):
        if labels is None:
            continue
        if list(labels.shape) != expected:
            raise ValueError(f"{name} is {list(labels.shape)}; expected {expected}, for input {list(input.shape)}")
        if labels.dtype not in (torch.int64, torch.uint8):
            raise RuntimeError(f"{name} is {labels.dtype}; expected class indices, torch.int64")
        if labels.device != input.device:
            raise RuntimeError(f"input is on {input.device}, {name} on {labels.device}; expected one device")
    if lam is not None:
        if lam.shape not in ((), (1,), input.shape[:1]):
            raise ValueError(f"target.lam is {list(lam.shape)}; expected one number, or [{input.shape[0]}]")
        if lam.device != input.device:
            raise RuntimeError(f"input is on {input.device}, target.lam on {lam.device}; expected one device")
    if weight is not None and weight.shape != input.shape[1:2]:
        raise RuntimeError(f"weight is {list(weight.shape)}; expected [{input.shape[1]}], one for each class")


def _check_classes(target: Tensor, classes: int, ignore_index: int) -> None:
    """Raise for labels that are no classes, where that does not wait for a device, or is asked for."""
    if torch.compiler.is_compiling() or target.device.type == "meta" or type(target) is not Tensor:
        return
    if target.device.type != "cpu" and not torch.is_anomaly_enabled():
        return
    if torch._C._functorch.is_functorch_wrapped_tensor(target):
        return
    target = target.long()  # PyTorch compares uint8 with a number's lowest byte: -100 would be 156
    wrong = (target != ignore_index) & ((target < 0) | (target >= classes))
    if wrong.any():
        place = wrong.nonzero()[0].tolist()
        raise IndexError(
            f"Target {int(target[tuple(place)])} is out of bounds: expected 0 to {classes - 1}, or ignore_index "
            f"{ignore_index}; it is target{place}"
        )


# --- The eager reference ------------------------------------------------------------------------------------


def reference(
    input: Tensor,
    a: Tensor,
    b: Tensor | None,
    lam: Tensor | None,
    weight: Tensor | None,
    ignore_index: int,
    reduction: str,
    smoothing: float,
    gamma: float,
    dtype: torch.dtype,
) -> Tensor:
    """Return what the kernels compute for labels, in PyTorch's ops, which can be differentiated in every way."""
    compute = torch.promote_types(input.dtype, torch.float32)
    x = input.to(compute)
    weight = None if weight is None else weight.to(compute)
    a, b = a.long(), None if b is None else b.long()  # PyTorch compares uint8 with a number's lowest byte

    def loss_of(y: Tensor) -> Tensor:
        if not gamma:
            return F.cross_entropy(x, y, weight, ignore_index=ignore_index, reduction="none", label_smoothing=smoothing)
        nll = F.cross_entropy(x, y, ignore_index=ignore_index, reduction="none")
        # 1 - p; a constant where p is 0, whose derivative times an infinite loss would be NaN
        rest = torch.where(nll == math.inf, 1, -torch.expm1(-nll))
        certain = rest <= 0  # where p is 1: not "unless above 0", which would hide NaN
        focal = torch.where(certain, 1, rest) ** gamma * torch.where(certain, 0, nll)
        return focal if weight is None else focal * weight_of(y)

    def weight_of(y: Tensor) -> Tensor:
        ignored = y == ignore_index
        each = torch.ones_like(y, dtype=compute) if weight is None else weight[y.masked_fill(ignored, 0)]
        return each.masked_fill(ignored, 0)  # not times 0: a weight of inf, the inverse of a frequency, would be NaN

    def part_of(share: Tensor, loss: Tensor) -> Tensor:
        # A label that counts for nothing has no part in the loss, be its own infinite; if finite, lam has a gradient.
        return torch.where((share == 0) & ~loss.isfinite(), 0, share * loss)

    if b is None or lam is None:
        loss, count = loss_of(a), weight_of(a)
    else:
        lam = lam.to(compute).reshape(-1, *[1] * (a.dim() - 1))
        loss = part_of(lam, loss_of(a)) + part_of(1 - lam, loss_of(b))
        count = lam * (a != ignore_index) + (1 - lam) * (b != ignore_index)  # as for probabilities, without weights
    if reduction == "mean":
        loss = loss.sum() / count.sum()
    elif reduction == "sum":
        loss = loss.sum()
    return loss.to(dtype)


# --- Registration -------------------------------------------------------------------------------------------


def _forward(*arguments: Any) -> tuple[Tensor, Tensor]:
    from fastfeed.kernels.cross_entropy import forward

    return forward(*arguments)


def _forward_fake(
    input: Tensor,
    target: Tensor,
    other: Tensor | None,
    lam: Tensor | None,
    weight: Tensor | None,
    ignore_index: int,
    reduction: str,
    smoothing: float,
    gamma: float,
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor]:
    loss = input.new_empty(target.shape if reduction == "none" else (), dtype=dtype)
    return loss, input.new_empty(3 * target.numel() + 2, dtype=torch.float32)


def _backward(*arguments: Any) -> Tensor:
    from fastfeed.kernels.cross_entropy import backward

    return backward(*arguments)


def _backward_fake(grad_loss: Tensor, input: Tensor, *others: Any) -> Tensor:
    dense = input.is_contiguous() or input.movedim(1, -1).is_contiguous()
    return torch.empty_like(input) if dense else torch.empty_like(input, memory_format=torch.contiguous_format)


class _CrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *arguments: Any) -> tuple[Tensor, Tensor]:
        with below_autograd():
            loss, state = _FORWARD(*arguments)
        ctx.save_for_backward(*arguments[:5], state)
        ctx.options = arguments[5:]
        ctx.mark_non_differentiable(state)
        ctx.set_materialize_grads(False)
        return loss, state

    @staticmethod
    def backward(ctx: Any, grad_loss: Tensor | None, _: None) -> tuple[Tensor | None, ...]:
        if grad_loss is None or not ctx.needs_input_grad[0]:
            return (None,) * 10
        *tensors, state = ctx.saved_tensors
        if torch.is_grad_enabled():  # create_graph=True: what can be differentiated again
            loss = reference(*tensors, *ctx.options)
            (grad,) = torch.autograd.grad(loss, tensors[0], grad_loss, create_graph=True)
        else:
            grad = _BACKWARD(grad_loss, *tensors, state, *ctx.options[:-1])
        return (grad, *(None,) * 9)


_FORWARD = register(
    "cross_entropy(Tensor input, Tensor target, Tensor? other, Tensor? lam, Tensor? weight, SymInt ignore_index, "
    "str reduction, float smoothing, float gamma, ScalarType dtype) -> (Tensor, Tensor)",
    _forward,
    _forward_fake,
    _CrossEntropy,
)
_BACKWARD = register(
    "cross_entropy_backward(Tensor grad_loss, Tensor input, Tensor target, Tensor? other, Tensor? lam, Tensor? weight, "
    "Tensor state, SymInt ignore_index, str reduction, float smoothing, float gamma) -> Tensor",
    _backward,
    _backward_fake,
)
