"""Reading torchvision's transforms, versions 1 and 2.

The transforms are gone through in their order, as an image would: a PIL image first, then bytes or floats in a tensor.
What each does goes into one `Transform`, whose steps have an order of their own: crop, flips and colours, normalising,
erasing. Those that stand in another order are read where that makes no difference.
"""

from collections.abc import Callable, Iterable, Mapping
from types import SimpleNamespace
from typing import Any

import torch

from fastfeed.data import steps
from fastfeed.data.declarations import is_number, listed
from fastfeed.data.reading.image import Reader, Rgb, interpolation_name, rgb
from fastfeed.data.reading.reasons import TIMM, torchvision_class, why_unknown
from fastfeed.data.steps import Step
from fastfeed.data.transforms import (
    RANDOM_INTERPOLATIONS,
    CenterCrop,
    RandomCrop,
    RandomErasing,
    RandomResizedCrop,
    Transform,
)


class _OtherForm(ValueError):
    """The image is of another form than a transform takes."""


def read_transform(transform: Any) -> tuple[Transform, torch.dtype]:
    """Return what does the same as a transform of torchvision's, and the dtype that it makes.

    The results are the same up to rounding, and the distribution of what is random is the same; the README says for
    which transforms, and the command ``python -m benchmarks equality`` how close the pixels are.

    Args:
        transform: a transform of ``torchvision.transforms`` or ``torchvision.transforms.v2`` for PIL images, or a
            Compose or torch.nn.Sequential of them.

    Raises:
        Unreadable: for a transform that cannot be done, with all reasons.
    """
    reader = Reader()
    _read(reader, transform)
    return reader.result()


def _read(reader: Reader, transform: Any, role: str = "transform") -> None:
    """Read one transform, and those inside of it."""
    if type(transform) is torch.nn.Sequential:
        _read_all(reader, transform)
        return
    found, readers = torchvision_class(transform), _READERS
    if found is None:
        found, readers = torchvision_class(transform, TIMM), _OF_TIMM
    if found is None or found[1] not in readers:
        reader.reasons.append(why_unknown(transform, role))
        reader.is_lost = True
        return
    module, name = found
    v2 = module.endswith("v2")
    if reader.applying and name not in _AT_RANDOM:
        reader.reasons.append(f"RandomApply: {name} in it cannot be done at random")
        return
    try:
        readers[name](reader, transform, v2)
    except (TypeError, ValueError, AttributeError) as error:  # values that no declaration can have, or none
        if reader.is_lost and isinstance(error, _OtherForm):
            return
        message = str(error)
        reader.reasons.append(message if message.startswith(name) else f"{name}: {message}")
    if reader.type == "Image" and not v2 and name not in ("Compose", "RandomApply"):
        reader.type = None  # version 1 makes plain tensors of them, but not where it leaves them as they are


def _read_all(reader: Reader, transforms: Iterable[Any]) -> None:
    for i, transform in enumerate(transforms):
        _read(reader, transform, f"transform {i}")


# What each of the transforms is. The last argument says whether it is one of version 2.


def _read_compose(reader: Reader, compose: Any, v2: bool) -> None:
    _read_all(reader, compose.transforms)


def _read_random_apply(reader: Reader, apply: Any, v2: bool) -> None:
    before, reader.steps = reader.steps, []
    reader.applying += 1
    try:
        _read_all(reader, apply.transforms)
    finally:
        reader.applying -= 1
        inside, reader.steps = reader.steps, before
    if inside:  # none where none could be read
        reader.steps.append(steps.RandomApply(inside, apply.p))


def _read_resize(reader: Reader, resize: Any, v2: bool) -> None:
    reader.begin_crop("Resize", resizes=True)
    if resize.max_size is not None:
        raise ValueError(f"max_size is {resize.max_size}, and only None can be done")
    size = resize.size
    if not isinstance(size, int):
        sides = list(size)
        size = sides[0] if len(sides) == 1 else tuple(sides)
    reader.resize = size, "bilinear"  # known, where the interpolation is a reason
    reader.resize = size, reader.interpolation(resize)


def _read_random_resized_crop(reader: Reader, crop: Any, v2: bool) -> None:
    reader.begin_crop("RandomResizedCrop", resizes=True)
    reader.sized_by = "RandomResizedCrop"
    mode = reader.interpolation(crop)
    reader.end_crop(
        "RandomResizedCrop", lambda: RandomResizedCrop(tuple(crop.size), tuple(crop.scale), tuple(crop.ratio), mode)
    )


def _read_center_crop(reader: Reader, crop: Any, v2: bool) -> None:
    reader.begin_crop("CenterCrop", resizes=False)
    for flip in reader.early_flips:
        reader.reasons.append(f"{flip} comes before CenterCrop, whose window may be another one of the mirror image")
    size = tuple(crop.size)
    resize, mode = reader.resize or (None, "bilinear")
    if resize is None and reader.form == "float":
        reader.fill(0)  # which it pads small images with
    reader.end_crop("CenterCrop", lambda: CenterCrop(size, resize, mode))


def _read_random_crop(reader: Reader, crop: Any, v2: bool) -> None:
    reader.begin_crop("RandomCrop", resizes=False)
    reader.sized_by = reader.sized_by or "RandomCrop"
    amounts = [0] if crop.padding is None else listed(crop.padding)
    amounts = {amounts} if is_number(amounts) else set(amounts)
    if len(amounts) > 1:
        raise ValueError(f"padding is {crop.padding}, and only the same on all sides can be done")
    options: dict[str, Any] = {"padding": amounts.pop(), "pad_if_needed": crop.pad_if_needed}
    if options["padding"] or crop.pad_if_needed:
        if crop.padding_mode != "constant":
            raise ValueError(f"padding_mode is {crop.padding_mode!r}, and only 'constant' can be done")
        options["fill"] = reader.fill(crop.fill)
    if reader.resize is not None:
        options["resize"], options["interpolation"] = reader.resize
    reader.end_crop("RandomCrop", lambda: RandomCrop(tuple(crop.size), **options))


def _read_horizontal_flip(reader: Reader, flip: Any, v2: bool) -> None:
    reader.add_flip("RandomHorizontalFlip", steps.RandomHorizontalFlip(flip.p))


def _read_vertical_flip(reader: Reader, flip: Any, v2: bool) -> None:
    reader.add_flip("RandomVerticalFlip", steps.RandomVerticalFlip(flip.p))


def _read_color_jitter(reader: Reader, jitter: Any, v2: bool) -> None:
    ranges = (jitter.brightness, jitter.contrast, jitter.saturation, jitter.hue)
    reader.add_step("ColorJitter", steps.ColorJitter(*(0 if pair is None else tuple(pair) for pair in ranges)))


def _read_grayscale(reader: Reader, grayscale: Any, v2: bool) -> None:
    if grayscale.num_output_channels != 3:
        raise ValueError(f"num_output_channels is {grayscale.num_output_channels}, and only 3 can be done")
    reader.add_step("Grayscale", steps.RandomGrayscale(1.0))


def _read_random_grayscale(reader: Reader, grayscale: Any, v2: bool) -> None:
    reader.add_step("RandomGrayscale", steps.RandomGrayscale(grayscale.p))


def _read_gaussian_blur(reader: Reader, blur: Any, v2: bool) -> None:
    reader.add_step("GaussianBlur", steps.GaussianBlur(tuple(blur.kernel_size), tuple(blur.sigma)))


def _read_automatic(reader: Reader, transform: Any, v2: bool) -> None:
    name = type(transform).__name__
    mode, fill = interpolation_name(transform.interpolation), reader.fill(transform.fill)
    if mode not in steps.AUTO_INTERPOLATIONS:
        raise ValueError(f"interpolation is {mode!r}, and only 'nearest' or 'bilinear' can be done")
    step: Step
    if name == "AutoAugment":
        step = steps.AutoAugment(transform.policy.value, mode, fill)
    elif name == "RandAugment":
        step = steps.RandAugment(transform.num_ops, transform.magnitude, transform.num_magnitude_bins, mode, fill)
    else:
        step = steps.TrivialAugmentWide(transform.num_magnitude_bins, mode, fill)
    reader.add_step(name, step)


def _read_colours(cls: str, *arguments: str) -> Callable[[Reader, Any, bool], None]:
    """Read a step that has torchvision's name and arguments."""

    def read(reader: Reader, transform: Any, v2: bool) -> None:
        values = {name: getattr(transform, name) for name in (*arguments, "p")}
        reader.add_step(cls, getattr(steps, cls)(**values))

    return read


def _read_to_tensor(reader: Reader, transform: Any, v2: bool) -> None:
    if _is_tensor_already(reader, v2):
        return
    reader.form, reader.type = "uint8", "Tensor"
    reader.convert("ToTensor", torch.get_default_dtype(), scale=True)


def _read_pil_to_tensor(reader: Reader, transform: Any, v2: bool) -> None:
    if not _is_tensor_already(reader, v2):
        reader.form, reader.type = "uint8", "Tensor"


def _is_tensor_already(reader: Reader, v2: bool) -> bool:
    if reader.form != "PIL" and not v2:
        raise _OtherForm("it comes after the image is a tensor, for which torchvision raises TypeError")
    return reader.form != "PIL"  # which version 2 leaves as it is


def _read_to_image(reader: Reader, transform: Any, v2: bool) -> None:
    if reader.form == "PIL":
        reader.form = "uint8"
    reader.type = "Image"


def _read_to_pure_tensor(reader: Reader, transform: Any, v2: bool) -> None:
    if reader.form != "PIL":
        reader.type = "Tensor"


def _read_nothing(reader: Reader, transform: Any, v2: bool) -> None:
    pass  # images are RGB anyway


def _read_to_dtype(reader: Reader, transform: Any, v2: bool) -> None:
    if reader.form == "PIL":
        return  # which are left as they are
    dtype = transform.dtype
    if isinstance(dtype, Mapping):
        dtype = reader.by_type(dtype, "dtype")
        if dtype is None:
            return
    reader.convert("ToDtype", dtype, scale=transform.scale, factor=1 / 255)


def _read_convert_image_dtype(reader: Reader, transform: Any, v2: bool) -> None:
    if reader.form != "PIL":
        reader.convert("ConvertImageDtype", transform.dtype, scale=True, factor=1 / 255 if v2 else None)
    elif not v2:  # version 2 leaves PIL images as they are
        raise _OtherForm("it comes before the image is a tensor, for which torchvision raises TypeError")


def _read_normalize(reader: Reader, normalize: Any, v2: bool) -> None:
    if reader.form != "float":
        raise _OtherForm("it comes before the conversion to floats, for which torchvision raises TypeError")
    reader.rescale("Normalize", rgb(normalize.mean, "mean"), _divisors(rgb(normalize.std, "std")))


def _read_random_erasing(reader: Reader, erasing: Any, v2: bool) -> None:
    if reader.erase is not None:
        raise ValueError("there are two, and one can be done")
    if reader.form == "PIL" and not v2:
        raise _OtherForm("it comes before the image is a tensor, for which torchvision raises TypeError")
    value: Any = "random" if erasing.value is None or erasing.value == "random" else rgb(erasing.value, "value")
    if reader.form != "float" and (value == "random" or any(v != int(v) or not 0 <= v <= 255 for v in value)):
        raise _OtherForm(
            f"value is {erasing.value!r}, in bytes, before the conversion to floats, and only whole levels from 0 to "
            "255 can be done there"
        )
    reader.erase = RandomErasing(erasing.p, tuple(erasing.scale), tuple(erasing.ratio), value)


def _read_timms_crop(reader: Reader, crop: Any, v2: bool) -> None:
    """Read what is torchvision's RandomResizedCrop of PIL images, but may draw one of two interpolations."""
    mode = crop.interpolation
    if not isinstance(mode, list | tuple):
        _read_random_resized_crop(reader, SimpleNamespace(**vars(crop), antialias=True), v2)
        return
    reader.begin_crop("RandomResizedCropAndInterpolation", resizes=True)
    names = tuple(map(interpolation_name, mode))
    if names != RANDOM_INTERPOLATIONS:
        raise ValueError(f"interpolation is one of {names}, and only one of {RANDOM_INTERPOLATIONS} can be done")
    window = tuple(crop.scale), tuple(crop.ratio)
    reader.end_crop("RandomResizedCrop", lambda: RandomResizedCrop(tuple(crop.size), *window, "random"))


def _read_image_classification(reader: Reader, preset: Any, v2: bool) -> None:
    """Read what goes with torchvision's weights, ``weights.transforms()``."""
    size = tuple(preset.crop_size) * (2 // len(preset.crop_size))
    _read_resize(
        reader,
        SimpleNamespace(
            size=preset.resize_size, max_size=None, interpolation=preset.interpolation, antialias=preset.antialias
        ),
        v2,
    )
    _read_center_crop(reader, SimpleNamespace(size=size), v2)
    if reader.form == "PIL":
        _read_pil_to_tensor(reader, preset, v2)
    reader.convert("ImageClassification", torch.float32, scale=True)
    _read_normalize(reader, preset, v2)


def _divisors(std: Rgb) -> Rgb:
    if not all(value > 0 for value in std):
        raise ValueError(f"std is {std}, and only positive numbers can be done")
    return std


# Steps, which RandomApply may have in it.
_AT_RANDOM: dict[str, Callable[[Reader, Any, bool], None]] = {
    "AutoAugment": _read_automatic,
    "ColorJitter": _read_color_jitter,
    "Compose": _read_compose,
    "GaussianBlur": _read_gaussian_blur,
    "Grayscale": _read_grayscale,
    "RandAugment": _read_automatic,
    "RandomAdjustSharpness": _read_colours("RandomAdjustSharpness", "sharpness_factor"),
    "RandomApply": _read_random_apply,
    "RandomAutocontrast": _read_colours("RandomAutocontrast"),
    "RandomEqualize": _read_colours("RandomEqualize"),
    "RandomGrayscale": _read_random_grayscale,
    "RandomHorizontalFlip": _read_horizontal_flip,
    "RandomInvert": _read_colours("RandomInvert"),
    "RandomPosterize": _read_colours("RandomPosterize", "bits"),
    "RandomSolarize": _read_colours("RandomSolarize", "threshold"),
    "RandomVerticalFlip": _read_vertical_flip,
    "TrivialAugmentWide": _read_automatic,
}

_READERS: dict[str, Callable[[Reader, Any, bool], None]] = {
    **_AT_RANDOM,
    "CenterCrop": _read_center_crop,
    "ConvertImageDtype": _read_convert_image_dtype,
    "Identity": _read_nothing,
    "ImageClassification": _read_image_classification,
    "Normalize": _read_normalize,
    "PILToTensor": _read_pil_to_tensor,
    "RGB": _read_nothing,
    "RandomCrop": _read_random_crop,
    "RandomErasing": _read_random_erasing,
    "RandomResizedCrop": _read_random_resized_crop,
    "Resize": _read_resize,
    "ToDtype": _read_to_dtype,
    "ToImage": _read_to_image,
    "ToPureTensor": _read_to_pure_tensor,
    "ToTensor": _read_to_tensor,
}

# Of timm's, which has another ToTensor, that does not scale.
_OF_TIMM: dict[str, Callable[[Reader, Any, bool], None]] = {
    "MaybeToTensor": lambda reader, transform, v2: _read_to_tensor(reader, transform, True),  # tensors are left
    "RandomResizedCropAndInterpolation": _read_timms_crop,
}
