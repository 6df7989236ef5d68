"""What every loader is asked for, and what it gives."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from fastfeed.data.sources import FolderSource
from fastfeed.data.transforms import IMAGENET_MEAN, IMAGENET_STD

Batches = Iterable[tuple[Tensor, Tensor]]  # images [N, 3, size, size] float32, target [N] int64; each `iter()` an epoch

SCALE = (0.08, 1.0)  # share of the image that a training crop covers
RATIO = (3 / 4, 4 / 3)  # a training crop's width by its height
FLIP = 0.5  # probability of mirroring a training image
MEAN, STD = IMAGENET_MEAN, IMAGENET_STD  # in units of pixel / 255
MEAN_255, STD_255 = [255 * x for x in MEAN], [255 * x for x in STD]  # in units of a pixel


@dataclass(frozen=True)
class Recipe:
    """What a loader is asked for.

    Attributes:
        source: the files and their targets. A file may come more than once; the batches are all full.
        batch_size: samples per batch.
        size: height and width of the images that come out, pixels.
        device: where the batches are wanted. A loader that makes them on the CPU may leave them there.
        threads: worker processes, or CPU threads of a loader that has no workers.
        scratch: a folder for files of a loader's own, which is removed in the end.
        train: a random resized crop, mirrored or not, in another order each epoch; otherwise the short side resized to
            `resize`, the central `size` x `size` pixels, and the order of the source. Then (pixel / 255 - mean) / std.
    """

    source: FolderSource
    batch_size: int
    size: int
    device: torch.device
    threads: int
    scratch: Path
    train: bool

    @property
    def resize(self) -> int:
        """The short side before the centre crop, pixels."""
        return round(self.size * 256 / 224)

    @property
    def on_gpu(self) -> bool:
        """Whether the batches are wanted on a GPU."""
        return self.device.type == "cuda"


@dataclass(frozen=True)
class FinishedOnDevice:
    """Another loader's batches, brought to a device as uint8, a quarter of the bytes, and normalised there."""

    batches: Batches
    device: torch.device
    finish: Callable[[Tensor], Tensor]

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for images, target in self.batches:
            images, target = (tensor.to(self.device, non_blocking=True) for tensor in (images, target))
            yield self.finish(images), target
