"""LARS: the kernel's scalars, and the eager reference."""

from collections.abc import Callable
from typing import Any, Unpack

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from fastfeed.optim.checks import as_float, check_not_negative
from fastfeed.optim.optimizer import MultiTensorOptimizer, StepOptions
from fastfeed.optim.reference import Columns, add_weight_decay, squares_of_both
from fastfeed.optim.sgd import sgd_scalars, sgd_update


class LARS(MultiTensorOptimizer):
    """Layer-wise adaptive rate scaling: SGD with momentum for large batches, of all parameters in two launches.

    The gradient of each parameter, weight decay included, is multiplied by its trust ratio,
    ``trust_coefficient * |p| / (|g| + weight_decay * |p| + eps)``, or by 1 where either norm is 0.

    Args:
        params: parameters, named parameters, or dicts that define parameter groups.
        lr: learning rate; a 0-dim tensor on the GPU if it is to change between replays of a CUDA graph.
        momentum: factor of the momentum buffer.
        dampening: what is taken off the gradient that is added to the buffer; not off the first.
        weight_decay: L2 penalty.
        nesterov: Nesterov's momentum.
        trust_coefficient: of the trust ratio.
        eps: added to the divisor of the trust ratio.
        always_adapt: use the trust ratio in groups without weight decay too. By custom biases and the parameters of
            normalization, which have none, are stepped without it.
        maximize: maximize the objective instead of minimizing it.
        foreach, fused: accepted, and without meaning: the kernel is always fused.
        capturable: allow the capture of `step` in a CUDA graph.
        differentiable: must be False.
        options: see :class:`fastfeed.optim.StepOptions`.

    Raises:
        ValueError: an argument is out of range, Nesterov's momentum is asked for without momentum or with dampening, or
            a parameter is complex.
        RuntimeError: `differentiable` is True.

    Source: You et al., Large Batch Training of Convolutional Networks (https://arxiv.org/abs/1708.03888), with momentum
    as in ``torch.optim.SGD``.
    """

    rule = "lars"
    two_passes = True
    state_names = ("momentum_buffer",)

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1.0,
        momentum: float = 0.9,
        dampening: float = 0,
        weight_decay: float = 0,
        nesterov: bool = False,
        *,
        trust_coefficient: float = 1e-3,
        eps: float = 1e-8,
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
            "momentum": momentum,
            "dampening": dampening,
            "weight_decay": weight_decay,
            "nesterov": nesterov,
            "trust_coefficient": trust_coefficient,
            "eps": eps,
            "always_adapt": always_adapt,
            "maximize": maximize,
            "foreach": foreach,
            "capturable": capturable,
            "differentiable": differentiable,
            "fused": fused,
        }
        super().__init__(params, defaults, options)

    def _check(self, group: dict[str, Any]) -> None:
        check_not_negative(group, "lr", "momentum", "weight_decay", "trust_coefficient", "eps")
        if group["nesterov"] and (group["momentum"] <= 0 or group["dampening"] != 0):
            raise ValueError("Nesterov momentum requires a momentum and zero dampening")

    def _states_of(self, group: dict[str, Any]) -> tuple[str, ...]:
        return self.state_names if group["momentum"] != 0 else ()

    def _scalars(self, group: dict[str, Any]) -> dict[int, float]:
        from fastfeed.kernels import update_rules as columns

        return {
            **sgd_scalars(group),
            columns.EPS.value: group["eps"],
            columns.TRUST.value: group["trust_coefficient"],
            columns.ADAPTS.value: float(_adapts(group)),
        }

    def _first_pass(
        self, columns: Columns, group: dict[str, Any], round_states: Callable[[], None]
    ) -> tuple[list[Tensor], Tensor]:
        g = add_weight_decay(columns.grads, columns.params, as_float(group["weight_decay"]), group["maximize"])
        return g, squares_of_both(columns.params, columns.grads)

    def _update(self, columns: Columns, group: dict[str, Any]) -> None:
        g, weight_decay = columns.grads, as_float(group["weight_decay"])
        if _adapts(group):
            param_norm, grad_norm = columns.sums.sqrt().unbind(1)
            ratio = group["trust_coefficient"] * param_norm / (grad_norm + weight_decay * param_norm + group["eps"])
            ratio = torch.where((param_norm == 0) | (grad_norm == 0), 1.0, ratio)
            g = list(torch._foreach_mul(g, ratio.unbind()))
        sgd_update(columns, g, group)


def _adapts(group: dict[str, Any]) -> bool:
    return bool(group["weight_decay"] != 0 or group["always_adapt"])
