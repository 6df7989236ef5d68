"""Against torchvision's own transforms of PIL images, where it is installed."""

import numpy as np
import pytest
import torch
from PIL import Image

from fastfeed.data import augment, policies, steps
from fastfeed.data.policies import Kind
from tests.data.test_augment_pixels import make_images, run
from tests.torchvision_ops import torchvision_or_skip

transforms = torchvision_or_skip("torchvision.transforms")
autoaugment = torchvision_or_skip("torchvision.transforms.autoaugment")

NAMES = {
    "Identity": Kind.NOTHING,
    "ShearX": Kind.SHEAR_X,
    "ShearY": Kind.SHEAR_Y,
    "TranslateX": Kind.TRANSLATE_X,
    "TranslateY": Kind.TRANSLATE_Y,
    "Rotate": Kind.ROTATE,
    "Brightness": Kind.BRIGHTNESS,
    "Color": Kind.SATURATION,
    "Contrast": Kind.CONTRAST,
    "Sharpness": Kind.SHARPNESS,
    "Posterize": Kind.POSTERIZE,
    "Solarize": Kind.SOLARIZE,
    "AutoContrast": Kind.AUTOCONTRAST,
    "Equalize": Kind.EQUALIZE,
    "Invert": Kind.INVERT,
}
FACTORS = ("Brightness", "Color", "Contrast", "Sharpness")
FILL = (10, 200, 33)


def of_torchvision(name, space):
    """Return [bins, 2] magnitudes, with the sign + and the sign -, in our units."""
    magnitudes, signed = space[name]
    values = magnitudes.double().reshape(-1, 1).numpy() * np.array([1, -1 if signed else 1])
    return values + 1 if name in FACTORS else values


@pytest.mark.parametrize("bins", [2, 10, 31, 32])
@pytest.mark.parametrize("cls", [autoaugment.TrivialAugmentWide, autoaugment.RandAugment])
def test_spaces(cls, bins):
    if cls is autoaugment.RandAugment:
        theirs, ours = cls()._augmentation_space(bins, (224, 192)), policies.rand_augment_space(bins, 224, 192)
    else:
        theirs, ours = cls()._augmentation_space(bins), policies.trivial_augment_space(bins)
    assert [NAMES[name] for name in theirs] == ours.kind.tolist()
    for name, magnitude in zip(theirs, ours.magnitude, strict=True):
        # PyTorch's linspace depends on the processor's vectors, in the last bits.
        expected = np.broadcast_to(of_torchvision(name, theirs), magnitude.shape)
        assert magnitude == pytest.approx(expected, rel=3e-7, abs=1e-6)
        if name in ("Posterize", "TranslateX", "TranslateY"):
            # Of 32 pixels in 31 bins the middle one is 16; there it is 15.999999 or 16, by the processor's vectors.
            assert np.array_equal(magnitude.astype(int), expected.round(5).astype(int))


@pytest.mark.parametrize("name", ["imagenet", "cifar10", "svhn"])
def test_policies(name):
    theirs = autoaugment.AutoAugment(autoaugment.AutoAugmentPolicy(name))
    space, ours = theirs._augmentation_space(10, (224, 192)), policies.auto_augment_policy(name, 224, 192)
    assert len(theirs.policies) == len(ours.kind)
    for row, pair in enumerate(theirs.policies):
        for i, (operation, probability, bin) in enumerate(pair):
            assert ours.kind[row, i] == NAMES[operation]
            assert ours.probability[row, i] == probability
            expected = np.zeros(2) if bin is None else of_torchvision(operation, space)[bin]
            assert ours.magnitude[row, i] == pytest.approx(expected, rel=3e-7, abs=1e-6)


@pytest.mark.parametrize("interpolation", ["nearest", "bilinear"])
@pytest.mark.parametrize("size", [(1, 1), (7, 5), (64, 48)])
@pytest.mark.parametrize("name", sorted(NAMES))
def test_pixels_of_the_operations(name, size, interpolation):
    mode, bilinear = transforms.InterpolationMode(interpolation), interpolation == "bilinear"
    spaces = [
        autoaugment.TrivialAugmentWide()._augmentation_space(31),
        autoaugment.AutoAugment()._augmentation_space(10, size),
    ]
    for image in make_images(*size):
        for space in spaces:
            if name not in space:
                continue
            magnitudes, signed = space[name]
            values = [sign * v for v in magnitudes.reshape(-1).tolist() for sign in ((1, -1) if signed else (1,))]
            units = [1 + v for v in values] if name in FACTORS else values
            kinds = [NAMES[name]] * len(values)
            got = run(np.repeat(image[None], len(values), axis=0), kinds, units, FILL, bilinear=bilinear)
            for value, result in zip(values, got, strict=True):
                expected = autoaugment._apply_op(Image.fromarray(image), name, value, mode, list(FILL))
                assert np.array_equal(result, np.asarray(expected)), value


def test_pixels_of_color_jitter_and_greyscale():
    functional, image = transforms.functional, make_images(33, 40)[0]
    theirs = transforms.ColorJitter(0.4, 0.4, 0.4, 0.3)
    functions = {
        Kind.BRIGHTNESS: functional.adjust_brightness,
        Kind.CONTRAST: functional.adjust_contrast,
        Kind.SATURATION: functional.adjust_saturation,
        Kind.HUE: functional.adjust_hue,
    }
    torch.manual_seed(0)
    for _ in range(30):
        order, *factors = theirs.get_params(theirs.brightness, theirs.contrast, theirs.saturation, theirs.hue)
        expected = Image.fromarray(image)
        kinds = [list(functions)[i] for i in order.tolist()]
        for i, kind in zip(order.tolist(), kinds, strict=True):
            expected = functions[kind](expected, factors[i])
        got = run(image[None], [kinds], [[factors[i] for i in order.tolist()]])
        assert np.array_equal(got[0], np.asarray(expected))
    grey = transforms.RandomGrayscale(1.0)(Image.fromarray(image))
    assert np.array_equal(run(image[None], [Kind.GRAYSCALE], [0])[0], np.asarray(grey))


@pytest.mark.parametrize("arguments", [
    {},
    {"brightness": 0.4, "hue": 0.5},
    {"brightness": 1.5, "contrast": (0.2, 3), "saturation": [1, 1], "hue": (-0.1, 0.2)},
    {"brightness": -1},
    {"contrast": (2, 1)},
    {"saturation": (-1, 1)},
    {"saturation": "much"},
    {"brightness": (1, 2, 3)},
    {"hue": 0.51},
    {"hue": (-0.6, 0.5)},
])  # fmt: skip
def test_arguments_of_color_jitter(arguments):
    try:
        theirs = transforms.ColorJitter(**arguments)
    except (TypeError, ValueError) as error:
        with pytest.raises(type(error)):
            steps.ColorJitter(**arguments)
        return
    expected = {kind: getattr(theirs, kind.name.lower()) for kind in Kind if kind.name.lower() in vars(theirs)}
    ours = steps.ColorJitter(**arguments).ranges()
    assert ours == {kind: values for kind, values in expected.items() if values is not None}


@pytest.mark.parametrize(("name", "arguments"), [
    ("TrivialAugmentWide", ()),
    ("RandAugment", ()),
    ("AutoAugment", ()),
    ("RandomGrayscale", ()),
    ("RandomInvert", ()),
    ("RandomPosterize", (4,)),
    ("RandomSolarize", (128,)),
    ("RandomAdjustSharpness", (2,)),
    ("RandomAutocontrast", ()),
    ("RandomEqualize", ()),
    ("GaussianBlur", (5,)),
    ("GaussianBlur", ([7, 3], 1.5)),
    ("GaussianBlur", ([7], [0.5, 1])),
    ("RandomApply", ((),)),
])  # fmt: skip
def test_defaults(name, arguments):
    theirs, ours = getattr(transforms, name)(*arguments), getattr(steps, name)(*arguments)
    for argument, value in vars(ours).items():
        their_value = getattr(theirs, argument)
        if isinstance(their_value, list):
            their_value = tuple(their_value)
        if argument == "fill":
            assert their_value is None  # black
            their_value = (0, 0, 0)
        assert value == getattr(their_value, "value", their_value)


@pytest.mark.parametrize("arguments", [
    (3,),
    (4,),
    (0,),
    (-1,),
    ((3, 4),),
    ((3, 5, 7),),
    ((),),
    (3, 0),
    (3, -1.0),
    (3, (0.0, 1.0)),
    (3, (2.0, 1.0)),
    (3, (1.0, 1.0)),
    (3, (1.0, 2.0, 3.0)),
    (3, "wide"),
])  # fmt: skip
def test_arguments_of_gaussian_blur(arguments):
    try:
        theirs = transforms.GaussianBlur(*arguments)
    except ValueError:
        with pytest.raises((TypeError, ValueError)):
            steps.GaussianBlur(*arguments)
        return
    ours = steps.GaussianBlur(*arguments)
    assert (ours.kernel_size, ours.sigma) == (theirs.kernel_size, theirs.sigma)


STEPS = [
    steps.RandomInvert(0.4),
    steps.RandomApply([steps.RandomPosterize(4, 0.8), steps.RandomHorizontalFlip(), steps.RandomEqualize()], 0.6),
    steps.RandomSolarize(127.5),
    steps.RandomApply([steps.RandomApply([steps.RandomAdjustSharpness(1.7, 1.0)]), steps.RandomAutocontrast()]),
    steps.RandomVerticalFlip(),
]


def of_their_classes(kinds):
    """Return torchvision's own transforms for `STEPS`, each of them sure to be done or not to, as one sample drew."""
    invert, posterize, mirror, equalize, solarize, sharpness, autocontrast, flip = (float(kind != 0) for kind in kinds)
    return transforms.Compose([
        transforms.RandomInvert(invert),
        transforms.RandomApply([
            transforms.RandomPosterize(4, posterize),
            transforms.RandomHorizontalFlip(mirror),
            transforms.RandomEqualize(equalize),
        ], max(posterize, mirror, equalize)),
        transforms.RandomSolarize(127.5, solarize),
        transforms.RandomApply([
            transforms.RandomApply([transforms.RandomAdjustSharpness(1.7, 1.0)], sharpness),
            transforms.RandomAutocontrast(autocontrast),
        ], max(sharpness, autocontrast)),
        transforms.RandomVerticalFlip(flip),
    ])  # fmt: skip


def test_pixels_of_steps_with_probabilities():
    n, size = 60, (33, 40)
    images = np.concatenate([make_images(*size, seed) for seed in range(n // 6)])
    drawn = augment.draw_operations(
        STEPS, np.arange(n), np.zeros(n, np.int64), seed=0, epoch=0, height=size[0], width=size[1]
    )
    assert (drawn.kind != 0).any(axis=0).all()
    got = run(images, drawn.kind, drawn.magnitude)
    for image, kinds, result in zip(images, drawn.kind, got, strict=True):
        assert np.array_equal(result, np.asarray(of_their_classes(kinds)(Image.fromarray(image))))


@pytest.mark.parametrize("kernel_size", [(1, 1), (3, 3), (9, 3), (23, 23), (5, 61)])
def test_pixels_of_gaussian_blur(kernel_size):
    n, size = 48, (64, 48)
    images = np.concatenate([make_images(*size, seed) for seed in range(n // 6)])
    blur = steps.GaussianBlur(kernel_size, (0.05, 3))
    drawn = augment.draw_operations(
        [blur], np.arange(n), np.zeros(n, np.int64), seed=0, epoch=0, height=size[0], width=size[1]
    )
    got = run(images, drawn.kind, drawn.magnitude, kernel_size=drawn.kernel_size)
    sigmas = drawn.magnitude[:, 0].tolist()
    theirs = [transforms.GaussianBlur(kernel_size, sigma) for sigma in sigmas]
    expected = [np.asarray(f(Image.fromarray(image))) for f, image in zip(theirs, images, strict=True)]
    difference = np.abs(got.astype(int) - expected)
    # Halves are rounded up or down by the last bit of a sum, which depends on the order of its terms.
    assert difference.max() <= 1
    assert difference.mean() < 1e-4
