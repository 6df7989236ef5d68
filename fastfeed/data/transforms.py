"""What the user asks for: declarations only. The plan draws from them, the graph and the last pass obey them."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from fastfeed.data.augment import AutoAugment, ColorJitter, RandAugment, TrivialAugmentWide

# By the names that people know them by.
AUTO_AUGMENTS = {"trivial": TrivialAugmentWide, "rand": RandAugment, "auto": AutoAugment}

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

INTERPOLATIONS = ("bilinear", "bicubic", "lanczos")
Size = int | tuple[int, int]  # pixels: of both sides, or height and width


@dataclass(frozen=True)
class RandomResizedCrop:
    """A window of random area and aspect ratio, resized to `size`.

    The rule of ``torchvision.transforms.RandomResizedCrop`` with antialiased resampling: ten attempts to place a window
    whose area is uniform in `scale` (as a share of the image) and whose width / height is log-uniform in `ratio`; if
    none fits, the largest central window with a ratio in the range.

    Args:
        size: of the output, pixels: one number, or height and width.
        scale: shares of the image's area, low and high.
        ratio: width / height, low and high.
        interpolation: "bilinear", "bicubic" or "lanczos".

    Raises:
        ValueError: for a size, scale or ratio that is not positive, a range given high end first, or another
            interpolation.
    """

    size: Size
    scale: tuple[float, float] = (0.08, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    interpolation: str = "bilinear"

    def __post_init__(self) -> None:
        output_size(self.size)
        _check_range("RandomResizedCrop: scale", self.scale)
        _check_range("RandomResizedCrop: ratio", self.ratio)
        _check_interpolation("RandomResizedCrop", self.interpolation)


@dataclass(frozen=True)
class CenterCrop:
    """The short side resized to `resize` pixels, then the central window of `size`.

    As ``torchvision.transforms``' ``Resize(resize)`` and ``CenterCrop(size)``, antialiased, but resampled only where
    the window lies.

    Args:
        size: of the output, pixels: one number, or height and width.
        resize: of the short side, pixels; at least `size`.
        interpolation: "bilinear", "bicubic" or "lanczos".

    Raises:
        ValueError: for a size that is not positive, or larger than `resize`, or another interpolation.
    """

    size: Size
    resize: int
    interpolation: str = "bilinear"

    def __post_init__(self) -> None:
        _check_whole("resize", self.resize, 1)
        if max(output_size(self.size)) > self.resize:
            raise ValueError(
                f"CenterCrop: size is {self.size}, larger than resize, {self.resize}: the window would stick out of "
                "the image. Make resize at least as large as size"
            )
        _check_interpolation("CenterCrop", self.interpolation)


@dataclass(frozen=True)
class Resize:
    """The whole image resized to `size`, whatever its shape, as ``torchvision.transforms.Resize((height, width))``.

    Args:
        size: of the output, pixels: height and width. One number is a square, and not the length of the short side:
            images of a batch have one size.
        interpolation: "bilinear", "bicubic" or "lanczos".

    Raises:
        ValueError: for a size that is not positive, or another interpolation.
    """

    size: Size
    interpolation: str = "bilinear"

    def __post_init__(self) -> None:
        output_size(self.size)
        _check_interpolation("Resize", self.interpolation)


@dataclass(frozen=True)
class RandomCrop:
    """A window of `size` at a random place, not resized; as ``torchvision.transforms.RandomCrop``.

    Args:
        size: of the output, pixels: one number, or height and width.
        padding: pixels of `fill` on every side before the window is drawn.
        pad_if_needed: pad an image that is smaller than the window, where it is; otherwise such an image is bad.
        fill: of the padding, 0 to 255: one level, or one each for R, G and B.

    Raises:
        ValueError: for a size that is not positive, a negative padding, or a fill outside 0 to 255.
    """

    size: Size
    padding: int = 0
    pad_if_needed: bool = False
    fill: int | tuple[int, int, int] = 0

    def __post_init__(self) -> None:
        output_size(self.size)
        _check_whole("RandomCrop: padding", self.padding, 0)
        rgb_fill("RandomCrop", self.fill)


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
        ValueError: for a probability outside 0 to 1, a scale or ratio that is not positive or given high end first, a
            scale above 1, or another value.
    """

    p: float = 0.5
    scale: tuple[float, float] = (0.02, 0.33)
    ratio: tuple[float, float] = (0.3, 3.3)
    value: float | tuple[float, float, float] | str = 0.0

    def __post_init__(self) -> None:
        _check_probability("RandomErasing: p", self.p)
        _check_range("RandomErasing: scale", self.scale)
        _check_range("RandomErasing: ratio", self.ratio)
        if self.scale[1] > 1:
            raise ValueError(f"RandomErasing: scale is {self.scale!r}; expected shares of the image, at most 1")
        if isinstance(self.value, str) and self.value != "random":
            raise ValueError(f"RandomErasing: value is {self.value!r}; expected numbers, or 'random'")
        if isinstance(self.value, tuple) and len(self.value) != 3:
            raise ValueError(f"RandomErasing: value is {self.value!r}; expected one number, or one for R, G and B")


@dataclass(frozen=True)
class Transform:
    """What happens to an image between its file and the batch, in this order.

    Args:
        crop: which part of the image, and the output size.
        horizontal_flip: probability, 0 to 1, of mirroring left to right.
        vertical_flip: likewise, top to bottom.
        auto_augment: TrivialAugmentWide, RandAugment or AutoAugment; or "trivial", "rand" or "auto" for their defaults.
        color_jitter: brightness, contrast, saturation and hue changed at random.
        grayscale: probability, 0 to 1, of losing all colour.
        mean: per channel, in units of pixel / 255.
        std: per channel, in units of pixel / 255. Output: (pixel / 255 - mean) / std.
        erase: RandomErasing, or the probability of one with its defaults.

    Raises:
        ValueError: for a probability outside 0 to 1, a mean or std that has not three values, a std that is not
            positive, or another auto_augment.
        TypeError: for a declaration of another kind.
    """

    crop: Crop
    horizontal_flip: float = 0.0
    vertical_flip: float = 0.0
    auto_augment: TrivialAugmentWide | RandAugment | AutoAugment | str | None = None
    color_jitter: ColorJitter | None = None
    grayscale: float = 0.0
    mean: Sequence[float] = IMAGENET_MEAN
    std: Sequence[float] = IMAGENET_STD
    erase: RandomErasing | float | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.crop, Crop):
            raise TypeError(
                f"Transform: crop is {type(self.crop).__name__}; expected one of fastfeed.transforms' crops"
            )
        for name in ("horizontal_flip", "vertical_flip", "grayscale"):
            _check_probability(f"Transform: {name}", getattr(self, name))
        for name, values in (("mean", self.mean), ("std", self.std)):
            if len(values) != 3:
                raise ValueError(f"Transform: {name} has {len(values)} values; expected one each for R, G and B")
        if not all(s > 0 for s in self.std):
            raise ValueError(f"Transform: std is {tuple(self.std)}; every value must be positive")
        if isinstance(self.auto_augment, str):
            if self.auto_augment not in AUTO_AUGMENTS:
                raise ValueError(
                    f"Transform: auto_augment is {self.auto_augment!r}; expected one of {', '.join(AUTO_AUGMENTS)}"
                )
            object.__setattr__(self, "auto_augment", AUTO_AUGMENTS[self.auto_augment]())
        for name, kind in (
            ("auto_augment", TrivialAugmentWide | RandAugment | AutoAugment | None),
            ("color_jitter", ColorJitter | None),
            ("erase", RandomErasing | int | float | None),
        ):
            if not isinstance(getattr(self, name), kind):
                raise TypeError(
                    f"Transform: {name} is {type(getattr(self, name)).__name__}; expected a declaration of "
                    "fastfeed.transforms"
                )
        if isinstance(self.erase, int | float):
            object.__setattr__(self, "erase", RandomErasing(self.erase) if self.erase else None)

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the output, pixels."""
        return output_size(self.crop.size)


def train(
    size: Size = 224,
    *,
    scale: tuple[float, float] = (0.08, 1.0),
    ratio: tuple[float, float] = (3 / 4, 4 / 3),
    interpolation: str = "bilinear",
    horizontal_flip: float = 0.5,
    auto_augment: TrivialAugmentWide | RandAugment | AutoAugment | str | None = None,
    color_jitter: ColorJitter | None = None,
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
        auto_augment=auto_augment,
        color_jitter=color_jitter,
        mean=mean,
        std=std,
        erase=erase,
    )


def eval(
    size: Size = 224,
    *,
    resize: int | None = None,
    interpolation: str = "bilinear",
    mean: Sequence[float] = IMAGENET_MEAN,
    std: Sequence[float] = IMAGENET_STD,
) -> Transform:
    """Resize the short side to `resize` (default size * 256 / 224), centre crop to `size`, normalise."""
    short = resize if resize is not None else round(max(output_size(size)) * 256 / 224)
    return Transform(CenterCrop(size, short, interpolation), mean=mean, std=std)


def output_size(size: Size) -> tuple[int, int]:
    """Return height and width, in pixels.

    Raises:
        ValueError: for anything but a positive whole number, or two.
    """
    if isinstance(size, tuple | list) and len(size) == 2:
        return _check_whole("size", size[0], 1), _check_whole("size", size[1], 1)
    return _check_whole("size", size, 1), _check_whole("size", size, 1)


def rgb_fill(owner: str, fill: int | tuple[int, int, int]) -> tuple[int, int, int]:
    """Return three levels for one or three.

    Raises:
        ValueError: for anything but one or three whole numbers, 0 to 255.
    """
    levels = tuple(fill) if isinstance(fill, tuple | list) else (fill,) * 3
    if len(levels) != 3 or not all(isinstance(level, int) and 0 <= level <= 255 for level in levels):
        raise ValueError(f"{owner}: fill is {fill!r}; expected one whole number, or three, from 0 to 255")
    return levels


def _check_whole(name: str, value: int, low: int) -> int:
    if not isinstance(value, int | np.integer) or isinstance(value, bool) or value < low:
        expected = "a positive whole number" if low else "a whole number"
        raise ValueError(f"{name} is {value!r}; expected {expected} of pixels")
    return int(value)


def _check_probability(name: str, value: float) -> None:
    if not isinstance(value, int | float) or not 0 <= value <= 1:
        raise ValueError(f"{name} is {value!r}; expected a probability, 0 to 1")


def _check_range(name: str, bounds: tuple[float, float]) -> None:
    if len(bounds) != 2 or not 0 < bounds[0] <= bounds[1]:
        raise ValueError(f"{name} is {bounds!r}; expected (low, high) with 0 < low <= high")


def _check_interpolation(owner: str, value: str) -> None:
    if value not in INTERPOLATIONS:
        raise ValueError(f"{owner}: interpolation is {value!r}; expected one of {', '.join(INTERPOLATIONS)}")
