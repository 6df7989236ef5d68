"""The extension's resizing, byte for byte against Pillow's."""

import gc
import math
import time

import numpy as np
import PIL
import pytest
from PIL import Image

from fastfeed._extension import extension

FILTERS = (Image.Resampling.BILINEAR, Image.Resampling.BICUBIC, Image.Resampling.LANCZOS)
# Pillow 13 begins with the vertical pass where that saves it much; before, the horizontal pass was always first.
PILLOW_CHOOSES_THE_ORDER = int(PIL.__version__.split(".")[0]) >= 13

# Heights and widths: a pixel, a row, a column, less than a vector of any width, and more by a little.
SIZES = ((1, 1), (1, 50), (50, 1), (2, 3), (5, 4), (16, 21), (17, 22), (61, 33), (33, 61), (64, 64), (110, 120))
OUT_SIZES = ((1, 1), (7, 7), (32, 32), (224, 224), (225, 225), (1, 224), (225, 7), (31, 18))
# Of the height and the width: inside with fractions, at an edge, a sliver, and everything but for a sliver.
PARTS = {
    "everything": (0, 0, 1, 1),
    "inside": (0.1234, 0.3, 0.877, 0.777),
    "at the first edges": (0, 0, 0.4321, 0.6543),
    "at the last edges": (0.37, 0.41, 1, 1),
    "a sliver": (0.5, 0.5, 0.501, 0.5003),
    "all but a sliver": (0.001, 0, 1, 0.999),
}


def random_image(height, width, kind="noise", gap=0):
    rng = np.random.default_rng([height, width])
    pixels = rng.integers(0, 256, (height, 3 * width + gap), dtype=np.uint8)
    if kind == "extremes":  # what overshoots most
        pixels = (pixels & 1) * np.uint8(255)
    return pixels[:, : 3 * width].reshape(height, width, 3) if gap == 0 else with_gap(pixels, width)


def with_gap(pixels, width):
    shape, strides = (len(pixels), width, 3), (pixels.strides[0], 3, 1)
    return np.lib.stride_tricks.as_strided(pixels, shape, strides)


def part_of(image, part):
    return tuple(share * side for share, side in zip(part, image.shape[:2] * 2, strict=True))


def arguments(images, boxes, dst, filter_, out_size=None):
    return {
        "addresses": np.array([image.ctypes.data for image in images], np.int64),
        "sizes": np.array([image.shape[:2] for image in images], np.int64).reshape(-1, 2),
        "strides": np.array([image.strides[0] for image in images], np.int64),
        "boxes": np.array(boxes, np.float64).reshape(-1, 4),
        "dst": dst.ctypes.data,
        "out_size": dst.shape[1:3] if out_size is None else out_size,
        "filters": np.full(len(images), filter_, np.int64),
    }


def resample(images, boxes, out_size, filter_, threads=1):
    dst = np.full((len(images), *out_size, 3), 77, np.uint8)
    pool = extension().Pool(threads)
    assert extension().resample(pool, **arguments(images, boxes, dst, filter_), keep=None) is None
    return dst


def resized(image, box, out_size, filter_):
    """Return what Pillow makes of an image, one side after the other: in the order of Pillow 13, whichever this is."""
    (height, width), (out_h, out_w), (top, left, bottom, right) = image.shape[:2], out_size, box
    pixels = Image.fromarray(np.ascontiguousarray(image))
    if height > out_h and height - out_h > 2 * (width - out_w):
        pixels = pixels.resize((width, out_h), filter_, (0, top, width, bottom))
        pixels = pixels.resize((out_w, out_h), filter_, (left, 0, right, out_h))
    else:
        pixels = pixels.resize((out_w, height), filter_, (left, 0, right, height))
        pixels = pixels.resize((out_w, out_h), filter_, (0, top, out_w, bottom))
    return np.asarray(pixels)


def check(images, boxes, out_size, filter_, threads=1):
    got = resample(images, boxes, out_size, filter_, threads)
    for image, box, pixels in zip(images, boxes, got, strict=True):
        what = f"{image.shape[:2]}, {box} to {out_size}"
        np.testing.assert_array_equal(pixels, resized(image, box, out_size, filter_), what)
        if PILLOW_CHOOSES_THE_ORDER:
            top, left, bottom, right = box
            at_once = Image.fromarray(np.ascontiguousarray(image)).resize(
                out_size[::-1], filter_, (left, top, right, bottom)
            )
            np.testing.assert_array_equal(pixels, np.asarray(at_once), what)


@pytest.mark.parametrize("filter_", FILTERS, ids=lambda filter_: filter_.name)
@pytest.mark.parametrize("kind", ["noise", "extremes"])
@pytest.mark.parametrize("part", PARTS)
def test_equals_pillow(part, kind, filter_):
    images = [random_image(*size, kind) for size in SIZES]
    for out_size in OUT_SIZES:
        check(images, [part_of(image, PARTS[part]) for image in images], out_size, filter_)


@pytest.mark.parametrize("filter_", FILTERS, ids=lambda filter_: filter_.name)
@pytest.mark.parametrize(
    ("size", "out_size"),
    [
        *(((330, 330), (224, 224)), ((400, 450), (224, 224)), ((500, 375), (256, 192)), ((375, 500), (224, 298))),
        *(((310, 240), (224, 224)), ((1000, 40), (32, 32)), ((40, 1000), (32, 32)), ((701, 1303), (3, 50))),
        *(((3, 5000), (2, 1)), ((5000, 3), (1, 2)), ((3, 5), (300, 500))),
    ],
)
def test_equals_pillow_in_sizes_of_photos_and_beyond(size, out_size, filter_):
    image = random_image(*size, "extremes")
    check([image, image], [part_of(image, PARTS["everything"]), part_of(image, PARTS["inside"])], out_size, filter_)


@pytest.mark.parametrize("filter_", FILTERS, ids=lambda filter_: filter_.name)
def test_every_width(filter_):
    # Vectors end in the middle of pixels, rows in the middle of vectors.
    image = random_image(9, 40)
    for width in range(1, 70):
        check([image[:, :33]], [(0, 0, 9, 33)], (6, width), filter_)
    for width in range(1, 40):
        check([image[:, :width]], [(0, 0, 9, width)], (5, 20), filter_)


def test_same_size_is_a_copy():
    image = random_image(33, 45)
    for filter_ in FILTERS:
        np.testing.assert_array_equal(resample([image], [(0, 0, 33, 45)], (33, 45), filter_)[0], image)


@pytest.mark.parametrize("gap", [0, 1, 61, 200])
def test_rows_with_a_gap(gap):
    image = random_image(40, 50, gap=gap)
    check([image, image[3:, 7:]], [(0, 0, 40, 50), (0.5, 0, 37, 40.25)], (32, 30), Image.Resampling.BILINEAR)


@pytest.mark.parametrize("threads", [1, 2, 5])
@pytest.mark.parametrize("count", [1, 2, 3, 40])
def test_any_number_of_images_and_threads(count, threads):
    images = [random_image(100 + 7 * i, 190 - 3 * i) for i in range(count)]
    boxes = [part_of(image, PARTS["inside"]) for image in images]
    one = resample(images, boxes, (160, 97), Image.Resampling.BICUBIC)
    np.testing.assert_array_equal(resample(images, boxes, (160, 97), Image.Resampling.BICUBIC, threads), one)
    check(images[:1], boxes[:1], (160, 97), Image.Resampling.BICUBIC, threads)


def test_every_image_has_its_own_filter():
    images = [random_image(40 + i, 50 - i) for i in range(6)]
    boxes = [part_of(image, PARTS["everything"]) for image in images]
    dst = np.zeros((6, 20, 22, 3), np.uint8)
    given = arguments(images, boxes, dst, Image.Resampling.BILINEAR)
    given["filters"][:] = [1, 2, 3, 3, 2, 1]
    extension().resample(extension().Pool(2), **given, keep=None)
    for image, box, filter_, pixels in zip(images, boxes, given["filters"], dst, strict=True):
        np.testing.assert_array_equal(pixels, resized(image, box, (20, 22), Image.Resampling(int(filter_))))


def crop_of(image, whole_size, corner, out_size, filter_, rows, columns):
    """Return a crop of what an image is resized to, made of these rows and columns of it alone."""
    part = np.full((len(image) + 2, 3 * len(image[0]) + 2), 99, np.uint8)  # anything beside them
    held = image[slice(*rows), slice(*columns)]
    stored = with_gap(part[: held.shape[0], : 3 * held.shape[1]], held.shape[1])
    stored[:] = held
    dst = np.full((1, *out_size, 3), 77, np.uint8)
    given = arguments([stored], [(0, 0, *image.shape[:2])], dst, filter_)
    inputs = np.array([[rows[0], columns[0], *image.shape[:2]]], np.int64)
    outputs = np.array([[*corner, *whole_size]], np.int64)
    extension().resample(extension().Pool(1), **given, keep=None, inputs=inputs, outputs=outputs)
    return dst[0]


@pytest.mark.parametrize("filter_", FILTERS, ids=lambda filter_: filter_.name)
@pytest.mark.parametrize(
    ("size", "whole_size"), [((50, 60), (20, 31)), ((50, 300), (33, 61)), ((200, 20), (20, 21)), ((9, 12), (61, 80))]
)
def test_a_crop_is_that_of_the_whole(size, whole_size, filter_):
    image = random_image(*size, "extremes")
    whole = resized(image, (0, 0, *size), whole_size, filter_)
    for corner in [(0, 0), (3, 5), (whole_size[0] - 13, whole_size[1] - 11)]:
        # What the filter reaches of the image, by its own rule.
        reach = {Image.Resampling.BILINEAR: 1, Image.Resampling.BICUBIC: 2, Image.Resampling.LANCZOS: 3}[filter_]
        needed = []
        for side, result, begin, out in zip(size, whole_size, corner, (13, 11), strict=True):
            scale = side / result
            support = reach * max(scale, 1)
            first = int(max((begin + 0.5) * scale - support + 0.5, 0))
            needed.append((first, min(int((begin + out - 0.5) * scale + support + 0.5), side)))
        expected = whole[corner[0] : corner[0] + 13, corner[1] : corner[1] + 11]
        got = crop_of(image, whole_size, corner, (13, 11), filter_, *needed)
        np.testing.assert_array_equal(got, expected)
        for i in range(2):
            for low, high in ((1, 0), (0, -1)):  # a row or column less is refused
                less = list(needed)
                less[i] = (needed[i][0] + low, needed[i][1] + high)
                with pytest.raises(ValueError, match="has not all pixels that its output needs"):
                    crop_of(image, whole_size, corner, (13, 11), filter_, *less)


def test_a_crop_of_a_result_that_is_too_large_to_make():
    image = random_image(1, 60_000)
    got = crop_of(
        image, (256, 15_360_000), (20, 7_000_000), (32, 32), Image.Resampling.BILINEAR, (0, 1), (27_342, 27_346)
    )
    middles = (7_000_000 + np.arange(32) + 0.5) / 256 - 0.5
    expected = np.stack([np.interp(middles, np.arange(60_000), image[0, :, c]) for c in range(3)], axis=1)
    assert np.abs(got - expected).max() <= 0.501
    assert (got == got[0]).all()


def test_no_images():
    assert resample([], [], (8, 8), Image.Resampling.BILINEAR).shape == (0, 8, 8, 3)


def test_box_is_rounded_to_floats_as_in_pillow():
    # The double before 48 is the float 48.
    image, box = random_image(64, 64), (0, 0, 64, math.nextafter(48, 0))
    got = resample([image], [box], (20, 20), Image.Resampling.BILINEAR)
    np.testing.assert_array_equal(got, resample([image], [(0, 0, 64, 48)], (20, 20), Image.Resampling.BILINEAR))
    check([image], [box], (20, 20), Image.Resampling.BILINEAR)


def test_in_the_background():
    class Memory:
        def __init__(self):
            self.image = random_image(330, 331)
            self.dst = np.zeros((64, 224, 224, 3), np.uint8)

    pool, memory = extension().Pool(2), Memory()
    boxes = [(0, 0, 330, 331)] * 64
    given = arguments([memory.image] * 64, boxes, memory.dst, Image.Resampling.BILINEAR)
    wanted = resized(memory.image, boxes[0], (224, 224), Image.Resampling.BILINEAR)
    ticket = extension().resample(pool, **given, keep=memory)
    del given  # the arrays of arguments are read before the call returns
    dst = memory.dst
    ticket.wait()
    assert ticket.done()
    assert all(np.array_equal(pixels, wanted) for pixels in dst)


def test_memory_lives_until_the_work_is_done():
    freed = []

    class Memory(np.ndarray):
        def __del__(self):
            freed.append(time.monotonic())

    pool, image = extension().Pool(2), random_image(330, 331)
    dst = np.zeros((64, 224, 224, 3), np.uint8).view(Memory)
    given = arguments([image] * 64, [(0, 0, 330, 331)] * 64, dst, Image.Resampling.LANCZOS)
    ticket = extension().resample(pool, **given, keep=dst)
    del dst
    gc.collect()
    assert not freed
    ticket.wait()
    del ticket
    assert freed


BAD_BOXES = {
    "too high": (-0.25, 0, 5, 5),
    "too far left": (0, -1e-9, 5, 5),
    "too low": (0, 0, 10.001, 5),
    "too far right": (0, 0, 5, 20.5),
    "empty": (3, 3, 3, 5),
    "empty as floats": (0, 16, 5, math.nextafter(16, 17)),
    "upside down": (5, 0, 2, 5),
    "mirrored": (0, 5, 5, 2),
    "no number": (math.nan, 0, 5, 5),
    "no end": (0, 0, 5, math.nan),
    "infinite": (0, 0, math.inf, 5),
}


@pytest.mark.parametrize("box", BAD_BOXES.values(), ids=BAD_BOXES)
def test_rejects_boxes(box):
    image, dst = random_image(10, 20), np.full((2, 8, 8, 3), 77, np.uint8)
    given = arguments([image, image], [(0, 0, 10, 20), box], dst, Image.Resampling.BILINEAR)
    with pytest.raises(ValueError, match=r"image 1 of size 10 x 20 has no box \(top, left, bottom, right\) = \("):
        extension().resample(extension().Pool(1), **given, keep=None)
    assert (dst == 77).all()


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"sizes": [[10, 20], [0, 20]]}, "image 1 has size 0 x 20"),
        ({"sizes": [[10, -1], [10, 20]]}, "image 0 has size 10 x -1"),
        ({"sizes": [[10, 20], [10, 2**20 + 1]]}, r"image 1 has size 10 x 1048577, not in \[1, 1048576\]"),
        ({"strides": [60, 59]}, "image 1 has rows of 60 bytes at a stride of 59"),
        ({"strides": [-60, 60]}, "image 0 has rows of 60 bytes at a stride of -60"),
        ({"strides": [2**62, 60]}, "image 0 has rows of 60 bytes at a stride of"),
        ({"out_size": (0, 8)}, "the output's size, 0 x 8, is not in"),
        ({"out_size": (8, -8)}, "the output's size, 8 x -8, is not in"),
        ({"out_size": (2**20 + 1, 1)}, "the output's size, 1048577 x 1, is not in"),
        ({"filters": [0, 1]}, "image 0 has filter 0, none of"),
        ({"filters": [3, 4]}, "image 1 has filter 4, none of"),
        ({"filters": [3, 2**32 + 2]}, "image 1 has filter 4294967298, none of"),
        ({"filters": [3]}, r"filters is not of shape \[2\]"),
        ({"addresses": [0, 0]}, "image 0 has no memory"),
        ({"sizes": [[10, 20]]}, r"sizes is not of shape \[2, 2\]"),
        ({"sizes": [[10, 20, 3], [10, 20, 3]]}, r"sizes is not of shape \[2, 2\]"),
        ({"strides": [60]}, r"strides is not of shape \[2\]"),
        ({"boxes": [[0.0, 0.0, 5.0, 5.0]]}, r"boxes is not of shape \[2, 4\]"),
        ({"addresses": [[1], [2]]}, r"addresses is not of shape \[2\]"),
        (
            {"inputs": [[0, 0, 10, 20], [1, 0, 10, 20]]},
            r"image 1, 10 x 20 pixels from \(1, 0\) on, is no part of one of",
        ),
        ({"inputs": [[0, -1, 10, 20], [0, 0, 10, 20]]}, r"image 0, 10 x 20 pixels from \(0, -1\) on, is no part"),
        ({"inputs": [[0, 0, 10, 20], [0, 0, 10, 2**28 + 1]]}, "image 1, .* is no part of one of 10 x 268435457"),
        (
            {"inputs": [[0, 0, 10, 20], [0, 0, 10, 30]], "boxes": [[0.0, 0, 10, 20], [0, 0, 10, 30]]},
            "image 1, .* needs",
        ),
        ({"inputs": [[0, 0, 10, 20]]}, r"inputs is not of shape \[2, 4\]"),
        (
            {"outputs": [[0, 0, 8, 8], [1, 0, 8, 8]]},
            r"image 1 is resized to 8 x 8, of which .* from \(1, 0\) on, is no",
        ),
        ({"outputs": [[0, 0, 7, 8], [0, 0, 8, 8]]}, "image 0 is resized to 7 x 8, of which the output, 8 x 8"),
        ({"outputs": [[0, 0, 8, 8], [0, 2**62, 8, 2**62 + 8]]}, "image 1 is resized to 8 x 4611686018427387912, of"),
    ],
)
def test_rejects_values(changed, message):
    image, dst = random_image(10, 20), np.full((2, 8, 8, 3), 77, np.uint8)
    given = arguments([image] * 2, [(0, 0, 10, 20)] * 2, dst, Image.Resampling.BILINEAR)
    for name, value in changed.items():
        dtype = np.float64 if name == "boxes" else np.int64
        given[name] = np.array(value, dtype) if isinstance(value, list) else value
    with pytest.raises(ValueError, match=f"resample: {message}"):
        extension().resample(extension().Pool(1), **given, keep=None)
    assert (dst == 77).all()


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        ("addresses", np.int32),
        ("sizes", np.float64),
        ("strides", np.uint8),
        ("boxes", np.float32),
        ("boxes", np.int64),
        ("filters", np.int32),
    ],
)
def test_rejects_types(name, dtype):
    image, dst = random_image(10, 20), np.zeros((1, 8, 8, 3), np.uint8)
    given = arguments([image], [(0, 0, 10, 20)], dst, Image.Resampling.BILINEAR)
    given[name] = given[name].astype(dtype)
    with pytest.raises(TypeError):
        extension().resample(extension().Pool(1), **given, keep=None)


def test_stride_of_a_single_row_means_nothing():
    image, dst = random_image(1, 20), np.zeros((1, 2, 8, 3), np.uint8)
    given = arguments([image], [(0, 0, 1, 20)], dst, Image.Resampling.BILINEAR)
    given["strides"][:] = -5
    extension().resample(extension().Pool(1), **given, keep=None)
    np.testing.assert_array_equal(dst[0], resized(image, (0, 0, 1, 20), (2, 8), Image.Resampling.BILINEAR))
