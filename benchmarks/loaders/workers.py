"""PyTorch's DataLoader over files, for the loaders that differ in how an image is decoded and transformed."""

from collections.abc import Callable, Sequence
from typing import Any

from torch.utils.data import DataLoader, Dataset

from benchmarks.loaders.recipe import Recipe


class Files(Dataset):
    """Files decoded and transformed one by one.

    Args:
        samples: (path, target) pairs.
        decode: from a path to an image.
        transform: from an image to a sample.
    """

    def __init__(
        self, samples: Sequence[tuple[str, int]], decode: Callable[[str], Any], transform: Callable[[Any], Any]
    ) -> None:
        self.samples = samples
        self.decode = decode
        self.transform = transform

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        """Return one sample and its target."""
        path, target = self.samples[index]
        return self.transform(self.decode(path)), target


def in_workers(dataset: Dataset, recipe: Recipe) -> DataLoader:
    """Return a DataLoader whose workers, each of one thread, live on from epoch to epoch, and end with it."""
    return DataLoader(
        dataset,
        recipe.batch_size,
        shuffle=recipe.train,
        num_workers=recipe.threads,
        persistent_workers=True,
        pin_memory=recipe.on_gpu,
        # A fork would copy this process in the middle of whatever the threads of the other loaders do.
        multiprocessing_context="forkserver",
    )
