"""Apart from test_finish.py, which is run on GPU machines that need not have hypothesis."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from fastfeed.data.finish import DTYPES, SampleParameters, check_mean_std
from tests.data.test_finish import FEATURES, FORMATS, STRIDES, check, random_images, random_parameters

SIDES = st.integers(-(2**31), 2**31 - 1) | st.integers(-5, 75)
RECTANGLE = st.tuples(SIDES, SIDES, SIDES, SIDES)


@settings(deadline=None)
@given(
    shape=st.tuples(st.integers(1, 4), st.integers(1, 70), st.integers(1, 70), st.sampled_from([1, 3, 4])),
    strides=st.sampled_from(sorted(STRIDES)),
    features=st.sampled_from(sorted(FEATURES)),
    threads=st.integers(0, 5),
    seed=st.integers(0, 2**32),
    dtype=st.sampled_from(DTYPES),
    memory_format=st.sampled_from(FORMATS),
)
def test_any_size_strides_and_features(shape, strides, features, threads, seed, dtype, memory_format):
    if strides == "overlapping":  # reaches over the end of small images
        shape = (shape[0], 8, 9, 4)
    images = STRIDES[strides](random_images(*shape))
    check(images, random_parameters(features, *shape[:3], seed), dtype, memory_format, threads)


@settings(deadline=None)
@given(
    erase=st.lists(RECTANGLE, min_size=2, max_size=2),
    cut=st.lists(RECTANGLE, min_size=2, max_size=2),
    weight=st.lists(st.floats(0, 1, width=32), min_size=2, max_size=2),
    partner=st.lists(st.integers(0, 1), min_size=2, max_size=2),
    dtype=st.sampled_from(DTYPES),
    w=st.sampled_from([31, 48, 64]),
)
def test_any_rectangles_and_weights(erase, cut, weight, partner, dtype, w):
    parameters = SampleParameters(2, erase=np.array(erase), cut=np.array(cut), weight=weight, partner=partner)
    check(random_images(2, 33, w, 3), parameters, dtype, FORMATS[0])


@settings(deadline=None)
@given(mean=st.floats(width=32), std=st.floats(width=32), dtype=st.sampled_from(DTYPES))
def test_any_mean_and_std_is_refused_or_right(mean, std, dtype):
    try:
        check_mean_std((mean,), (std,))
    except ValueError:
        return
    images = random_images(2, 4, 33, 1)
    check(images, random_parameters("all", 2, 4, 33), dtype, FORMATS[0], mean=(mean,), std=(std,))
