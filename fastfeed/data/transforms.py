"""What the user asks for: declarations only. The plan draws from them, the graph and the last pass obey them."""

import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fastfeed.data.augment import check_steps
from fastfeed.data.declarations import (
    check_interpolation,
    flag,
    is_number,
    number,
    numbers,
    probability,
    replace_values,
    rgb_fill,
    whole,
)
from fastfeed.data.finish import check_mean_std
from fastfeed.data.steps import AutoAugment, RandAugment, Step, TrivialAugmentWide

# By the names that people know them by.
AUTO_AUGMENTS = {"trivial": TrivialAugmentWide, "rand": RandAugment, "auto": AutoAugment}

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

INTERPOLATIONS = ("bilinear", "bicubic", "lanczos")
RANDOM_INTERPOLATIONS = ("bilinear", "bicubic")  # what "random" draws from
Size = int | tuple[int, int]  # pixels: of both sides, or height and width

_LARGEST = 1e38  # of what must be finite in fp32, with room for the arithmetic


@dataclass(frozen=True)
class RandomResizedCrop:
    """A window of random area and aspect ratio, resized to `size`.

    The rule of ``torchvision.transforms.RandomResizedCrop`` with antialiased resampling: ten attempts to place a window
    whose area is uniform in `scale` (as a share of the image) and whose width / height is log-uniform in `ratio`; if
    none fits, the largest central window with a ratio in the range.

    Args:
        size: of the output, pixels: one number, or height and width.
        scale: shares of the image's area, low and high. They may be above 1: such a window fits nowhere, and is one of
            the ten attempts, as in torchvision.
        ratio: width / height, low and high.
        interpolation: "bilinear", "bicubic", "lanczos", or "random": bilinear or bicubic, each as often, by a draw of
            the sample's own, as timm trains.

    Raises:
        TypeError: for a size that is not whole numbers, or a scale or ratio that is no pair of numbers.
        ValueError: for a size, scale or ratio that is not positive, a range given high end first or not finite, or
            another interpolation.
    """

    size: Size
    scale: tuple[float, float] = (0.08, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    interpolation: str = "bilinear"

    def __post_init__(self) -> None:
        replace_values(
            self,
            size=declared_size(self.size),
            scale=_range("RandomResizedCrop: scale", self.scale),
            ratio=_range("RandomResizedCrop: ratio", self.ratio),
        )
        check_interpolation("RandomResizedCrop", self.interpolation, (*INTERPOLATIONS, "random"))


@dataclass(frozen=True)
class CenterCrop:
    """The central window of `size`, of the resized image or the stored one.

    As ``torchvision.transforms``' ``Compose([Resize(resize), CenterCrop(size)])``, antialiased, but resampled only
    where the window lies; without `resize` as its ``CenterCrop(size)``: where the image is smaller than the window, it
    is padded with black.

    Args:
        size: of the output, pixels: one number, or height and width.
        resize: at least `size`, pixels: the length of the short side, or height and width of the whole image; None: the
            image stays as large as it is. A size schedule changes it in proportion.
        interpolation: "bilinear", "bicubic" or "lanczos".

    Raises:
        TypeError: for a size or `resize` that is not whole numbers.
        ValueError: for a size that is not positive, or larger than `resize`, or another interpolation.
    """

    size: Size
    resize: Size | None = None
    interpolation: str = "bilinear"

    def __post_init__(self) -> None:
        replace_values(self, size=declared_size(self.size))
        replace_values(self, resize=_declared_resize("CenterCrop", self.resize, self.size))
        check_interpolation("CenterCrop", self.interpolation, INTERPOLATIONS)


@dataclass(frozen=True)
class Resize:
    """The whole image resized to `size`, whatever its shape, as ``torchvision.transforms.Resize((height, width))``.

    Args:
        size: of the output, pixels: height and width. One number is a square, and not the length of the short side:
            images of a batch have one size.
        interpolation: "bilinear", "bicubic" or "lanczos".

    Raises:
        TypeError: for a size that is not whole numbers.
        ValueError: for a size that is not positive, or another interpolation.
    """

    size: Size
    interpolation: str = "bilinear"

    def __post_init__(self) -> None:
        replace_values(self, size=declared_size(self.size))
        check_interpolation("Resize", self.interpolation, INTERPOLATIONS)


@dataclass(frozen=True)
class RandomCrop:
    """A window of `size` at a random place, of the resized image or the stored one.

    As ``torchvision.transforms.RandomCrop``; with `resize` as ``Compose([Resize(resize), RandomCrop(size)])``,
    antialiased, but resampled only where the window lies.

    Args:
        size: of the output, pixels: one number, or height and width.
        padding: pixels of `fill` on every side before the window is drawn; 0 with `resize`.
        pad_if_needed: pad an image that is smaller than the window, where it is; otherwise such an image is bad. With
            `resize` none is smaller.
        fill: of the padding, 0 to 255: one level, or one each for R, G and B.
        resize: at least `size`, pixels: the length of the short side, or height and width of the whole image; None: the
            image stays as large as it is. A size schedule changes it in proportion.
        interpolation: "bilinear", "bicubic" or "lanczos": of the resizing.

    Raises:
        TypeError: for a size, padding, fill or `resize` that is not whole numbers, or a `pad_if_needed` that is no
            bool.
        ValueError: for a size that is not positive, or larger than `resize`, a negative padding, or one together with
            `resize`, a fill outside 0 to 255, or another interpolation.
    """

    size: Size
    padding: int = 0
    pad_if_needed: bool = False
    fill: int | tuple[int, int, int] = 0
    resize: Size | None = None
    interpolation: str = "bilinear"

    def __post_init__(self) -> None:
        replace_values(
            self,
            size=declared_size(self.size),
            padding=whole("RandomCrop: padding", self.padding, 0),
            pad_if_needed=flag("RandomCrop: pad_if_needed", self.pad_if_needed),
            fill=rgb_fill("RandomCrop", self.fill),
        )
        replace_values(self, resize=_declared_resize("RandomCrop", self.resize, self.size))
        if self.padding and self.resize is not None:
            raise ValueError(
                f"RandomCrop: padding is {self.padding} and resize is {self.resize}: an image that is resized is not "
                "padded. Leave one of them out"
            )
        check_interpolation("RandomCrop", self.interpolation, INTERPOLATIONS)


Crop = RandomResizedCrop | CenterCrop | Resize | RandomCrop


@dataclass(frozen=True)
class RandomErasing:
    """A rectangle of the normalised image overwritten, as ``torchvision.transforms.RandomErasing``.

    Args:
        p: probability, 0 to 1.
        scale: shares of the image's area, low and high.
        ratio: height / width, low and high.
        value: what the pixels become, in units of the output: a number, one for each channel, or "random" for
            standard normal noise in every pixel.

    Raises:
        TypeError: for a probability, scale, ratio or value of another kind.
        ValueError: for a probability outside 0 to 1, a scale or ratio that is not positive, not finite or given high
            end first, a scale above 1, or a value that is not finite in fp32 or has not one number or three.
    """

    p: float = 0.5
    scale: tuple[float, float] = (0.02, 0.33)
    ratio: tuple[float, float] = (0.3, 3.3)
    value: float | tuple[float, float, float] | str = 0.0

    def __post_init__(self) -> None:
        scale = _range("RandomErasing: scale", self.scale)
        if scale[1] > 1:
            raise ValueError(f"RandomErasing: scale is {self.scale!r}; expected shares of the image, at most 1")
        replace_values(
            self,
            p=probability("RandomErasing: p", self.p),
            scale=scale,
            ratio=_range("RandomErasing: ratio", self.ratio),
            value=_erased_value(self.value),
        )


@dataclass(frozen=True)
class Transform:
    """What happens to an image between its file and the batch, in this order.

    Args:
        crop: which part of the image, and the output size.
        horizontal_flip: probability, 0 to 1, of mirroring left to right.
        vertical_flip: likewise, top to bottom.
        augment: what is done to its colours and geometry: a step, as ``ColorJitter(0.4, 0.4, 0.4)``, or several, in
            their order; "trivial", "rand" and "auto" are TrivialAugmentWide, RandAugment and AutoAugment with their
            defaults.
        mean: per channel, in units of pixel / 255.
        std: per channel, in units of pixel / 255. Output: (pixel / 255 - mean) / std.
        erase: RandomErasing, or the probability of one with its defaults.
        factor: what pixels are multiplied by in place of the division by 255, and mean and std are in units of the
            product. torchvision's transforms of version 2 multiply by 1 / 255, which differs from the division in the
            last bit of half of the levels; 1 leaves levels from 0 to 255.

    Raises:
        TypeError: for a declaration, a probability (True and False are none), a mean, a std or a factor of another
            kind.
        ValueError: for a probability outside 0 to 1, a mean or std that has not three finite values, a std that is not
            positive, or so small that values overflow, a factor outside 1e-30 to 1, another name of a
            step, more than 16 steps of one class, steps with different fills, or a blur whose kernel is too large for
            the crop.
    """

    crop: Crop
    horizontal_flip: float = 0.0
    vertical_flip: float = 0.0
    augment: Step | str | Sequence[Step | str] = ()
    mean: Sequence[float] = IMAGENET_MEAN
    std: Sequence[float] = IMAGENET_STD
    erase: RandomErasing | float | None = None
    factor: float | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.crop, Crop):
            raise TypeError(
                f"Transform: crop is {self.crop!r}; expected a crop, as fastfeed.transforms.RandomResizedCrop(224)"
            )
        for name in ("horizontal_flip", "vertical_flip"):
            replace_values(self, **{name: probability(f"Transform: {name}", getattr(self, name))})
        replace_values(
            self,
            mean=numbers("Transform: mean", self.mean, 3, -_LARGEST, _LARGEST, "a finite number each for R, G and B"),
            std=numbers(
                "Transform: std", self.std, 3, math.ulp(0.0), _LARGEST, "a positive number each for R, G and B"
            ),
        )
        if self.factor is not None:
            expected = "a number from 1e-30 to 1, or None to divide by 255"
            replace_values(self, factor=number("Transform: factor", self.factor, 1e-30, 1, expected))
        check_mean_std(self.mean, self.std, self.factor)
        replace_values(self, augment=_steps(self.augment))
        check_steps(self.steps, *self.size)
        if self.erase is not None and not isinstance(self.erase, RandomErasing):
            expected = "a probability, 0 to 1, or a fastfeed.transforms.RandomErasing"
            p = number("Transform: erase", self.erase, 0, 1, expected)
            replace_values(self, erase=RandomErasing(p) if p else None)

    @property
    def steps(self) -> tuple[Step, ...]:
        """What `augment` stands for."""
        return self.augment  # type: ignore[return-value]  # made so above

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the output, pixels."""
        return output_size(self.crop.size)

    @property
    def white(self) -> float:
        """What a pixel of 255 is before mean and std."""
        return 1.0 if self.factor is None else 255 * self.factor


def train(
    size: Size = 224,
    *,
    scale: tuple[float, float] = (0.08, 1.0),
    ratio: tuple[float, float] = (3 / 4, 4 / 3),
    interpolation: str = "bilinear",
    horizontal_flip: float = 0.5,
    augment: Step | str | Sequence[Step | str] = (),
    mean: Sequence[float] = IMAGENET_MEAN,
    std: Sequence[float] = IMAGENET_STD,
    erase: RandomErasing | float | None = None,
) -> Transform:
    """Random resized crop to `size`, horizontal flip, normalise: the usual ImageNet training recipe, and what people
    add to it.
    """
    return Transform(
        RandomResizedCrop(size, scale, ratio, interpolation),
        horizontal_flip,
        augment=augment,
        mean=mean,
        std=std,
        erase=erase,
    )


def eval(
    size: Size = 224,
    *,
    resize: Size | None = None,
    interpolation: str = "bilinear",
    mean: Sequence[float] = IMAGENET_MEAN,
    std: Sequence[float] = IMAGENET_STD,
) -> Transform:
    """Resize the short side to `resize` (default size * 256 / 224), centre crop to `size`, normalise.

    Two numbers as `resize` are the height and width of the whole image.
    """
    if resize is None:
        resize = round(max(output_size(size)) * 256 / 224)
    return Transform(CenterCrop(size, resize, interpolation), mean=mean, std=std)


def _steps(given: Any) -> tuple[Step, ...]:
    steps = given if isinstance(given, tuple | list) else (given,)
    for step in steps:
        if isinstance(step, str) and step not in AUTO_AUGMENTS:
            raise ValueError(f"Transform: augment is {step!r}; expected one of {', '.join(AUTO_AUGMENTS)}, or a step")
    made = tuple(AUTO_AUGMENTS[step]() if isinstance(step, str) else step for step in steps)
    for step in made:
        if not isinstance(step, Step):
            raise TypeError(
                f"Transform: augment has {step!r}; expected steps, as fastfeed.transforms.ColorJitter(0.4, 0.4, 0.4)"
            )
    return made


def output_size(size: Size) -> tuple[int, int]:
    """Return height and width, in pixels.

    Raises:
        TypeError: for what is neither a whole number nor a sequence of them.
        ValueError: for a number that is not positive, or a sequence that has not two.
    """
    sides = size.tolist() if isinstance(size, np.ndarray) else size
    if not isinstance(sides, tuple | list):
        sides = (sides, sides)
    if len(sides) != 2:
        raise ValueError(f"size is {size!r}; expected one whole number of pixels, or two: height and width")
    return whole("size", sides[0], 1), whole("size", sides[1], 1)


def declared_size(size: Any) -> Size:
    """Return a size as Python's own: a number as an int, two of them as a tuple.

    Raises:
        TypeError, ValueError: as `output_size`.
    """
    height, width = output_size(size)
    return height if isinstance(size, int | np.integer) else (height, width)


def padding_fill(crop: Crop) -> tuple[int, int, int] | None:
    """Return R, G and B of what surrounds an image whose window is cut out as it is; None for a crop that resizes."""
    if not isinstance(crop, RandomCrop | CenterCrop) or crop.resize is not None:
        return None
    return rgb_fill("RandomCrop", crop.fill) if isinstance(crop, RandomCrop) else (0, 0, 0)


def _declared_resize(owner: str, resize: Any, size: Size) -> Size | None:
    sides = resize.tolist() if isinstance(resize, np.ndarray) else resize
    if sides is None:
        return None
    name, (height, width) = f"{owner}: resize", output_size(size)
    declared: Size
    if isinstance(sides, tuple | list):
        if len(sides) != 2:
            raise ValueError(
                f"{name} is {resize!r}; expected one whole number of pixels, the length of the short side, or two: "
                "height and width"
            )
        declared = resized_height, resized_width = whole(name, sides[0], 1), whole(name, sides[1], 1)
        fits = height <= resized_height and width <= resized_width
    else:
        declared = whole(name, sides, 1)
        fits = max(height, width) <= declared
    if not fits:
        raise ValueError(
            f"{owner}: size is {size}, larger than resize, {declared}: the window would stick out of the image. Make "
            "resize at least as large as size"
        )
    return declared


def _erased_value(value: Any) -> float | tuple[float, ...] | str:
    if isinstance(value, str) and value == "random":
        return value
    expected = "a finite number, one each for R, G and B, or 'random'"
    if is_number(value):
        return number("RandomErasing: value", value, -_LARGEST, _LARGEST, expected)
    if isinstance(value, str):
        raise ValueError(f"RandomErasing: value is {value!r}; expected {expected}")
    return numbers("RandomErasing: value", value, 3, -_LARGEST, _LARGEST, expected)


def _range(name: str, bounds: Any) -> tuple[float, float]:
    expected = "(low, high) with 0 < low <= high, both finite"
    low, high = numbers(name, bounds, 2, 0, sys.float_info.max, expected)
    if not 0 < low <= high:
        raise ValueError(f"{name} is {bounds!r}; expected {expected}")
    return low, high
