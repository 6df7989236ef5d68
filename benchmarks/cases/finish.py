"""The last pass: uint8 [N, H, W, C] -> flip, normalise, mix, cast -> channels-last [N, C, H, W]."""

from typing import Any, ClassVar

import torch

from benchmarks.case import Case, Options, largest_error
from benchmarks.results import COMPILED
from benchmarks.timing import Run
from fastfeed.data.finish import Finish, SampleParameters, finish_reference
from fastfeed.data.mix import Mix, draw_mix
from fastfeed.data.transforms import IMAGENET_MEAN, IMAGENET_STD

BATCHES = (8, 32, 64, 128, 256)
QUICK = {"cpu": (8, 64), "cuda": (64, 256)}

# Every sample has a weight of its own, and none is so near to 0 or 1 that it or its partner need not be read.
MIX = Mix(mixup=1.0, per="sample")


def torch_finish(
    images: torch.Tensor,
    flip: torch.Tensor,
    mean: torch.Tensor,
    std: torch.Tensor,
    dtype: torch.dtype,
    partner: torch.Tensor | None = None,
    weight: torch.Tensor | None = None,
) -> torch.Tensor:
    """`finish_reference` with tensors on the images' device, as people keep them: copying lists would be timed.

    Args:
        images: [N, H, W, C] uint8.
        flip: [N] bool.
        mean: [C], in units of pixel / 255.
        std: likewise.
        dtype: of the result.
        partner: [N] int64, or None to mix nothing.
        weight: [N], 0 to 1, of each sample's own pixels. The steps are those of torchvision.transforms.v2.MixUp.
    """
    images = torch.where(flip[:, None, None, None], images.flip(2), images)
    x = images.float().div(255).sub(mean).div(std).permute(0, 3, 1, 2)
    if partner is not None and weight is not None:
        weight = weight[:, None, None, None]
        x = x.mul(weight).add_(x[partner].mul(1 - weight))
    return x.to(dtype)


def indexed_finish(
    images: torch.Tensor,
    flip: torch.Tensor,
    mean: torch.Tensor,
    std: torch.Tensor,
    dtype: torch.dtype,
    partner: torch.Tensor | None = None,
    weight: torch.Tensor | None = None,
) -> torch.Tensor:
    """The same in the form that torch.compile makes most of: of `torch_finish` it makes code six times slower."""

    def gathered(images: torch.Tensor, flip: torch.Tensor) -> torch.Tensor:
        columns = torch.arange(images.shape[2], device=images.device)
        columns = torch.where(flip[:, None], columns.flip(0), columns)
        images = torch.gather(images, 2, columns[:, None, :, None].expand_as(images))
        return images.float().div(255).sub(mean).div(std).permute(0, 3, 1, 2)

    x = gathered(images, flip)
    if partner is not None and weight is not None:
        weight = weight[:, None, None, None]
        # The partners from the bytes once more, so that no images in fp32 need be kept.
        x = x * weight + gathered(images[partner], flip[partner]) * (1 - weight)
    return x.to(dtype)


class FinishCase(Case):
    """`Finish` against the same steps in PyTorch, eager and compiled; half of the images are flipped.

    "copy" is `out.copy_(images)`: it casts the bytes into an output of the same size, which is kept, and nothing else.
    A pass that reads every byte and writes every value can hardly be faster.

    DALI's `crop_mirror_normalize` does this pass too, but only inside of a pipeline, whose scheduling and streams
    would be timed with it: the loaders' case has DALI. torchvision's transforms flip whole batches, not some images.
    """

    name = "finish"
    direction = "forward"
    baseline = "eager"
    no_peers = frozenset({"copy"})
    mixes: ClassVar[bool] = False

    @classmethod
    def parameters(cls, options: Options) -> list[dict[str, Any]]:
        """Batches of ImageNet's usual size, into each dtype that networks are trained in."""
        batches = QUICK[options.device.type] if options.quick else BATCHES
        dtypes = (torch.float32, torch.bfloat16)
        return [{"shape": (batch, 224, 224, 3), "dtype": dtype} for batch in batches for dtype in dtypes]

    def __init__(self, options: Options, shape: tuple[int, int, int, int], dtype: torch.dtype) -> None:
        batch, height, width, _ = shape
        generator = torch.Generator(options.device).manual_seed(0)
        self.options = options
        self.images = torch.randint(256, shape, dtype=torch.uint8, device=options.device, generator=generator)
        self.dtype = dtype
        self.flip = torch.arange(batch) % 2 == 0
        plan = draw_mix(MIX, batch, height, width, seed=0, epoch=0, batch=0)
        self.mix = {"partner": plan.partner, "weight": plan.weight} if self.mixes else {}
        self.sample_parameters = SampleParameters(batch, flip=self.flip, **self.mix)
        # As the tensors are that the others take: what is timed is the pass alone.
        self.sample_parameters.keep_on(self.images.device)
        values = self.images.numel()
        if self.mixes:
            # Reads a byte per value, its own and again as its partner's (both are in the batch, so whatever a cache
            # holds of it is read once), and 9 per image, for its flip, partner and weight; writes each value once.
            self.bytes_per_run = values * (2 + dtype.itemsize) + 9 * batch
            # x * (w / (255 std)) + partner * ((1 - w) / (255 std)) - mean / std, whose constants are known for each
            # image: four per value.
            self.flops_per_run = 4 * values
        else:
            # Reads a byte per value and one per image, for its flip; writes each value once.
            self.bytes_per_run = values * (1 + dtype.itemsize) + batch
            # x * (1 / (255 std)) - mean / std, whose constants are known: two per value.
            self.flops_per_run = 2 * values

    def close(self) -> None:
        """Forget what was compiled: each shape counts towards the recompilations that torch.compile allows."""
        torch.compiler.reset()

    def check(self, provider: str) -> float:
        """Compare with what `expected` says: ours and the copy bit for bit, others within roundings.

        Returns:
            The largest absolute difference.
        """
        expected, actual = self.expected(provider), self.providers[provider](self)()
        exact = {"rtol": 0, "atol": 0} if provider in ("fastfeed", "copy") else {}
        torch.testing.assert_close(actual, expected, check_stride=True, **exact)
        return largest_error(actual, expected)

    def expected(self, provider: str) -> torch.Tensor:
        """Return what a provider should, from `finish_reference` on the CPU; the copy, a bound, gives the bytes."""
        images = self.images.cpu()
        if provider == "copy":
            return images.to(self.dtype).to(self.images.device)
        # On a GPU PyTorch divides by a number by multiplying with its reciprocal, which rounds differently.
        expected = finish_reference(images, self.sample_parameters, IMAGENET_MEAN, IMAGENET_STD, self.dtype)
        return expected.to(self.images.device)

    def _torch(self, compiled: bool) -> Run:
        device = self.images.device
        mean, std = (torch.tensor(values, device=device) for values in (IMAGENET_MEAN, IMAGENET_STD))
        mix = (torch.from_numpy(values).to(device) for values in self.mix.values())
        arguments = (self.images, self.flip.to(device), mean, std, self.dtype, *mix)
        # With fullgraph=True torch.compile raises where it would otherwise run eagerly.
        finish = torch.compile(indexed_finish, fullgraph=True, dynamic=False) if compiled else torch_finish
        return lambda: finish(*arguments)

    def _fastfeed(self) -> Run:
        finish = Finish(IMAGENET_MEAN, IMAGENET_STD, self.dtype, threads=self.options.threads)
        return lambda: finish(self.images, self.sample_parameters)

    def _copy(self) -> Run:
        out = torch.empty_like(self.images, dtype=self.dtype)
        return lambda: out.copy_(self.images)

    providers: ClassVar = {
        "eager": lambda case: case._torch(compiled=False),
        COMPILED: lambda case: case._torch(compiled=True),
        "fastfeed": _fastfeed,
        "copy": _copy,
    }


class FinishMixupCase(FinishCase):
    """The same with mixup: every sample has a partner and a weight of its own.

    Cutmix is not here, for it moves fewer bytes than mixup: of every pixel its own or its partner's. "copy" is the same
    as without mixing, and its bandwidth, as everyone's, is that of the bytes that mixing moves.
    """

    name = "finish_mixup"
    mixes = True

    @classmethod
    def parameters(cls, options: Options) -> list[dict[str, Any]]:
        """The same, in a quick run the largest batch only."""
        table = super().parameters(options)
        return [row for row in table if row["shape"] == table[-1]["shape"]] if options.quick else table
