"""Stepping the parameters that no kernel steps: by torch's fused step for the CPU, or by the reference."""

from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from fastfeed.optim.plan import Part, Plan, Rows
from fastfeed.optim.reference import Columns, random_bits, shift_bits, stochastically_rounded
from fastfeed.optim.shards import all_reduced
from fastfeed.optim.states import wide_dtype

if TYPE_CHECKING:
    from fastfeed.optim.optimizer import MultiTensorOptimizer


class Scaling(NamedTuple):
    """What changes the gradients before the step; None for nothing."""

    grad_scale: Tensor | None  # they are divided by it
    clip: Tensor | None  # and multiplied by it

    def on(self, device: torch.device) -> "Scaling":
        """The same on a device; on the CPU without what does nothing."""
        scale, clip = (None if t is None else t.to(device) for t in self)
        if device.type == "cpu":
            scale = None if scale is None or scale.item() == 1 else scale
            clip = None if clip is None or clip.item() == 1 else clip
        return Scaling(scale, clip)

    def applied(self, grads: list[Tensor], dtype: torch.dtype) -> list[Tensor]:
        """Return the gradients in a dtype, scaled: new ones, or those given where nothing changes."""
        grads = in_dtype(grads, dtype)
        if self.grad_scale is not None:
            grads = list(torch._foreach_div(grads, self.grad_scale.to(dtype)))
        if self.clip is not None:
            grads = list(torch._foreach_mul(grads, self.clip.to(dtype)))
        return grads


def in_dtype(tensors: list[Tensor], dtype: torch.dtype) -> list[Tensor]:
    """Return tensors, all of one dtype, in another; the list itself where they are of that."""
    return tensors if tensors[0].dtype == dtype else [t.to(dtype) for t in tensors]


def step_part(
    optimizer: "MultiTensorOptimizer", part: Part, plan: Plan, grads: list[Tensor | None], scaling: Scaling
) -> None:
    """Step the parameters of `part` that have a gradient."""
    indices = part.rows.indices
    own_grads = [grad for i in indices if (grad := grads[i]) is not None]
    if not own_grads:
        return
    rows = part.rows
    if len(own_grads) < len(indices):
        rows = Rows.of(plan.entries, [i for i in indices if grads[i] is not None])
    group = optimizer.param_groups[part.group]
    scaling = scaling.on(rows.params[0].device)
    dtype = wide_dtype(rows.params[0])
    if part.fused and (rows.targets[0].dtype == dtype or scaling == (None, None)):
        scaled = scaling.applied(own_grads, rows.targets[0].dtype)
        torch._foreach_add_(rows.steps, 1)
        optimizer._fused_update(rows.targets, scaled, rows.states, rows.steps, group)
    else:
        scaled = scaling.applied(own_grads, dtype)
        torch._foreach_add_(rows.steps, 1)
        _step_reference(optimizer, group, rows, scaled, plan.reductions[part.reduction])
    if rows.targets[0] is not rows.params[0]:
        torch._foreach_copy_(rows.params, rows.targets)
    if optimizer.ema_decay is not None:
        torch._foreach_lerp_(rows.emas, in_dtype(rows.targets, dtype), 1 - optimizer.ema_decay)


def _step_reference(
    optimizer: "MultiTensorOptimizer", group: dict[str, Any], rows: Rows, grads: list[Tensor], shards: tuple[Any, ...]
) -> None:
    """Step in the gradients' dtype, fp32 or fp64, and round once."""
    targets, states, steps, indices = rows.targets, rows.states, rows.steps, rows.indices
    dtype = grads[0].dtype
    stochastic = optimizer.stochastic_rounding and torch.bfloat16 in (targets[0].dtype, *(s[0].dtype for s in states))
    bits: list[Any] = [None] * len(indices)
    if stochastic:
        seed = optimizer.seed
        bits = [random_bits(t.numel(), seed, step, i) for t, step, i in zip(targets, steps, indices, strict=True)]
    computed = in_dtype(targets, dtype)
    computed_states = [in_dtype(column, dtype) for column in states]

    def store(values: list[Tensor], places: list[Tensor], state: int | None) -> None:
        for value, place, random in zip(values, places, bits, strict=True):
            if place is value:
                continue
            if stochastic and place.dtype == torch.bfloat16:
                random = random if state is None else shift_bits(random, state)
                place.copy_(stochastically_rounded(value, random))
            else:
                place.copy_(value)

    def round_states() -> None:
        for number, (values, places) in enumerate(zip(computed_states, states, strict=True)):
            store(values, places, number)
            if places[0] is not values[0]:
                torch._foreach_copy_(values, places)

    optimizer._update(
        Columns(
            computed,
            grads,
            computed_states,
            torch.stack(steps).to(dtype),
            round_states,
            lambda sums: all_reduced(sums, shards),
        ),
        group,
    )
    store(computed, targets, None)
    for number, (values, places) in enumerate(zip(computed_states, states, strict=True)):
        store(values, places, number)
