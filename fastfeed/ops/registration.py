"""Registering ops with PyTorch, and which calls go to them."""

from collections.abc import Callable
from typing import Any

import torch
import torch.autograd.forward_ad as forward_ad
from torch import Tensor

from fastfeed.kernels import can_run

LIBRARY = torch.library.Library("fastfeed", "FRAGMENT")
KERNEL_DTYPES = (torch.float32, torch.float16, torch.bfloat16)


def register(
    schema: str,
    kernel: Callable[..., Any],
    fake: Callable[..., Any],
    function: type[torch.autograd.Function] | None = None,
) -> Any:
    """Register an op, and return its overload.

    Args:
        schema: as ``torch.library.Library.define`` takes it: "name(Tensor x, float p) -> Tensor".
        kernel: what runs, on a GPU, and under Triton's interpreter on the CPU.
        fake: returns empty tensors like the results, for meta and fake tensors.
        function: what autograd calls. Its `forward` gets the context and the op's arguments, and has the op run under
            `below_autograd`. None for an op without a derivative.

    ``torch.library.register_autograd`` does the same, with more of the host's time for a call than PyTorch's own ops.
    """
    name = schema.partition("(")[0]
    LIBRARY.define(schema)
    for key in ("CPU", "CUDA"):
        LIBRARY.impl(name, kernel, key)
    torch.library.register_fake(f"fastfeed::{name}", fake, lib=LIBRARY)
    if function is not None:
        LIBRARY.impl(name, function.apply, "Autograd")
    return getattr(torch.ops.fastfeed, name).default


def below_autograd() -> Any:
    """Return a context in which a registered op runs its kernel, and not its autograd function again."""
    return torch._C._AutoDispatchBelowAutograd()


def kernel_takes(input: Tensor, *others: Tensor | None) -> bool:
    """Whether the kernels take a floating-point input, with other tensors beside it.

    They know reverse mode alone: forward mode would silently lose its tangent, and torch.func fail obscurely.
    """
    if not can_run(input.device) or input.dtype not in KERNEL_DTYPES:
        return False
    if torch.compiler.is_compiling():
        return True
    tensors = [tensor for tensor in (input, *others) if tensor is not None]
    return not any(
        torch._C._functorch.is_functorch_wrapped_tensor(tensor) or forward_ad.unpack_dual(tensor).tangent is not None
        for tensor in tensors
    )


def autocasts(device: torch.device) -> bool:
    """Whether autocast is on for a device; meta tensors know none."""
    # is_autocast_available says as much, but breaks the graph that torch 2.11 compiles.
    return device.type != "meta" and torch.is_autocast_enabled(device.type)
