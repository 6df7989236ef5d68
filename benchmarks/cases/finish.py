"""The last pass: uint8 [N, H, W, C] -> flip, normalise, cast -> channels-last [N, C, H, W]."""

from typing import Any, ClassVar

import torch

from benchmarks.case import Case, Options
from benchmarks.timing import Run
from fastfeed.data.finish import Finish, finish_reference
from fastfeed.data.transforms import IMAGENET_MEAN, IMAGENET_STD


class FinishCase(Case):
    """`Finish` against the same steps in eager PyTorch; half of the images are flipped."""

    name = "finish"
    direction = "forward"
    baseline = "eager"
    tolerance: ClassVar = {"rtol": 0, "atol": 0, "check_stride": True}

    @classmethod
    def parameters(cls, options: Options) -> list[dict[str, Any]]:
        """A batch of ImageNet's usual size, into each dtype that networks are trained in."""
        return [{"shape": (64, 224, 224, 3), "dtype": dtype} for dtype in (torch.float32, torch.bfloat16)]

    def __init__(self, options: Options, shape: tuple[int, int, int, int], dtype: torch.dtype) -> None:
        generator = torch.Generator(options.device).manual_seed(0)
        self.images = torch.randint(256, shape, dtype=torch.uint8, device=options.device, generator=generator)
        self.flip = torch.arange(shape[0], device=options.device) % 2 == 0
        self.dtype = dtype
        self.bytes_per_run = self.images.numel() * (1 + dtype.itemsize)

    def _eager(self) -> Run:
        return lambda: finish_reference(self.images, self.flip, IMAGENET_MEAN, IMAGENET_STD, self.dtype)

    def _fastfeed(self) -> Run:
        finish = Finish(IMAGENET_MEAN, IMAGENET_STD, self.dtype, threads=torch.get_num_threads())
        return lambda: finish(self.images, self.flip)

    providers: ClassVar = {"eager": _eager, "fastfeed": _fastfeed}
