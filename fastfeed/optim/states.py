"""The states of parameters: their names, dtypes and first values."""

from typing import Any

import torch
from torch import Tensor


def wide_dtype(p: Tensor) -> torch.dtype:
    """fp32, or fp64 where the parameter is: of masters, of averaged weights, and of arithmetic."""
    return torch.promote_types(p.dtype, torch.float32)


def needs_master(p: Tensor, master_weights: bool) -> bool:
    """Whether a parameter is kept a second time: those in half precision."""
    return master_weights and p.dtype in (torch.float16, torch.bfloat16)


def average_dtype(p: Tensor, master_weights: bool, state_dtype: torch.dtype | None) -> torch.dtype:
    """The dtype of momentum and other averages."""
    if state_dtype is not None:
        return state_dtype
    return wide_dtype(p) if master_weights else p.dtype


def in_order_of(p: Tensor, value: Tensor, dtype: torch.dtype) -> Tensor:
    """`value` in a dtype, on the device and in the memory order of `p`: itself, if that is what it is."""
    value = value.detach().to(p.device, dtype)
    if value.shape == p.shape and value.stride() != p.stride():
        return torch.empty_like(p, dtype=dtype, requires_grad=False).copy_(value)
    return value


def complete(
    p: Tensor,
    state: dict[str, Any],
    names: tuple[str, ...],
    *,
    master_weights: bool,
    state_dtype: torch.dtype | None,
    ema: bool,
) -> None:
    """Add what a parameter's state lacks.

    Averages begin at zero, masters and averaged weights with the parameter. Steps count from where the averages begin:
    what has been stepped without, as SGD without momentum steps, counts anew. Where there are averages but no step, as
    in a checkpoint of torch.optim.SGD, there has been one: it is the first that is unlike the others.
    """
    averages = [name for name in names if state.get(name) is not None]
    step = state.get("step")
    if names and not averages:
        step = 0.0
    elif step is None:
        step = 1.0 if averages else 0.0
    if not isinstance(step, Tensor) or (step.dtype, step.device, step.dim()) != (torch.float32, p.device, 0):
        rest = {name: value for name, value in state.items() if name != "step"}
        state.clear()
        if isinstance(step, Tensor):  # which some of torch's loaders leave on the CPU, where no kernel reads it
            state["step"] = step.to(p.device, torch.float32).reshape(())
        else:
            state["step"] = torch.full((), float(step), dtype=torch.float32, device=p.device)  # waits for no GPU
        state.update(rest)
    for name in names:
        if state.get(name) is None:
            dtype = average_dtype(p, master_weights, state_dtype)
            state[name] = torch.zeros_like(p, dtype=dtype, memory_format=torch.preserve_format, requires_grad=False)
    if needs_master(p, master_weights) and state.get("master") is None:
        state["master"] = p.detach().to(torch.float32)
    if ema and state.get("ema") is None:
        state["ema"] = (state.get("master", p)).detach().to(wide_dtype(p), copy=True)
