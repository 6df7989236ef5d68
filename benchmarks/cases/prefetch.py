"""Batches of bytes that are ready in memory, brought to the device and finished there, with and without work to do."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cached_property, partial
from typing import Any, ClassVar

import torch
from torch import Tensor

import fastfeed
from benchmarks.case import Case, Options, largest_error
from benchmarks.peers import Absent, need
from benchmarks.timing import Run
from fastfeed.data.finish import finish_reference
from fastfeed.data.transforms import IMAGENET_MEAN, IMAGENET_STD

Batch = tuple[Tensor, Tensor]  # images and target [N]
Epoch = Callable[[], Iterator[Batch]]  # begins to go through the loader's batches, finished on the device

BATCHES = {"cpu": 8, "cuda": 32}  # in a run
DISTINCT = 4  # batches, which repeat: pinned memory is scarce
# Size of the matrices that are multiplied, and for how many images each time. On the CPU that is some six times what
# the last pass takes there; on a GPU of today more than the copy of the images to it.
WORK = {"cpu": (512, 16), "cuda": (4096, 32)}


def epoch(name: str, case: "PrefetchCase") -> Run:
    """Return a run of one epoch of the provider's batches, with the case's work on each."""
    batches = case.epochs[name](case)

    def run() -> None:
        for images, _ in batches():
            case.work(images)

    return run


class PrefetchCase(Case):
    """`fastfeed.Prefetcher` against the plain way, a copy and then the operations one by one, and timm's.

    The loader is a list of uint8 [N, H, W, C] batches, in pinned memory where there is a GPU: what is timed is
    everything after a loader. "copy" brings them to the GPU, each over the one before, and does nothing else: as fast
    as the wire allows, H * W * C bytes for an image. On the CPU, where nothing is copied, a run is the last pass alone,
    batch by batch. Rates are images per second and not bytes: the bandwidth of the device's memory is no bound here.
    """

    name = "prefetch"
    direction = "epoch"
    baseline = "eager"
    wall_clock = True
    packages: ClassVar = {"timm": "timm"}
    no_peers = frozenset({"copy"})

    @classmethod
    def parameters(cls, options: Options) -> list[dict[str, Any]]:
        """Batches of ImageNet's usual size, in the dtype that networks compute in on the device."""
        if options.device.type == "cuda":
            return [{"shape": (256, 224, 224, 3), "dtype": torch.bfloat16}]
        sizes = (16,) if options.quick else (16, 64)
        return [{"shape": (size, 224, 224, 3), "dtype": torch.float32} for size in sizes]

    def __init__(self, options: Options, shape: tuple[int, int, int, int], dtype: torch.dtype) -> None:
        self.device = options.device
        self.threads = options.threads
        self.dtype = dtype
        generator = torch.Generator().manual_seed(0)
        batches = []
        for _ in range(DISTINCT):
            images = torch.randint(256, shape, dtype=torch.uint8, generator=generator)
            batches.append((images, torch.randint(1000, shape[:1], generator=generator)))
        if self.device.type == "cuda":
            batches = [(images.pin_memory(), target.pin_memory()) for images, target in batches]
        self.loader = batches * (BATCHES[self.device.type] // DISTINCT)
        self.images_per_run = len(self.loader) * shape[0]

    def work(self, images: Tensor) -> Any:
        """Do what a training loop does with a batch: here nothing."""

    def check(self, provider: str) -> float:
        """Compare every batch with `finish_reference` on the CPU, or the copy with the bytes: ours bit for bit.

        Returns:
            The largest absolute difference.
        """
        errors = []
        for number, (actual, actual_target) in enumerate(self.epochs[provider](self)()):
            assert number < len(self.loader), f"a run has more than {len(self.loader)} batches"
            images, target = self.loader[number]
            expected = (images if provider == "copy" else self._finished[number % DISTINCT]).to(self.device)
            torch.testing.assert_close(actual, expected, check_stride=True, **self._tolerance(provider))
            torch.testing.assert_close(actual_target, target.to(self.device))
            errors.append(largest_error(actual, expected))
        assert len(errors) == len(self.loader), f"a run has {len(errors)} batches; expected {len(self.loader)}"
        return max(errors)

    def _tolerance(self, provider: str) -> dict[str, float]:
        if provider not in ("eager", "timm"):
            return {"rtol": 0, "atol": 0}
        if provider == "timm" and self.dtype == torch.bfloat16:
            return {"rtol": 0, "atol": 0.02}  # it subtracts and divides in bf16: up to 1/64 off, a level of 255
        return {}

    @cached_property
    def _finished(self) -> list[Tensor]:
        return [
            finish_reference(images, None, IMAGENET_MEAN, IMAGENET_STD, self.dtype)
            for images, _ in self.loader[:DISTINCT]
        ]

    def _eager(self) -> Epoch:
        mean, std = (torch.tensor(values, device=self.device) for values in (IMAGENET_MEAN, IMAGENET_STD))

        def batches() -> Iterator[Batch]:
            for images, target in self.loader:
                images, target = (tensor.to(self.device, non_blocking=True) for tensor in (images, target))
                yield images.float().div(255).sub(mean).div(std).permute(0, 3, 1, 2).to(self.dtype), target

        return batches

    def _timm(self) -> Epoch:
        views = [(images.permute(0, 3, 1, 2), target) for images, target in self.loader]
        loader = need("timm.data.loader").PrefetchLoader(
            views, IMAGENET_MEAN, IMAGENET_STD, device=self.device, img_dtype=self.dtype
        )
        return partial(iter, loader)

    def _fastfeed(self) -> Epoch:
        loader = fastfeed.Prefetcher(self.loader, self.device, dtype=self.dtype, num_threads=self.threads)
        return partial(iter, loader)

    def _copy(self) -> Epoch:
        if self.device.type == "cpu":
            raise Absent("a bound for GPUs: on the CPU nothing is copied")
        kept = [torch.empty_like(tensor, device=self.device) for tensor in self.loader[0]]

        def batches() -> Iterator[Batch]:
            for images, target in self.loader:
                yield kept[0].copy_(images, non_blocking=True), kept[1].copy_(target, non_blocking=True)

        return batches

    epochs: ClassVar[dict[str, Callable[[Any], Epoch]]] = {
        "eager": _eager,
        "timm": _timm,
        "fastfeed": _fastfeed,
        "copy": _copy,
    }
    providers: ClassVar = {name: partial(epoch, name) for name in epochs}


class PrefetchOverlapCase(PrefetchCase):
    """The same with work on every batch that keeps the device busy, as training does: how much of it is hidden.

    The work is matrix products, on the CPU in one thread: where it takes all cores there is none left to finish the
    next batch on. "step alone" is the work alone, on batches that were finished before.
    """

    name = "prefetch_overlap"
    no_peers = frozenset({"step alone"})

    def __init__(self, options: Options, shape: tuple[int, int, int, int], dtype: torch.dtype) -> None:
        super().__init__(options, shape, dtype)
        size, images_per_product = WORK[self.device.type]
        generator = torch.Generator(self.device).manual_seed(0)
        # Of a scale that keeps that of what it is multiplied with.
        self.factor = torch.randn(size, size, device=self.device, generator=generator).div_(size**0.5).to(dtype)
        self.products = shape[0] // images_per_product

    def work(self, images: Tensor) -> Tensor:
        """Multiply the first values of a batch, [size, size], with the factor, time after time."""
        size = len(self.factor)
        x = images.permute(0, 2, 3, 1).flatten()[: size * size].view(size, size)
        with one_thread():
            for _ in range(self.products):
                x = x @ self.factor
        return x

    def _step_alone(self) -> Epoch:
        finished = [(images, target) for images, target in self._fastfeed()()]
        return partial(iter, finished[:DISTINCT] * (len(finished) // DISTINCT))

    epochs: ClassVar[dict[str, Callable[[Any], Epoch]]] = {
        "eager": PrefetchCase.epochs["eager"],
        "timm": PrefetchCase.epochs["timm"],
        "fastfeed": PrefetchCase.epochs["fastfeed"],
        "step alone": _step_alone,
    }
    providers: ClassVar = {name: partial(epoch, name) for name in epochs}


@contextmanager
def one_thread() -> Iterator[None]:
    """Have PyTorch use one thread for an operation on the CPU."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
