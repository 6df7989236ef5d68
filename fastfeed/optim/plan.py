"""Which parameters are stepped together, and by what: found once, and again when a tensor has moved."""

from collections.abc import Callable, Sequence
from operator import attrgetter
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fastfeed.kernels import can_run
from fastfeed.optim.layout import PLAIN, is_plain, same_order
from fastfeed.optim.shards import Reduction

KERNEL_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


class Entry(NamedTuple):
    """A parameter with its states; DTensors by the part that this rank holds."""

    param: Tensor
    states: tuple[Tensor, ...]
    master: Tensor | None
    ema: Tensor | None
    step: Tensor
    group: int
    reduction: int

    @property
    def arrays(self) -> list[Tensor]:
        """All that have an element for each of the parameter's."""
        return [t for t in (self.param, *self.states, self.master, self.ema) if t is not None]


class Rows(NamedTuple):
    """Parameters that PyTorch steps together, in columns."""

    indices: list[int]
    params: list[Tensor]
    targets: list[Tensor]  # what is stepped: the masters, or else the parameters themselves
    states: list[list[Tensor]]  # a list of each state
    steps: list[Tensor]
    emas: list[Tensor]  # none, or of each

    @classmethod
    def of(cls, entries: dict[int, Entry], indices: list[int]) -> "Rows":
        """Collect the columns of some parameters that are of one kind."""
        rows = [entries[i] for i in indices]
        return cls(
            indices,
            [row.param for row in rows],
            [row.param if row.master is None else row.master for row in rows],
            [list(column) for column in zip(*(row.states for row in rows), strict=True)],
            [row.step for row in rows],
            [row.ema for row in rows if row.ema is not None],
        )


class Part(NamedTuple):
    """Parameters of one group, device and kind that PyTorch steps together."""

    rows: Rows
    group: int
    fused: bool  # whether torch's fused step for the CPU may step them
    reduction: int


class Plan(NamedTuple):
    """What a step does. It holds no gradients, so they can be freed."""

    entries: dict[int, Entry]  # by index among the optimizer's parameters
    tables: list[tuple[list[int], Any]]  # indices, and fastfeed.kernels.tensor_table.TensorTable
    parts: list[Part]
    reductions: list[Reduction]


def stepped_by(entry: Entry, grad: Tensor, fusable: Callable[[int, torch.dtype], bool], stochastic: bool) -> str:
    """What steps a parameter: "kernel", "fused" (torch's fused step for the CPU) or "reference".

    Args:
        entry: what is stepped.
        grad: its gradient.
        fusable: whether torch has a fused step for a group and a dtype.
        stochastic: whether bf16 is rounded stochastically.
    """
    device = entry.param.device
    arrays = [*entry.arrays, grad]
    if not is_plain([*arrays, entry.step], device) or entry.step.dtype != torch.float32 or not same_order(arrays):
        return "reference"
    if any(t.is_neg() for t in arrays):  # as a gradient may be that comes from complex numbers: memory has its negative
        return "reference"
    if can_run(device) and all(t.dtype in KERNEL_DTYPES for t in arrays):
        return "kernel"
    target = entry.param if entry.master is None else entry.master
    rounds = stochastic and torch.bfloat16 in (target.dtype, *(t.dtype for t in entry.states))
    wide = target.dtype in (torch.float32, torch.float64)
    same_dtype = all(t.dtype == target.dtype for t in entry.states) and (wide or grad.dtype == target.dtype)
    if device.type == "cpu" and same_dtype and not rounds and fusable(entry.group, target.dtype):
        return "fused"
    return "reference"


def make_plan(
    entries: dict[int, Entry],
    grads: Sequence[Tensor | None],
    reductions: list[Reduction],
    num_groups: int,
    fusable: Callable[[int, torch.dtype], bool],
    stochastic: bool,
) -> Plan:
    """Sort parameters by what steps them.

    Args:
        entries: by index among the optimizer's parameters.
        grads: of all its parameters.
        reductions: of all its parameters.
        num_groups: number of parameter groups.
        fusable: whether torch has a fused step for a group and a dtype.
        stochastic: whether bf16 is rounded stochastically.
    """
    kernel: dict[torch.device, list[int]] = {}
    parts: dict[Any, list[int]] = {}
    for index, entry in entries.items():
        grad = grads[index]
        if grad is None:
            continue
        by = stepped_by(entry, grad, fusable, stochastic)
        if by == "kernel":
            kernel.setdefault(entry.param.device, []).append(index)
        else:
            dtypes = (grad.dtype, *(t.dtype for t in entry.arrays))
            parts.setdefault((entry.param.device, entry.group, by, dtypes, entry.reduction), []).append(index)
    return Plan(
        entries,
        [(indices, _table(entries, indices, grads, num_groups)) for indices in kernel.values()],
        [
            Part(Rows.of(entries, indices), group, by == "fused", reduction)
            for (_, group, by, _, reduction), indices in parts.items()
        ],
        reductions,
    )


def _table(entries: dict[int, Entry], indices: list[int], grads: Sequence[Any], num_groups: int) -> Any:
    from fastfeed.kernels.tensor_table import Row, TensorTable  # only after can_run said yes: Triton may be absent

    rows = []
    for i in indices:
        e = entries[i]
        rows.append(Row(e.param, e.states, e.master, e.ema, e.step, grads[i].dtype, e.group, i, e.reduction))
    return TensorTable(rows, num_groups)


def addresses(objects: Sequence[Any]) -> list[int]:
    """Where tensors lie; of subclasses, which need not have memory, and of anything else, which objects they are."""
    if set(map(type, objects)) <= PLAIN:
        return list(map(Tensor.data_ptr, objects))
    return [value.data_ptr() if type(value) in PLAIN else id(value) for value in objects]


def address_of_nothing(grad: Tensor) -> int:
    """An address for an empty gradient, whose own is 0, which says that there is none."""
    if grad.numel() != 0:
        raise RuntimeError(f"a gradient of shape {list(grad.shape)} on {grad.device} has no memory: it has been freed")
    return 16


def kinds_of(grads: Sequence[Tensor]) -> list[tuple[Any, ...]]:
    """Describe what decides how gradients are read; not all types have memory, and some memory holds the negative."""
    dtypes = map(attrgetter("dtype"), grads)
    numels, strides, negated = (map(method, grads) for method in (Tensor.numel, Tensor.stride, Tensor.is_neg))
    return list(zip(map(type, grads), dtypes, numels, strides, negated, strict=True))
