import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastfeed import transforms
from fastfeed.data.order import permutation
from fastfeed.data.plan import make_plan

SIZES = np.array([[480, 640], [500, 375], [32, 32], [64, 2000], [3000, 70], [1, 1]], np.int64)


def plan(transform, sizes, indices=None, seed=0, epoch=0):
    indices = np.arange(len(sizes)) if indices is None else np.asarray(indices)
    return make_plan(transform, np.asarray(sizes, np.int64), indices, seed=seed, epoch=epoch)


@settings(deadline=None)
@given(
    sizes=st.lists(st.tuples(st.integers(1, 5000), st.integers(1, 5000)), min_size=1, max_size=20),
    scale=st.tuples(st.floats(0.01, 1), st.floats(0.01, 1)).map(sorted),
    seed=st.integers(0, 2**64 - 1),
)
def test_windows_lie_inside_the_image(sizes, scale, seed):
    sizes = np.array(sizes)
    for transform in (transforms.train(64, scale=tuple(scale)), transforms.eval(64)):
        p = plan(transform, sizes, seed=seed)
        assert (p.start >= 0).all()
        assert (p.shape >= 1).all()
        assert (p.start + p.shape <= sizes).all()
        assert (p.box[:, :2] >= 0).all()
        assert (p.box[:, 2:] > p.box[:, :2]).all()
        assert (p.box[:, 2:] <= p.shape).all()


def test_a_sample_does_not_depend_on_its_batch():
    transform = transforms.train(64)
    whole = plan(transform, SIZES, indices=[5, 17, 2, 900, 31, 8])
    alone = plan(transform, SIZES[3:4], indices=[900])
    for a, b in zip(vars(whole).values(), vars(alone).values(), strict=True):
        assert np.array_equal(a[3:4], b)


@pytest.mark.parametrize("change", [{"seed": 1}, {"epoch": 1}, {"indices": np.arange(6) + 6}])
def test_seed_epoch_and_index_each_change_the_draws(change):
    a, b = plan(transforms.train(64), SIZES), plan(transforms.train(64), SIZES, **change)
    assert not np.array_equal(a.start, b.start)


def test_distribution_of_random_resized_crop():
    # Against the rule's own definition: area uniform in scale, ratio log-uniform, position uniform.
    n, height, width = 20_000, 1200, 1200
    p = plan(transforms.train(64, scale=(0.1, 0.5)), np.full((n, 2), (height, width)))
    h, w = p.shape[:, 0], p.shape[:, 1]
    area = h * w / (height * width)
    log_ratio = np.log(w / h)
    # Every window of at most half the area and a ratio up to 4:3 fits at the first attempt, so nothing is rejected.
    assert area.min() > 0.099
    assert area.max() < 0.501
    assert_uniform((area - 0.1) / 0.4)
    assert_uniform((log_ratio + math.log(4 / 3)) / (2 * math.log(4 / 3)), tolerance=0.02)
    assert_uniform((p.start[:, 0] + 0.5) / (height - h + 1))
    assert_uniform((p.start[:, 1] + 0.5) / (width - w + 1))
    # four decisions, four independent draws
    assert abs(np.corrcoef(area, log_ratio)[0, 1]) < 0.03
    assert abs(np.corrcoef(area, p.flip)[0, 1]) < 0.03
    assert abs(p.flip.mean() - 0.5) < 0.015


def assert_uniform(values, tolerance=0.015):
    """Kolmogorov-Smirnov: 20,000 samples of a uniform distribution stay within 0.0138 in 999 of 1000 cases."""
    ordered = np.sort(values)
    distance = np.abs(ordered - (np.arange(len(ordered)) + 0.5) / len(ordered)).max()
    assert distance < tolerance


@pytest.mark.parametrize(("height", "width", "window"), [
    (100, 1000, (100, 133)),  # too wide for any window: the full height, the widest ratio
    (1000, 100, (133, 100)),
    (100, 110, (100, 110)),  # inside the range of ratios, but only because scale asks for more than there is
])  # fmt: skip
def test_fallback_is_the_largest_central_window(height, width, window):
    p = plan(transforms.train(64, scale=(2.0, 2.0)), [[height, width]])
    assert tuple(p.shape[0]) == window
    assert tuple(p.start[0]) == ((height - window[0]) // 2, (width - window[1]) // 2)


def test_every_position_is_reached():
    # Windows of 4 x 4 in 5 x 5: two positions each way, equally likely.
    p = plan(transforms.train(8, scale=(0.64, 0.64), ratio=(1.0, 1.0)), np.full((4000, 2), 5))
    assert (p.shape == 4).all()
    assert set(np.unique(p.start)) == {0, 1}
    assert np.abs(p.start.mean(axis=0) - 0.5).max() < 0.04


def test_ten_attempts_before_the_fallback():
    # Squares of 25 to 75 % of a 1000 x 500 image: half of them fit, so one sample in 2**10 falls back, to the
    # central 500 x 500. Nine attempts would make it twice as many.
    n = 100_000
    p = plan(transforms.train(8, scale=(0.25, 0.75), ratio=(1.0, 1.0)), np.full((n, 2), (1000, 500)))
    fallback = (p.shape == 500).all(axis=1) & (p.start[:, 0] == 250)
    assert abs(fallback.sum() - n / 2**10) < 45  # standard deviation 10


def test_order_and_plan_share_no_draws():
    # They share the seed; a sample's place in the epoch must tell nothing of its window.
    place = np.argsort(permutation(8000, seed=1, epoch=2))
    p = plan(transforms.train(64), np.full((8000, 2), 1000), seed=1, epoch=2)
    for values in (np.log(p.shape[:, 1] / p.shape[:, 0]), p.shape.prod(axis=1), p.start[:, 0], p.flip):
        assert abs(np.corrcoef(place, values)[0, 1]) < 0.05


def test_copies_of_a_sample_have_their_own_draws():
    a, b = (
        make_plan(transforms.train(64), SIZES, np.arange(6), np.full(6, copy), seed=0, epoch=0) for copy in (0, 2**20)
    )
    assert not np.array_equal(a.start, b.start)


@pytest.mark.parametrize(("probability", "flipped"), [(0.0, 0), (1.0, 500)])
def test_flip_probabilities_at_the_ends(probability, flipped):
    p = plan(transforms.train(64, horizontal_flip=probability), np.full((500, 2), 100))
    assert p.flip.sum() == flipped


def test_center_window_by_hand():
    # 480x640, resize 256: 256x341 (341.33 cut), crop 224 at (16, round(58.5) = 58)
    p = plan(transforms.eval(224), [[480, 640]])
    top, left = p.start[0] + p.box[0, :2]
    bottom, right = p.start[0] + p.box[0, 2:]
    assert (top, bottom) == pytest.approx((16 * 480 / 256, 240 * 480 / 256))
    assert (left, right) == pytest.approx((58 * 640 / 341, 282 * 640 / 341))
    # 650 * 256 / 480 is 346.67: torchvision cuts it, to 346, and rounds the offset, 61
    wide = plan(transforms.eval(224), [[480, 650]])
    assert wide.start[0, 1] + wide.box[0, 1] == pytest.approx(61 * 650 / 346)
    # the filter's reach, 1.875 input pixels, is decoded too
    assert p.start[0].tolist() == [28, 106]
