"""Steps: what the user may ask to be done to images' colours and geometry. Declarations only; augment.py obeys them."""

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fastfeed.data.declarations import (
    check_interpolation,
    is_number,
    listed,
    number,
    numbers,
    probability,
    replace_values,
    rgb_fill,
    whole,
)
from fastfeed.data.policies import POLICIES, Kind

Fill = int | Sequence[int] | None
AUTO_INTERPOLATIONS = ("nearest", "bilinear")

_UINT16 = 0xFFFF
_LARGEST = float(np.finfo(np.float32).max)
_SMALLEST = float(np.finfo(np.float32).tiny)


@dataclass(frozen=True)
class RandomHorizontalFlip:
    """Mirror left to right with probability `p`: ``torchvision.transforms.RandomHorizontalFlip``.

    Raises:
        TypeError: for a `p` that is no number.
        ValueError: for a `p` outside 0 to 1.
    """

    p: float = 0.5

    def __post_init__(self) -> None:
        replace_values(self, p=probability("RandomHorizontalFlip: p", self.p))


@dataclass(frozen=True)
class RandomVerticalFlip:
    """Mirror top to bottom with probability `p`: ``torchvision.transforms.RandomVerticalFlip``.

    Raises:
        TypeError: for a `p` that is no number.
        ValueError: for a `p` outside 0 to 1.
    """

    p: float = 0.5

    def __post_init__(self) -> None:
        replace_values(self, p=probability("RandomVerticalFlip: p", self.p))


@dataclass(frozen=True)
class RandomGrayscale:
    """Replace all three channels by their luma with probability `p`: ``torchvision.transforms.RandomGrayscale``.

    Raises:
        TypeError: for a `p` that is no number.
        ValueError: for a `p` outside 0 to 1.
    """

    p: float = 0.1

    def __post_init__(self) -> None:
        replace_values(self, p=probability("RandomGrayscale: p", self.p))


@dataclass(frozen=True)
class RandomInvert:
    """Invert all levels with probability `p`: ``torchvision.transforms.RandomInvert``.

    Raises:
        TypeError: for a `p` that is no number.
        ValueError: for a `p` outside 0 to 1.
    """

    p: float = 0.5

    def __post_init__(self) -> None:
        replace_values(self, p=probability("RandomInvert: p", self.p))


@dataclass(frozen=True)
class RandomPosterize:
    """Keep the highest `bits` of every level with probability `p`: ``torchvision.transforms.RandomPosterize``.

    Args:
        bits: 1 to 8.
        p: probability, 0 to 1.

    Raises:
        TypeError: for bits that are no whole number, or a `p` that is no number.
        ValueError: for a number out of range.
    """

    bits: int
    p: float = 0.5

    def __post_init__(self) -> None:
        bits = whole("RandomPosterize: bits", self.bits, 1, 8)
        replace_values(self, bits=bits, p=probability("RandomPosterize: p", self.p))


@dataclass(frozen=True)
class RandomSolarize:
    """Invert the levels from a threshold on, with probability `p`: ``torchvision.transforms.RandomSolarize``.

    Args:
        threshold: the lowest level that is inverted, in levels of 0 to 255; above 255 none is.
        p: probability, 0 to 1.

    Raises:
        TypeError: for what is no number.
        ValueError: for a threshold that is not finite, or a `p` outside 0 to 1.
    """

    threshold: float
    p: float = 0.5

    def __post_init__(self) -> None:
        most = sys.float_info.max
        threshold = number("RandomSolarize: threshold", self.threshold, -most, most, "a finite number of levels")
        replace_values(self, threshold=threshold, p=probability("RandomSolarize: p", self.p))


@dataclass(frozen=True)
class RandomAdjustSharpness:
    """Smooth or sharpen with probability `p`: ``torchvision.transforms.RandomAdjustSharpness``.

    Args:
        sharpness_factor: 0 smooths, 1 changes nothing, 2 doubles what smoothing takes away.
        p: probability, 0 to 1.

    Raises:
        TypeError: for what is no number.
        ValueError: for a factor that is negative or not finite in fp32, or a `p` outside 0 to 1.
    """

    sharpness_factor: float
    p: float = 0.5

    def __post_init__(self) -> None:
        factor = number(
            "RandomAdjustSharpness: sharpness_factor", self.sharpness_factor, 0, _LARGEST, "0 or more, finite"
        )
        replace_values(self, sharpness_factor=factor, p=probability("RandomAdjustSharpness: p", self.p))


@dataclass(frozen=True)
class RandomAutocontrast:
    """Stretch each channel's levels to 0 to 255 with probability `p`: ``torchvision.transforms.RandomAutocontrast``.

    Raises:
        TypeError: for a `p` that is no number.
        ValueError: for a `p` outside 0 to 1.
    """

    p: float = 0.5

    def __post_init__(self) -> None:
        replace_values(self, p=probability("RandomAutocontrast: p", self.p))


@dataclass(frozen=True)
class RandomEqualize:
    """Make each channel's levels equally frequent with probability `p`: ``torchvision.transforms.RandomEqualize``.

    Raises:
        TypeError: for a `p` that is no number.
        ValueError: for a `p` outside 0 to 1.
    """

    p: float = 0.5

    def __post_init__(self) -> None:
        replace_values(self, p=probability("RandomEqualize: p", self.p))


@dataclass(frozen=True)
class GaussianBlur:
    """Blur by a Gaussian kernel of random width: ``torchvision.transforms.GaussianBlur``.

    Beyond its edges an image is reflected, the outermost pixel not repeated: its sides must be larger than half of the
    kernel's.

    Args:
        kernel_size: of the kernel, pixels, odd: one number, or width and height, in torchvision's order.
        sigma: standard deviation, pixels, above 0: uniform in the range (min, max), or one number.

    Raises:
        TypeError: for a kernel size that is not whole numbers, or a sigma that is neither a number nor a pair of them.
        ValueError: for a kernel size that is not positive and odd, or a sigma that is not positive, not finite in fp32,
            or a range given high end first.
    """

    kernel_size: int | tuple[int, int]
    sigma: float | tuple[float, float] = (0.1, 2.0)

    def __post_init__(self) -> None:
        replace_values(self, kernel_size=_kernel_size(self.kernel_size), sigma=_sigma(self.sigma))

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the kernel, in pixels."""
        width, height = self.kernel_size  # type: ignore[misc]  # made so above
        return height, width

    @property
    def range(self) -> tuple[float, float]:
        """The least and the greatest sigma, in pixels."""
        return self.sigma  # type: ignore[return-value]  # made so above


@dataclass(frozen=True)
class ColorJitter:
    """Change brightness, contrast, saturation and hue, in a random order: ``torchvision.transforms.ColorJitter``.

    Args:
        brightness: the factor is uniform in [max(0, 1 - brightness), 1 + brightness], or in the range given.
        contrast: likewise.
        saturation: likewise.
        hue: turns of the colour wheel, uniform in [-hue, hue], or in the range given; -0.5 to 0.5.

    Raises:
        TypeError: for what is neither a number nor a pair of numbers.
        ValueError: for a negative number, a range that is given high end first, or one that reaches below 0 (for hue,
            outside of -0.5 to 0.5) or is not finite in fp32.
    """

    brightness: float | tuple[float, float] = 0
    contrast: float | tuple[float, float] = 0
    saturation: float | tuple[float, float] = 0
    hue: float | tuple[float, float] = 0

    def __post_init__(self) -> None:
        for name in ("brightness", "contrast", "saturation", "hue"):
            replace_values(self, **{name: _jitter(name, getattr(self, name))})
        self.ranges()

    def ranges(self) -> dict[Kind, tuple[float, float]]:
        """Return the range of each factor that is not always without effect."""
        ranges = {
            Kind.BRIGHTNESS: _jitter_range("brightness", self.brightness, 1.0, (0.0, _LARGEST)),
            Kind.CONTRAST: _jitter_range("contrast", self.contrast, 1.0, (0.0, _LARGEST)),
            Kind.SATURATION: _jitter_range("saturation", self.saturation, 1.0, (0.0, _LARGEST)),
            Kind.HUE: _jitter_range("hue", self.hue, 0.0, (-0.5, 0.5)),
        }
        unchanged = {kind: 0.0 if kind == Kind.HUE else 1.0 for kind in ranges}
        return {kind: (low, high) for kind, (low, high) in ranges.items() if not low == high == unchanged[kind]}


@dataclass(frozen=True)
class TrivialAugmentWide:
    """One operation of random strength: ``torchvision.transforms.TrivialAugmentWide``.

    Args:
        num_magnitude_bins: how many strengths there are, at least 2.
        interpolation: of what is sheared or rotated, "nearest" or "bilinear"; the same for all steps of a transform.
        fill: a level, 0 to 255, or one each for R, G and B, of pixels from outside of the image; None is 0.

    Raises:
        TypeError: for a number of bins that is no whole number, or a fill of another type.
        ValueError: for fewer than 2 bins, another interpolation, or a fill that is not one or three levels, 0 to 255.
    """

    num_magnitude_bins: int = 31
    interpolation: str = "nearest"
    fill: Fill = None

    def __post_init__(self) -> None:
        check_interpolation("TrivialAugmentWide", self.interpolation, AUTO_INTERPOLATIONS)
        bins = whole("TrivialAugmentWide: num_magnitude_bins", self.num_magnitude_bins, 2)
        replace_values(self, num_magnitude_bins=bins, fill=_fill_levels("TrivialAugmentWide", self.fill))


@dataclass(frozen=True)
class RandAugment:
    """A few operations of one strength: ``torchvision.transforms.RandAugment``.

    Args:
        num_ops: how many, one after the other; an operation may come again.
        magnitude: the strength, a bin, from 0.
        num_magnitude_bins: how many bins there are, at least 2.
        interpolation: as for `TrivialAugmentWide`.
        fill: likewise.

    Raises:
        TypeError: for a number that is not whole, or a fill of another type.
        ValueError: for a negative num_ops, fewer than 2 bins, a magnitude that is no bin, another interpolation, or a
            fill that has not one or three levels from 0 to 255.
    """

    num_ops: int = 2
    magnitude: int = 9
    num_magnitude_bins: int = 31
    interpolation: str = "nearest"
    fill: Fill = None

    def __post_init__(self) -> None:
        check_interpolation("RandAugment", self.interpolation, AUTO_INTERPOLATIONS)
        bins = whole("RandAugment: num_magnitude_bins", self.num_magnitude_bins, 2)
        replace_values(
            self,
            num_ops=whole("RandAugment: num_ops", self.num_ops, 0, _UINT16),
            magnitude=whole("RandAugment: magnitude", self.magnitude, 0, bins - 1),
            num_magnitude_bins=bins,
            fill=_fill_levels("RandAugment", self.fill),
        )


@dataclass(frozen=True)
class AutoAugment:
    """A random pair of a policy's, each done with its probability: ``torchvision.transforms.AutoAugment``.

    Args:
        policy: "imagenet", "cifar10" or "svhn".
        interpolation: as for `TrivialAugmentWide`.
        fill: likewise.

    Raises:
        TypeError: for a fill of another type.
        ValueError: for another policy or interpolation, or a fill that has not one or three levels from 0 to 255.
    """

    policy: str = "imagenet"
    interpolation: str = "nearest"
    fill: Fill = None

    def __post_init__(self) -> None:
        if self.policy not in tuple(POLICIES):  # whose members need no hash
            raise ValueError(
                f"AutoAugment: policy is {self.policy!r}; expected one of {', '.join(map(repr, POLICIES))}"
            )
        check_interpolation("AutoAugment", self.interpolation, AUTO_INTERPOLATIONS)
        replace_values(self, fill=_fill_levels("AutoAugment", self.fill))


@dataclass(frozen=True)
class RandomApply:
    """Do all of some steps, or with probability 1 - `p` none: ``torchvision.transforms.RandomApply``.

    Args:
        transforms: steps, in their order; among them may be a `RandomApply`.
        p: probability, 0 to 1, of doing them. Each step then has its own.

    Raises:
        TypeError: for what is no list or tuple of steps, or a `p` that is no number.
        ValueError: for a `p` outside 0 to 1.
    """

    transforms: Sequence["Step"]
    p: float = 0.5

    def __post_init__(self) -> None:
        given = self.transforms
        steps = given if isinstance(given, tuple | list) else (given,)
        for step in steps:
            if not isinstance(step, Step) or steps is not given:
                raise TypeError(
                    f"RandomApply: transforms {'is' if steps is not given else 'has'} {step!r}; expected a list of "
                    "steps, as [fastfeed.transforms.ColorJitter(0.4, 0.4, 0.4)]"
                )
        replace_values(self, transforms=tuple(steps), p=probability("RandomApply: p", self.p))


Step = (
    RandomHorizontalFlip
    | RandomVerticalFlip
    | RandomGrayscale
    | RandomInvert
    | RandomPosterize
    | RandomSolarize
    | RandomAdjustSharpness
    | RandomAutocontrast
    | RandomEqualize
    | GaussianBlur
    | ColorJitter
    | TrivialAugmentWide
    | RandAugment
    | AutoAugment
    | RandomApply
)


# Of steps that are one operation, done with probability `p`.
FIXED_KINDS: dict[type[Step], Kind] = {
    RandomHorizontalFlip: Kind.HORIZONTAL_FLIP,
    RandomVerticalFlip: Kind.VERTICAL_FLIP,
    RandomGrayscale: Kind.GRAYSCALE,
    RandomInvert: Kind.INVERT,
    RandomPosterize: Kind.POSTERIZE,
    RandomSolarize: Kind.SOLARIZE,
    RandomAdjustSharpness: Kind.SHARPNESS,
    RandomAutocontrast: Kind.AUTOCONTRAST,
    RandomEqualize: Kind.EQUALIZE,
}


def single_steps(steps: Sequence[Step]) -> Iterator[Step]:
    """Yield the steps in their order, each `RandomApply` replaced by the steps in it."""
    for step in steps:
        if isinstance(step, RandomApply):
            yield from single_steps(step.transforms)
        else:
            yield step


def mirrors_alike(steps: Sequence[Step]) -> bool:
    """Whether the steps do the same to an image's mirror image, so that it may be flipped after them."""
    return not _automatic(steps)


def common_fill(steps: Sequence[Step]) -> tuple[int, int, int]:
    """Return the levels that all of these steps fill with, 0 if none does, or raise a ValueError if they differ."""
    fills = {_fill_levels(type(step).__name__, step.fill) for step in _automatic(steps)}
    if len(fills) > 1:
        raise ValueError(f"the steps have different fills, {' and '.join(map(str, sorted(fills)))}; give all the same")
    return next(iter(fills), (0, 0, 0))


def common_interpolation(steps: Sequence[Step]) -> str:
    """Return how all of these steps shear and rotate, "nearest" if none does, or raise a ValueError if they differ."""
    found = {step.interpolation for step in _automatic(steps)}
    if len(found) > 1:
        raise ValueError(f"the steps have different interpolations, {' and '.join(sorted(found))}; give all the same")
    return next(iter(found), "nearest")


def _automatic(steps: Sequence[Step]) -> list[TrivialAugmentWide | RandAugment | AutoAugment]:
    return [s for s in single_steps(steps) if isinstance(s, TrivialAugmentWide | RandAugment | AutoAugment)]


def _jitter(name: str, value: Any) -> float | tuple[float, float]:
    """Return a number, or a pair of them, as Python's."""
    if is_number(value):
        if value < 0:
            raise ValueError(f"ColorJitter: {name} is {value!r}; expected 0 or more, or a pair (low, high)")
        return float(value)
    pair = listed(value)
    if not isinstance(pair, tuple | list) or len(pair) != 2 or not all(map(is_number, pair)):
        raise TypeError(f"ColorJitter: {name} is {value!r}; expected a number or a pair (low, high)")
    return float(pair[0]), float(pair[1])


def _jitter_range(
    name: str, value: float | tuple[float, float], centre: float, bounds: tuple[float, float]
) -> tuple[float, float]:
    if isinstance(value, tuple):
        low, high = value
    else:
        # A factor's range ends at 0; a hue of more than half a turn is an error.
        low, high = centre - value, centre + value
        if name != "hue":
            low = max(low, 0.0)
    if not bounds[0] <= low <= high <= bounds[1]:
        expected = "-0.5 <= low <= high <= 0.5" if name == "hue" else "0 <= low <= high, both finite"
        raise ValueError(f"ColorJitter: {name} is {value!r}, a range from {low} to {high}; expected {expected}")
    return low, high


def _fill_levels(owner: str, fill: Fill) -> tuple[int, int, int]:
    return rgb_fill(owner, 0 if fill is None else fill)


def _kernel_size(value: Any) -> tuple[int, int]:
    """Return width and height."""
    items = listed(value)
    sides = tuple(items) if isinstance(items, tuple | list) else (items,)
    if len(sides) not in (1, 2):
        raise ValueError(f"GaussianBlur: kernel_size is {value!r}; expected one odd number, or width and height")
    width, height = (whole("GaussianBlur: kernel_size", side, 1) for side in (sides[0], sides[-1]))
    if width % 2 == 0 or height % 2 == 0:
        raise ValueError(f"GaussianBlur: kernel_size is {value!r}; expected odd numbers of pixels")
    return width, height


def _sigma(value: Any) -> tuple[float, float]:
    expected = "a positive number of pixels, or a range (min, max) of them, finite in fp32"
    if is_number(value):
        sigma = number("GaussianBlur: sigma", value, _SMALLEST, _LARGEST, expected)
        return sigma, sigma
    low, high = numbers("GaussianBlur: sigma", value, 2, _SMALLEST, _LARGEST, expected)
    if low > high:
        raise ValueError(f"GaussianBlur: sigma is {value!r}; expected {expected}")
    return low, high
