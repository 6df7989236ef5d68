"""Lion: the kernel's scalars, and the eager reference."""

from typing import Any, Unpack

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from fastfeed.optim.adam import adam_scalars
from fastfeed.optim.checks import as_float, check_betas, check_not_negative
from fastfeed.optim.optimizer import MultiTensorOptimizer, StepOptions
from fastfeed.optim.reference import Columns, add_weight_decay


class Lion(MultiTensorOptimizer):
    """Lion, of all parameters in one launch: the sign of an average of gradients is the update.

    Args:
        params: parameters, named parameters, or dicts that define parameter groups.
        lr: learning rate, about a tenth to a third of AdamW's; a 0-dim tensor on the GPU if it is to change between
            replays of a CUDA graph.
        betas: decay rates of the average whose sign is the update, and of the average that is kept.
        weight_decay: decoupled weight decay, about three to ten times AdamW's.
        maximize: maximize the objective instead of minimizing it.
        foreach, fused: accepted, and without meaning: the kernel is always fused.
        capturable: allow the capture of `step` in a CUDA graph.
        differentiable: must be False.
        options: see :class:`fastfeed.optim.StepOptions`.

    Raises:
        ValueError: an argument is out of range, or a parameter is complex.
        RuntimeError: `differentiable` is True.

    Source: Chen et al., Symbolic Discovery of Optimization Algorithms (https://arxiv.org/abs/2302.06675).
    """

    rule = "lion"
    state_names = ("exp_avg",)

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-4,
        betas: tuple[float | Tensor, float | Tensor] = (0.9, 0.99),
        weight_decay: float = 0.0,
        *,
        maximize: bool = False,
        foreach: bool | None = None,
        capturable: bool = False,
        differentiable: bool = False,
        fused: bool | None = None,
        **options: Unpack[StepOptions],
    ) -> None:
        defaults = {
            "lr": lr,
            "betas": betas,
            "weight_decay": weight_decay,
            "maximize": maximize,
            "foreach": foreach,
            "capturable": capturable,
            "differentiable": differentiable,
            "fused": fused,
        }
        super().__init__(params, defaults, options)

    def _check(self, group: dict[str, Any]) -> None:
        check_not_negative(group, "lr", "weight_decay")
        check_betas(group)

    def _scalars(self, group: dict[str, Any]) -> dict[int, float]:
        return adam_scalars(group, decoupled=True)

    def _update(self, columns: Columns, group: dict[str, Any]) -> None:
        p, (m,) = columns.params, columns.states
        lr = as_float(group["lr"])
        beta1, beta2 = map(as_float, group["betas"])
        g = add_weight_decay(columns.grads, p, 0, group["maximize"])
        if group["weight_decay"] != 0:
            torch._foreach_add_(p, p, alpha=-lr * group["weight_decay"])
        mixed = torch._foreach_lerp(m, g, 1 - beta1)
        torch._foreach_sign_(mixed)
        torch._foreach_add_(p, mixed, alpha=-lr)
        torch._foreach_lerp_(m, g, 1 - beta2)
