"""DTensors: the part of a tensor that this rank holds, and what it takes to add up over all parts."""

import sys
from typing import Any, NamedTuple

import torch
from torch import Tensor


def _dtensor() -> Any:
    """The class, or None where nobody has imported what makes DTensors."""
    return getattr(sys.modules.get("torch.distributed.tensor"), "DTensor", None)


def is_dtensor(t: Tensor) -> bool:
    """Whether `t` is a DTensor."""
    cls = _dtensor()
    return cls is not None and issubclass(type(t), cls)  # isinstance is many times slower for tensors


def any_dtensors(tensors: list[Tensor]) -> bool:
    """Whether there is a DTensor among many tensors; quick where there is none."""
    cls = _dtensor()
    return cls is not None and any(issubclass(kind, cls) for kind in set(map(type, tensors)))


def local(t: Any) -> Tensor:
    """The tensor, or the part of a DTensor that lies on this rank: its memory, not a copy."""
    return t.to_local() if is_dtensor(t) else t


def local_gradient(p: Any, grad: Any) -> Tensor:
    """The part of a gradient that belongs to the part of the parameter that lies on this rank."""
    if is_dtensor(p) and is_dtensor(grad) and grad.placements != p.placements:
        grad = grad.redistribute(placements=p.placements)
    return local(grad)


class Reduction(NamedTuple):
    """Parameters that are divided among the same ranks."""

    shards: tuple[Any, ...]  # the process groups over which the elements of each of them are divided
    groups: tuple[Any, ...]  # those over which the elements of all of them are: these, or where whole parameters are
    rows: Tensor  # int64, on their device: all of them, by index among the optimizer's, with a gradient or without


def find_reductions(params: list[Tensor], process_group: Any) -> tuple[list[Reduction], list[int]]:
    """Sort parameters by the ranks that they are divided among.

    Args:
        params: of the optimizer.
        process_group: over which those that are not DTensors are divided as a whole, or None.

    Returns:
        The reductions, the same on all ranks, and the index of each parameter's.
    """
    whole = ((), () if process_group is None else (process_group,))
    dtensors = any_dtensors(params)
    keys = [(shards := _shard_groups(p), shards) if dtensors and is_dtensor(p) else whole for p in params]
    # Plain tensors count also where this rank has none: the others wait for it.
    distinct = dict.fromkeys(keys if keys and process_group is None else [whole, *keys])
    numbers = {key: number for number, key in enumerate(distinct)}
    reductions = []
    for key in distinct:
        indices = [i for i, own in enumerate(keys) if own == key]
        device = params[indices[0]].device if indices else params[0].device if params else "cpu"
        rows = torch.tensor(indices, dtype=torch.int64, device="cpu")  # whatever the default device is
        reductions.append(Reduction(*key, rows.to(device, non_blocking=True)))
    return reductions, [numbers[key] for key in keys]


def _shard_groups(p: Any) -> tuple[Any, ...]:
    dims = [dim for dim, placement in enumerate(p.placements) if not placement.is_replicate()]
    return tuple(p.device_mesh.get_group(dim) for dim in dims if p.device_mesh.size(dim) > 1)


def all_reduced(sums: Tensor, groups: tuple[Any, ...]) -> Tensor:
    """Return sums, added up over process groups: in fp64, since ranks may have parameters of several dtypes."""
    if not groups:
        return sums
    total = sums.to(torch.float64, copy=True)
    for group in groups:
        torch.distributed.all_reduce(total, group=group)
    return total.to(sums.dtype)


def add_up_shards(reductions: list[Reduction], num_params: int, sums: list[tuple[Any, Tensor]]) -> None:
    """Add up the sums of each parameter over the ranks that hold its other parts, in place.

    Every rank sends numbers for all parameters, whether they have a gradient and whatever steps them, which may depend
    on the memory order of the part that it holds: ranks need agree on nothing.

    Args:
        reductions: from `find_reductions`.
        num_params: of the optimizer.
        sums: pairs of indices among these and [T, 2].
    """
    for reduction in reductions:
        if reduction.shards:
            device = reduction.rows.device
            here = [(indices, own) for indices, own in sums if own.device == device]
            total = torch.zeros(num_params, 2, dtype=torch.float64, device=device)
            for indices, own in here:
                total[indices] = own.to(torch.float64)
            total[reduction.rows] = all_reduced(total[reduction.rows], reduction.shards)
            for indices, own in here:
                own.copy_(total[indices])
