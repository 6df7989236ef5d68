"""Apart from test_augment_pixels.py, which is run on machines that need not have hypothesis."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from fastfeed.data.augment import draw_operations
from fastfeed.data.policies import Kind
from fastfeed.data.steps import AutoAugment, ColorJitter, GaussianBlur, RandAugment, RandomApply, TrivialAugmentWide
from tests.data.test_augment_pixels import PILLOWS, make_images, pillow, run

FACTOR = st.floats(-10, 10, width=32)
RANGES = {
    Kind.HUE: st.floats(-0.5, 0.5, width=32),
    Kind.POSTERIZE: st.integers(1, 8),
    Kind.SOLARIZE: st.floats(-10, 300, width=32),
    Kind.SHEAR_X: st.floats(-2, 2, width=32),
    Kind.SHEAR_Y: st.floats(-2, 2, width=32),
    Kind.TRANSLATE_X: st.floats(-60, 60, width=32),
    Kind.TRANSLATE_Y: st.floats(-60, 60, width=32),
    Kind.ROTATE: st.floats(-400, 400, width=32),
    **dict.fromkeys((Kind.BRIGHTNESS, Kind.CONTRAST, Kind.SATURATION, Kind.SHARPNESS), FACTOR),
}
OPERATION = st.sampled_from(PILLOWS).flatmap(lambda kind: st.tuples(st.just(kind), RANGES.get(kind, st.just(0))))
LEVEL = st.integers(0, 255)


@settings(deadline=None)
@given(
    size=st.tuples(st.integers(1, 50), st.integers(1, 50)),
    operations=st.lists(OPERATION, max_size=4),
    fill=st.tuples(LEVEL, LEVEL, LEVEL),
    bilinear=st.booleans(),
    which=st.integers(0, 5),
    seed=st.integers(0, 2**32 - 1),
)
def test_any_sequence_is_pillows(size, operations, fill, bilinear, which, seed):
    image = make_images(*size, seed)[which]
    expected = image
    for kind, magnitude in operations:
        expected = pillow(kind, expected, magnitude, fill, bilinear)
    kinds, magnitudes = [kind for kind, _ in operations], [value for _, value in operations]
    got = run(image[None], [kinds], [magnitudes], fill, bilinear=bilinear)
    assert np.array_equal(got[0], expected)


@settings(deadline=None)
@given(
    seed=st.integers(0, 2**64 - 1),
    epoch=st.integers(0, 2**32 - 1),
    indices=st.lists(st.integers(0, 2**32 - 1), max_size=8),
    copy=st.integers(0, 2**32 - 1),
    height=st.integers(1, 40),
    width=st.integers(1, 40),
    bins=st.integers(2, 40),
    num_ops=st.integers(0, 4),
)
def test_whatever_is_drawn_can_be_done(seed, epoch, indices, copy, height, width, bins, num_ops):
    steps = [
        ColorJitter(0.4, 0.4, 0.4, 0.5),
        TrivialAugmentWide(bins),
        RandAugment(num_ops, bins - 1, bins),
        AutoAugment("svhn"),
        RandomApply([GaussianBlur((2 * width - 1, 2 * height - 1), (1e-30, 1e30))], 0.3),
    ]
    copies = np.full(len(indices), copy)
    drawn = draw_operations(
        steps, np.array(indices, np.int64), copies, seed=seed, epoch=epoch, height=height, width=width
    )
    assert drawn.kind.shape == drawn.magnitude.shape == (len(indices), 8 + num_ops)
    images = np.zeros((len(indices), height, width, 3), np.uint8)
    assert run(images, drawn.kind, drawn.magnitude, kernel_size=drawn.kernel_size).shape == images.shape
