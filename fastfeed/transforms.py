"""What a loader does to an image: the public names of ``fastfeed.data.transforms`` and ``fastfeed.data.augment``."""

from fastfeed.data.augment import (
    AutoAugment,
    ColorJitter,
    RandAugment,
    RandomGrayscale,
    RandomHorizontalFlip,
    RandomVerticalFlip,
    TrivialAugmentWide,
)
from fastfeed.data.transforms import (
    CenterCrop,
    RandomCrop,
    RandomErasing,
    RandomResizedCrop,
    Resize,
    Transform,
    eval,
    train,
)
from fastfeed.data.views import TTA

__all__ = [
    "AutoAugment",
    "CenterCrop",
    "ColorJitter",
    "RandAugment",
    "RandomCrop",
    "RandomErasing",
    "RandomGrayscale",
    "RandomHorizontalFlip",
    "RandomResizedCrop",
    "RandomVerticalFlip",
    "Resize",
    "TTA",
    "Transform",
    "TrivialAugmentWide",
    "eval",
    "train",
]
