"""The extension's copying of images into places: held to the same with NumPy."""

import gc
import threading

import numpy as np
import pytest

from fastfeed._extension import extension

FILL = (9, 80, 200)


def random_image(height, width, gap=0):
    rng = np.random.default_rng([height, width])
    rows = rng.integers(0, 256, (height, 3 * width + gap), dtype=np.uint8)
    return np.lib.stride_tricks.as_strided(rows, (height, width, 3), (rows.strides[0], 3, 1))


def arguments(images, places, dst, out_size=None, fill=FILL):
    return {
        "addresses": np.array([image.ctypes.data for image in images], np.int64),
        "sizes": np.array([image.shape[:2] for image in images], np.int64).reshape(-1, 2),
        "strides": np.array([image.strides[0] for image in images], np.int64),
        "places": np.array(places, np.int64).reshape(-1, 4),
        "dst": dst.ctypes.data,
        "out_size": dst.shape[1:3] if out_size is None else out_size,
        "fill": fill,
    }


def place(images, places, out_size, threads=2):
    dst = np.full((len(images), *out_size, 3), 77, np.uint8)
    ticket = extension().place(extension().Pool(threads), **arguments(images, places, dst), keep=(images, dst))
    ticket.wait()
    return dst


@pytest.mark.parametrize("gap", [0, 5])
@pytest.mark.parametrize(("size", "where"), [
    ((32, 40), (0, 0, 32, 40)),  # all of it
    ((30, 40), (2, 0, 30, 40)),  # rows above
    ((30, 40), (0, 0, 30, 40)),  # rows below
    ((32, 33), (0, 7, 32, 33)),  # columns before
    ((32, 39), (0, 0, 32, 39)),  # columns behind
    ((20, 21), (5, 9, 20, 21)),  # on every side
    ((1, 3), (31, 37, 1, 3)),  # in a corner
    ((50, 60), (3, 4, 20, 30)),  # the top left part of it
    ((5, 6), (32, 40, 0, 0)),  # nothing of it
    ((5, 6), (3, 4, 0, 6)),
    ((5, 6), (3, 4, 5, 0)),
    ((1, 1), (3, 4, 1, 1)),
    ((1, 1), (0, 0, 32, 40)),  # one pixel, repeated
    ((1, 1), (5, 9, 20, 21)),
    ((1, 1), (0, 0, 0, 0)),
], ids=str)  # fmt: skip
def test_one_image(size, where, gap):
    image = random_image(*size, gap)
    top, left, height, width = where
    expected = np.broadcast_to(np.array(FILL, np.uint8), (32, 40, 3)).copy()
    expected[top : top + height, left : left + width] = image[:height, :width]
    (got,) = place([image], [where], (32, 40))
    assert np.array_equal(got, expected)


@pytest.mark.parametrize("threads", [1, 2, 4])
def test_a_batch(threads):
    sizes = [(1 + 7 * i % 30, 1 + 11 * i % 30) for i in range(70)]
    images = [random_image(*size, gap=i % 3) for i, size in enumerate(sizes)]
    places = [(i % (31 - h), i % (31 - w), h, w) for i, (h, w) in enumerate(sizes)]
    got = place(images, places, (30, 30), threads)
    for one, image, (top, left, height, width) in zip(got, images, places, strict=True):
        expected = np.broadcast_to(np.array(FILL, np.uint8), (30, 30, 3)).copy()
        expected[top : top + height, left : left + width] = image
        assert np.array_equal(one, expected)
    assert place([], [], (30, 30)).shape == (0, 30, 30, 3)


def test_the_memory_is_kept_until_it_is_done():
    class Kept:
        pass

    pool, dst = extension().Pool(1), np.zeros((1, 8, 8, 3), np.uint8)
    image, freed = random_image(4, 4), threading.Event()
    kept = Kept()
    kept.__class__.__del__ = lambda self: freed.set()
    ticket = extension().place(pool, **arguments([image], [(1, 2, 4, 4)], dst), keep=kept)
    del kept
    gc.collect()
    assert not freed.is_set()
    ticket.wait()
    assert ticket.done()
    del ticket
    gc.collect()
    assert freed.is_set()
    assert np.array_equal(dst[0, 1:5, 2:6], image)


IMAGES = [random_image(5, 6), random_image(7, 8, gap=2)]
PLACES = [(0, 0, 5, 6), (1, 2, 7, 8)]


@pytest.mark.parametrize(("changes", "message"), [
    ({"places": np.array([[0, 0, 5, 6], [-1, 0, 3, 3]])}, r"image 1 goes to \(.*\) = \(-1, 0, 3, 3\), outside of"),
    ({"places": np.array([[0, 0, 5, 6], [0, -1, 3, 3]])}, "image 1 goes to .*the output's 10 x 12"),
    ({"places": np.array([[6, 0, 5, 6], [0, 0, 3, 3]])}, "image 0 goes to"),
    ({"places": np.array([[0, 7, 5, 6], [0, 0, 3, 3]])}, "image 0 goes to"),
    ({"places": np.array([[0, 0, -1, 6], [0, 0, 3, 3]])}, "image 0 goes to"),
    ({"places": np.array([[0, 0, 5, -1], [0, 0, 3, 3]])}, "image 0 goes to"),
    ({"places": np.array([[2**62, 0, 2**62, 6], [0, 0, 3, 3]])}, "image 0 goes to"),
    ({"places": np.array([[1, 0, 2**63 - 1, 6], [0, 0, 3, 3]])}, "image 0 goes to"),
    ({"places": np.array([[0, 0, 6, 6], [0, 0, 3, 3]])}, "image 0 of size 5 x 6 is smaller than its place, 6 x 6"),
    ({"places": np.array([[0, 0, 5, 7], [0, 0, 3, 3]])}, "image 0 of size 5 x 6 is smaller than its place, 5 x 7"),
    ({"sizes": np.array([[1, 6], [7, 8]])}, "image 0 of size 1 x 6 is smaller than its place, 5 x 6"),
    ({"sizes": np.array([[0, 6], [7, 8]])}, r"image 0 has size 0 x 6, not in \[1, 1048576\]"),
    ({"sizes": np.array([[5, 6], [7, 2**20 + 1]])}, "image 1 has size 7 x 1048577"),
    ({"strides": np.array([18, 23])}, "image 1 has rows of 24 bytes at a stride of 23"),
    ({"strides": np.array([-18, 26])}, "image 0 has rows of 18 bytes at a stride of -18"),
    ({"strides": np.array([2**62, 26])}, "image 0 has rows of 18 bytes at a stride of 4611686018427387904"),
    ({"addresses": np.array([IMAGES[0].ctypes.data, 0])}, "image 1 has no memory"),
    ({"out_size": (0, 12)}, r"the output's size, 0 x 12, is not in \[1, 1048576\]"),
    ({"out_size": (10, 2**20 + 1)}, "the output's size, 10 x 1048577"),
    ({"sizes": np.array([[5, 6]])}, r"sizes is not of shape \[2, 2\]"),
    ({"strides": np.array([[18], [26]])}, r"strides is not of shape \[2\]"),
    ({"places": np.zeros((2, 3), np.int64)}, r"places is not of shape \[2, 4\]"),
    ({"addresses": np.zeros((2, 1), np.int64)}, r"addresses is not of shape \[2\]"),
])  # fmt: skip
def test_bad_arguments(changes, message):
    dst = np.full((2, 10, 12, 3), 77, np.uint8)
    with pytest.raises(ValueError, match=f"place: {message}"):
        extension().place(extension().Pool(1), **{**arguments(IMAGES, PLACES, dst), **changes}, keep=(IMAGES, dst))
    assert (dst == 77).all()


@pytest.mark.parametrize("change", [
    {"places": np.zeros((2, 4), np.int32)}, {"sizes": np.zeros((2, 2))}, {"fill": (0, 0, 256)}, {"fill": (0, 0)},
])  # fmt: skip
def test_arguments_of_other_types(change):
    dst = np.zeros((2, 10, 12, 3), np.uint8)
    with pytest.raises(TypeError, match="incompatible function arguments"):
        extension().place(extension().Pool(1), **{**arguments(IMAGES, PLACES, dst), **change}, keep=dst)
