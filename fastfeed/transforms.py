"""What a loader does to an image: the public names of ``fastfeed.data.transforms``, ``augment`` and ``presets``."""

from fastfeed.data.augment import (
    AutoAugment,
    ColorJitter,
    RandAugment,
    RandomGrayscale,
    RandomHorizontalFlip,
    RandomVerticalFlip,
    TrivialAugmentWide,
)
from fastfeed.data.presets import (
    cifar_eval,
    cifar_train,
    nvidia_eval,
    nvidia_train,
    timm_eval,
    timm_train,
    torchvision_eval,
    torchvision_train,
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
    "cifar_eval",
    "cifar_train",
    "eval",
    "nvidia_eval",
    "nvidia_train",
    "timm_eval",
    "timm_train",
    "torchvision_eval",
    "torchvision_train",
    "train",
]
