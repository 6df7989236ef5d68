"""torchvision as most training scripts use it: Pillow decodes, and the transforms work on Pillow's images."""

from benchmarks.loaders.recipe import FLIP, MEAN, RATIO, SCALE, STD, Batches, Recipe
from benchmarks.loaders.workers import Files, in_workers
from benchmarks.peers import need


def loader(recipe: Recipe) -> Batches:
    """Return the transforms of version 1 on images as `ImageFolder` decodes them."""
    transforms, folder = need("torchvision.transforms"), need("torchvision.datasets.folder")
    crop = (
        [transforms.RandomResizedCrop(recipe.size, SCALE, RATIO), transforms.RandomHorizontalFlip(FLIP)]
        if recipe.train
        else [transforms.Resize(recipe.resize), transforms.CenterCrop(recipe.size)]
    )
    transform = transforms.Compose([*crop, transforms.ToTensor(), transforms.Normalize(MEAN, STD)])
    return in_workers(Files(recipe.source.samples, folder.default_loader, transform), recipe)
