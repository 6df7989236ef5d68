"""Test-time augmentation: ten crops of every image."""

from functools import partial
from typing import Any, ClassVar

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from benchmarks.case import Options
from benchmarks.cases.loader import DALI, LoaderCase
from benchmarks.loaders import fastfeed as ours
from benchmarks.loaders.recipe import MEAN, STD, Recipe
from benchmarks.loaders.workers import Files, in_workers
from benchmarks.peers import version
from benchmarks.timing import Run
from fastfeed.transforms import TTA

TEN_CROPS = TTA(crops=5, horizontal_flip=True)


class TenCrops:
    """What torchvision's Resize, TenCrop, ToTensor and Normalize do to a PIL image, step for step.

    Args:
        resize: the short side, pixels.
        size: height and width of a crop, pixels.
    """

    def __init__(self, resize: int, size: int) -> None:
        self.resize = resize
        self.size = size

    def __call__(self, image: Image.Image) -> Tensor:
        """Return [10, 3, size, size] float32."""
        sides = [self.resize * side // min(image.size) for side in image.size]
        image = image.resize(sides, Image.Resampling.BILINEAR)
        views = [view for one in (image, ImageOps.mirror(image)) for view in self._five(one)]
        pixels = torch.from_numpy(np.stack([np.asarray(view) for view in views])).permute(0, 3, 1, 2).contiguous()
        mean, std = (torch.tensor(values).view(3, 1, 1) for values in (MEAN, STD))
        return pixels.to(torch.float32).div_(255).sub_(mean).div_(std)

    def _five(self, image: Image.Image) -> list[Image.Image]:
        right, bottom = image.width - self.size, image.height - self.size
        corners = (0, 0), (right, 0), (0, bottom), (right, bottom), (round(right / 2), round(bottom / 2))
        return [image.crop((x, y, x + self.size, y + self.size)) for x, y in corners]


def decode(path: str) -> Image.Image:
    """Return an image as torchvision's ImageFolder decodes it."""
    with Image.open(path) as file:
        return file.convert("RGB")


def pillow(recipe: Recipe) -> Any:
    """Return Pillow in PyTorch's workers."""
    return in_workers(Files(recipe.source.samples, decode, TenCrops(recipe.resize, recipe.size)), recipe)


def epoch(name: str, case: "LoaderViewsCase") -> Run:
    """Return a run of one evaluation, every batch brought to the case's device. It returns the targets."""
    loader = case.loaders[name](case.timed())

    def run() -> Tensor:
        targets = []
        for images, target in loader:
            assert images.to(case.device, non_blocking=True).shape[1] == TEN_CROPS.views
            targets.append(target.to(case.device, non_blocking=True, copy=True))
        return torch.cat(targets)

    return run


class LoaderViewsCase(LoaderCase):
    """Ten crops of every image, [N, 10, 3, H, W], by ours with `tta`, and by Pillow in PyTorch's workers."""

    name = "loader_views"
    direction = "ten crops"
    loaders: ClassVar = {"pillow": pillow, "fastfeed": partial(ours.loader, tta=TEN_CROPS)}
    providers: ClassVar = {name: partial(epoch, name) for name in loaders}
    packages: ClassVar = {"pillow": "pillow", "fastfeed": next(filter(version, DALI), DALI[0])}
    no_peers = frozenset()

    @classmethod
    def parameters(cls, options: Options) -> list[dict[str, Any]]:
        """A batch of the size that goes with the images."""
        size = 224 if options.data else 64
        return [{"shape": (16, 3, size, size), "dtype": torch.float32}]

    def timed(self) -> Recipe:
        """Return what is timed: an evaluation of the source."""
        recipe = self.recipe(train=True)
        return Recipe(self.source, recipe.batch_size, self.size, self.device, self.threads, recipe.scratch, False)

    def check(self, provider: str) -> float:
        """Compare all views and targets.

        Returns:
            The largest difference from the baseline that the normalised pixels of an image have on average.
        """
        recipe = self.recipe(train=False)
        expected, actual = (list(self.loaders[name](recipe)) for name in (self.baseline, provider))
        errors = []
        for (images, target), (views, labels) in zip(expected, actual, strict=True):
            torch.testing.assert_close(labels.cpu(), target)
            assert views.shape == images.shape, f"the views are {list(views.shape)}, not {list(images.shape)}"
            errors.append((views.cpu() - images).abs().mean(dim=(1, 2, 3, 4)).max().item())
        assert max(errors) < 0.05, f"an image's pixels are {max(errors):.3f} off on average"
        return max(errors)
