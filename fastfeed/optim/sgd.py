"""SGD: torch's step for the CPU, the kernel's scalars, and the eager reference."""

from typing import Any, Unpack

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from fastfeed.optim.checks import as_float, check_not_negative
from fastfeed.optim.optimizer import MultiTensorOptimizer, StepOptions
from fastfeed.optim.reference import Columns, add_weight_decay


class SGD(MultiTensorOptimizer):
    """Stochastic gradient descent, with momentum, of all parameters in one launch.

    The update, the arguments and the state dict are those of :class:`torch.optim.SGD`, but for a "step" in the state;
    a checkpoint of either loads into the other. As there, the first momentum buffer of a parameter is its gradient,
    without dampening. See :class:`fastfeed.optim.Adam` for what the kernel takes.

    Args:
        params: parameters, named parameters, or dicts that define parameter groups.
        lr: learning rate; a 0-dim tensor on the GPU if it is to change between replays of a CUDA graph.
        momentum: factor of the momentum buffer.
        dampening: what is taken off the gradient that is added to the buffer.
        weight_decay: L2 penalty, added to the gradient.
        nesterov: Nesterov's momentum.
        maximize: maximize the objective instead of minimizing it.
        foreach, fused: accepted, and without meaning: the kernel is always fused.
        differentiable: must be False.
        capturable: allow the capture of `step` in a CUDA graph.
        options: see :class:`fastfeed.optim.StepOptions`.

    Raises:
        ValueError: an argument is out of range, Nesterov's momentum is asked for without momentum or with dampening, or
            a parameter is complex.
        RuntimeError: `differentiable` is True.

    Source: Sutskever et al., On the importance of initialization and momentum in deep learning (2013), in the order of
    operations of ``torch.optim.SGD(fused=True)``.
    """

    rule = "sgd"
    state_names = ("momentum_buffer",)

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-3,
        momentum: float = 0,
        dampening: float = 0,
        weight_decay: float | Tensor = 0,
        nesterov: bool = False,
        *,
        maximize: bool = False,
        foreach: bool | None = None,
        differentiable: bool = False,
        fused: bool | None = None,
        capturable: bool = False,
        **options: Unpack[StepOptions],
    ) -> None:
        defaults = {
            "lr": lr,
            "momentum": momentum,
            "dampening": dampening,
            "weight_decay": weight_decay,
            "nesterov": nesterov,
            "maximize": maximize,
            "foreach": foreach,
            "differentiable": differentiable,
            "fused": fused,
            "capturable": capturable,
        }
        super().__init__(params, defaults, options)

    def _check(self, group: dict[str, Any]) -> None:
        check_not_negative(group, "lr", "momentum", "weight_decay")
        if group["nesterov"] and (group["momentum"] <= 0 or group["dampening"] != 0):
            raise ValueError("Nesterov momentum requires a momentum and zero dampening")

    def _states_of(self, group: dict[str, Any]) -> tuple[str, ...]:
        return self.state_names if group["momentum"] != 0 else ()

    def _scalars(self, group: dict[str, Any]) -> dict[int, float]:
        return sgd_scalars(group)

    def _fusable(self, group: dict[str, Any], dtype: torch.dtype) -> bool:
        # Zeros in the place of a first buffer give the gradient, unless there is dampening, which it does not have.
        # In half precision torch's fused step, as of 2.13, is wrong: it does not undo the order of its vectors' halves.
        return dtype in (torch.float32, torch.float64) and (group["dampening"] == 0 or group["momentum"] == 0)

    def _fused_update(
        self,
        params: list[Tensor],
        grads: list[Tensor],
        states: list[list[Tensor]],
        steps: list[Tensor],
        group: dict[str, Any],
    ) -> None:
        torch._fused_sgd_(
            params,
            grads,
            states[0] if states else [],
            weight_decay=as_float(group["weight_decay"]),
            momentum=group["momentum"],
            lr=as_float(group["lr"]),
            dampening=group["dampening"],
            nesterov=bool(group["nesterov"]),
            maximize=bool(group["maximize"]),
            is_first_step=False,
        )

    def _update(self, columns: Columns, group: dict[str, Any]) -> None:
        g = add_weight_decay(columns.grads, columns.params, as_float(group["weight_decay"]), group["maximize"])
        sgd_update(columns, g, group)


def sgd_update(columns: Columns, grads: list[Tensor], group: dict[str, Any]) -> None:
    """Step by gradients that hold the weight decay."""
    momentum = group["momentum"]
    if momentum != 0:
        buffers = columns.states[0]
        # The first buffer is the gradient itself; what a parameter's buffer holds before is 0, or else of no account.
        first = columns.step == 1
        kept = torch.full_like(columns.step, momentum).masked_fill_(first, 0.0)
        added = torch.full_like(columns.step, 1 - group["dampening"]).masked_fill_(first, 1.0)
        torch._foreach_mul_(buffers, kept.unbind())
        torch._foreach_add_(buffers, torch._foreach_mul(grads, added.unbind()))
        grads = list(torch._foreach_add(grads, buffers, alpha=momentum)) if group["nesterov"] else buffers
    torch._foreach_add_(columns.params, grads, alpha=-as_float(group["lr"]))


def sgd_scalars(group: dict[str, Any]) -> dict[int, float]:
    """Return what SGD and LARS read, by column."""
    from fastfeed.kernels import update_rules as columns

    return {
        columns.L2.value: as_float(group["weight_decay"]),
        columns.BETA1.value: group["momentum"],
        columns.ONE_MINUS_BETA1.value: 1 - group["dampening"],
        columns.NESTEROV.value: float(group["nesterov"]),
    }
