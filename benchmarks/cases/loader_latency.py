"""The time to the first batch of an epoch."""

import gc
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from benchmarks.case import Options
from benchmarks.cases.loader import LoaderCase
from benchmarks.loaders import dali, pillow
from benchmarks.loaders import fastfeed as ours
from benchmarks.loaders.recipe import Batches, Recipe
from benchmarks.timing import Run, Unfinished

FRESH, WARM = "fresh", "warm"


def torch_loader(recipe: Recipe) -> DataLoader:
    """Return the baseline, whose workers are started the way that is Python's default: by a fork, before Python 3.14.

    That takes much less time than a fork server, which starts them where loaders run side by side.
    """
    loader = pillow.loader(recipe)
    loader.multiprocessing_context = None
    return loader


def first_batch(name: str, case: "LoaderLatencyCase") -> Run:
    """Return a run that ends with the first batch of an epoch; the rest of the epoch, or its end, is not timed."""
    if case.state == FRESH:
        return lambda: _fresh(name, case)
    loader = case.loaders[name](case.recipe(train=True))
    deque(loader, maxlen=0)  # the first epoch
    return lambda: _warm(loader, case.device)


def _fresh(name: str, case: "LoaderLatencyCase") -> Unfinished:
    loader = case.loaders[name](case.recipe(train=True))
    batches = iter(loader)
    held = [loader, batches]
    first = _on(case.device, next(batches))

    def end() -> None:
        held.clear()
        gc.collect()  # what a circle of references keeps alive must not compete with the next run

    del loader, batches
    return Unfinished(first, end)


def _warm(loader: Batches, device: torch.device) -> Unfinished:
    batches = iter(loader)
    first = _on(device, next(batches))
    return Unfinished(first, lambda: deque(batches, maxlen=0))


def _on(device: torch.device, batch: Any) -> tuple[Tensor, Tensor]:
    images, target = batch
    return images.to(device, non_blocking=True), target.to(device, non_blocking=True)


class LoaderLatencyCase(LoaderCase):
    """How long a training loop waits for the first batch of an epoch, in the loaders of `LoaderCase`.

    "fresh" begins with nothing but the list of files, and builds the loader: where that is done, in the constructor or
    by the first `iter()`, differs from loader to loader. "warm" begins with `iter()` of a loader that has run an epoch
    and is idle, PyTorch's with persistent workers.
    """

    name = "loader_latency"
    direction = "first batch"
    loaders: ClassVar[dict[str, Callable[[Recipe], Batches]]] = {
        "pillow": torch_loader,
        "dali": dali.loader,
        "fastfeed": ours.loader,
    }
    providers: ClassVar = {name: partial(first_batch, name) for name in loaders}
    packages: ClassVar = {name: LoaderCase.packages[name] for name in ("pillow", "dali")}
    no_peers = frozenset()

    @classmethod
    def parameters(cls, options: Options) -> list[dict[str, Any]]:
        """The loader's, in each state; in a quick run the fresh one."""
        return [
            {"shape": f"{state}-{'x'.join(map(str, row['shape']))}", "dtype": row["dtype"]}
            for row in super().parameters(options)
            for state in ((FRESH,) if options.quick else (FRESH, WARM))
        ]

    def __init__(self, options: Options, shape: str, dtype: torch.dtype) -> None:
        self.state, sides = shape.split("-")
        batch, channels, height, width = map(int, sides.split("x"))
        super().__init__(options, (batch, channels, height, width), dtype)
        self.images_per_run = None  # a run is over before the others are made

    @classmethod
    def batches(cls, options: Options) -> int:
        """As many as PyTorch's workers make ahead, each two: what comes later no run waits for."""
        return 2 * options.threads

    def check(self, provider: str) -> float:
        """Compare the pixels as `LoaderCase` does, and see that a run gives the first batch of a whole epoch."""
        error = super().check(provider)
        (images, target), finish = self.providers[provider](self)()
        assert (images.shape, images.dtype) == (self._shape, self.dtype), f"a batch is {images.dtype} {images.shape}"
        assert target.shape == self._shape[:1], f"a batch has {len(target)} targets"
        finish()
        return error
