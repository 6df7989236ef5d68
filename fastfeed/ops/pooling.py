"""What the pools have in common: which inputs they take, and how kernels get them."""

import torch
from torch import Tensor


def check_input(x: Tensor, name: str) -> None:
    """Raise what ``torch.nn.functional.adaptive_max_pool2d`` raises for an input that the pool `name` cannot take."""
    if x.dim() not in (3, 4):
        raise RuntimeError(f"{name}(): Expected 3D or 4D tensor, but got: {list(x.shape)}")
    for dimension in range(x.dim() - 3, x.dim()):
        if x.shape[dimension] == 0:
            raise RuntimeError(
                f"{name}(): Expected input to have non-zero size for non-batch dimensions, but input has sizes "
                f"{list(x.shape)} with dimension {dimension} being empty"
            )
    if not x.is_floating_point():
        raise NotImplementedError(f"{name}() is not implemented for {x.dtype}; expected floating point")


def dense(x: Tensor) -> Tensor:
    """Return x, [N, C, H, W] or [C, H, W], as [N, C, H, W], contiguous or channels-last; as it lies if it is either."""
    batch = x if x.dim() == 4 else x[None]
    return batch if batch.is_contiguous(memory_format=torch.channels_last) else batch.contiguous()


def is_channels_last(x: Tensor) -> bool:
    """Whether x [N, C, H, W], contiguous in either memory format, is read channels-last: where the two differ."""
    return not x.is_contiguous()


def empty_pool(x: Tensor, channels: int, dtype: torch.dtype) -> Tensor:
    """Return a tensor [N, channels, 1, 1] for the result of pooling x, in its memory format."""
    memory_format = torch.channels_last if is_channels_last(x) else torch.contiguous_format
    return torch.empty((x.shape[0], channels, 1, 1), dtype=dtype, device=x.device, memory_format=memory_format)
