"""What is pooled: the ends of networks, in both memory formats."""

from typing import Any

import torch

from benchmarks.case import Options

# ResNet-50 at 224 pixels, of a small batch and a large one, and as many positions as 1024 pixels leave.
_SMALL, _LARGE, _WIDE = (8, 2048, 7, 7), (256, 2048, 7, 7), (32, 2048, 32, 32)
_FORMATS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}


def pool_parameters(options: Options) -> list[dict[str, Any]]:
    """Return the table of a pool's case. The shapes are named after the memory format too."""
    if options.device.type == "cuda":
        shapes = (_LARGE, _WIDE) if options.quick else (_SMALL, _LARGE, _WIDE)
        dtypes = (torch.bfloat16,) if options.quick else (torch.bfloat16, torch.float32)
    else:
        shapes = (_SMALL,) if options.quick else (_SMALL, _LARGE)
        dtypes = (torch.float32,)
    return [
        {"shape": f"{name}-{'x'.join(map(str, shape))}", "dtype": dtype}
        for shape in shapes
        for name in _FORMATS
        for dtype in dtypes
    ]


def pool_input(options: Options, shape: str, dtype: torch.dtype) -> torch.Tensor:
    """Return activations [N, C, H, W] for a shape of the table, as a ReLU leaves them, which require a gradient."""
    memory_format, _, sizes = shape.partition("-")
    generator = torch.Generator(options.device).manual_seed(0)
    x = torch.randn([int(size) for size in sizes.split("x")], device=options.device, generator=generator)
    return x.relu_().to(dtype).contiguous(memory_format=_FORMATS[memory_format]).requires_grad_()


def pool_gradient(options: Options, shape: tuple[int, ...]) -> torch.Tensor:
    """Return an upstream gradient of the result."""
    generator = torch.Generator(options.device).manual_seed(1)
    return torch.randn(shape, device=options.device, generator=generator)
