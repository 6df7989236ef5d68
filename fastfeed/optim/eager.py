"""Stepping the parameters that no kernel steps: by torch's fused step for the CPU, or by the reference."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from fastfeed.optim.plan import Plan, Rows
from fastfeed.optim.reference import Columns, random_bits, shift_bits, stochastically_rounded
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
        scaled = in_dtype(grads, dtype)
        if self.clip is not None:
            # One pass for both; loss scales are powers of 2, of which the quotient is exact.
            factor = self.clip.to(dtype) if self.grad_scale is None else self.clip.to(dtype) / self.grad_scale.to(dtype)
            return list(torch._foreach_mul(scaled, factor))
        if self.grad_scale is not None:
            return list(torch._foreach_div(scaled, self.grad_scale.to(dtype)))
        return scaled


def in_dtype(tensors: list[Tensor], dtype: torch.dtype) -> list[Tensor]:
    """Return tensors, all of one dtype, in another; the list itself where they are of that."""
    return tensors if tensors[0].dtype == dtype else [t.to(dtype) for t in tensors]


def count_steps(steps: list[Tensor]) -> None:
    """Add 1 to each."""
    if steps[0].device.type == "cpu":
        # A number would become a tensor for each of them, in several times the time of the addition.
        torch._foreach_add_(steps, torch.tensor(1.0, dtype=torch.float32, device="cpu"), alpha=1.0)
    else:
        torch._foreach_add_(steps, 1)


def begin_parts(
    optimizer: "MultiTensorOptimizer", plan: Plan, grads: list[Tensor | None], scaling: Scaling
) -> "Iterator[PartStep]":
    """Begin to step the parameters of each part that have a gradient, one part after the other."""
    for part in plan.parts:
        indices = part.rows.indices
        own_grads = [grad for i in indices if (grad := grads[i]) is not None]
        if not own_grads:
            continue
        rows = part.rows
        if len(own_grads) < len(indices):
            rows = Rows.of(plan.entries, [i for i in indices if grads[i] is not None])
        group = optimizer.param_groups[part.group]
        own_scaling = scaling.on(rows.params[0].device)
        dtype = wide_dtype(rows.params[0])
        if part.fused and (rows.targets[0].dtype == dtype or own_scaling == (None, None)):
            yield PartStep(optimizer, group, rows, own_scaling.applied(own_grads, rows.targets[0].dtype))
        else:
            yield ReferenceStep(optimizer, group, rows, own_scaling.applied(own_grads, dtype))


class PartStep:
    """A step that has counted, and is to be finished: by torch's fused step for the CPU.

    Args:
        optimizer: whose rule it is.
        group: the parameter group.
        rows: what is stepped.
        grads: gradients in the dtype of what is stepped, unscaled and clipped.
    """

    # What the first pass of a rule that has two found, [T, 2]. Such a rule is never fused. Before `finish` they are to
    # be added up, in place, over the ranks that hold the other parts of the parameters.
    sums: Tensor

    def __init__(
        self, optimizer: "MultiTensorOptimizer", group: dict[str, Any], rows: Rows, grads: list[Tensor]
    ) -> None:
        self.optimizer, self.group, self.rows, self.grads = optimizer, group, rows, grads
        count_steps(rows.steps)

    def finish(self) -> None:
        """Step everything."""
        rows = self.rows
        self._update()
        if rows.targets[0] is not rows.params[0]:
            torch._foreach_copy_(rows.params, rows.targets)
        if self.optimizer.ema_decay is not None:
            targets = in_dtype(rows.targets, wide_dtype(rows.params[0]))
            torch._foreach_lerp_(rows.emas, targets, 1 - self.optimizer.ema_decay)

    def _update(self) -> None:
        rows = self.rows
        self.optimizer._fused_update(rows.targets, self.grads, rows.states, rows.steps, self.group)


class ReferenceStep(PartStep):
    """A step in the gradients' dtype, fp32 or fp64, rounded once; begun with the first pass, if there are two."""

    def __init__(
        self, optimizer: "MultiTensorOptimizer", group: dict[str, Any], rows: Rows, grads: list[Tensor]
    ) -> None:
        super().__init__(optimizer, group, rows, grads)
        dtype = grads[0].dtype
        self.bits: list[Any] = [None] * len(grads)
        if optimizer.stochastic_rounding and torch.bfloat16 in (t[0].dtype for t in (rows.targets, *rows.states)):
            numbered = zip(rows.targets, rows.steps, rows.indices, strict=True)
            self.bits = [random_bits(t.numel(), optimizer.seed, step, i) for t, step, i in numbered]
        self.columns = Columns(
            in_dtype(rows.targets, dtype),
            grads,
            [in_dtype(column, dtype) for column in rows.states],
            torch.stack(rows.steps).to(dtype),
        )
        if optimizer.two_passes:
            self.columns.grads, self.sums = optimizer._first_pass(self.columns, group, self._round_states)
            self.columns.sums = self.sums

    def _update(self) -> None:
        self.optimizer._update(self.columns, self.group)
        self._store(self.columns.params, self.rows.targets, None)
        self._store_states()

    def _store_states(self) -> None:
        for number, (values, places) in enumerate(zip(self.columns.states, self.rows.states, strict=True)):
            self._store(values, places, number)

    def _round_states(self) -> None:
        self._store_states()
        for values, places in zip(self.columns.states, self.rows.states, strict=True):
            if places[0] is not values[0]:
                torch._foreach_copy_(values, places)

    def _store(self, values: list[Tensor], places: list[Tensor], state: int | None) -> None:
        for value, place, bits in zip(values, places, self.bits, strict=True):
            if place is value:
                continue
            if bits is not None and place.dtype == torch.bfloat16:
                place.copy_(stochastically_rounded(value, bits if state is None else shift_bits(bits, state)))
            else:
                place.copy_(value)
