"""DTensors: the part of a tensor that this rank holds, and what it takes to add up over all parts."""

import sys
from typing import Any

import torch
from torch import Tensor


def _dtensor() -> Any:
    """The class, or None where nobody has imported what makes DTensors."""
    return getattr(sys.modules.get("torch.distributed.tensor"), "DTensor", None)


def is_dtensor(t: Tensor) -> bool:
    """Whether `t` is a DTensor."""
    cls = _dtensor()
    return cls is not None and isinstance(t, cls)


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


def shard_groups(p: Any) -> tuple[Any, ...]:
    """The process groups over which sums of a parameter's elements are added up; none unless it is sharded."""
    if not is_dtensor(p):
        return ()
    dims = [dim for dim, placement in enumerate(p.placements) if not placement.is_replicate()]
    return tuple(p.device_mesh.get_group(dim) for dim in dims if p.device_mesh.size(dim) > 1)


def all_reduced(sums: Tensor, groups: tuple[Any, ...]) -> Tensor:
    """Add up over process groups, in place."""
    for group in groups:
        torch.distributed.all_reduce(sums, group=group)
    return sums
