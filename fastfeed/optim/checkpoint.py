"""Loading state dicts: ours, older ones, and torch.optim's."""

from collections.abc import Callable
from itertools import chain
from typing import TYPE_CHECKING, Any

import torch

from fastfeed.optim.states import average_dtype, in_order_of, needs_master, wide_dtype

if TYPE_CHECKING:
    from fastfeed.optim.optimizer import MultiTensorOptimizer

# How this process steps, which is no business of the one that wrote the checkpoint.
_FLAGS = ("foreach", "fused", "capturable", "differentiable")


def load(
    optimizer: "MultiTensorOptimizer", base_load: Callable[[dict[str, Any]], None], state_dict: dict[str, Any]
) -> None:
    """Load by torch.optim.Optimizer's method, and undo that it casts every state to the parameter's dtype.

    The hooks around the method are kept: ours is the last before it, and the first after it.
    """
    flags = [{name: group[name] for name in _FLAGS if name in group} for group in optimizer.param_groups]
    seen: dict[str, Any] = {}

    def look(_: Any, final: dict[str, Any]) -> None:
        seen.update(final)

    def restore(_: Any) -> None:
        for group, own in zip(optimizer.param_groups, flags, strict=True):
            group.update(own)
        saved = chain.from_iterable(group["params"] for group in seen["param_groups"])
        params = chain.from_iterable(group["params"] for group in optimizer.param_groups)
        for key, p in zip(saved, params, strict=True):
            if key in seen["state"]:
                optimizer.state[p] = _restored(optimizer, p, optimizer.state[p], seen["state"][key])

    before = optimizer.register_load_state_dict_pre_hook(look)
    after = optimizer.register_load_state_dict_post_hook(restore, prepend=True)
    try:
        base_load(state_dict)
    finally:
        before.remove()
        after.remove()


def _restored(
    optimizer: "MultiTensorOptimizer", p: torch.Tensor, cast: dict[str, Any], saved: dict[str, Any]
) -> dict[str, Any]:
    """Return a parameter's state from `saved`, or what torch made of it where it is none of ours."""
    dtypes = dict.fromkeys(optimizer.state_names, average_dtype(p, optimizer.master_weights, optimizer.state_dtype))
    if needs_master(p, optimizer.master_weights):
        dtypes["master"] = torch.float32
    if optimizer.ema_decay is not None:
        dtypes["ema"] = wide_dtype(p)
    state: dict[str, Any] = {}
    for name, value in saved.items():
        if name == "step":
            # torch keeps it on the CPU unless it is fused; the kernel reads it on the device.
            state[name] = torch.as_tensor(value, dtype=torch.float32, device=p.device)
        elif name in dtypes:
            if value is not None:  # as older versions of torch.optim.SGD have it without momentum
                state[name] = in_order_of(p, value, dtypes[name])
        elif name not in ("master", "ema"):
            state[name] = cast[name]
    return state
