"""AdamW: the eager reference, and the optimizer that runs it or the Triton kernel."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.optim.adamw import adamw as torch_adamw
from torch.optim.optimizer import Optimizer, ParamsT

from fastfeed.kernels import can_run


def _adamw_reference(
    params: list[Tensor],
    grads: list[Tensor],
    exp_avgs: list[Tensor],
    exp_avg_sqs: list[Tensor],
    steps: list[Tensor],
    *,
    lr: float,
    beta1: float,
    beta2: float,
    eps: float,
    weight_decay: float,
    maximize: bool,
) -> None:
    """Step tensors of one device and dtype whose `steps` are already incremented; never waits for the device.

    Half precision is computed in fp32 and rounded once, as torch's fused optimizer does.
    """
    dtype = torch.promote_types(params[0].dtype, torch.float32)
    p, g, m, v = ([t.to(dtype) for t in column] for column in (params, grads, exp_avgs, exp_avg_sqs))
    step = torch.stack(steps).to(dtype)
    # 1 - beta ** step, which as it stands would cancel in fp32 while the step is small.
    bias_correction1 = -torch.expm1(step * _log(beta1))
    bias_correction2 = -torch.expm1(step * _log(beta2))

    if maximize:
        g = list(torch._foreach_neg(g))
    if weight_decay != 0:
        torch._foreach_add_(p, p, alpha=-lr * weight_decay)
    torch._foreach_lerp_(m, g, 1 - beta1)
    torch._foreach_mul_(v, beta2)
    torch._foreach_addcmul_(v, g, g, value=1 - beta2)

    denominator = torch._foreach_sqrt(v)
    torch._foreach_div_(denominator, bias_correction2.sqrt().unbind())
    torch._foreach_add_(denominator, eps)
    update = torch._foreach_mul(m, (lr / bias_correction1).unbind())
    torch._foreach_div_(update, denominator)
    torch._foreach_sub_(p, update)

    if dtype != params[0].dtype:
        for stored, computed in ((params, p), (exp_avgs, m), (exp_avg_sqs, v)):
            torch._foreach_copy_(stored, computed)


def _log(beta: float) -> float:
    return math.log(beta) if beta > 0 else -math.inf


# param, grad, exp_avg, exp_avg_sq, step
_Row = tuple[Tensor, Tensor, Tensor, Tensor, Tensor]


class _Part(NamedTuple):
    """Rows, by their index, that are stepped together, and by what (see `_stepper`).

    It outlives the step, so it must not hold the rows: gradients could then not be freed.
    """

    indices: list[int]
    stepper: str
    table: Any  # fastfeed.kernels.multi_tensor.TensorTable | None


class AdamW(Optimizer):
    """AdamW with one kernel launch per parameter group and device.

    The update, the state dict and the arguments that are here are those of :class:`torch.optim.AdamW`; a
    checkpoint of either loads into the other. The kernel takes fp32 parameters, on CUDA, whose elements fill
    their memory without holes in the same order as those of their gradients. On the CPU such parameters, of any
    dtype, are stepped by torch's own fused optimizer, which is the same mathematics; all others by eager PyTorch.

    Args:
        params: parameters, named parameters, or dicts that define parameter groups.
        lr: learning rate, a float.
        betas: decay rates of the running averages of the gradient and of its square.
        eps: added to the denominator.
        weight_decay: decoupled weight decay, applied as ``lr * weight_decay``.
        maximize: maximize the objective instead of minimizing it.

    Raises:
        ValueError: an argument is out of range, ``lr`` or ``betas`` are tensors, a parameter is complex, or
            ``amsgrad`` is asked for, be it by a parameter group or a checkpoint.
        RuntimeError: from ``step``, if a gradient is sparse, or during the capture of a CUDA graph, which would
            freeze the learning rate.

    Source: Loshchilov and Hutter, Decoupled Weight Decay Regularization (https://arxiv.org/abs/1711.05101), in
    the order of operations of ``torch.optim.AdamW(fused=True)``.
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
        *,
        maximize: bool = False,
    ) -> None:
        defaults = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay, "maximize": maximize}
        _check(defaults)
        self._parts: dict[int, tuple[list[Any], list[_Part]]] = {}
        super().__init__(params, defaults)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a parameter group, see :meth:`torch.optim.Optimizer.add_param_group`."""
        _check({**self.defaults, **param_group})
        super().add_param_group(param_group)
        if any(p.is_complex() for p in self.param_groups[-1]["params"]):
            self.param_groups.pop()
            raise ValueError("AdamW does not support complex parameters: pass torch.view_as_real of them")

    def __setstate__(self, state: dict[str, Any]) -> None:
        for group in state["param_groups"]:
            # A checkpoint of torch's may hold them as tensors.
            group["lr"] = float(group["lr"])
            group["betas"] = tuple(float(beta) for beta in group["betas"])
            group.setdefault("maximize", False)
            _check_supported(group)
        super().__setstate__(state)
        self._parts = {}
        for p in (p for group in self.param_groups for p in group["params"] if self.state.get(p)):
            values = self.state[p]
            # torch keeps the step on the CPU unless it is fused; the kernel reads it on the device.
            values["step"] = torch.as_tensor(values["step"], dtype=torch.float32, device=p.device)
            for name in ("exp_avg", "exp_avg_sq"):
                # The model may have become channels-last since; the kernel wants one memory order.
                if values[name].shape == p.shape and values[name].stride() != p.stride():
                    values[name] = torch.empty_like(p, requires_grad=False).copy_(values[name])

    # A compiled graph would not see what the kernel writes through addresses.
    @torch.compiler.disable  # type: ignore[untyped-decorator]
    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Step all parameters that have a gradient.

        Args:
            closure: evaluates the model anew and returns the loss, which is then returned.
        """
        if torch.cuda.is_initialized() and torch.cuda.is_current_stream_capturing():
            raise RuntimeError("AdamW cannot be captured in a CUDA graph: lr would be frozen")
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()

        for index, group in enumerate(self.param_groups):
            beta1, beta2 = group["betas"]
            hyperparameters = {
                "lr": group["lr"],
                "beta1": beta1,
                "beta2": beta2,
                "eps": group["eps"],
                "weight_decay": group["weight_decay"],
                "maximize": group["maximize"],
            }
            rows = self._rows(group)
            for part in self._partition(index, rows):
                columns = [list(column) for column in zip(*(rows[i] for i in part.indices), strict=True)]
                if part.stepper == "torch":
                    params, grads, exp_avgs, exp_avg_sqs, steps = columns
                    torch_adamw(
                        params, grads, exp_avgs, exp_avg_sqs, [], steps, fused=True, amsgrad=False, **hyperparameters
                    )  # it increments the steps itself
                    continue
                torch._foreach_add_(columns[4], 1)
                if part.stepper == "kernel":
                    _kernels().adamw_step(part.table, **hyperparameters)
                else:
                    _adamw_reference(*columns, **hyperparameters)
        return loss

    def _rows(self, group: dict[str, Any]) -> list[_Row]:
        """Collect the tensors of the parameters that have a gradient; create states that are missing."""
        _check_supported(group)  # again, since anyone may write to param_groups
        rows = []
        for p in group["params"]:
            grad = p.grad
            if grad is None:
                continue
            if grad.layout != torch.strided:
                raise RuntimeError("AdamW does not support sparse gradients, please consider SparseAdam instead")
            state = self.state[p]
            if not state:
                state["step"] = torch.zeros((), dtype=torch.float32, device=p.device)
                state["exp_avg"] = torch.zeros_like(p, memory_format=torch.preserve_format)
                state["exp_avg_sq"] = torch.zeros_like(p, memory_format=torch.preserve_format)
            rows.append((p, grad, state["exp_avg"], state["exp_avg_sq"], state["step"]))
        return rows

    def _partition(self, index: int, rows: list[_Row]) -> list[_Part]:
        """Partition the rows of a parameter group, or remember how, while none has moved.

        A row cannot change its device or dtype without moving, so moves are all that every step looks for: to
        check the rest as well would, in a small model, take longer than the kernel.
        """
        places = [_place(*row) for row in rows]
        known_places, parts = self._parts.get(index, (None, []))
        if places != known_places:
            parts = _partition(rows)
            self._parts[index] = (places, parts)
        return parts


def _place(p: Tensor, grad: Tensor, exp_avg: Tensor, exp_avg_sq: Tensor, step: Tensor) -> tuple[Any, ...]:
    return (
        p.numel(),
        *(p.data_ptr(), grad.data_ptr(), exp_avg.data_ptr(), exp_avg_sq.data_ptr(), step.data_ptr()),
        *(p.stride(), grad.stride(), exp_avg.stride(), exp_avg_sq.stride()),
    )


def _partition(rows: list[_Row]) -> list[_Part]:
    groups: dict[tuple[torch.device, torch.dtype, str], list[int]] = {}
    for i, row in enumerate(rows):
        device, dtype = row[0].device, row[0].dtype
        groups.setdefault((device, dtype, _stepper(*row)), []).append(i)
    parts = []
    for (device, _, stepper), indices in groups.items():
        table = None
        if stepper == "kernel":
            columns = zip(*(rows[i] for i in indices), strict=True)
            addresses = [[tensor.data_ptr() for tensor in column] for column in columns]
            table = _kernels().build_table([*addresses, [rows[i][0].numel() for i in indices]], device)
        parts.append(_Part(indices, stepper, table))
    return parts


def _kernels() -> Any:
    from fastfeed.kernels import multi_tensor  # only after can_run said yes: Triton may be absent

    return multi_tensor


def _check(group: dict[str, Any]) -> None:
    """Raise what torch.optim.AdamW raises for arguments out of range."""
    _check_supported(group)
    if not group["lr"] >= 0.0:
        raise ValueError(f"Invalid learning rate: {group['lr']}")
    if not group["eps"] >= 0.0:
        raise ValueError(f"Invalid epsilon value: {group['eps']}")
    for index, beta in enumerate(group["betas"]):
        if not 0.0 <= beta < 1.0:
            raise ValueError(f"Invalid beta parameter at index {index}: {beta}")
    if not group["weight_decay"] >= 0.0:
        raise ValueError(f"Invalid weight_decay value: {group['weight_decay']}")


def _check_supported(group: dict[str, Any]) -> None:
    if any(isinstance(value, Tensor) for value in (group["lr"], *group["betas"])):
        raise ValueError("lr and betas as Tensors are not supported: use floats")
    if group.get("amsgrad"):
        raise ValueError("amsgrad=True is not supported")


def _stepper(p: Tensor, grad: Tensor, exp_avg: Tensor, exp_avg_sq: Tensor, step: Tensor) -> str:
    """What steps `p`: the Triton "kernel", "torch" (its fused step for the CPU) or the eager "reference"."""
    if step.dtype == torch.float32 and _is_dense(p, grad, exp_avg, exp_avg_sq, step):
        if p.dtype == torch.float32 and can_run(p.device):
            return "kernel"
        if p.device.type == "cpu":
            return "torch"
    return "reference"


def _is_dense(p: Tensor, grad: Tensor, exp_avg: Tensor, exp_avg_sq: Tensor, step: Tensor) -> bool:
    """Whether what sees bare memory, as the kernel and torch's fused step do, may step `p`."""
    for t in (p, grad, exp_avg, exp_avg_sq, step):
        # A subclass, such as a DTensor, need not have memory of its own.
        if t.device != p.device or type(t) not in (Tensor, torch.nn.Parameter):
            return False
    if not p.dtype == grad.dtype == exp_avg.dtype == exp_avg_sq.dtype:
        return False
    elementwise = (p, grad, exp_avg, exp_avg_sq)
    if all(t.is_contiguous() for t in elementwise):  # much the quickest to find out
        return exp_avg.numel() == exp_avg_sq.numel() == p.numel()
    orders = {_memory_order(t) for t in elementwise}
    return len(orders) == 1 and None not in orders


def _memory_order(t: Tensor) -> tuple[tuple[int, int], ...] | None:
    """(stride, size) of each dimension, or None if elements overlap or leave holes.

    A dimension of size 1 may have any stride, so it is left out.
    """
    dims = tuple((stride, size) for stride, size in zip(t.stride(), t.shape, strict=True) if size != 1)
    span = 1
    for stride, size in sorted(dims):
        if stride != span:
            return None
        span *= size
    return dims
