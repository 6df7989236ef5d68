"""Pillow in PyTorch's workers: what torchvision's ImageFolder and transforms do, step for step, without torchvision."""

from benchmarks.loaders.recipe import FLIP, MEAN, RATIO, SCALE, STD, Batches, Recipe
from benchmarks.loaders.workers import in_workers
from fastfeed.demo.baseline import PillowFolder


def loader(recipe: Recipe) -> Batches:
    """Return the loader that the others are compared with."""
    dataset = PillowFolder(recipe.source.samples, recipe.size, SCALE, RATIO, FLIP, MEAN, STD, recipe.train)
    return in_workers(dataset, recipe)
