"""torchvision as its documentation advises for speed: its own decoders, and transforms on tensors of uint8."""

from functools import partial

import torch

from benchmarks.loaders.recipe import FLIP, MEAN, RATIO, SCALE, STD, Batches, FinishedOnDevice, Recipe
from benchmarks.loaders.workers import Files, in_workers
from benchmarks.peers import need


def loader(recipe: Recipe) -> Batches:
    """Return torchvision's transforms, version 2, on uint8; on a GPU, batches are normalised there."""
    v2 = need("torchvision.transforms.v2")
    io = need("torchvision.io")
    decode = partial(io.decode_image, mode=io.ImageReadMode.RGB)
    # Antialiased, as Pillow does it and as the transforms' default is.
    crop = (
        [v2.RandomResizedCrop(recipe.size, SCALE, RATIO, antialias=True), v2.RandomHorizontalFlip(FLIP)]
        if recipe.train
        else [v2.Resize(recipe.resize, antialias=True), v2.CenterCrop(recipe.size)]
    )
    finish = [v2.ToDtype(torch.float32, scale=True), v2.Normalize(MEAN, STD)]
    if not recipe.on_gpu:
        return in_workers(Files(recipe.source.samples, decode, v2.Compose([*crop, *finish])), recipe)
    batches = in_workers(Files(recipe.source.samples, decode, v2.Compose(crop)), recipe)
    return FinishedOnDevice(batches, recipe.device, v2.Compose(finish))
