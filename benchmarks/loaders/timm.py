"""timm's loader, with the settings of its training script that change the images switched off."""

from collections.abc import Sequence
from typing import BinaryIO

from benchmarks.loaders.recipe import FLIP, MEAN, RATIO, SCALE, STD, Batches, Recipe
from benchmarks.peers import need


class Files:
    """Opens files, as timm's readers do.

    Args:
        samples: (path, target) pairs.
    """

    def __init__(self, samples: Sequence[tuple[str, int]]) -> None:
        self.samples = samples

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> tuple[BinaryIO, int]:
        """Return an open file, which timm closes by letting go of it, and its target."""
        path, target = self.samples[index]
        return open(path, "rb"), target


def loader(recipe: Recipe) -> Batches:
    """Return timm's loader: on a GPU with its prefetcher, which brings uint8 there and normalises it."""
    data = need("timm.data")
    batches = data.create_loader(
        data.ImageDataset("", reader=Files(recipe.source.samples)),
        recipe.size,
        recipe.batch_size,
        is_training=recipe.train,
        scale=SCALE,
        ratio=RATIO,
        hflip=FLIP,
        color_jitter=None,
        interpolation="bilinear",
        mean=MEAN,
        std=STD,
        # timm resizes to floor(size / crop_pct), which must be `resize` whatever the rounding of the division.
        crop_pct=recipe.size / (recipe.resize + 0.5),
        num_workers=recipe.threads,
        pin_memory=recipe.on_gpu,
        device=recipe.device,
        use_prefetcher=recipe.on_gpu,
        persistent_workers=True,
    )
    in_workers = batches.loader if recipe.on_gpu else batches
    in_workers.multiprocessing_context = "forkserver"  # as for the other loaders with workers
    return batches
