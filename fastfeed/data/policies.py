"""The operations on uint8 images, and the tables from which automatic augmentation chooses among them.

Sources: AutoAugment, Cubuk et al., CVPR 2019; RandAugment, Cubuk et al., 2019; TrivialAugment, Müller and Hutter, ICCV
2021; with the ranges of ``torchvision.transforms``' classes of these names.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntEnum

import numpy as np
import numpy.typing as npt

Float32 = npt.NDArray[np.float32]


class Kind(IntEnum):
    """What is done to an image, and in what unit its magnitude is.

    Pixels are those of Pillow, called as by ``torchvision.transforms``, which blurs by itself. The numbers are
    csrc/augment.h's.
    """

    NOTHING = 0
    HORIZONTAL_FLIP = 1  # left to right; without a magnitude, like all for which none is named
    VERTICAL_FLIP = 2  # top to bottom
    GRAYSCALE = 3  # luma in all three channels
    BRIGHTNESS = 4  # factor: 0 is black, 1 changes nothing
    CONTRAST = 5  # factor: 0 is the mean grey
    SATURATION = 6  # factor: 0 is greyscale
    HUE = 7  # -0.5 to 0.5 turns of the colour wheel
    SHARPNESS = 8  # factor: 0 is smoothed
    POSTERIZE = 9  # bits that are kept, 1 to 8
    SOLARIZE = 10  # levels from here on, 0 to 256, are inverted
    AUTOCONTRAST = 11
    EQUALIZE = 12
    INVERT = 13
    SHEAR_X = 14  # columns to the left for each row down
    SHEAR_Y = 15  # rows up for each column to the right
    TRANSLATE_X = 16  # pixels to the right, towards 0 to a whole number
    TRANSLATE_Y = 17  # pixels down, likewise
    ROTATE = 18  # degrees counterclockwise
    GAUSSIAN_BLUR = 19  # sigma in pixels, above 0; it has a kernel size too


_FACTORS = frozenset({Kind.BRIGHTNESS, Kind.CONTRAST, Kind.SATURATION, Kind.SHARPNESS})
_UNSIGNED = frozenset({Kind.NOTHING, Kind.POSTERIZE, Kind.SOLARIZE, Kind.AUTOCONTRAST, Kind.EQUALIZE, Kind.INVERT})


@dataclass(frozen=True)
class Space:
    """Operations of which each is as likely as any other.

    Attributes:
        kind: [O] uint8.
        magnitude: [O, B, 2] float32: of each operation, in each of B bins, with the sign + and the sign -.
    """

    kind: npt.NDArray[np.uint8]
    magnitude: Float32


@dataclass(frozen=True)
class Policy:
    """Pairs of operations of which each is as likely as any other.

    Attributes:
        kind: [P, 2] uint8.
        probability: [P, 2] float64, that the operation of a pair is done.
        magnitude: [P, 2, 2] float32: of each operation, with the sign + and the sign -.
    """

    kind: npt.NDArray[np.uint8]
    probability: npt.NDArray[np.float64]
    magnitude: Float32


def trivial_augment_space(bins: int) -> Space:
    """Return what ``torchvision.transforms.TrivialAugmentWide`` chooses from."""
    return _space(_ranges(0.99, 0.99, 32.0, 32.0, 135.0), 6, bins)


def rand_augment_space(bins: int, height: int, width: int) -> Space:
    """Return what ``torchvision.transforms.RandAugment`` chooses from, for images of this size in pixels."""
    return _space(_auto_augment_ranges(height, width), 4, bins)


def auto_augment_policy(name: str, height: int, width: int) -> Policy:
    """Return the pairs of ``torchvision.transforms.AutoAugment``, for images of this size in pixels.

    Args:
        name: one of `POLICIES`.
        height: of the images, in pixels.
        width: likewise.
    """
    ranges = _auto_augment_ranges(height, width)
    table = {kind: _bins(kind, ranges, 4, 10) for kind in Kind}
    pairs = POLICIES[name]
    return Policy(
        np.array([[kind for kind, _, _ in pair] for pair in pairs], np.uint8),
        np.array([[probability for _, probability, _ in pair] for pair in pairs]),
        np.array([[table[kind][bin] for kind, _, bin in pair] for pair in pairs], np.float32),
    )


def _ranges(shear: float, factor: float, translate_x: float, translate_y: float, rotate: float) -> dict[Kind, float]:
    """Return the largest magnitude of each operation that has one and starts at 0; of a factor, its distance from 1."""
    geometry = {Kind.SHEAR_X: shear, Kind.SHEAR_Y: shear, Kind.ROTATE: rotate}
    translate = {Kind.TRANSLATE_X: translate_x, Kind.TRANSLATE_Y: translate_y}
    return {**geometry, **translate, **dict.fromkeys(_FACTORS, factor)}


def _auto_augment_ranges(height: int, width: int) -> dict[Kind, float]:
    return _ranges(0.3, 0.9, 150.0 / 331.0 * width, 150.0 / 331.0 * height, 30.0)


def _space(ranges: Mapping[Kind, float], posterized_bits: int, bins: int) -> Space:
    kinds = (
        *(Kind.NOTHING, Kind.SHEAR_X, Kind.SHEAR_Y, Kind.TRANSLATE_X, Kind.TRANSLATE_Y, Kind.ROTATE),
        *(Kind.BRIGHTNESS, Kind.SATURATION, Kind.CONTRAST, Kind.SHARPNESS),
        *(Kind.POSTERIZE, Kind.SOLARIZE, Kind.AUTOCONTRAST, Kind.EQUALIZE),
    )
    return Space(np.array(kinds, np.uint8), np.stack([_bins(kind, ranges, posterized_bits, bins) for kind in kinds]))


def _bins(kind: Kind, ranges: Mapping[Kind, float], posterized_bits: int, bins: int) -> Float32:
    """Return [bins, 2] magnitudes, with the sign + and the sign -."""
    if kind == Kind.POSTERIZE:
        # In float32, as torchvision does: in float64 other numbers would be halves.
        removed = np.rint(np.arange(bins, dtype=np.float32) / np.float32((bins - 1) / posterized_bits))
        values = (8 - removed).astype(np.float64)
    elif kind == Kind.SOLARIZE:
        values = np.linspace(255.0, 0.0, bins)
    else:
        values = np.linspace(0.0, ranges.get(kind, 0.0), bins)
    # torchvision's are float32 too before 1 is added. They come from torch.linspace, whose last bits depend on the
    # processor's vectors; these do not.
    values = values.astype(np.float32).astype(np.float64)
    both = np.stack([values, values if kind in _UNSIGNED else -values], axis=1)
    return (both + 1 if kind in _FACTORS else both).astype(np.float32)


# (operation, probability, bin of ten), and the second of the pair. Bin 0 for operations without a magnitude.
_Pair = tuple[tuple[Kind, float, int], tuple[Kind, float, int]]

_IMAGENET: tuple[_Pair, ...] = (
    ((Kind.POSTERIZE, 0.4, 8), (Kind.ROTATE, 0.6, 9)),
    ((Kind.SOLARIZE, 0.6, 5), (Kind.AUTOCONTRAST, 0.6, 0)),
    ((Kind.EQUALIZE, 0.8, 0), (Kind.EQUALIZE, 0.6, 0)),
    ((Kind.POSTERIZE, 0.6, 7), (Kind.POSTERIZE, 0.6, 6)),
    ((Kind.EQUALIZE, 0.4, 0), (Kind.SOLARIZE, 0.2, 4)),
    ((Kind.EQUALIZE, 0.4, 0), (Kind.ROTATE, 0.8, 8)),
    ((Kind.SOLARIZE, 0.6, 3), (Kind.EQUALIZE, 0.6, 0)),
    ((Kind.POSTERIZE, 0.8, 5), (Kind.EQUALIZE, 1.0, 0)),
    ((Kind.ROTATE, 0.2, 3), (Kind.SOLARIZE, 0.6, 8)),
    ((Kind.EQUALIZE, 0.6, 0), (Kind.POSTERIZE, 0.4, 6)),
    ((Kind.ROTATE, 0.8, 8), (Kind.SATURATION, 0.4, 0)),
    ((Kind.ROTATE, 0.4, 9), (Kind.EQUALIZE, 0.6, 0)),
    ((Kind.EQUALIZE, 0.0, 0), (Kind.EQUALIZE, 0.8, 0)),
    ((Kind.INVERT, 0.6, 0), (Kind.EQUALIZE, 1.0, 0)),
    ((Kind.SATURATION, 0.6, 4), (Kind.CONTRAST, 1.0, 8)),
    ((Kind.ROTATE, 0.8, 8), (Kind.SATURATION, 1.0, 2)),
    ((Kind.SATURATION, 0.8, 8), (Kind.SOLARIZE, 0.8, 7)),
    ((Kind.SHARPNESS, 0.4, 7), (Kind.INVERT, 0.6, 0)),
    ((Kind.SHEAR_X, 0.6, 5), (Kind.EQUALIZE, 1.0, 0)),
    ((Kind.SATURATION, 0.4, 0), (Kind.EQUALIZE, 0.6, 0)),
    ((Kind.EQUALIZE, 0.4, 0), (Kind.SOLARIZE, 0.2, 4)),
    ((Kind.SOLARIZE, 0.6, 5), (Kind.AUTOCONTRAST, 0.6, 0)),
    ((Kind.INVERT, 0.6, 0), (Kind.EQUALIZE, 1.0, 0)),
    ((Kind.SATURATION, 0.6, 4), (Kind.CONTRAST, 1.0, 8)),
    ((Kind.EQUALIZE, 0.8, 0), (Kind.EQUALIZE, 0.6, 0)),
)

_CIFAR10: tuple[_Pair, ...] = (
    ((Kind.INVERT, 0.1, 0), (Kind.CONTRAST, 0.2, 6)),
    ((Kind.ROTATE, 0.7, 2), (Kind.TRANSLATE_X, 0.3, 9)),
    ((Kind.SHARPNESS, 0.8, 1), (Kind.SHARPNESS, 0.9, 3)),
    ((Kind.SHEAR_Y, 0.5, 8), (Kind.TRANSLATE_Y, 0.7, 9)),
    ((Kind.AUTOCONTRAST, 0.5, 0), (Kind.EQUALIZE, 0.9, 0)),
    ((Kind.SHEAR_Y, 0.2, 7), (Kind.POSTERIZE, 0.3, 7)),
    ((Kind.SATURATION, 0.4, 3), (Kind.BRIGHTNESS, 0.6, 7)),
    ((Kind.SHARPNESS, 0.3, 9), (Kind.BRIGHTNESS, 0.7, 9)),
    ((Kind.EQUALIZE, 0.6, 0), (Kind.EQUALIZE, 0.5, 0)),
    ((Kind.CONTRAST, 0.6, 7), (Kind.SHARPNESS, 0.6, 5)),
    ((Kind.SATURATION, 0.7, 7), (Kind.TRANSLATE_X, 0.5, 8)),
    ((Kind.EQUALIZE, 0.3, 0), (Kind.AUTOCONTRAST, 0.4, 0)),
    ((Kind.TRANSLATE_Y, 0.4, 3), (Kind.SHARPNESS, 0.2, 6)),
    ((Kind.BRIGHTNESS, 0.9, 6), (Kind.SATURATION, 0.2, 8)),
    ((Kind.SOLARIZE, 0.5, 2), (Kind.INVERT, 0.0, 0)),
    ((Kind.EQUALIZE, 0.2, 0), (Kind.AUTOCONTRAST, 0.6, 0)),
    ((Kind.EQUALIZE, 0.2, 0), (Kind.EQUALIZE, 0.6, 0)),
    ((Kind.SATURATION, 0.9, 9), (Kind.EQUALIZE, 0.6, 0)),
    ((Kind.AUTOCONTRAST, 0.8, 0), (Kind.SOLARIZE, 0.2, 8)),
    ((Kind.BRIGHTNESS, 0.1, 3), (Kind.SATURATION, 0.7, 0)),
    ((Kind.SOLARIZE, 0.4, 5), (Kind.AUTOCONTRAST, 0.9, 0)),
    ((Kind.TRANSLATE_Y, 0.9, 9), (Kind.TRANSLATE_Y, 0.7, 9)),
    ((Kind.AUTOCONTRAST, 0.9, 0), (Kind.SOLARIZE, 0.8, 3)),
    ((Kind.EQUALIZE, 0.8, 0), (Kind.INVERT, 0.1, 0)),
    ((Kind.TRANSLATE_Y, 0.7, 9), (Kind.AUTOCONTRAST, 0.9, 0)),
)

_SVHN: tuple[_Pair, ...] = (
    ((Kind.SHEAR_X, 0.9, 4), (Kind.INVERT, 0.2, 0)),
    ((Kind.SHEAR_Y, 0.9, 8), (Kind.INVERT, 0.7, 0)),
    ((Kind.EQUALIZE, 0.6, 0), (Kind.SOLARIZE, 0.6, 6)),
    ((Kind.INVERT, 0.9, 0), (Kind.EQUALIZE, 0.6, 0)),
    ((Kind.EQUALIZE, 0.6, 0), (Kind.ROTATE, 0.9, 3)),
    ((Kind.SHEAR_X, 0.9, 4), (Kind.AUTOCONTRAST, 0.8, 0)),
    ((Kind.SHEAR_Y, 0.9, 8), (Kind.INVERT, 0.4, 0)),
    ((Kind.SHEAR_Y, 0.9, 5), (Kind.SOLARIZE, 0.2, 6)),
    ((Kind.INVERT, 0.9, 0), (Kind.AUTOCONTRAST, 0.8, 0)),
    ((Kind.EQUALIZE, 0.6, 0), (Kind.ROTATE, 0.9, 3)),
    ((Kind.SHEAR_X, 0.9, 4), (Kind.SOLARIZE, 0.3, 3)),
    ((Kind.SHEAR_Y, 0.8, 8), (Kind.INVERT, 0.7, 0)),
    ((Kind.EQUALIZE, 0.9, 0), (Kind.TRANSLATE_Y, 0.6, 6)),
    ((Kind.INVERT, 0.9, 0), (Kind.EQUALIZE, 0.6, 0)),
    ((Kind.CONTRAST, 0.3, 3), (Kind.ROTATE, 0.8, 4)),
    ((Kind.INVERT, 0.8, 0), (Kind.TRANSLATE_Y, 0.0, 2)),
    ((Kind.SHEAR_Y, 0.7, 6), (Kind.SOLARIZE, 0.4, 8)),
    ((Kind.INVERT, 0.6, 0), (Kind.ROTATE, 0.8, 4)),
    ((Kind.SHEAR_Y, 0.3, 7), (Kind.TRANSLATE_X, 0.9, 3)),
    ((Kind.SHEAR_X, 0.1, 6), (Kind.INVERT, 0.6, 0)),
    ((Kind.SOLARIZE, 0.7, 2), (Kind.TRANSLATE_Y, 0.6, 7)),
    ((Kind.SHEAR_Y, 0.8, 4), (Kind.INVERT, 0.8, 0)),
    ((Kind.SHEAR_X, 0.7, 9), (Kind.TRANSLATE_Y, 0.8, 3)),
    ((Kind.SHEAR_Y, 0.8, 5), (Kind.AUTOCONTRAST, 0.7, 0)),
    ((Kind.SHEAR_X, 0.7, 2), (Kind.INVERT, 0.1, 0)),
)

POLICIES: Mapping[str, tuple[_Pair, ...]] = {"imagenet": _IMAGENET, "cifar10": _CIFAR10, "svhn": _SVHN}
