"""Published recipes by name: what they do to an image. What they have besides stands in each one's docstring.

To change one, ``dataclasses.replace(timm_train(), erase=0.25)``.
"""

import math
from typing import Any

from fastfeed.data.declarations import number, whole
from fastfeed.data.steps import ColorJitter, TrivialAugmentWide
from fastfeed.data.transforms import CenterCrop, RandomCrop, RandomErasing, RandomResizedCrop, Size, Transform

# Of the pixels of the training set.
CIFAR10_MEAN = (0.4914, 0.4822, 0.4465)
CIFAR10_STD = (0.2470, 0.2435, 0.2616)

_TORCHVISION = ("IMAGENET1K_V1", "IMAGENET1K_V2")


def torchvision_train(recipe: str = "IMAGENET1K_V1") -> Transform:
    """Training of torchvision's ResNet50 weights, by their name.

    Source: torchvision's references/classification: presets.py, train.py and, with the arguments, README.md. The second
    recipe's are those of https://github.com/pytorch/vision/issues/3995 and of the blog post "How to Train
    State-Of-The-Art Models Using TorchVision's Latest Primitives".

    - "IMAGENET1K_V1": random resized crop to 224, flip. Besides: 90 epochs of SGD with momentum 0.9, learning rate 0.1
      for 256 images, divided by 10 every 30 epochs, weight decay 1e-4.
    - "IMAGENET1K_V2": random resized crop to 176, flip, bilinear TrivialAugmentWide, erasing with probability 0.1.
      Besides: ``mix=fastfeed.Mix(mixup=0.2, cutmix=1.0)``, label smoothing 0.1, four copies of each sample
      (``sampler=fastfeed.data.RepeatedAugmentation(4)``), 600 epochs of SGD with learning rate 0.5 for 1024 images,
      cosine after five epochs of linear warmup, weight decay 2e-5 but for normalization layers, an average of the
      weights.

    Raises:
        ValueError: for another recipe.
    """
    _check_recipe("torchvision_train", recipe)
    if recipe == "IMAGENET1K_V1":
        return Transform(RandomResizedCrop(224), horizontal_flip=0.5)
    augment = TrivialAugmentWide(interpolation="bilinear")
    return Transform(RandomResizedCrop(176), horizontal_flip=0.5, augment=augment, erase=RandomErasing(0.1))


def torchvision_eval(recipe: str = "IMAGENET1K_V1") -> Transform:
    """Evaluation of torchvision's ResNet50 weights, by their name: ``ResNet50_Weights.<recipe>.transforms()``.

    "IMAGENET1K_V1": the short side to 256, a central window of 224; "IMAGENET1K_V2": to 232, 224.

    Raises:
        ValueError: for another recipe.
    """
    _check_recipe("torchvision_eval", recipe)
    return Transform(CenterCrop(224, 256 if recipe == "IMAGENET1K_V1" else 232))


def timm_train(size: Size = 224) -> Transform:
    """Training as timm's script does by default.

    Source: ``timm.data.create_transform(size, is_training=True, interpolation="random")`` of timm 1.0, what the
    defaults of its train.py come to: random resized crop, bilinear or bicubic by chance, flip, brightness, contrast and
    saturation by up to 0.4. Besides: label smoothing 0.1; no mixing, erasing or auto-augment unless asked for.

    Args:
        size: of the output, pixels: one number, or height and width.

    Raises:
        TypeError, ValueError: as `RandomResizedCrop`.
    """
    crop = RandomResizedCrop(size, interpolation="random")
    return Transform(crop, horizontal_flip=0.5, augment=ColorJitter(0.4, 0.4, 0.4))


def timm_eval(size: int = 224, crop_pct: float = 0.875, interpolation: str = "bicubic") -> Transform:
    """Evaluation as timm's scripts do by default, with the short side resized to size / crop_pct, rounded down.

    Source: ``timm.data.create_transform(size, interpolation="bicubic")`` of timm 1.0. Bicubic is what its scripts take
    where a model's configuration says nothing; ``timm.data.resolve_model_data_config(model)`` has a model's own values.

    Args:
        size: of the output, pixels.
        crop_pct: the window's share of the short side, above 0, at most 1.
        interpolation: "bilinear", "bicubic" or "lanczos".

    Raises:
        TypeError: for a size that is no whole number, or a `crop_pct` that is no number.
        ValueError: for one out of range, or another interpolation.
    """
    size = whole("timm_eval: size", size, 1)
    share = number("timm_eval: crop_pct", crop_pct, math.ulp(0.0), 1, "a share, above 0 and at most 1")
    return Transform(CenterCrop(size, math.floor(size / share), interpolation))


def nvidia_train() -> Transform:
    """Training of ResNet50 v1.5 in NVIDIA's DeepLearningExamples.

    Source: ``PyTorch/Classification/ConvNets``, resnet50v1.5/README.md, configs.yml and image_classification/
    dataloaders.py (its PyTorch loader; the one of DALI makes 100 attempts at a window, where this and torchvision make
    ten): random resized crop to 224, area 8% to 100%, ratio 3/4 to 4/3, flip. Besides: label smoothing 0.1 and, for 250
    epochs, ``mix=fastfeed.Mix(mixup=0.2)``; SGD with momentum 0.875, learning rate 0.256 for 256 images, cosine after
    eight epochs of linear warmup, weight decay 1 / 32768 but for normalization layers.
    """
    return Transform(RandomResizedCrop(224, (0.08, 1.0), (3 / 4, 4 / 3)), horizontal_flip=0.5)


def nvidia_eval() -> Transform:
    """Evaluation of ResNet50 v1.5 in NVIDIA's DeepLearningExamples: the short side to 256, a central window of 224."""
    return Transform(CenterCrop(224, 256))


def cifar_train() -> Transform:
    """Training on CIFAR: the padded crop and flip of He et al., "Deep Residual Learning for Image Recognition", 2016.

    Four pixels of black on every side, a random window of 32, flip; mean and standard deviation of CIFAR-10's pixels,
    where the paper subtracts the mean image. Besides, in the paper: 64,000 steps of SGD with momentum 0.9, learning
    rate 0.1 for 128 images, divided by 10 after 32,000 and 48,000, weight decay 1e-4.
    """
    return Transform(RandomCrop(32, padding=4), horizontal_flip=0.5, mean=CIFAR10_MEAN, std=CIFAR10_STD)


def cifar_eval() -> Transform:
    """Evaluation on CIFAR: the image as it is, with the mean and standard deviation of `cifar_train`."""
    return Transform(CenterCrop(32), mean=CIFAR10_MEAN, std=CIFAR10_STD)


def _check_recipe(owner: str, recipe: Any) -> None:
    if recipe not in _TORCHVISION:
        raise ValueError(f"{owner}: recipe is {recipe!r}; expected one of {', '.join(map(repr, _TORCHVISION))}")
