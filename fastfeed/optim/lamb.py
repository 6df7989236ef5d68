"""LAMB: the kernel's scalars, and the eager reference."""

from collections.abc import Callable
from typing import Any, Unpack

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from fastfeed.optim.adam import adam_scalars
from fastfeed.optim.checks import as_float, check_betas, check_not_negative
from fastfeed.optim.optimizer import MultiTensorOptimizer, StepOptions
from fastfeed.optim.reference import Columns, add_weight_decay, one_minus_power, squares_of_both


class LAMB(MultiTensorOptimizer):
    """Layer-wise adaptive moments: Adam for large batches, of all parameters in two launches.

    The update of each parameter, ``u = m / (1 - beta1^t) / (sqrt(v / (1 - beta2^t)) + eps) + weight_decay * p``, is
    multiplied by its trust ratio, ``|p| / |u|``, or by 1 where either norm is 0.

    Args:
        params: parameters, named parameters, or dicts that define parameter groups.
        lr: learning rate; a 0-dim tensor on the GPU if it is to change between replays of a CUDA graph.
        betas: decay rates of the running averages of the gradient and of its square.
        eps: added to the denominator.
        weight_decay: decoupled weight decay, within the trust ratio.
        always_adapt: use the trust ratio in groups without weight decay too. By custom biases and the parameters of
            normalization, which have none, are stepped without it.
        maximize: maximize the objective instead of minimizing it.
        foreach, fused: accepted, and without meaning: the kernel is always fused.
        capturable: allow the capture of `step` in a CUDA graph.
        differentiable: must be False.
        options: see :class:`fastfeed.optim.StepOptions`; the paper's authors clip with ``max_grad_norm=1.0``.

    Raises:
        ValueError: an argument is out of range, or a parameter is complex.
        RuntimeError: `differentiable` is True.

    Source: You et al., Large Batch Optimization for Deep Learning: Training BERT in 76 minutes
    (https://arxiv.org/abs/1904.00962), with the bias corrections of its appendix.
    """

    rule = "lamb"
    two_passes = True
    state_names = ("exp_avg", "exp_avg_sq")

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-3,
        betas: tuple[float | Tensor, float | Tensor] = (0.9, 0.999),
        eps: float = 1e-6,
        weight_decay: float = 1e-2,
        *,
        always_adapt: bool = False,
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
            "eps": eps,
            "weight_decay": weight_decay,
            "always_adapt": always_adapt,
            "maximize": maximize,
            "foreach": foreach,
            "capturable": capturable,
            "differentiable": differentiable,
            "fused": fused,
        }
        super().__init__(params, defaults, options)

    def _check(self, group: dict[str, Any]) -> None:
        check_not_negative(group, "lr", "eps", "weight_decay")
        check_betas(group)

    def _scalars(self, group: dict[str, Any]) -> dict[int, float]:
        from fastfeed.kernels import update_rules as columns

        return {**adam_scalars(group, decoupled=False), columns.ADAPTS.value: float(_adapts(group))}

    def _first_pass(
        self, columns: Columns, group: dict[str, Any], round_states: Callable[[], None]
    ) -> tuple[list[Tensor], Tensor]:
        p, (m, v) = columns.params, columns.states
        beta1, beta2 = map(as_float, group["betas"])
        g = add_weight_decay(columns.grads, p, 0, group["maximize"])
        torch._foreach_lerp_(m, g, 1 - beta1)
        torch._foreach_mul_(v, beta2)
        torch._foreach_addcmul_(v, g, g, value=1 - beta2)
        round_states()  # the kernel's second launch reads them as they are stored
        denominator = torch._foreach_sqrt(v)
        torch._foreach_div_(denominator, one_minus_power(beta2, columns.step).sqrt().unbind())
        torch._foreach_add_(denominator, group["eps"])
        update = torch._foreach_div(m, one_minus_power(beta1, columns.step).unbind())
        torch._foreach_div_(update, denominator)
        if group["weight_decay"] != 0:
            torch._foreach_add_(update, p, alpha=as_float(group["weight_decay"]))
        return list(update), squares_of_both(p, update)

    def _update(self, columns: Columns, group: dict[str, Any]) -> None:
        ratio = torch.ones_like(columns.step)
        if _adapts(group):
            param_norm, update_norm = columns.sums.sqrt().unbind(1)
            ratio = torch.where((param_norm == 0) | (update_norm == 0), 1.0, param_norm / update_norm)
        update = torch._foreach_mul(columns.grads, (ratio * -as_float(group["lr"])).unbind())
        torch._foreach_add_(columns.params, update)


def _adapts(group: dict[str, Any]) -> bool:
    return bool(group["weight_decay"] != 0 or group["always_adapt"])
