"""The operations in C++ against Pillow, called as torchvision calls it: bit for bit."""

import gc
import math
import weakref

import numpy as np
import pytest
import torch
from PIL import Image, ImageEnhance, ImageOps

from fastfeed._extension import extension
from fastfeed.data.augment import Operations, augment_, submit_augment_
from fastfeed.data.policies import Kind

FILL = (10, 200, 33)
SIZES = ((1, 1), (1, 9), (8, 1), (2, 2), (3, 3), (7, 5), (64, 48), (33, 100))
FACTORS = (0, 0.01, 0.3, 0.5, 0.77, 0.999, 1, 1.01, 1.5, 1.99, 5, 1000, -1, 3e38)
SHEARS = (0, 0.01, 0.3, 0.333, 0.99, -0.99, -0.5, -0.07, 5, 1e9)
SHIFTS = (0, 0.99, 1, 2.5, -1, -1.7, 31.9, -32, 1e4, -1e9, 3e38)
MAGNITUDES = {
    Kind.BRIGHTNESS: FACTORS,
    Kind.CONTRAST: FACTORS,
    Kind.SATURATION: FACTORS,
    Kind.SHARPNESS: FACTORS,
    Kind.HUE: (-0.5, -0.3, -0.1, -0.003, 0, 0.001, 0.07, 0.2, 0.31, 0.44, 0.5),
    Kind.POSTERIZE: (1, 2, 3, 4.9, 5, 6, 7, 8),
    Kind.SOLARIZE: (-3, 0, 0.5, 1, 100, 127.5, 128, 255, 256, 1e5),
    Kind.SHEAR_X: SHEARS,
    Kind.SHEAR_Y: SHEARS,
    Kind.TRANSLATE_X: SHIFTS,
    Kind.TRANSLATE_Y: SHIFTS,
    Kind.ROTATE: (0, 90, 180, 270, 360, -90, 720, 45, 30, 60, 135, -135, 4.5, -171.3, 1e-14, -1e-15, 1e6),
}
GEOMETRY = [Kind.SHEAR_X, Kind.SHEAR_Y, Kind.TRANSLATE_X, Kind.TRANSLATE_Y, Kind.ROTATE]
PILLOWS = [kind for kind in Kind if kind != Kind.GAUSSIAN_BLUR]  # which torchvision does itself: test_blur.py


def pool():
    return extension().Pool(2)


def pillow(kind, image, magnitude, fill=FILL, bilinear=False):
    """What torchvision's transforms of PIL images make of [H, W, 3] uint8, by Pillow alone."""
    im, m = Image.fromarray(image), float(np.float32(magnitude))
    resample = Image.Resampling.BILINEAR if bilinear else Image.Resampling.NEAREST

    def transform(*matrix):
        return im.transform(im.size, Image.Transform.AFFINE, matrix, resample, fillcolor=fill)

    def adjust_hue():
        h, s, v = im.convert("HSV").split()
        shifted = (np.array(h).astype(int) + int(m * 255)) % 256
        return Image.merge("HSV", (Image.fromarray(shifted.astype(np.uint8)), s, v)).convert("RGB")

    angle = math.radians(math.degrees(math.atan(m)))
    functions = {
        Kind.NOTHING: lambda: im,
        Kind.HORIZONTAL_FLIP: lambda: ImageOps.mirror(im),
        Kind.VERTICAL_FLIP: lambda: ImageOps.flip(im),
        Kind.GRAYSCALE: lambda: im.convert("L").convert("RGB"),
        Kind.BRIGHTNESS: lambda: ImageEnhance.Brightness(im).enhance(m),
        Kind.CONTRAST: lambda: ImageEnhance.Contrast(im).enhance(m),
        Kind.SATURATION: lambda: ImageEnhance.Color(im).enhance(m),
        Kind.HUE: adjust_hue,
        Kind.SHARPNESS: lambda: ImageEnhance.Sharpness(im).enhance(m),
        Kind.POSTERIZE: lambda: ImageOps.posterize(im, int(m)),
        Kind.SOLARIZE: lambda: ImageOps.solarize(im, m),
        Kind.AUTOCONTRAST: lambda: ImageOps.autocontrast(im),
        Kind.EQUALIZE: lambda: ImageOps.equalize(im),
        Kind.INVERT: lambda: ImageOps.invert(im),
        Kind.SHEAR_X: lambda: transform(1, math.tan(angle), 0, 0, 1, 0),
        Kind.SHEAR_Y: lambda: transform(1, 0, 0, math.sin(angle) / math.cos(angle), 1, 0),
        Kind.TRANSLATE_X: lambda: transform(1, 0, -math.trunc(m), 0, 1, 0),
        Kind.TRANSLATE_Y: lambda: transform(1, 0, 0, 0, 1, -math.trunc(m)),
        Kind.ROTATE: lambda: im.rotate(m, resample, fillcolor=fill),
    }
    return np.asarray(functions[kind]())


def make_images(height, width, seed=0):
    """Noise, noise of few levels, a ramp, one level, two levels, and colours that differ little: [6, H, W, 3]."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width]
    ramp = np.stack([3 * y + x, 5 * x, 7 * y], axis=-1) % 256
    level = np.full((height, width, 3), 77)
    noise = rng.integers(0, 256, (height, width, 3))
    few = rng.integers(100, 140, (height, width, 3))
    two = np.where(noise < 30, 0, 255)
    close = rng.integers(0, 254, (height, width, 1)) + rng.integers(0, 3, (height, width, 3))
    return np.stack([noise, few, ramp, level, two, close]).astype(np.uint8)


def run(images, kind, magnitude, fill=FILL, kernel_size=None, bilinear=False):
    """Do operations [N] or [N, K] on a copy; `kernel_size`, of blurs, is [N, K, 2]."""
    kind, magnitude = np.array(kind, np.uint8), np.array(magnitude, np.float32)
    if kind.ndim == 1:
        kind, magnitude = kind[:, None], magnitude[:, None]
    operations = Operations(kind, magnitude, fill, kernel_size, bilinear)
    return augment_(torch.from_numpy(np.array(images)), operations, pool()).numpy()


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("kind", PILLOWS)
def test_every_operation_is_pillows(kind, size):
    images = make_images(*size)
    for magnitude in MAGNITUDES.get(kind, (0,)):
        got = run(images, [kind] * len(images), [magnitude] * len(images))
        for image, result in zip(images, got, strict=True):
            assert np.array_equal(result, pillow(kind, image, magnitude)), magnitude


@pytest.mark.parametrize("kind", GEOMETRY)
def test_bilinear_geometry_is_pillows(kind):
    interpolated = 0
    for height, width in [*zip(range(1, 41), np.random.default_rng(0).permutation(40) + 1, strict=True), (1, 1)]:
        images = make_images(height, width)[::2]
        for magnitude in MAGNITUDES[kind]:
            got = run(images, [kind] * 3, [magnitude] * 3, bilinear=True)
            for image, result in zip(images, got, strict=True):
                assert np.array_equal(result, pillow(kind, image, magnitude, bilinear=True)), (magnitude, height)
            interpolated += not np.array_equal(got, run(images, [kind] * 3, [magnitude] * 3))
    assert (interpolated > 100) == (kind not in (Kind.TRANSLATE_X, Kind.TRANSLATE_Y))


def test_interpolation_is_that_of_geometry_alone():
    others = [kind for kind in PILLOWS if kind not in GEOMETRY]
    images = np.repeat(make_images(9, 7)[:1], len(others), axis=0)
    magnitudes = [MAGNITUDES.get(kind, (0,))[-2:][0] for kind in others]
    assert np.array_equal(run(images, others, magnitudes, bilinear=True), run(images, others, magnitudes))


@pytest.mark.parametrize("magnitude", [0, -0.37])
def test_hue_of_every_colour_is_pillows(magnitude):
    red, green, blue = np.meshgrid(*[np.arange(256, dtype=np.uint8)] * 3, indexing="ij")
    colours = np.stack([red, green, blue], axis=-1).reshape(4096, 4096, 3)
    assert np.array_equal(run(colours[None], [Kind.HUE], [magnitude])[0], pillow(Kind.HUE, colours, magnitude))


@pytest.mark.parametrize("magnitude", [0, 0.1, -0.37])
def test_hue_of_every_colour(magnitude):
    # All values of two channels, and of the third, which all play the same part, every 15th.
    levels = np.arange(256)
    colours = np.stack(np.meshgrid(levels, levels, levels[::15], indexing="ij"), axis=-1).astype(np.uint8)
    image = colours.reshape(256, -1, 3)
    for rolled in (image, np.roll(image, 1, axis=-1)):
        assert np.array_equal(run(rolled[None], [Kind.HUE], [magnitude])[0], pillow(Kind.HUE, rolled, magnitude))


@pytest.mark.parametrize(("kind", "magnitude", "size"), [
    (Kind.SHEAR_X, 0.99, (40000, 2)),
    (Kind.SHEAR_Y, 0.99, (2, 40000)),
    (Kind.SHEAR_Y, -0.4, (3, 40000)),
    (Kind.ROTATE, 0.001, (3, 40000)),
    (Kind.ROTATE, 180, (3, 40000)),
    (Kind.TRANSLATE_X, -39990, (3, 40000)),
])  # fmt: skip
def test_images_too_large_for_fixed_point(kind, magnitude, size):
    image = make_images(*size)[0]
    for bilinear in (False, True):
        got = run(image[None], [kind], [magnitude], bilinear=bilinear)
        assert np.array_equal(got[0], pillow(kind, image, magnitude, bilinear=bilinear))


def test_rotation_by_many_angles():
    image = make_images(41, 40)[0]
    angles = np.concatenate([np.arange(-360, 361, 7.5), np.random.default_rng(0).uniform(-200, 200, 200)])
    got = run(np.repeat(image[None], len(angles), axis=0), [Kind.ROTATE] * len(angles), angles)
    for angle, result in zip(angles, got, strict=True):
        assert np.array_equal(result, pillow(Kind.ROTATE, image, angle)), angle


def test_operations_are_done_in_order_and_to_their_own_samples():
    images = make_images(16, 24)
    kind = [
        [Kind.ROTATE, Kind.EQUALIZE, Kind.POSTERIZE],
        [Kind.EQUALIZE, Kind.ROTATE, Kind.POSTERIZE],
        [Kind.NOTHING, Kind.NOTHING, Kind.NOTHING],
        [Kind.BRIGHTNESS, Kind.NOTHING, Kind.BRIGHTNESS],
        [Kind.SHARPNESS, Kind.SHEAR_X, Kind.SATURATION],
        [Kind.HUE, Kind.HUE, Kind.HUE],
    ]
    magnitude = [[30, 0, 2], [0, 30, 2], [0, 0, 0], [1.7, 0, 0.6], [1.9, 0.3, 0.4], [0.3, -0.2, 0.1]]
    expected = images.copy()
    for n in range(6):
        for k in range(3):
            expected[n] = pillow(kind[n][k], expected[n], magnitude[n][k])
    assert np.array_equal(run(images, kind, magnitude), expected)
    assert not np.array_equal(expected[0], pillow(Kind.EQUALIZE, expected[1], 0))


@pytest.mark.parametrize(("shape", "k"), [((0, 4, 4), 2), ((2, 0, 4), 2), ((2, 4, 0), 1), ((2, 4, 4), 0)])
def test_nothing_to_do(shape, k):
    images = np.ones((*shape, 3), np.uint8)
    kind = np.full((shape[0], k), Kind.CONTRAST)
    out = augment_(torch.from_numpy(images.copy()), Operations(kind.astype(np.uint8), kind.astype(np.float32)), pool())
    assert np.array_equal(out.numpy(), images)


def test_in_place_and_counted_as_a_change():
    images = torch.from_numpy(make_images(5, 6))
    before = images._version
    operations = Operations(np.full((6, 1), Kind.INVERT, np.uint8), np.zeros((6, 1), np.float32))
    expected = 255 - images
    assert augment_(images, operations, pool()) is images
    assert torch.equal(images, expected)
    assert images._version > before


def test_submit():
    source, threads = torch.from_numpy(np.repeat(make_images(64, 48), 20, axis=0)), pool()
    kind = np.full((120, 2), Kind.SHARPNESS, np.uint8)
    operations = Operations(kind, np.full((120, 2), 1.9, np.float32))
    expected = augment_(source.clone(), operations, threads)
    batches = [source.clone() for _ in range(4)]
    tickets = [submit_augment_(batch, operations, threads) for batch in batches]
    kind[:] = Kind.INVERT  # the operations are copied
    for batch, ticket in reversed(list(zip(batches, tickets, strict=True))):
        ticket.wait()
        assert ticket.done()
        assert torch.equal(batch, expected)


def test_a_ticket_keeps_the_images_and_waits_when_it_is_dropped():
    images = torch.from_numpy(np.repeat(make_images(64, 48), 20, axis=0))
    operations = Operations(np.full((120, 1), Kind.HUE, np.uint8), np.full((120, 1), 0.3, np.float32))
    gone = weakref.ref(images)
    ticket = submit_augment_(images, operations, pool())
    del images
    gc.collect()
    assert gone() is not None
    del ticket
    assert gone() is None


KINDS = np.full((6, 1), Kind.HUE, np.uint8)
IMAGES = torch.zeros(6, 4, 4, 3, dtype=torch.uint8)


@pytest.mark.parametrize(("kind", "magnitude", "message"), [
    (20, 0, "kind is 20; expected 0 to 19"),
    (255, 0, "kind is 255"),
    (Kind.NOTHING, math.nan, "magnitude is nan for kind 0; expected a finite number"),
    (Kind.SHEAR_X, math.inf, "magnitude is inf for kind 14"),
    (Kind.HUE, 0.51, "kind 7; expected -0.5 to 0.5"),
    (Kind.HUE, -0.51, "kind 7; expected -0.5 to 0.5"),
    (Kind.POSTERIZE, 0.9, "kind 9; expected 1 to 8 bits"),
    (Kind.POSTERIZE, 9, "kind 9; expected 1 to 8 bits"),
    (Kind.POSTERIZE, -1e30, "kind 9; expected 1 to 8 bits"),
    (Kind.GAUSSIAN_BLUR, 0, "kind 19; expected more than 0"),
    (Kind.GAUSSIAN_BLUR, -1, "kind 19; expected more than 0"),
])  # fmt: skip
def test_bad_operations(kind, magnitude, message):
    images = make_images(4, 4)
    tensor = torch.from_numpy(images.copy())
    kinds, magnitudes = np.zeros((6, 2), np.uint8), np.zeros((6, 2), np.float32)
    kinds[0], kinds[5, 1], magnitudes[5, 1] = Kind.INVERT, kind, magnitude
    for function in (augment_, submit_augment_):
        with pytest.raises(ValueError, match=message):
            function(tensor, Operations(kinds, magnitudes), pool())
    assert np.array_equal(tensor.numpy(), images)  # nothing is done if not all can be


@pytest.mark.parametrize("size", [(0, 3), (3, 0), (2, 3), (3, 4), (-1, 3), (9, 3), (3, 11), (2**31 - 1, 3)])
def test_bad_kernels(size):
    images = make_images(4, 5)
    kinds, magnitudes = np.zeros((6, 2), np.uint8), np.ones((6, 2), np.float32)
    kinds[0], kinds[5, 1] = Kind.INVERT, Kind.GAUSSIAN_BLUR
    sizes = np.ones((6, 2, 2), np.int32)
    sizes[5, 1] = size
    message = rf"height {size[0]} and width {size[1]}, and the images 4 and 5; expected odd numbers, less than twice"
    with pytest.raises(ValueError, match=message):
        run(images, kinds, magnitudes, kernel_size=sizes)
    sizes[5, 1] = 7, 9
    assert run(images, kinds, magnitudes, kernel_size=sizes).shape == images.shape


@pytest.mark.parametrize(("images", "message"), [
    (IMAGES[0], r"images are torch.uint8 \[4, 4, 3\]; expected torch.uint8 \[N, H, W, 3\]"),
    (IMAGES.float(), r"images are torch.float32"),
    (IMAGES[..., :1], r"\[6, 4, 4, 1\]"),
    (IMAGES[:, ::2], r"with strides \(48, 24, 3, 1\); expected a contiguous CPU tensor"),
    (IMAGES.to("meta"), "images are on meta"),
    (IMAGES[:5], "operations are for 6 samples, but there are 5 images"),
])  # fmt: skip
def test_bad_images(images, message):
    with pytest.raises(ValueError, match=message):
        augment_(images, Operations(KINDS, KINDS.astype(np.float32)), pool())


@pytest.mark.parametrize(("kind", "magnitude", "kernel_size", "error"), [
    (KINDS.astype(np.int64), KINDS.astype(np.float32), None, TypeError),
    (KINDS, KINDS.astype(np.float64), None, TypeError),
    (KINDS, np.zeros((6, 2), np.float32), None, ValueError),
    (KINDS[:, 0], np.zeros(6, np.float32), None, ValueError),
    (KINDS, np.zeros((6, 1), np.float32), np.ones((6, 1, 2), np.int64), TypeError),
    (KINDS, np.zeros((6, 1), np.float32), np.ones((6, 1, 1), np.int32), ValueError),
    (KINDS, np.zeros((6, 1), np.float32), np.ones((6, 2, 2), np.int32), ValueError),
    (KINDS, np.zeros((6, 1), np.float32), np.ones((6, 1), np.int32), ValueError),
])  # fmt: skip
def test_bad_arrays(kind, magnitude, kernel_size, error):
    with pytest.raises(error):
        augment_(IMAGES, Operations(kind, magnitude, (0, 0, 0), kernel_size), pool())


@pytest.mark.parametrize("fill", [(0, 0, 256), (-1, 0, 0), (0, 0)])
def test_bad_fill(fill):
    with pytest.raises((TypeError, ValueError)):
        augment_(IMAGES, Operations(KINDS, KINDS.astype(np.float32) * 0, fill), pool())
