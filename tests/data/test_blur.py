"""Gaussian blur against its formula, in doubles, and that it does the same to an image's mirror image."""

import numpy as np
import pytest

from fastfeed.data.augment import draw_operations
from fastfeed.data.plan import draw_augmentations, make_plan
from fastfeed.data.policies import Kind
from fastfeed.data.schedule import MultiScale
from fastfeed.data.steps import (
    ColorJitter,
    GaussianBlur,
    RandAugment,
    RandomAdjustSharpness,
    RandomApply,
    RandomAutocontrast,
    RandomEqualize,
    RandomHorizontalFlip,
    RandomInvert,
    RandomPosterize,
    RandomSolarize,
)
from fastfeed.data.transforms import Resize, Transform
from tests.data.test_augment_pixels import make_images, run
from tests.images import write_folder
from tests.loaders import make_loader

SIGMAS = (1e-38, 0.01, 0.1, 0.3, 0.77, 1.5, 2.0, 10.0, 3e38)
# Sides of one pixel, kernels that reach as far as they may, a kernel wider than any vector, rows of more than a block.
CASES = [
    ((1, 1), (1, 1)),
    ((1, 9), (1, 17)),
    ((8, 1), (15, 1)),
    ((2, 2), (3, 3)),
    ((7, 5), (3, 9)),
    ((7, 5), (13, 1)),
    ((64, 48), (5, 5)),
    ((40, 43), (23, 23)),
    ((9, 100), (17, 151)),
    ((3, 22), (1, 3)),
]


def blur(images, kernel_size, sigma):
    """Blur with one kernel, of (height, width), and a sigma for all images or each."""
    n = len(images)
    sizes = np.broadcast_to(np.array(kernel_size, np.int32), (n, 1, 2)).copy()
    return run(images, np.full((n, 1), Kind.GAUSSIAN_BLUR), np.broadcast_to(sigma, n)[:, None], kernel_size=sizes)


def blurred(images, kernel_size, sigma):
    """Return the blur by its formula, before it is rounded: [N, H, W, 3] float64."""
    result = images.astype(np.float64)
    for axis, size in enumerate(kernel_size, 1):
        distance = np.arange(size) - size // 2
        weights = np.exp(-0.5 * (distance / float(np.float32(sigma))) ** 2)
        pad = [(size // 2, size // 2) if i == axis else (0, 0) for i in range(4)]
        windows = np.lib.stride_tricks.sliding_window_view(np.pad(result, pad, "reflect"), size, axis)
        result = windows @ (weights / weights.sum())
    return result


@pytest.mark.parametrize(("size", "kernel_size"), CASES)
def test_blur_is_its_formula_rounded(size, kernel_size):
    images = make_images(*size)
    for sigma in SIGMAS:
        got, exact = blur(images, kernel_size, sigma), blurred(images, kernel_size, sigma)
        # Half a level, and what fp32 rounds the sums by.
        assert np.abs(got - exact).max() <= 0.5 + 1e-4, sigma


def test_halves_are_rounded_to_even():
    sigma = 1 / np.sqrt(2 * np.log(2))  # weights of a quarter, a half and a quarter
    images = np.zeros((1, 1, 4, 3), np.uint8)
    images[0, 0] = [[0, 1, 0], [0, 1, 0], [2, 3, 6], [2, 3, 6]]
    exact = [[0, 1, 0], [0.5, 1.5, 1.5], [1.5, 2.5, 4.5], [2, 3, 6]]
    assert blurred(images, (1, 3), sigma)[0, 0] == pytest.approx(np.array(exact))
    assert blur(images, (1, 3), sigma)[0, 0].tolist() == [[0, 1, 0], [0, 2, 2], [2, 2, 4], [2, 3, 6]]


@pytest.mark.parametrize(("kernel_size", "sigma"), [((23, 23), 2.0), ((3, 3), 1e6), ((1, 5), 0.7), ((31, 3), 30.0)])
def test_one_level_stays(kernel_size, sigma):
    levels = np.arange(256, dtype=np.uint8)[:, None, None, None]
    images = np.broadcast_to(levels, (256, 16, 17, 3))
    assert np.array_equal(blur(images, kernel_size, sigma), images)


def test_a_kernel_of_one_pixel_and_a_small_sigma_change_nothing():
    images = make_images(11, 30)
    assert np.array_equal(blur(images, (1, 1), 2.0), images)
    assert np.array_equal(blur(images, (11, 23), 0.1), images)


def test_each_sample_and_operation_has_its_own_kernel():
    images = make_images(30, 26)
    kinds = np.full((6, 3), Kind.GAUSSIAN_BLUR)
    kinds[1, 1], kinds[4] = Kind.INVERT, Kind.NOTHING
    sigmas = np.linspace(0.4, 3, 18, dtype=np.float32).reshape(6, 3)
    sizes = (2 * np.arange(36, dtype=np.int32).reshape(6, 3, 2) % 25) // 2 * 2 + 1
    expected = images.copy()
    for n in range(6):
        for k in range(3):
            one = expected[n : n + 1]
            if kinds[n, k] == Kind.GAUSSIAN_BLUR:
                expected[n] = blur(one, sizes[n, k], sigmas[n, k])[0]
            elif kinds[n, k] == Kind.INVERT:
                expected[n] = 255 - one[0]
    assert np.array_equal(run(images, kinds, sigmas, kernel_size=sizes), expected)
    assert not np.array_equal(expected[0], blur(images[:1], sizes[0, 0], sigmas[0, 0])[0])


@pytest.mark.parametrize(("size", "kernel_size"), CASES)
def test_a_mirror_image_is_blurred_to_the_mirror_image(size, kernel_size):
    images = make_images(*size)
    for sigma in SIGMAS:
        expected = blur(images, kernel_size, sigma)
        for axis in (1, 2):
            flipped = np.ascontiguousarray(np.flip(images, axis))
            assert np.array_equal(np.flip(blur(flipped, kernel_size, sigma), axis), expected)


def test_a_size_that_is_too_small_for_the_kernel():
    transform = Transform(Resize(32), augment=RandomApply([GaussianBlur((23, 5))], 0.1))
    indices = np.arange(3)

    def draw(size):
        plan = make_plan(transform, np.full((3, 2), 50), indices, seed=0, epoch=0, size=size)
        return draw_augmentations(transform, plan, indices, 0 * indices, seed=0, epoch=0, size=size)

    assert draw((3, 12)).kernel_size.tolist() == [[[5, 23]]] * 3
    for size in ((2, 12), (3, 11)):
        with pytest.raises(ValueError, match=f"kernel_size is 23 x 5 .* for images of {size[1]} x {size[0]} pixels"):
            draw(size)


@pytest.mark.dali
def test_a_scheduled_size_that_is_too_small_for_the_kernel(tmp_path):
    folder = write_folder(tmp_path / "data", {"a": 4})
    loader = make_loader(folder, 2, transform=Transform(Resize(32), augment=GaussianBlur(23)), size=MultiScale((12, 8)))
    shapes = set()
    with pytest.raises(ValueError, match="kernel_size is 23 x 23 .* 8 x 8 pixels .* at most 15 x 15"):
        for _ in range(40):
            shapes |= {tuple(images.shape) for images, *_ in loader}
    assert shapes <= {(2, 3, 12, 12)}


STEPS = [
    RandomApply([ColorJitter(0.4, 0.4, 0.4, 0.2), GaussianBlur((5, 9), (0.5, 3))], 0.8),
    RandomAdjustSharpness(1.8),
    RandomInvert(),
    RandomPosterize(5),
    RandomSolarize(100),
    RandomAutocontrast(),
    RandomEqualize(),
    GaussianBlur(3),
]


@pytest.mark.parametrize(("steps", "left"), [
    (STEPS, True),
    ([RandomHorizontalFlip(), *STEPS], True),
    ([*STEPS, RandomApply([GaussianBlur(3), RandomApply([RandAugment()])])], False),
])  # fmt: skip
def test_flips_before_the_steps_and_after_them_are_the_same(steps, left):
    """The crop's flips are left to the last pass where that gives the pixels of flips before the steps."""
    n, size = 96, (19, 23)
    images = np.concatenate([make_images(*size, seed) for seed in range(16)])
    transform = Transform(Resize(size), 0.5, 0.5, augment=steps)
    indices, copies = np.arange(n), np.zeros(n, np.int64)
    plan = make_plan(transform, np.tile(size, (n, 1)), indices, seed=0, epoch=0)
    flips = plan.flip.copy()
    first = np.stack([np.flip(x, [a for a in (0, 1) if f >> (1 - a) & 1]) for x, f in zip(images, flips, strict=True)])
    drawn = draw_operations(steps, indices, copies, seed=0, epoch=0, height=size[0], width=size[1])
    expected = run(first, drawn.kind, drawn.magnitude, drawn.fill, drawn.kernel_size)

    of = draw_augmentations(transform, plan, indices, copies, seed=0, epoch=0, size=size)
    assert np.array_equal(plan.flip, flips if left else 0 * flips)
    got = run(images, of.kind, of.magnitude, of.fill, of.kernel_size)
    last = np.stack([np.flip(x, [a for a in (0, 1) if f >> (1 - a) & 1]) for x, f in zip(got, plan.flip, strict=True)])
    assert np.array_equal(last, expected)
    assert len(set(flips.tolist())) == 4
