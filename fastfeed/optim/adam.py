"""Adam and AdamW: torch's step for the CPU, the kernel's scalars, and the eager reference."""

import math
from collections.abc import Sequence
from typing import Any, Unpack

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from fastfeed.optim.checks import as_float, check_betas, check_not_negative
from fastfeed.optim.optimizer import MultiTensorOptimizer, StepOptions
from fastfeed.optim.reference import Columns, add_weight_decay, one_minus_power


class Adam(MultiTensorOptimizer):
    """Adam, of all parameters in one launch.

    The update, the arguments and the state dict are those of :class:`torch.optim.Adam`; a checkpoint of either loads
    into the other. The kernel takes fp32, fp16 and bf16 on CUDA whose elements fill their memory without holes in the
    order of their gradients. Others are stepped by torch's fused optimizer on the CPU, and by eager PyTorch elsewhere.

    Args:
        params: parameters, named parameters, or dicts that define parameter groups.
        lr: learning rate; a 0-dim tensor on the GPU if it is to change between replays of a CUDA graph.
        betas: decay rates of the running averages of the gradient and of its square.
        eps: added to the denominator.
        weight_decay: L2 penalty, added to the gradient.
        amsgrad: divide by the largest average of squares so far.
        foreach, fused: accepted, and without meaning: the kernel is always fused.
        maximize: maximize the objective instead of minimizing it.
        capturable: allow the capture of `step` in a CUDA graph.
        differentiable: must be False.
        decoupled_weight_decay: decay as :class:`AdamW` does.
        options: see :class:`fastfeed.optim.StepOptions`.

    Raises:
        ValueError: an argument is out of range, or a parameter is complex.
        RuntimeError: `differentiable` is True.

    Source: Kingma and Ba, Adam: A Method for Stochastic Optimization (https://arxiv.org/abs/1412.6980), in the order of
    operations of ``torch.optim.Adam(fused=True)``.
    """

    rule = "adam"
    state_names = ("exp_avg", "exp_avg_sq", "max_exp_avg_sq")

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-3,
        betas: tuple[float | Tensor, float | Tensor] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0,
        amsgrad: bool = False,
        *,
        foreach: bool | None = None,
        maximize: bool = False,
        capturable: bool = False,
        differentiable: bool = False,
        fused: bool | None = None,
        decoupled_weight_decay: bool = False,
        **options: Unpack[StepOptions],
    ) -> None:
        if isinstance(betas, Sequence) and len({isinstance(beta, Tensor) for beta in betas}) > 1:
            raise ValueError("betas must be either both floats or both Tensors")
        defaults = {
            "lr": lr,
            "betas": betas,
            "eps": eps,
            "weight_decay": weight_decay,
            "amsgrad": amsgrad,
            "maximize": maximize,
            "foreach": foreach,
            "capturable": capturable,
            "differentiable": differentiable,
            "fused": fused,
            "decoupled_weight_decay": decoupled_weight_decay,
        }
        super().__init__(params, defaults, options)

    def _check(self, group: dict[str, Any]) -> None:
        check_not_negative(group, "lr", "eps", "weight_decay")
        check_betas(group)

    def _states_of(self, group: dict[str, Any]) -> tuple[str, ...]:
        return self.state_names if group["amsgrad"] else self.state_names[:2]

    def _scalars(self, group: dict[str, Any]) -> dict[int, float]:
        return adam_scalars(group, group["decoupled_weight_decay"])

    def _fusable(self, group: dict[str, Any], dtype: torch.dtype) -> bool:
        return True

    def _fused_update(
        self,
        params: list[Tensor],
        grads: list[Tensor],
        states: list[list[Tensor]],
        steps: list[Tensor],
        group: dict[str, Any],
    ) -> None:
        beta1, beta2 = map(as_float, group["betas"])
        step = torch._fused_adamw_ if group["decoupled_weight_decay"] else torch._fused_adam_
        step(
            params,
            grads,
            states[0],
            states[1],
            states[2] if group["amsgrad"] else [],
            steps,
            amsgrad=bool(group["amsgrad"]),
            beta1=beta1,
            beta2=beta2,
            lr=as_float(group["lr"]),
            weight_decay=as_float(group["weight_decay"]),
            eps=group["eps"],
            maximize=bool(group["maximize"]),
        )

    def _update(self, columns: Columns, group: dict[str, Any]) -> None:
        p, (m, v) = columns.params, columns.states[:2]
        lr, weight_decay = as_float(group["lr"]), as_float(group["weight_decay"])
        beta1, beta2 = map(as_float, group["betas"])
        decoupled = group["decoupled_weight_decay"]
        g = add_weight_decay(columns.grads, p, 0 if decoupled else weight_decay, group["maximize"])
        if decoupled and weight_decay != 0:
            torch._foreach_add_(p, p, alpha=-lr * weight_decay)
        torch._foreach_lerp_(m, g, 1 - beta1)
        torch._foreach_mul_(v, beta2)
        torch._foreach_addcmul_(v, g, g, value=1 - beta2)
        if group["amsgrad"]:
            torch._foreach_maximum_(columns.states[2], v)
            v = columns.states[2]
        denominator = torch._foreach_sqrt(v)
        torch._foreach_div_(denominator, one_minus_power(beta2, columns.step).sqrt().unbind())
        torch._foreach_add_(denominator, group["eps"])
        update = torch._foreach_mul(m, (lr / one_minus_power(beta1, columns.step)).unbind())
        torch._foreach_div_(update, denominator)
        torch._foreach_sub_(p, update)


class AdamW(Adam):
    """AdamW: :class:`Adam` with decoupled weight decay, ``params -= lr * weight_decay * params``.

    The update, the arguments and the state dict are those of :class:`torch.optim.AdamW`; a checkpoint of either loads
    into the other. For arguments and errors see :class:`Adam`.

    Source: Loshchilov and Hutter, Decoupled Weight Decay Regularization (https://arxiv.org/abs/1711.05101).
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-3,
        betas: tuple[float | Tensor, float | Tensor] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
        amsgrad: bool = False,
        *,
        maximize: bool = False,
        foreach: bool | None = None,
        capturable: bool = False,
        differentiable: bool = False,
        fused: bool | None = None,
        **options: Unpack[StepOptions],
    ) -> None:
        super().__init__(
            params,
            lr,
            betas,
            eps,
            weight_decay,
            amsgrad,
            foreach=foreach,
            maximize=maximize,
            capturable=capturable,
            differentiable=differentiable,
            fused=fused,
            decoupled_weight_decay=True,
            **options,
        )

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Take a copied or a loaded state; an older one does not say that its weight decay is decoupled."""
        for group in state["param_groups"]:
            group["decoupled_weight_decay"] = True
        super().__setstate__(state)


def adam_scalars(group: dict[str, Any], decoupled: bool) -> dict[int, float]:
    """Return what rules with two moments read, by column; logarithms and differences in Python's double precision."""
    from fastfeed.kernels import update_rules as columns

    beta1, beta2 = map(as_float, group["betas"])
    return {
        (columns.DECAY if decoupled else columns.L2).value: as_float(group["weight_decay"]),
        columns.BETA1.value: beta1,
        columns.ONE_MINUS_BETA1.value: 1 - beta1,
        columns.LOG_BETA1.value: math.log(beta1) if beta1 else -math.inf,
        columns.BETA2.value: beta2,
        columns.ONE_MINUS_BETA2.value: 1 - beta2,
        columns.LOG_BETA2.value: math.log(beta2) if beta2 else -math.inf,
        columns.EPS.value: group.get("eps", 0.0),
    }
