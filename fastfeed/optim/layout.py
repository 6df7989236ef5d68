"""How tensors lie in memory: whether what sees bare memory may step them together."""

from collections.abc import Sequence

import torch
from torch import Tensor

PLAIN = {Tensor, torch.nn.Parameter}  # subclasses need not have memory of their own


def memory_order(t: Tensor) -> tuple[tuple[int, int], ...] | None:
    """(stride, size) of each dimension, or None if elements overlap or leave holes.

    A dimension of size 1 may have any stride, so it is left out.
    """
    dims = tuple((stride, size) for stride, size in zip(t.stride(), t.shape, strict=True) if size != 1)
    span = 1
    for stride, size in sorted(dims):
        if stride != span:
            return None
        span *= size
    return dims


def same_order(tensors: Sequence[Tensor]) -> bool:
    """Whether tensors of one shape fill their memory without holes, in one order."""
    if all(t.is_contiguous() for t in tensors):  # much the quickest to find out
        return len({t.numel() for t in tensors}) == 1
    orders = {memory_order(t) for t in tensors}
    return len(orders) == 1 and None not in orders


def is_plain(tensors: Sequence[Tensor], device: torch.device) -> bool:
    """Whether tensors have memory of their own on `device`."""
    return all(t.device == device and type(t) in PLAIN for t in tensors)
