"""The image on its way through torchvision's transforms, and what was made of them so far."""

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import PIL.Image
import torch

from fastfeed.data.declarations import is_number, listed
from fastfeed.data.reading.reasons import Unreadable
from fastfeed.data.steps import RandomHorizontalFlip, RandomVerticalFlip, Step, mirrors_alike
from fastfeed.data.transforms import INTERPOLATIONS, Crop, RandomErasing, Resize, Size, Transform

DTYPES = (torch.float32, torch.float16, torch.bfloat16)

_PIL_INTERPOLATIONS = ("nearest", "lanczos", "bilinear", "bicubic", "box", "hamming")  # by Pillow's numbers
_WHOLE = 1e-3  # of a level: what arithmetic in floats may leave of a whole number

Rgb = tuple[float, float, float]


class Reader:
    """An image on its way through the transforms, and what was made of them so far.

    Values of the image are (level / white - mean) / std, of levels from 0 to 255, in every form that it takes.
    """

    def __init__(self) -> None:
        self.reasons: list[str] = []
        self.form = "PIL"  # or "uint8" or "float", of a tensor
        self.type: str | None = "PIL"  # or "Tensor" or torchvision's "Image"; None where it may be either
        self.white = 1.0  # 255 once it has been scaled, be it by a division or
        self.factor: float | None = 1.0  # by what levels are multiplied
        self.mean: Rgb = (0.0, 0.0, 0.0)
        self.std: Rgb = (1.0, 1.0, 1.0)
        self.dtype = torch.float32
        self.resize: tuple[Size, str] | None = None  # size and interpolation, until it is known what follows
        self.crop: Crop | None = None
        self.sized_by: str | None = None  # the transform that made the images one size, readable or not
        self.steps: list[Step] = []
        self.early: list[str] = []  # what changes pixels, before any crop or resize
        self.early_flips: list[str] = []
        self.erase: RandomErasing | None = None
        self.applying = 0  # RandomApply, nested
        self.is_lost = False  # after what nobody knows, the image may be of any form

    def result(self) -> tuple[Transform, torch.dtype]:
        """Return what was read.

        Raises:
            Unreadable: if anything could not be, or is missing.
        """
        crop = self.crop
        if not self.reasons:  # what cannot be read may do what is missing
            if crop is None and self.resize is not None and isinstance(self.resize[0], tuple):
                crop = Resize(*self.resize)
            if crop is None:
                short = "" if self.resize is None else f": Resize({self.resize[0]}) sets the short side alone"
                self.reasons.append(f"nothing makes the images one size{short}")
            if self.form != "float":
                what = "PIL images" if self.form == "PIL" else "uint8"
                self.reasons.append(f"nothing converts the images to floats: they would stay {what}")
        if not self.reasons:
            assert crop is not None
            steps, flips = _part_flips(self.steps)
            try:
                transform = Transform(crop, *flips, steps, self.mean, self.std, self.erase, self.factor)
            except (TypeError, ValueError) as error:
                self.reasons.append(str(error))
            else:
                return transform, self.dtype
        raise Unreadable(self.reasons)

    # What the transforms have in common.

    def add_step(self, name: str, step: Step) -> None:
        """Note a step that changes pixels."""
        if self.form == "float":
            self.reasons.append(
                f"{name} comes after the conversion to floats, where torchvision does not round to levels"
            )
        if self.erase is not None:
            self.reasons.append(f"{name} comes after RandomErasing, and can only be done before it")
        if self.sized_by is None:
            self.early.append(name)
        self.steps.append(step)

    def add_flip(self, name: str, step: Step) -> None:
        """Note a flip, which goes with floats and erased pixels too."""
        if self.sized_by is None:
            self.early_flips.append(name)
        self.steps.append(step)

    def begin_crop(self, name: str, *, resizes: bool) -> None:
        """Check that a crop, or a resize, may stand here."""
        if self.sized_by is not None:
            self.reasons.append(f"{name} comes after {self.sized_by}, and there can be one crop")
        if resizes and self.resize is not None:
            self.reasons.append(f"{name} comes after Resize, and images can be resized once")
        if resizes and self.form == "float":
            self.reasons.append(
                f"{name} comes after the conversion to floats, where torchvision does not round to levels"
            )
        if self.erase is not None:
            self.reasons.append(f"{name} comes after RandomErasing, and can only be done before it")
        for early in self.early:
            self.reasons.append(f"{early} comes before {name}, and pixels can only be changed after the crop")
        self.early.clear()

    def end_crop(self, name: str, crop: Callable[[], Crop]) -> None:
        """Take a crop; `crop` declares it."""
        self.sized_by = self.sized_by or name
        self.crop = crop()

    def interpolation(self, transform: Any) -> str:
        """Return how a transform resizes.

        Raises:
            ValueError: for a way that cannot be done.
        """
        mode = interpolation_name(transform.interpolation)
        if mode not in INTERPOLATIONS:
            raise ValueError(f"interpolation is {mode!r}, and only {_either(map(repr, INTERPOLATIONS))} can be done")
        # Of PIL images always, whatever it says; None was version 1's False for tensors.
        if self.form != "PIL" and not transform.antialias:
            raise ValueError(
                f"antialias is {transform.antialias}, which tensors are resized with, and only True can be done"
            )
        return mode

    def fill(self, fill: Any) -> tuple[int, int, int]:
        """Return what a transform fills with, in levels.

        Raises:
            ValueError: for what is no level.
        """
        if isinstance(fill, Mapping):
            fill = self.by_type(fill, "fill")
        values = rgb(0 if fill is None else fill, "fill")
        levels = tuple(self.white * (value * s + m) for value, m, s in zip(values, self.mean, self.std, strict=True))
        whole = tuple(round(level) for level in levels)
        if any(abs(level - near) > _WHOLE or not 0 <= near <= 255 for level, near in zip(levels, whole, strict=True)):
            which = f"in levels {', '.join(f'{level:.4g}' for level in levels)}, " if self.form == "float" else ""
            raise ValueError(f"fill is {fill!r}, {which}and only whole levels from 0 to 255 can be done")
        return whole  # type: ignore[return-value]  # of three

    def by_type(self, mapping: Mapping[Any, Any], what: str) -> Any:
        """Return what a mapping has for images as they are now.

        Raises:
            ValueError: where that is not known, or nothing.
        """
        if self.type is None:
            raise ValueError(f"{what} is a dict, and transforms of version 1 before it leave open what the image is")
        for key, value in mapping.items():
            if key != "others" and _type_name(key) == self.type:
                return value
        if "others" not in mapping:
            raise ValueError(f"{what} has nothing for images of type {self.type}")
        return mapping["others"]

    def convert(self, name: str, dtype: Any, *, scale: bool, factor: float | None = None) -> None:
        """Convert a tensor's dtype; with `scale`, to the range from 0 to 1, by `factor` in place of a division.

        Raises:
            ValueError: for a dtype that cannot be made.
        """
        if dtype == torch.uint8 and self.form == "uint8":
            return
        if isinstance(dtype, torch.dtype) and dtype.is_floating_point:
            if self.form == "uint8" and scale:
                self.white, self.factor = 255.0, factor
                self._rescale_erased(name, (0.0, 0.0, 0.0), (255.0, 255.0, 255.0))
            self.form, self.dtype = "float", dtype
        if dtype not in DTYPES:
            raise ValueError(f"dtype is {dtype}, and only {_either(map(str, DTYPES))} can be done")

    def rescale(self, name: str, mean: Rgb, std: Rgb) -> None:
        """Make (value - mean) / std of every value.

        Raises:
            ValueError: where the noise of RandomErasing would be rescaled.
        """
        self.mean = _each(lambda a, s, m: a + s * m, self.mean, self.std, mean)
        self.std = _each(lambda s, m, t: s * t, self.std, mean, std)
        self._rescale_erased(name, mean, std)

    def _rescale_erased(self, name: str, mean: Rgb, std: Rgb) -> None:
        if self.erase is None:
            return
        if self.erase.value == "random":
            raise ValueError(f"it comes after RandomErasing with value='random', noise that {name} would rescale")
        erased = rgb(self.erase.value, "value")
        self.erase = dataclasses.replace(self.erase, value=_each(lambda v, m, t: (v - m) / t, erased, mean, std))


def _part_flips(steps: Sequence[Step]) -> tuple[list[Step], tuple[float, float]]:
    """Take out the flips that the last pass can do for nothing: one of each direction, with only what mirrors alike
    before it.
    """
    rest: list[Step] = []
    horizontal, vertical = 0.0, 0.0
    for step in steps:
        if isinstance(step, RandomHorizontalFlip) and horizontal == 0 and mirrors_alike(rest):
            horizontal = step.p
        elif isinstance(step, RandomVerticalFlip) and vertical == 0 and mirrors_alike(rest):
            vertical = step.p
        else:
            rest.append(step)
    return rest, (horizontal, vertical)


def interpolation_name(mode: Any) -> str:
    """Return the name of an InterpolationMode, of its value, or of Pillow's number for it."""
    value = getattr(mode, "value", mode)
    if isinstance(value, int) and 0 <= value < len(_PIL_INTERPOLATIONS):
        return _PIL_INTERPOLATIONS[value]
    return str(value)


def _type_name(key: Any) -> str | None:
    if key is PIL.Image.Image:
        return "PIL"
    if key is torch.Tensor:
        return "Tensor"
    is_image = getattr(key, "__name__", "") == "Image" and getattr(key, "__module__", "").startswith("torchvision.")
    return "Image" if is_image else None


def rgb(values: Any, name: str) -> Rgb:
    """Return three numbers for one or three.

    Raises:
        ValueError: for another count.
        TypeError: for what is no number.
    """
    items = listed(values)
    items = (items,) if is_number(items) else tuple(items)
    if len(items) not in (1, 3):
        raise ValueError(f"{name} is {values!r}, and only one number, or one each for R, G and B, can be done")
    red, green, blue = (float(item) for item in items * (3 // len(items)))
    return red, green, blue


def _each(function: Callable[[float, float, float], float], a: Rgb, b: Rgb, c: Rgb) -> Rgb:
    red, green, blue = map(function, a, b, c)
    return red, green, blue


def _either(names: Iterable[str]) -> str:
    *first, last = names
    return f"{', '.join(first)} or {last}"
