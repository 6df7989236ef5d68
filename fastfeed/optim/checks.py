"""Checks of hyperparameters, with torch.optim's messages, of options, and of what is to be stepped."""

from collections.abc import Sequence
from numbers import Real
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from fastfeed.optim.shards import local

if TYPE_CHECKING:
    from fastfeed.optim.optimizer import MultiTensorOptimizer

_NAMES = {
    "lr": "learning rate",
    "eps": "epsilon value",
    "weight_decay": "weight_decay value",
    "momentum": "momentum value",
    "trust_coefficient": "trust_coefficient value",
}


def as_float(value: float | Tensor) -> float:
    """The value of a hyperparameter, which may be a tensor; one on a GPU is waited for."""
    return float(value)


def check_number(name: str, value: Any) -> None:
    """Raise TypeError for what is not a real number."""
    if not isinstance(value, (float, int, Real)):
        raise TypeError(f"Invalid {name}: {value!r}: expected a number, not {type(value).__name__}")


def check_not_negative(group: dict[str, Any], *names: str) -> None:
    """Raise ValueError where one is negative or NaN; tensors on a GPU are not looked at, which would wait for it."""
    for name in names:
        value = group[name]
        if isinstance(value, Tensor):
            if value.numel() != 1:
                raise ValueError(f"Tensor {name} must be 1-element")
            if value.device.type != "cpu":
                continue
        else:
            check_number(_NAMES[name], value)
        if not value >= 0.0:
            raise ValueError(f"Invalid {_NAMES[name]}: {value}")


def check_betas(group: dict[str, Any]) -> None:
    """Raise ValueError unless there are two decay rates in [0, 1); tensors may be mixed with numbers by schedulers."""
    betas = group["betas"]
    if not isinstance(betas, Sequence):
        raise TypeError(f"Invalid betas: {betas!r}: expected a tuple of two numbers, not {type(betas).__name__}")
    if len(betas) != 2:
        raise ValueError(f"Invalid betas: {betas!r}: expected two numbers, not {len(betas)}")
    for index, beta in enumerate(betas):
        if isinstance(beta, Tensor):
            if beta.numel() != 1:
                raise ValueError(f"Tensor betas[{index}] must be 1-element")
            if beta.device.type != "cpu":  # each step would wait for it
                raise ValueError(f"betas[{index}] as a Tensor on {beta.device} is not supported: pass a float")
        else:
            check_number(f"beta parameter at index {index}", beta)
        if not 0.0 <= beta < 1.0:
            raise ValueError(f"Invalid beta parameter at index {index}: {beta}")


def check_options(optimizer: "MultiTensorOptimizer") -> None:
    """Raise TypeError or ValueError where one of :class:`fastfeed.optim.StepOptions` is not what it says."""
    if optimizer.master_weights and optimizer.stochastic_rounding:
        raise ValueError("master_weights and stochastic_rounding are two ways to keep small updates: choose one")
    seed, state_dtype = optimizer.seed, optimizer.state_dtype
    max_grad_norm, ema_decay = optimizer.max_grad_norm, optimizer.ema_decay
    if not isinstance(seed, int):
        raise TypeError(f"Invalid seed: {seed!r}: expected an integer, not {type(seed).__name__}")
    if not 0 <= seed < 2**63:
        raise ValueError(f"Invalid seed: {seed}: expected 0 to 2**63 - 1")
    if state_dtype not in (None, torch.float32, torch.bfloat16):
        raise ValueError(f"Invalid state_dtype: {state_dtype}: expected torch.float32 or torch.bfloat16")
    if max_grad_norm is not None:
        check_number("max_grad_norm", max_grad_norm)
        if not max_grad_norm > 0.0:
            raise ValueError(f"Invalid max_grad_norm: {max_grad_norm}: expected a positive number, or None not to clip")
    if ema_decay is not None:
        check_number("ema_decay", ema_decay)
        if not 0.0 <= ema_decay <= 1.0:
            raise ValueError(f"Invalid ema_decay: {ema_decay}: expected 0 to 1, or None to keep no average")


def check_params(optimizer: str, params: Sequence[Tensor], stochastic_rounding: bool) -> None:
    """Raise ValueError where a parameter of a group is of a kind that the optimizer cannot step."""
    problem = None
    for p in params:
        if p.is_complex():
            problem = "complex parameters: pass torch.view_as_real of them"
        elif p.dtype not in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
            problem = f"parameters of dtype {p.dtype}"
        elif p.layout != torch.strided:
            problem = f"sparse parameters, as of layout {p.layout}: consider torch.optim.SparseAdam"
        elif stochastic_rounding and p.dtype == torch.float16:
            problem = "stochastic_rounding of torch.float16 parameters: it is for torch.bfloat16"
    if len(set(map(id, params))) < len(params):
        problem = "a parameter that is twice in a group: pass it once"
    if problem is not None:
        raise ValueError(f"{optimizer} does not support {problem}")


def check_tensors(
    optimizer: str, index: int, p: Tensor, grad: Tensor, state: dict[str, Any], names: Sequence[str]
) -> None:
    """Raise where a parameter cannot be stepped with its gradient and its states of some names.

    Kernels trust shapes and devices: what they are told of one tensor they believe of all that belong to it.
    """
    if p.device.type == "meta":
        raise NotImplementedError(
            f"parameter {index} is on the meta device, without data: call the model's to_empty(device=...) and "
            f"initialise it before {optimizer} steps"
        )
    if grad.layout != torch.strided:
        raise RuntimeError(
            f"{optimizer} does not support sparse gradients, and parameter {index} has one of layout {grad.layout}: "
            "please consider SparseAdam instead"
        )
    if not grad.is_floating_point():
        raise RuntimeError(f"{optimizer} does not support gradients of {grad.dtype}, which parameter {index} has")
    own = local(p)
    if any(stride == 0 and size > 1 for stride, size in zip(own.stride(), own.shape, strict=True)):
        raise RuntimeError(
            f"{optimizer} cannot step parameter {index}: more than one of its elements refers to a single memory "
            "location. Clone it before it becomes a parameter"
        )
    tensors = {f"state {name!r}": value for name in names if (value := state.get(name)) is not None}
    for name, value in {"gradient": grad, **tensors}.items():
        if not isinstance(value, Tensor):
            raise TypeError(f"the {name} of parameter {index} is {value!r}: expected a tensor")
        if local(value).shape != own.shape:
            raise RuntimeError(
                f"the {name} of parameter {index} has shape {list(local(value).shape)}, but the parameter "
                f"{list(own.shape)}: it is stale or of another model"
            )
        if value.device != p.device:
            raise RuntimeError(
                f"the {name} of parameter {index} is on {value.device}, but the parameter on {p.device}: "
                "move both; load_state_dict moves states"
            )
