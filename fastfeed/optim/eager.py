"""Stepping the parameters that no kernel steps: by torch's fused step for the CPU, or by the reference."""

from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from fastfeed.optim.plan import Part, Plan
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
        grads = [g.to(dtype) for g in grads]
        if self.grad_scale is not None:
            grads = list(torch._foreach_div(grads, self.grad_scale.to(dtype)))
        if self.clip is not None:
            grads = list(torch._foreach_mul(grads, self.clip.to(dtype)))
        return grads


def step_part(
    optimizer: "MultiTensorOptimizer",
    part: Part,
    plan: Plan,
    grads: list[Tensor | None],
    scaling: Scaling,
) -> None:
    """Step the parameters of `part` that have a gradient."""
    indices = [i for i in part.indices if grads[i] is not None]
    if not indices:
        return
    rows = [plan.entries[i] for i in indices]
    own_grads = [grad for i in indices if (grad := grads[i]) is not None]
    group = optimizer.param_groups[part.group]
    params = [e.param for e in rows]
    targets = params if rows[0].master is None else [e.master for e in rows if e.master is not None]
    states = [list(column) for column in zip(*(e.states for e in rows), strict=True)]
    steps = [e.step for e in rows]
    scaling = scaling.on(params[0].device)
    dtype = wide_dtype(params[0])
    if part.fused and (targets[0].dtype == dtype or scaling == (None, None)):
        grads_for_fused = scaling.applied(own_grads, targets[0].dtype)
        optimizer._fused_update(targets, grads_for_fused, states, steps, group)
    else:
        torch._foreach_add_(steps, 1)
        grads_in_dtype = scaling.applied(own_grads, dtype)
        shards = plan.reductions[part.reduction]
        _step_reference(optimizer, group, indices, targets, grads_in_dtype, states, steps, shards)
    if rows[0].master is not None:
        torch._foreach_copy_(params, targets)
    if optimizer.ema_decay is not None:
        emas = [e.ema for e in rows if e.ema is not None]
        torch._foreach_lerp_(emas, [t.to(dtype) for t in targets], 1 - optimizer.ema_decay)


def _step_reference(
    optimizer: "MultiTensorOptimizer",
    group: dict[str, Any],
    indices: list[int],
    targets: list[Tensor],
    grads: list[Tensor],
    states: list[list[Tensor]],
    steps: list[Tensor],
    shards: tuple[Any, ...],
) -> None:
    """Step in fp32, or fp64, and round once."""
    dtype = grads[0].dtype
    stochastic = optimizer.stochastic_rounding and torch.bfloat16 in (targets[0].dtype, *(s[0].dtype for s in states))
    bits: list[Any] = [None] * len(indices)
    if stochastic:
        seed = optimizer.seed
        bits = [random_bits(t.numel(), seed, step, i) for t, step, i in zip(targets, steps, indices, strict=True)]
    computed = [t.to(dtype) for t in targets]
    computed_states = [[t.to(dtype) for t in column] for column in states]

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
