"""Ours."""

from typing import Any

import torch

import fastfeed
from benchmarks.loaders.recipe import FLIP, MEAN, RATIO, SCALE, STD, Batches, Recipe
from benchmarks.peers import need
from fastfeed.data.dali import dali_install_line
from fastfeed.data.transforms import CenterCrop, RandomResizedCrop, Transform

MIX = fastfeed.Mix(mixup=0.2, cutmix=1.0)  # as in the recipes that torchvision trains its ImageNet weights with


def transform(recipe: Recipe) -> Transform:
    """Return what the recipe does to an image."""
    crop = RandomResizedCrop(recipe.size, SCALE, RATIO) if recipe.train else CenterCrop(recipe.size, recipe.resize)
    return Transform(crop, FLIP if recipe.train else 0.0, mean=MEAN, std=STD)


def mixed(recipe: Recipe) -> Any:
    """Return the same loader when it also mixes and writes bf16: batches of images and a `fastfeed.MixedTarget`."""
    return loader(recipe, mix=MIX, dtype=torch.bfloat16)


def loader(recipe: Recipe, **more: Any) -> Batches:
    """Return `fastfeed.DataLoader`, which decodes with DALI on the recipe's device; with `more` of its arguments."""
    need("nvidia.dali", dali_install_line())
    return fastfeed.DataLoader(
        recipe.source,
        recipe.batch_size,
        shuffle=recipe.train,
        num_workers=recipe.threads,
        transform=transform(recipe),
        device=recipe.device,
        **more,
    )
