"""Which of torchvision's transforms are read, as what, and why the others are not."""

import itertools
import sys

import pytest
import torch

from fastfeed import transforms as ours
from fastfeed.data.reading import Unreadable, read_transform
from fastfeed.data.transforms import Transform
from tests.torchvision_ops import torchvision_or_skip

v1 = torchvision_or_skip("torchvision.transforms")
v2 = torchvision_or_skip("torchvision.transforms.v2")
presets = torchvision_or_skip("torchvision.transforms._presets")
tv_tensors = torchvision_or_skip("torchvision.tv_tensors")

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
PLAIN = {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}
CROP = ours.RandomResizedCrop((32, 32))


def crop():
    return v1.RandomResizedCrop(32)


def read(*transforms):
    return read_transform(v1.Compose(list(transforms)))[0]


def reasons(*transforms):
    with pytest.raises(Unreadable) as raised:
        read_transform(v1.Compose(list(transforms)))
    return raised.value.reasons


def close(got, expected):
    """Whether two transforms are equal, but for the last bits of what was computed."""
    numbers = [[*t.mean, *t.std, *(t.erase.value if t.erase is not None else ())] for t in (got, expected)]
    parts = [
        (
            *(t.crop, t.horizontal_flip, t.vertical_flip, t.augment, t.factor),
            t.erase and (t.erase.p, t.erase.scale, t.erase.ratio),
        )
        for t in (got, expected)
    ]
    return parts[0] == parts[1] and numbers[0] == pytest.approx(numbers[1], rel=1e-12, abs=1e-15)


def test_the_usual_recipe():
    recipe = [crop(), v1.RandomHorizontalFlip(0.4), v1.TrivialAugmentWide(), v1.ToTensor(), v1.Normalize(MEAN, STD)]
    recipe.append(v1.RandomErasing(0.1))
    expected = Transform(
        CROP, 0.4, augment="trivial", mean=MEAN, std=STD, erase=ours.RandomErasing(0.1, value=(0.0, 0.0, 0.0))
    )
    assert close(read(*recipe), expected)
    assert read_transform(v1.Compose(recipe))[1] == torch.float32


@pytest.mark.parametrize(("before", "expected"), [
    (lambda t: [t.RandomResizedCrop((8, 9), (0.2, 0.7), (0.5, 3.0), t.InterpolationMode.BICUBIC)],
     {"crop": ours.RandomResizedCrop((8, 9), (0.2, 0.7), (0.5, 3.0), "bicubic")}),
    (lambda t: [t.RandomResizedCrop(8, interpolation=t.InterpolationMode.LANCZOS)],
     {"crop": ours.RandomResizedCrop((8, 8), interpolation="lanczos")}),
    (lambda t: [t.RandomResizedCrop(8, interpolation=3)],  # Pillow's number
     {"crop": ours.RandomResizedCrop((8, 8), interpolation="bicubic")}),
    (lambda t: [t.Resize((8, 9), antialias=None)], {"crop": ours.Resize((8, 9))}),
    (lambda t: [t.Resize(10), t.CenterCrop((8, 9))], {"crop": ours.CenterCrop((8, 9), 10)}),
    (lambda t: [t.Resize([10], interpolation=t.InterpolationMode.BICUBIC), t.CenterCrop(8)],
     {"crop": ours.CenterCrop((8, 8), 10, "bicubic")}),
    (lambda t: [t.RandomCrop(8, padding=4, fill=7)], {"crop": ours.RandomCrop((8, 8), 4, fill=7)}),
    (lambda t: [t.RandomCrop((8, 9), pad_if_needed=True, fill=(1, 2, 3))],
     {"crop": ours.RandomCrop((8, 9), pad_if_needed=True, fill=(1, 2, 3))}),
    (lambda t: [t.RandomCrop(8, padding=[2, 2])], {"crop": ours.RandomCrop((8, 8), 2)}),
    (lambda t: [t.RandomCrop(8, padding=(3, 3, 3, 3))], {"crop": ours.RandomCrop((8, 8), 3)}),
    (lambda t: [t.RandomCrop(8, fill=0.5, padding_mode="reflect")], {"crop": ours.RandomCrop((8, 8))}),  # not padded
    (lambda t: [t.RandomHorizontalFlip(0.3), t.RandomVerticalFlip(0.2), t.RandomCrop(8)],
     {"crop": ours.RandomCrop((8, 8)), "horizontal_flip": 0.3, "vertical_flip": 0.2}),
    (lambda t: [t.RandomHorizontalFlip(0.3), t.Resize((8, 8))], {"crop": ours.Resize((8, 8)), "horizontal_flip": 0.3}),
])  # fmt: skip
@pytest.mark.parametrize("t", [v1, v2], ids=["v1", "v2"])
def test_crops(t, before, expected):
    assert read(*before(t), t.ToTensor()) == Transform(**{**PLAIN, **expected})


@pytest.mark.parametrize(("step", "expected"), [
    (lambda t: t.Grayscale(3), ours.RandomGrayscale(1.0)),
    (lambda t: t.RandomGrayscale(0.3), ours.RandomGrayscale(0.3)),
    (lambda t: t.ColorJitter(0.4, (0.5, 3), 0, (-0.1, 0.2)), ours.ColorJitter((0.6, 1.4), (0.5, 3), 0, (-0.1, 0.2))),
    (lambda t: t.ColorJitter(), ours.ColorJitter()),
    (lambda t: t.GaussianBlur((3, 5)), ours.GaussianBlur((3, 5), (0.1, 2.0))),
    (lambda t: t.GaussianBlur(7, 0.5), ours.GaussianBlur((7, 7), (0.5, 0.5))),
    (lambda t: t.RandomInvert(0.1), ours.RandomInvert(0.1)),
    (lambda t: t.RandomPosterize(3, 0.2), ours.RandomPosterize(3, 0.2)),
    (lambda t: t.RandomSolarize(99.5, 0.3), ours.RandomSolarize(99.5, 0.3)),
    (lambda t: t.RandomAdjustSharpness(1.5, 0.4), ours.RandomAdjustSharpness(1.5, 0.4)),
    (lambda t: t.RandomAutocontrast(0.6), ours.RandomAutocontrast(0.6)),
    (lambda t: t.RandomEqualize(0.7), ours.RandomEqualize(0.7)),
    (lambda t: t.RandomApply([t.ColorJitter(hue=0.1), t.RandomHorizontalFlip(), t.RandomApply([t.RandomInvert()])]),
     ours.RandomApply([ours.ColorJitter(0, 0, 0, (-0.1, 0.1)), ours.RandomHorizontalFlip(),
                       ours.RandomApply([ours.RandomInvert()])], 0.5)),
    (lambda t: t.RandomApply(torch.nn.ModuleList([t.Grayscale(3)]), p=0.25),
     ours.RandomApply([ours.RandomGrayscale(1.0)], 0.25)),
    (lambda t: t.RandomApply([t.Compose([t.RandomGrayscale(), t.RandomInvert()])], p=0.25),
     ours.RandomApply([ours.RandomGrayscale(), ours.RandomInvert()], 0.25)),
    (lambda t: t.TrivialAugmentWide(7, fill=[1, 2, 3]), ours.TrivialAugmentWide(7, fill=(1, 2, 3))),
    (lambda t: t.TrivialAugmentWide(interpolation=v1.InterpolationMode.BILINEAR),
     ours.TrivialAugmentWide(interpolation="bilinear")),
    (lambda t: t.RandAugment(3, 4, 11, v1.InterpolationMode.BILINEAR, 9), ours.RandAugment(3, 4, 11, "bilinear", 9)),
    (lambda t: t.AutoAugment(interpolation=v1.InterpolationMode.BILINEAR),
     ours.AutoAugment("imagenet", "bilinear")),
    (lambda t: t.RandAugment(3, 4, 11, fill=9), ours.RandAugment(3, 4, 11, fill=9)),
    (lambda t: t.AutoAugment(t.AutoAugmentPolicy.SVHN), ours.AutoAugment("svhn")),
    (lambda t: t.AutoAugment(), ours.AutoAugment("imagenet")),
    (lambda t: t.AutoAugment(t.AutoAugmentPolicy.CIFAR10), ours.AutoAugment("cifar10")),
])  # fmt: skip
@pytest.mark.parametrize("t", [v1, v2], ids=["v1", "v2"])
def test_steps(t, step, expected):
    assert read(crop(), step(t), t.ToTensor()) == Transform(CROP, augment=expected, **PLAIN)


def test_flips_are_left_to_the_last_pass_where_that_makes_no_difference():
    flip, jitter, auto = v1.RandomHorizontalFlip(0.3), v1.ColorJitter(0.1), v1.RandAugment()
    colours, automatic = ours.ColorJitter((0.9, 1.1)), ours.RandAugment()
    assert read(crop(), jitter, flip, v1.ToTensor()) == Transform(CROP, 0.3, augment=colours, **PLAIN)
    assert read(crop(), flip, auto, v1.ToTensor()) == Transform(CROP, 0.3, augment=automatic, **PLAIN)
    after = Transform(CROP, augment=[automatic, ours.RandomHorizontalFlip(0.3)], **PLAIN)
    assert read(crop(), auto, flip, v1.ToTensor()) == after
    assert read(crop(), auto, v1.ToTensor(), flip) == after
    twice = Transform(CROP, 0.3, augment=ours.RandomHorizontalFlip(0.2), **PLAIN)
    assert read(crop(), flip, v1.RandomHorizontalFlip(0.2), v1.ToTensor()) == twice


BY_V2 = {**PLAIN, "factor": 1 / 255}
LEVELS = {**PLAIN, "factor": 1.0}


@pytest.mark.parametrize(("after", "expected", "dtype"), [
    ([v1.ToTensor()], PLAIN, torch.float32),
    ([v1.PILToTensor(), v1.ConvertImageDtype(torch.float32)], PLAIN, torch.float32),
    ([v1.PILToTensor(), v1.ConvertImageDtype(torch.bfloat16)], PLAIN, torch.bfloat16),
    ([v1.ToTensor(), v1.ConvertImageDtype(torch.float16)], PLAIN, torch.float16),
    ([v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.ToPureTensor()], BY_V2, torch.float32),
    ([v2.ToImage(), v2.ToDtype(torch.uint8, scale=True), v2.ToDtype(torch.float32, scale=True)], BY_V2, torch.float32),
    ([v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.ToDtype(torch.float16)], BY_V2, torch.float16),
    ([v2.ToDtype(torch.float32), v2.PILToTensor(), v2.ToDtype(torch.float32)], LEVELS, torch.float32),
    ([v2.ConvertImageDtype(), v2.ToImage(), v2.ConvertImageDtype()], BY_V2, torch.float32),  # PIL images pass
    ([v2.ToImage(), v2.ToImage(), v2.PILToTensor(), v2.RGB(), v2.Identity(), v2.ToDtype(torch.float32)],
     LEVELS, torch.float32),
    ([v2.ToImage(), v2.ToDtype({tv_tensors.Image: torch.float32, "others": None}, scale=True)], BY_V2, torch.float32),
    ([v2.ToImage(), v2.ToDtype({tv_tensors.Image: None}), v2.ToDtype(torch.float32, scale=True)], BY_V2, torch.float32),
    ([v2.PILToTensor(), v2.ToDtype({torch.Tensor: torch.float16}, scale=True)], BY_V2, torch.float16),
    ([v2.PILToTensor(), v2.ToDtype({tv_tensors.Image: None, "others": torch.float32}, True)], BY_V2, torch.float32),
    ([v2.ToImage(), v2.ToPureTensor(), v2.ToDtype({torch.Tensor: torch.float32}, True)], BY_V2, torch.float32),
    ([v1.ToTensor(), v1.Normalize(MEAN, STD)], {"mean": MEAN, "std": STD}, torch.float32),
    ([v1.ToTensor(), v1.Normalize(torch.tensor(MEAN).double(), STD, inplace=True)],
     {"mean": torch.tensor(MEAN).tolist(), "std": STD}, torch.float32),
    ([v1.ToTensor(), v1.Normalize(0.5, [0.25])], {"mean": (0.5,) * 3, "std": (0.25,) * 3}, torch.float32),
    ([v2.ToImage(), v2.ToDtype(torch.float32), v2.Normalize([m * 255 for m in MEAN], [s * 255 for s in STD])],
     {"mean": tuple(m * 255 for m in MEAN), "std": tuple(s * 255 for s in STD), "factor": 1.0}, torch.float32),
    ([v1.ToTensor(), v1.Normalize((0.5,), (0.25,)), v1.Normalize((1.0, 0.5, 0.0), (2.0, 1.0, 4.0))],
     {"mean": (0.75, 0.625, 0.5), "std": (0.5, 0.25, 1.0)}, torch.float32),
])  # fmt: skip
def test_conversions(after, expected, dtype):
    transform, found = read_transform(v1.Compose([crop(), *after]))
    assert close(transform, Transform(CROP, **expected))
    assert found == dtype


def test_floats_of_the_default_dtype():
    torch.set_default_dtype(torch.float16)
    try:
        assert read_transform(v1.Compose([crop(), v1.ToTensor()]))[1] == torch.float16
    finally:
        torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize(("after", "value"), [
    ([v1.ToTensor(), v1.Normalize(0.5, 0.25), v1.RandomErasing(0.3, (0.1, 0.2), (0.5, 2.0), 0.75)], (0.75,) * 3),
    ([v1.ToTensor(), v1.RandomErasing(0.3, (0.1, 0.2), (0.5, 2.0), 0.75), v1.Normalize(0.5, 0.25)], (1.0,) * 3),
    ([v1.ToTensor(), v1.RandomErasing(0.3, (0.1, 0.2), (0.5, 2.0), (0, 0.5, 1)), v1.Normalize(0.5, 0.25)], (-2, 0, 2)),
    ([v1.PILToTensor(), v1.RandomErasing(0.3, (0.1, 0.2), (0.5, 2.0), 51), v1.ConvertImageDtype(torch.float32),
      v1.Normalize(0.5, 0.25)], (-1.2,) * 3),
    ([v2.RandomErasing(0.3, (0.1, 0.2), (0.5, 2.0), 51), v2.ToTensor(), v2.Normalize([0.5], [0.25])], (-1.2,) * 3),
])  # fmt: skip
def test_erasing(after, value):
    erase = ours.RandomErasing(0.3, (0.1, 0.2), (0.5, 2.0), value)
    assert close(read(crop(), *after), Transform(CROP, mean=(0.5,) * 3, std=(0.25,) * 3, erase=erase))


@pytest.mark.parametrize("t", [v1, v2], ids=["v1", "v2"])
def test_noise_is_erased_with_at_the_end(t):
    erase = t.RandomErasing(value="random", inplace=True)
    assert read(crop(), t.ToTensor(), t.Normalize([0.5], [0.5]), erase).erase == ours.RandomErasing(value="random")


def test_crops_and_flips_of_floats():
    floats = [v1.ToTensor(), v1.RandomHorizontalFlip(), v1.RandomCrop(8, padding=2, fill=1), v1.Normalize(0.5, 0.5)]
    expected = Transform(ours.RandomCrop((8, 8), 2, fill=255), 0.5, mean=(0.5,) * 3, std=(0.5,) * 3)
    assert read(*floats) == expected
    assert reasons(*floats[:2], v1.Normalize(MEAN, STD), v1.RandomCrop(8, padding=2)) == [
        "RandomCrop: fill is 0, in levels 123.7, 116.3, 103.5, and only whole levels from 0 to 255 can be done"
    ]
    assert read(v1.Resize(10), v1.ToTensor(), v1.CenterCrop(8)).crop == ours.CenterCrop((8, 8), 10)


@pytest.mark.parametrize(("options", "expected"), [
    ({}, ours.CenterCrop((224, 224), 256)),
    ({"resize_size": 232, "interpolation": v1.InterpolationMode.BICUBIC}, ours.CenterCrop((224, 224), 232, "bicubic")),
])  # fmt: skip
def test_transforms_of_weights(options, expected):
    preset = presets.ImageClassification(crop_size=224, **options)
    assert read_transform(preset) == (Transform(expected, mean=MEAN, std=STD), torch.float32)
    assert read(v2.ToImage(), preset) == Transform(expected, mean=MEAN, std=STD)
    assert reasons(v1.ToTensor(), preset) == [f"Resize {AFTER_FLOATS}"]
    preset.antialias = None
    assert read(preset) == Transform(expected, mean=MEAN, std=STD)
    assert reasons(v1.PILToTensor(), preset) == [
        "ImageClassification: antialias is None, which tensors are resized with, and only True can be done"
    ]


def test_what_timm_makes_for_its_models():
    create_transform = pytest.importorskip("timm.data").create_transform
    normalized = {"mean": torch.tensor(MEAN).tolist(), "std": torch.tensor(STD).tolist()}
    evaluates = read_transform(create_transform(224, crop_pct=0.9, interpolation="bicubic"))
    assert evaluates == (Transform(ours.CenterCrop((224, 224), 248, "bicubic"), **normalized), torch.float32)
    for interpolation in ("random", "bilinear"):
        trains = create_transform(192, is_training=True, interpolation=interpolation, color_jitter=0.1)
        crop = ours.RandomResizedCrop((192, 192), interpolation=interpolation)
        expected = Transform(crop, 0.5, augment=ours.ColorJitter((0.9, 1.1), (0.9, 1.1), (0.9, 1.1)), **normalized)
        assert close(read(*trains.transforms), expected)


def test_what_of_timms_cannot_be_done():
    data = pytest.importorskip("timm.data")
    augmented = data.create_transform(224, is_training=True, auto_augment="rand-m9", re_prob=0.1)
    assert reasons(*augmented.transforms) == [
        f"timm's {name} has no equivalent; fastfeed.transforms.timm_train and timm_eval are its recipes"
        for name in ("RandAugment", "RandomErasing")
    ]
    assert reasons(crop(), data.transforms.ToTensor(), v1.Normalize(MEAN, STD)) == [  # not torchvision's: levels stay
        "timm's ToTensor has no equivalent; fastfeed.transforms.timm_train and timm_eval are its recipes",
    ]
    after = [v1.RandomErasing(), v1.ConvertImageDtype(torch.float32), v1.Normalize(MEAN, STD), v1.Grayscale(1)]
    assert reasons(crop(), _Own(), *after) == [  # what does not depend on the form it left is still said
        "_Own is no transform of torchvision's",
        "Grayscale: num_output_channels is 1, and only 3 can be done",
    ]
    odd = data.transforms.RandomResizedCropAndInterpolation(8, interpolation="random")
    odd.interpolation = odd.interpolation[::-1]
    assert "and only one of ('bilinear', 'bicubic') can be done" in reasons(odd, v1.ToTensor())[0]


def test_nested_composes():
    parts = [v2.RandomResizedCrop(32), v2.RandomHorizontalFlip(), v2.PILToTensor(), v1.ConvertImageDtype(torch.float32)]
    expected = Transform(CROP, 0.5, **PLAIN)
    assert read(v2.Compose(parts[:2]), v1.Compose([torch.nn.Sequential(*parts[2:])])) == expected
    assert read_transform(torch.nn.Sequential(*parts))[0] == expected


class _Flip(v1.RandomHorizontalFlip):
    pass


class _Own:
    def __call__(self, image):
        return image


def _named(image):
    return image


def _hooked():
    flip = v1.RandomHorizontalFlip()
    flip.forward = _named
    return flip


ODD_NORMALIZE = v1.Normalize(MEAN, STD)
ODD_NORMALIZE.std = (0.5, -1, 0.5)
CROPS_ONCE = "and there can be one crop"
AFTER_FLOATS = "comes after the conversion to floats, where torchvision does not round to levels"
LEVELS_ONLY = "and only whole levels from 0 to 255 can be done"
EARLY = "and pixels can only be changed after the crop"
DTYPES = "and only torch.float32, torch.float16 or torch.bfloat16 can be done"
TENSOR_ALREADY = "it comes after the image is a tensor, for which torchvision raises TypeError"
NOT_YET_FLOAT = "it comes before the conversion to floats, for which torchvision raises TypeError"


@pytest.mark.parametrize(("transforms", "expected"), [
    ([crop(), lambda x: x], ["transform 1 is a function, whose workings cannot be read"]),
    ([crop(), _named], ["_named is a function, whose workings cannot be read"]),
    ([crop(), v1.Lambda(_named)], ["Lambda(...) is a function, whose workings cannot be read"]),
    ([crop(), v1.RandomPerspective(), v2.AugMix()],
     ["RandomPerspective(...) has no equivalent", "AugMix(...) has no equivalent"]),
    ([crop(), _Flip()], ["_Flip is a subclass of RandomHorizontalFlip, whose workings cannot be read"]),
    ([crop(), _Own(), None], ["_Own is no transform of torchvision's", "NoneType is no transform of torchvision's"]),
    ([crop(), _hooked()], ["RandomHorizontalFlip(...) has methods or hooks of its own"]),
    ([v1.ToTensor()], ["nothing makes the images one size"]),
    ([v1.Resize(9), v1.ToTensor()],
     ["nothing makes the images one size: Resize(9) sets the short side alone"]),
    ([crop()], ["nothing converts the images to floats: they would stay PIL images"]),
    ([crop(), v2.ToDtype(torch.float32)], ["nothing converts the images to floats: they would stay PIL images"]),
    ([crop(), v2.ToImage()], ["nothing converts the images to floats: they would stay uint8"]),
    ([v1.Resize((9, 9), interpolation=v1.InterpolationMode.NEAREST)],
     ["Resize: interpolation is 'nearest', and only 'bilinear', 'bicubic' or 'lanczos' can be done"]),
    ([v2.RandomResizedCrop(9, interpolation="box")],
     ["RandomResizedCrop: interpolation is 'box', and only 'bilinear', 'bicubic' or 'lanczos' can be done"]),
    ([v1.PILToTensor(), v1.Resize((9, 9), antialias=False)],
     ["Resize: antialias is False, which tensors are resized with, and only True can be done"]),
    ([v2.ToImage(), v2.RandomResizedCrop(9, antialias=None)],
     ["RandomResizedCrop: antialias is None, which tensors are resized with, and only True can be done"]),
    ([v1.Resize(9, max_size=20), v1.CenterCrop(9)], ["Resize: max_size is 20, and only None can be done"]),
    ([v1.Resize(9), v1.CenterCrop(10)],
     ["CenterCrop: size is (10, 10), larger than resize, 9: the window would stick out of the image. Make resize at "
      "least as large as size"]),
    ([crop(), v1.CenterCrop(9)], [f"CenterCrop comes after RandomResizedCrop, {CROPS_ONCE}"]),
    ([v1.RandomCrop(8), v1.Resize((9, 9))], [f"Resize comes after RandomCrop, {CROPS_ONCE}"]),
    ([v1.Resize(9), crop()], ["RandomResizedCrop comes after Resize, and images can be resized once"]),
    ([v1.ColorJitter(), v1.RandomGrayscale(), crop()],
     [f"ColorJitter comes before RandomResizedCrop, {EARLY}",
      f"RandomGrayscale comes before RandomResizedCrop, {EARLY}"]),
    ([v1.Resize((9, 9)), v1.ColorJitter(), v1.RandomCrop(8)], [f"ColorJitter comes before RandomCrop, {EARLY}"]),
    ([v1.RandomHorizontalFlip(), v1.Resize(9), v1.CenterCrop(8)],
     ["RandomHorizontalFlip comes before CenterCrop, whose window may be another one of the mirror image"]),
    ([v1.RandomCrop(8, padding=(1, 2))], ["RandomCrop: padding is (1, 2), and only the same on all sides can be done"]),
    ([v1.RandomCrop(8, padding=4, padding_mode="reflect")],
     ["RandomCrop: padding_mode is 'reflect', and only 'constant' can be done"]),
    ([v1.RandomCrop(8, padding=4, fill=300)], [f"RandomCrop: fill is 300, {LEVELS_ONLY}"]),
    ([v1.RandomCrop(8, padding=-1)], ["RandomCrop: padding is -1; expected at least 0"]),
    ([crop(), v1.RandomApply([v1.RandomErasing(), v1.RandomInvert(), lambda x: x]), v1.ToTensor()],
     ["RandomApply: RandomErasing in it cannot be done at random",
      "transform 2 is a function, whose workings cannot be read"]),
    ([v1.RandomApply([crop()])], ["RandomApply: RandomResizedCrop in it cannot be done at random"]),
    ([v1.RandomApply([v1.RandomInvert()]), crop()], [f"RandomInvert comes before RandomResizedCrop, {EARLY}"]),
    ([crop(), v1.ToTensor(), v1.RandomApply([v1.RandomInvert()])], [f"RandomInvert {AFTER_FLOATS}"]),
    ([crop(), v1.RandomPosterize(0)], ["RandomPosterize: bits is 0; expected 1 to 8"]),
    ([v1.RandomResizedCrop(4), v1.GaussianBlur(9), v1.ToTensor()],
     ["GaussianBlur: kernel_size is 9 x 9 (width x height), too large for images of 4 x 4 pixels to be reflected at "
      "their edges; expected at most 7 x 7, or larger images"]),
    ([crop(), v1.Grayscale()], ["Grayscale: num_output_channels is 1, and only 3 can be done"]),
    ([crop(), v1.RandAugment(interpolation=v1.InterpolationMode.BICUBIC)],
     ["RandAugment: interpolation is 'bicubic', and only 'nearest' or 'bilinear' can be done"]),
    ([crop(), v1.RandAugment(), v1.AutoAugment(interpolation=v1.InterpolationMode.BILINEAR), v1.ToTensor()],
     ["the steps have different interpolations, bilinear and nearest; give all the same"]),
    ([crop(), v1.RandAugment(magnitude=31)], ["RandAugment: magnitude is 31; expected 0 to 30"]),
    ([crop(), v2.AutoAugment(fill=1.5)], [f"AutoAugment: fill is 1.5, {LEVELS_ONLY}"]),
    ([crop(), v2.AutoAugment(fill={tv_tensors.Image: 3})], ["AutoAugment: fill has nothing for images of type PIL"]),
    ([crop(), v1.TrivialAugmentWide(fill=[1.0, 2.0])],
     ["TrivialAugmentWide: fill is [1.0, 2.0], and only one number, or one each for R, G and B, can be done"]),
    ([crop(), v1.RandAugment(fill=[1]), v1.AutoAugment(fill=[2]), v1.ToTensor()],
     ["the steps have different fills, (1, 1, 1) and (2, 2, 2); give all the same"]),
    ([v1.ToTensor(), crop()], [f"RandomResizedCrop {AFTER_FLOATS}"]),
    ([v1.ToTensor(), v1.Resize((9, 9))], [f"Resize {AFTER_FLOATS}"]),
    ([crop(), v1.ToTensor(), v1.ColorJitter(0.1)], [f"ColorJitter {AFTER_FLOATS}"]),
    ([crop(), v1.ToTensor(), v1.ToTensor()], [f"ToTensor: {TENSOR_ALREADY}"]),
    ([crop(), v1.PILToTensor(), v1.PILToTensor()], [f"PILToTensor: {TENSOR_ALREADY}"]),
    ([crop(), v1.ConvertImageDtype(torch.float32)],
     ["ConvertImageDtype: it comes before the image is a tensor, for which torchvision raises TypeError"]),
    ([crop(), v1.PILToTensor(), v1.ConvertImageDtype(torch.float64)],
     [f"ConvertImageDtype: dtype is torch.float64, {DTYPES}"]),
    ([crop(), v1.PILToTensor(), v1.ConvertImageDtype(torch.int32)],
     [f"ConvertImageDtype: dtype is torch.int32, {DTYPES}"]),
    ([crop(), v2.ToTensor(), v2.ToDtype(torch.uint8, scale=True)], [f"ToDtype: dtype is torch.uint8, {DTYPES}"]),
    ([crop(), v2.ToImage(), v2.ToDtype({torch.Tensor: torch.float32})],
     ["ToDtype: dtype has nothing for images of type Image"]),
    ([crop(), v2.ToImage(), v1.RandomHorizontalFlip(), v2.ToDtype({torch.Tensor: torch.float32})],
     ["ToDtype: dtype is a dict, and transforms of version 1 before it leave open what the image is"]),
    ([crop(), v1.PILToTensor(), v1.Normalize(MEAN, STD)], [f"Normalize: {NOT_YET_FLOAT}"]),
    ([crop(), v1.Normalize(MEAN, STD), v1.ToTensor()], [f"Normalize: {NOT_YET_FLOAT}"]),
    ([crop(), v1.ToTensor(), ODD_NORMALIZE],
     ["Normalize: std is (0.5, -1.0, 0.5), and only positive numbers can be done"]),
    ([crop(), v1.ToTensor(), v1.Normalize((0.5, 0.5), (1, 1))],
     ["Normalize: mean is (0.5, 0.5), and only one number, or one each for R, G and B, can be done"]),
    ([crop(), v1.ToTensor(), v1.RandomErasing(value="random"), v1.Normalize(MEAN, STD)],
     ["Normalize: it comes after RandomErasing with value='random', noise that Normalize would rescale"]),
    ([crop(), v1.RandomErasing()],
     ["RandomErasing: it comes before the image is a tensor, for which torchvision raises TypeError"]),
    ([crop(), v1.PILToTensor(), v1.RandomErasing(value=0.5)],
     ["RandomErasing: value is 0.5, in bytes, before the conversion to floats, and only whole levels from 0 to 255 can "
      "be done there"]),
    ([crop(), v1.ToTensor(), v1.RandomErasing(), v1.RandomErasing()],
     ["RandomErasing: there are two, and one can be done"]),
    ([v1.ToTensor(), v1.RandomErasing(), v1.RandomCrop(8)],
     ["RandomCrop comes after RandomErasing, and can only be done before it"]),
    ([crop(), v1.PILToTensor(), v1.RandomErasing(), v1.ColorJitter()],
     ["ColorJitter comes after RandomErasing, and can only be done before it"]),
])  # fmt: skip
def test_what_cannot_be_done_is_named(transforms, expected):
    assert reasons(*transforms) == expected


def test_all_reasons_come_at_once():
    found = reasons(v1.ColorJitter(0.1), v1.Resize(9, max_size=20), v1.FiveCrop(8), v1.ToTensor(), v1.AugMix())
    assert found == [
        f"ColorJitter comes before Resize, {EARLY}",
        "Resize: max_size is 20, and only None can be done",
        "FiveCrop(...) has no equivalent",
        "AugMix(...) has no equivalent",
    ]


def test_every_transform_is_read_or_named():
    """Of all classes that torchvision has, made with what each needs."""
    needed = {
        **dict.fromkeys(("CenterCrop", "FiveCrop", "TenCrop", "RandomCrop", "RandomResizedCrop", "Resize"), (8,)),
        "Compose": ([v1.CenterCrop(8)],),
        "ConvertImageDtype": (torch.float32,),
        "GaussianBlur": (3,),
        "Lambda": (_named,),
        "LinearTransformation": (torch.eye(3), torch.zeros(3)),
        "Normalize": (MEAN, STD),
        "Pad": (1,),
        **dict.fromkeys(("RandomApply", "RandomChoice", "RandomOrder"), ([v1.ColorJitter()],)),
        "RandomAdjustSharpness": (2,),
        "RandomAffine": (10,),
        "RandomPosterize": (3,),
        "RandomRotation": (10,),
        "RandomSolarize": (128,),
    }
    for name in itertools.chain(v1.transforms.__all__, ("AutoAugment", "RandAugment", "TrivialAugmentWide", "AugMix")):
        if name == "InterpolationMode":
            continue
        transform = getattr(v1, name)(*needed.get(name, ()))
        with pytest.raises(Unreadable) as raised:  # alone, each lacks something at least
            read_transform(transform)
        assert all(isinstance(reason, str) and reason for reason in raised.value.reasons)


def test_a_transform_without_torchvision(monkeypatch):
    """Nothing is imported, and nothing of torchvision's is there to be recognised."""
    for module in ("torchvision.transforms", "torchvision.transforms.v2", "torchvision.transforms._presets"):
        monkeypatch.delitem(sys.modules, module)
    with pytest.raises(Unreadable, match="Compose is no transform of torchvision's"):
        read_transform(v1.Compose([crop()]))
