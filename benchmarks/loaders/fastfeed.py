"""Ours."""

import fastfeed
from benchmarks.loaders.recipe import FLIP, MEAN, RATIO, SCALE, STD, Batches, Recipe
from benchmarks.peers import need
from fastfeed.data.dali import dali_install_line
from fastfeed.data.transforms import CenterCrop, RandomResizedCrop, Transform


def loader(recipe: Recipe) -> Batches:
    """Return `fastfeed.DataLoader`, which decodes with DALI on the recipe's device."""
    need("nvidia.dali", dali_install_line())
    crop = RandomResizedCrop(recipe.size, SCALE, RATIO) if recipe.train else CenterCrop(recipe.size, recipe.resize)
    return fastfeed.DataLoader(
        recipe.source,
        recipe.batch_size,
        shuffle=recipe.train,
        num_workers=recipe.threads,
        transform=Transform(crop, FLIP if recipe.train else 0.0, MEAN, STD),
        device=recipe.device,
    )
