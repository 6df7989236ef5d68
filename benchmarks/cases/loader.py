"""Whole epochs of training batches from JPEG files."""

import gc
import tempfile
from collections.abc import Callable
from functools import cached_property, partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from PIL import ExifTags, Image
from torch import Tensor

import fastfeed
from benchmarks.case import Case, Options
from benchmarks.loaders import dali, ffcv, pillow, spdl, timm, torchvision_pil, torchvision_uint8
from benchmarks.loaders import fastfeed as ours
from benchmarks.loaders.recipe import MEAN, STD, Batches, Recipe
from benchmarks.peers import version
from benchmarks.timing import Run
from fastfeed.demo.baseline import PillowFolder
from fastfeed.demo.draw import CLASSES, draw_dataset, draw_image

DALI = ("nvidia-dali-cuda130", "nvidia-dali-cuda120")
EVALUATED_SIZE = 56  # of the centre crops that `check` compares: the short side before the crop is 64


def epochs(name: str, case: "LoaderCase") -> Run:
    """Return a run of one training epoch, every batch brought to the case's device.

    It returns the targets, and what kinds of images there were: (shape, dtype).
    """
    loader = case.loaders[name](case.recipe(train=True))

    def run() -> tuple[Tensor, set[tuple[torch.Size, torch.dtype]]]:
        targets, kinds = [], set()
        for images, target in loader:
            images = images.to(case.device, non_blocking=True)  # nothing to do for batches that are there already
            kinds.add((images.shape, images.dtype))
            # A copy, for the next batch may lie in the same memory.
            targets.append(target.to(case.device, non_blocking=True, copy=True))
        return torch.cat(targets), kinds

    return run


class LoaderCase(Case):
    """`fastfeed.DataLoader` against others: random resized crop, flip, normalise, fp32.

    All have as many workers or threads, which live on from epoch to epoch; PyTorch's workers have a thread each, and
    pinned memory where there is a GPU. The check reads every file, so that all find them in the page cache. An epoch
    gives every worker several batches, so that its start and its end count little, and holds full batches only; a
    file may come more than once in it.
    """

    name = "loader"
    direction = "epoch"
    baseline = "pillow"
    wall_clock = True
    loaders: ClassVar[dict[str, Callable[[Recipe], Batches]]] = {
        "pillow": pillow.loader,
        "torchvision": torchvision_pil.loader,
        "torchvision uint8": torchvision_uint8.loader,
        "timm": timm.loader,
        "dali": dali.loader,
        "ffcv": ffcv.loader,
        "spdl": spdl.loader,
        "fastfeed": ours.loader,
    }
    providers: ClassVar = {name: partial(epochs, name) for name in loaders}
    packages: ClassVar = {
        "pillow": "pillow",
        "torchvision": "torchvision",
        "torchvision uint8": "torchvision",
        "timm": "timm",
        "dali": next(filter(version, DALI), DALI[0]),
        "ffcv": "ffcv",
        "spdl": "spdl",
    }

    @classmethod
    def parameters(cls, options: Options) -> list[dict[str, Any]]:
        """A batch of the size that goes with the images."""
        size = 224 if options.data else 64
        return [{"shape": (64, 3, size, size), "dtype": torch.float32}]

    def __init__(self, options: Options, shape: tuple[int, int, int, int], dtype: torch.dtype) -> None:
        self.batch_size, _, self.size, _ = self._shape = torch.Size(shape)
        self.dtype = dtype
        self.device = options.device
        self.threads = options.threads
        self._scratch = tempfile.TemporaryDirectory()
        folder = options.data
        if folder is None:
            drawn = Path(self._scratch.name, "drawn")
            draw_dataset(drawn, train_per_class=16 if options.quick else 64, val_per_class=1)
            folder = drawn / "train"
        self.images_per_run = self.batch_size * self.threads * (8 if options.quick else 32)
        source = fastfeed.FolderSource(folder)
        self.source = source.subset([i * len(source) // self.images_per_run for i in range(self.images_per_run)])

    def close(self) -> None:
        """Remove the drawn images, and what loaders have written."""
        self._scratch.cleanup()

    def recipe(self, *, train: bool) -> Recipe:
        """Return what the loaders are asked for: to train, or to evaluate the images that `check` compares."""
        scratch = Path(self._scratch.name)
        source, batch_size, size = self.source, self.batch_size, self.size
        if not train:
            source, batch_size, size = self._evaluated, len(self._evaluated) // 2, EVALUATED_SIZE
        return Recipe(source, batch_size, size, self.device, self.threads, scratch, train)

    def check(self, provider: str) -> float:
        """Compare the pixels of centre crops, which are the same for all, and the targets of a training epoch.

        Returns:
            The largest difference from the baseline that the normalised pixels of an image have on average.
        """
        error = self._largest_error(provider)
        targets, kinds = epochs(provider, self)()
        # What a circle of references keeps alive, as in some loaders, must not compete with those that are timed.
        gc.collect()
        assert kinds == {(self._shape, self.dtype)}, f"the training batches are {kinds}"
        expected = torch.tensor([target for _, target in self.source.samples])
        torch.testing.assert_close(targets.cpu().sort().values, expected.sort().values)
        # Decoders and resamplers round differently; a level of 255 is about 0.02 here.
        assert error < 0.05, f"an image's pixels are {error:.3f} off on average"
        return error

    def _largest_error(self, provider: str) -> float:
        recipe = self.recipe(train=False)
        batches = [[part.to("cpu", copy=True) for part in batch] for batch in self.loaders[provider](recipe)]
        images, targets = (torch.cat(parts) for parts in zip(*batches, strict=True))
        assert targets.tolist() == [target for _, target in recipe.source.samples], "images have others' targets"
        expected = self._centre_crops
        assert images.dtype == self.dtype, f"the images are {images.dtype}"
        assert images.shape == expected.shape, f"the images are {list(images.shape)}, not {list(expected.shape)}"
        return (images - expected).abs().mean(dim=(1, 2, 3)).max().item()

    @cached_property
    def _evaluated(self) -> fastfeed.FolderSource:
        folder = Path(self._scratch.name, "evaluated")
        draw_evaluated(folder, round(EVALUATED_SIZE * 256 / 224))
        return fastfeed.FolderSource(folder)

    @cached_property
    def _centre_crops(self) -> Tensor:
        """What the baseline makes of the evaluated images, without its workers."""
        recipe = self.recipe(train=False)
        dataset = PillowFolder(recipe.source.samples, recipe.size, mean=MEAN, std=STD, train=False)
        return torch.stack([image for image, _ in dataset])


def draw_evaluated(root: Path, resize: int) -> None:
    """Draw JPEG files of every kind, of sizes at which a centre crop has nothing to round.

    Where there is half a pixel, one loader rounds it up and another down, and a crop that is off by one differs more
    than anything that this is to find. The grain is there to tell an antialiased resize from others, and is grey,
    because decoders differ in how they enlarge subsampled colours.

    Args:
        root: where to make a folder for each class.
        resize: what the short side will be resized to, pixels; a third of the image's.
    """
    rng = np.random.default_rng(0)
    short, long = 3 * resize, 3 * resize * 3 // 2
    for i in range(4 * len(CLASSES)):
        shape = CLASSES[i % len(CLASSES)]
        image = draw_image(shape, rng).resize((short, long) if i % 2 else (long, short))
        grain = rng.normal(scale=10, size=(image.height, image.width, 1))
        image = Image.fromarray(np.clip(np.asarray(image) + grain, 0, 255).astype(np.uint8))
        if i % 7 == 0:
            image = image.convert("L")
        exif = Image.Exif()
        exif[ExifTags.Base.Orientation] = 1 + i % 8
        (root / shape).mkdir(parents=True, exist_ok=True)
        image.save(root / shape / f"{i:02}.jpg", quality=90, subsampling=i % 3, progressive=i % 5 == 0, exif=exif)
