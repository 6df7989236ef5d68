"""Whole epochs of training batches from JPEG files."""

import os
import tempfile
from collections.abc import Callable, Iterable
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, ClassVar

import torch

import fastfeed
from benchmarks.case import Case, Options
from benchmarks.timing import Run
from fastfeed.demo.baseline import PillowFolder
from fastfeed.demo.draw import draw_dataset

Batches = Iterable[tuple[torch.Tensor, torch.Tensor]]

CORES = len(os.sched_getaffinity(0))


def pillow(case: "LoaderCase", train: bool) -> Batches:
    """What people use today."""
    return torch.utils.data.DataLoader(
        PillowFolder(case.source.samples, case.size, train=train),
        case.batch_size,
        shuffle=train,
        num_workers=CORES,
        persistent_workers=True,
        pin_memory=case.device.type == "cuda",
    )


def dali(case: "LoaderCase", train: bool) -> Batches:
    """Fastfeed's loader, which decodes with DALI, on the case's device."""
    transform = fastfeed.transforms.train if train else fastfeed.transforms.eval
    return fastfeed.DataLoader(
        case.source,
        case.batch_size,
        shuffle=train,
        num_workers=CORES,
        transform=transform(case.size),
        device=case.device,
        dtype=case.dtype,
    )


LOADERS = {"pillow": pillow, "fastfeed": dali}


def epochs(make: Callable[..., Batches], case: "LoaderCase") -> Run:
    """Return a run of one training epoch, every batch brought to the case's device; it returns the targets."""
    loader = make(case, train=True)

    def run() -> torch.Tensor:
        targets = []
        for images, target in loader:
            images.to(case.device, non_blocking=True)  # nothing to do for batches that are there already
            targets.append(target.to(case.device, non_blocking=True))
        return torch.cat(targets)

    return run


class LoaderCase(Case):
    """`fastfeed.DataLoader` against PyTorch's with Pillow: random resized crop, flip, normalise, fp32.

    Each has as many persistent workers as there are cores. An epoch gives every worker several batches, so that
    its start and its end count little; a file may come more than once in it.
    """

    name = "loader"
    direction = "epoch"
    baseline = "pillow"
    wall_clock = True
    providers: ClassVar = {name: partial(epochs, make) for name, make in LOADERS.items()}

    @classmethod
    def parameters(cls, options: Options) -> list[dict[str, Any]]:
        """A batch of the size that goes with the images."""
        size = 224 if options.data else 64
        return [{"shape": (64, 3, size, size), "dtype": torch.float32}]

    def __init__(self, options: Options, shape: tuple[int, int, int, int], dtype: torch.dtype) -> None:
        self.batch_size, _, self.size, _ = shape
        self.device = options.device
        self.dtype = dtype
        self._drawn = None
        folder = options.data
        if folder is None:
            self._drawn = tempfile.TemporaryDirectory()
            draw_dataset(Path(self._drawn.name, "drawn"), train_per_class=16 if options.quick else 64, val_per_class=1)
            folder = Path(self._drawn.name, "drawn", "train")
        self.images_per_run = self.batch_size * CORES * (8 if options.quick else 32)
        source = fastfeed.FolderSource(folder)
        self.source = source.subset([i * len(source) // self.images_per_run for i in range(self.images_per_run)])

    def close(self) -> None:
        """Remove the drawn images."""
        if self._drawn is not None:
            self._drawn.cleanup()

    def check(self, provider: str) -> None:
        """Compare the pixels of centre crops, which are the same for all, and the targets of a training epoch."""
        evaluation = (LOADERS[name](self, train=False) for name in (self.baseline, provider))
        for (expected, expected_target), (images, target) in islice(zip(*evaluation, strict=True), 2):
            torch.testing.assert_close(target.cpu(), expected_target)
            assert images.dtype == self.dtype, f"a batch is {images.dtype}"
            assert images.shape == expected.shape, f"a batch is {list(images.shape)}, not {list(expected.shape)}"
            # Decoders and resamplers round differently; a level of 255 is about 0.02 here.
            error = (images.cpu() - expected).abs().mean(dim=(1, 2, 3)).max().item()
            assert error < 0.05, f"an image's pixels are {error:.3f} off on average"
        targets = self.providers[provider](self)()
        torch.testing.assert_close(targets.cpu().sort().values, torch.tensor([t for _, t in self.source.samples]))
