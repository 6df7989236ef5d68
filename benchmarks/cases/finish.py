"""The last pass: uint8 [N, H, W, C] -> flip, normalise, cast -> channels-last [N, C, H, W]."""

from typing import Any, ClassVar

import torch

from benchmarks.case import Case, Options, largest_error
from benchmarks.results import COMPILED
from benchmarks.timing import Run
from fastfeed.data.finish import Finish, SampleParameters, finish_reference
from fastfeed.data.transforms import IMAGENET_MEAN, IMAGENET_STD

BATCHES = (8, 32, 64, 128, 256)
QUICK = (8, 64)


def torch_finish(
    images: torch.Tensor, flip: torch.Tensor, mean: torch.Tensor, std: torch.Tensor, dtype: torch.dtype
) -> torch.Tensor:
    """`finish_reference` with [C] tensors on the images' device, as people keep them: copying lists would be timed."""
    images = torch.where(flip[:, None, None, None], images.flip(2), images)
    return images.float().div(255).sub(mean).div(std).permute(0, 3, 1, 2).to(dtype)


def indexed_finish(
    images: torch.Tensor, flip: torch.Tensor, mean: torch.Tensor, std: torch.Tensor, dtype: torch.dtype
) -> torch.Tensor:
    """The same in the form that torch.compile makes most of: of `torch_finish` it makes code six times slower."""
    columns = torch.arange(images.shape[2], device=images.device)
    columns = torch.where(flip[:, None], columns.flip(0), columns)
    images = torch.gather(images, 2, columns[:, None, :, None].expand_as(images))
    return images.float().div(255).sub(mean).div(std).permute(0, 3, 1, 2).to(dtype)


class FinishCase(Case):
    """`Finish` against the same steps in PyTorch, eager and compiled; half of the images are flipped.

    DALI's `crop_mirror_normalize` does this pass too, but only inside of a pipeline, whose scheduling and streams
    would be timed with it: the loaders' case has DALI. torchvision's transforms flip whole batches, not some images.
    """

    name = "finish"
    direction = "forward"
    baseline = "eager"

    @classmethod
    def parameters(cls, options: Options) -> list[dict[str, Any]]:
        """Batches of ImageNet's usual size, into each dtype that networks are trained in."""
        batches = QUICK if options.quick else BATCHES
        dtypes = (torch.float32, torch.bfloat16)
        return [{"shape": (batch, 224, 224, 3), "dtype": dtype} for batch in batches for dtype in dtypes]

    def __init__(self, options: Options, shape: tuple[int, int, int, int], dtype: torch.dtype) -> None:
        generator = torch.Generator(options.device).manual_seed(0)
        self.options = options
        self.images = torch.randint(256, shape, dtype=torch.uint8, device=options.device, generator=generator)
        self.flip = torch.arange(shape[0], device=options.device) % 2 == 0
        self.dtype = dtype
        # Reads a byte per value and one per image, for its flip; writes each value once.
        self.bytes_per_run = self.images.numel() * (1 + dtype.itemsize) + shape[0]
        # x * (1 / (255 std)) - mean / std, whose constants are known: two per value. (A table of what the 256 values
        # of a byte become, ours, needs none.)
        self.flops_per_run = 2 * self.images.numel()

    def close(self) -> None:
        """Forget what was compiled: each shape counts towards the recompilations that torch.compile allows."""
        torch.compiler.reset()

    def check(self, provider: str) -> float:
        """Compare with `finish_reference` on the CPU: ours bit for bit, others within roundings."""
        expected, actual = self.expected(), self.providers[provider](self)()
        exact = {"rtol": 0, "atol": 0} if provider == "fastfeed" else {}
        torch.testing.assert_close(actual, expected, check_stride=True, **exact)
        return largest_error(actual, expected)

    def expected(self) -> torch.Tensor:
        """Return what every provider should: [N, C, H, W]."""
        # On a GPU PyTorch divides by a number by multiplying with its reciprocal, which rounds differently.
        parameters = SampleParameters(len(self.images), flip=self.flip.cpu())
        return finish_reference(self.images.cpu(), parameters, IMAGENET_MEAN, IMAGENET_STD, self.dtype).to(
            self.images.device
        )

    def _torch(self, compiled: bool) -> Run:
        mean, std = (torch.tensor(values, device=self.images.device) for values in (IMAGENET_MEAN, IMAGENET_STD))
        # With fullgraph=True torch.compile raises where it would otherwise run eagerly.
        finish = torch.compile(indexed_finish, fullgraph=True, dynamic=False) if compiled else torch_finish
        return lambda: finish(self.images, self.flip, mean, std, self.dtype)

    def _fastfeed(self) -> Run:
        finish = Finish(IMAGENET_MEAN, IMAGENET_STD, self.dtype, threads=self.options.threads)
        parameters = SampleParameters(len(self.images), flip=self.flip.cpu())
        return lambda: finish(self.images, parameters)

    providers: ClassVar = {
        "eager": lambda case: case._torch(compiled=False),
        COMPILED: lambda case: case._torch(compiled=True),
        "fastfeed": _fastfeed,
    }
