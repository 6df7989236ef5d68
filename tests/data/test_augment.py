"""What is declared and drawn; test_augment_pixels.py is about the pixels."""

import itertools
import pickle
from collections import Counter
from dataclasses import replace
from functools import partial

import numpy as np
import pytest

from fastfeed.data.augment import Operations, draw_operations
from fastfeed.data.philox import philox
from fastfeed.data.policies import POLICIES, Kind, auto_augment_policy
from fastfeed.data.steps import (
    AutoAugment,
    ColorJitter,
    GaussianBlur,
    RandAugment,
    RandomAdjustSharpness,
    RandomApply,
    RandomAutocontrast,
    RandomEqualize,
    RandomGrayscale,
    RandomHorizontalFlip,
    RandomInvert,
    RandomPosterize,
    RandomSolarize,
    RandomVerticalFlip,
    TrivialAugmentWide,
)

N = 20_000
SIZE = (331, 662)  # a translation of 150 and of 300 pixels at most
JITTER = ColorJitter(0.4, (0.3, 0.9), 2.0, 0.25)
SIGNED = {Kind.SHEAR_X, Kind.SHEAR_Y, Kind.TRANSLATE_X, Kind.TRANSLATE_Y, Kind.ROTATE}
FACTORS = {Kind.BRIGHTNESS, Kind.CONTRAST, Kind.SATURATION, Kind.SHARPNESS}
CHOICES = [Kind.NOTHING, *sorted(SIGNED), *sorted(FACTORS)]
CHOICES += [Kind.POSTERIZE, Kind.SOLARIZE, Kind.AUTOCONTRAST, Kind.EQUALIZE]
# The largest magnitudes by the papers, of a factor its distance from 1, at 331 x 662 pixels.
WIDE = {Kind.SHEAR_X: 0.99, Kind.SHEAR_Y: 0.99, Kind.TRANSLATE_X: 32, Kind.TRANSLATE_Y: 32, Kind.ROTATE: 135}
WIDE |= dict.fromkeys(FACTORS, 0.99)
NARROW = {Kind.SHEAR_X: 0.3, Kind.SHEAR_Y: 0.3, Kind.TRANSLATE_X: 300, Kind.TRANSLATE_Y: 150, Kind.ROTATE: 30}
NARROW |= dict.fromkeys(FACTORS, 0.9)


def draw(*steps, n=N, indices=None, copies=None, seed=0, epoch=0, size=SIZE):
    indices = np.arange(n) if indices is None else np.asarray(indices)
    copies = np.zeros(len(indices), np.int64) if copies is None else np.asarray(copies)
    return draw_operations(steps, indices, copies, seed=seed, epoch=epoch, height=size[0], width=size[1])


def assert_frequencies(values, expected):
    """Chi-square: it exceeds its mean by five of its standard deviations in one of a million cases or fewer."""
    counts = Counter(values.tolist() if isinstance(values, np.ndarray) else values)
    assert set(counts) <= set(expected)
    total = sum(counts.values())
    chi_square = sum((counts[value] - total * p) ** 2 / (total * p) for value, p in expected.items())
    freedom = len(expected) - 1
    assert chi_square <= freedom + 5 * np.sqrt(2 * freedom)


def equally(values):
    values = list(values)
    return dict.fromkeys(values, 1 / len(values))


def assert_uniform(values, tolerance):
    """Kolmogorov-Smirnov: in 999 of 1000 cases n uniform numbers stay within 1.95 / sqrt(n)."""
    ordered = np.sort(values)
    assert np.abs(ordered - (np.arange(len(ordered)) + 0.5) / len(ordered)).max() < tolerance / np.sqrt(len(ordered))


@pytest.mark.parametrize(("step", "kind", "magnitude"), [
    (RandomHorizontalFlip(0.3), Kind.HORIZONTAL_FLIP, 0),
    (RandomVerticalFlip(0.3), Kind.VERTICAL_FLIP, 0),
    (RandomGrayscale(0.3), Kind.GRAYSCALE, 0),
    (RandomInvert(0.3), Kind.INVERT, 0),
    (RandomPosterize(3, 0.3), Kind.POSTERIZE, 3),
    (RandomSolarize(100, 0.3), Kind.SOLARIZE, 100),
    (RandomAdjustSharpness(1.5, 0.3), Kind.SHARPNESS, 1.5),
    (RandomAutocontrast(0.3), Kind.AUTOCONTRAST, 0),
    (RandomEqualize(0.3), Kind.EQUALIZE, 0),
])  # fmt: skip
def test_steps_of_one_operation(step, kind, magnitude):
    drawn = draw(step)
    assert drawn.kind.shape == (N, 1)
    assert_frequencies(drawn.kind[:, 0], {kind: 0.3, Kind.NOTHING: 0.7})
    assert np.array_equal(drawn.magnitude, magnitude * (drawn.kind == kind))
    assert (draw(replace(step, p=0)).kind == Kind.NOTHING).all()
    assert (draw(replace(step, p=1)).kind == kind).all()


@pytest.mark.parametrize(("threshold", "magnitude"), [
    (128, 128),
    (127.5, 128),  # the same levels are inverted
    (128.0000001, 129),  # which fp32 would round to 128
    (127.9999999, 128),
    (0, 0),
    (-3, 0),
    (-1e300, 0),
    (255.5, 256),
    (1e300, 256),
])  # fmt: skip
def test_thresholds_of_solarize(threshold, magnitude):
    drawn = draw(RandomSolarize(threshold, 1), n=2)
    assert drawn.magnitude.tolist() == [[magnitude], [magnitude]]
    levels = np.arange(256)
    assert np.array_equal(levels >= threshold, levels >= magnitude)


def test_gaussian_blur():
    drawn = draw(GaussianBlur((7, 3), (0.5, 2.5)), GaussianBlur([5], 1.5))
    assert (drawn.kind == Kind.GAUSSIAN_BLUR).all()
    assert_uniform((drawn.magnitude[:, 0] - 0.5) / 2, 1.95)
    assert (drawn.magnitude[:, 1] == 1.5).all()
    assert drawn.kernel_size.shape == (N, 2, 2)
    assert drawn.kernel_size.dtype == np.int32
    assert (drawn.kernel_size == [[3, 7], [5, 5]]).all()  # height and width


def test_random_apply():
    inner = [ColorJitter(0.4, hue=0.1), RandomGrayscale(0.25), GaussianBlur(3)]
    drawn, alone = draw(RandomApply(inner, 0.3)), draw(*inner)
    assert drawn.kind.shape == (N, 4)
    done = (drawn.kind != Kind.NOTHING).any(axis=1)
    assert_frequencies(done, {True: 0.3, False: 0.7})
    # All or none; and those that are done do what they do alone.
    assert np.array_equal(drawn.kind[done], alone.kind[done])
    assert np.array_equal(drawn.magnitude[done], alone.magnitude[done])
    assert not drawn.kind[~done].any()
    assert np.array_equal(drawn.kernel_size, alone.kernel_size)
    assert_frequencies(drawn.kind[done, 2], {Kind.GRAYSCALE: 0.25, Kind.NOTHING: 0.75})
    assert (draw(RandomApply(inner, 1)).kind == alone.kind).all()
    assert not draw(RandomApply(inner, 0)).kind.any()
    assert draw(RandomApply([]), n=3).kind.shape == (3, 0)


def test_random_apply_in_random_apply():
    nested = RandomApply([RandomInvert(1), RandomApply([RandomEqualize(1), RandomAutocontrast(1)], 0.4)], 0.5)
    drawn = draw(nested, RandomApply([RandomGrayscale(1)], 0.5), RandomInvert(0.5))
    expected = {(0, 0, 0): 0.5, (13, 0, 0): 0.3, (13, 12, 11): 0.2}
    assert_frequencies([tuple(row) for row in drawn.kind[:, :3].tolist()], expected)
    chosen = (drawn.kind[:, [0, 1, 3, 4]] != 0).T
    correlation = np.corrcoef(chosen)
    assert correlation[0, 1] > 0.3  # the inner one's second draw counts only where the first one's did
    assert np.abs(np.delete(correlation, [0, 1], axis=0) - np.eye(4)[2:]).max() < 0.03


def test_a_random_apply_does_not_move_draws():
    inside = draw(RandomGrayscale(0.5), RandomApply([RandomApply([RandomGrayscale(0.5)], 1)], 1), RandomGrayscale(0.5))
    flat = draw(*[RandomGrayscale(0.5)] * 3)
    assert np.array_equal(inside.kind, flat.kind)


def test_defaults_are_torchvisions():
    assert (RandomHorizontalFlip().p, RandomVerticalFlip().p, RandomGrayscale().p) == (0.5, 0.5, 0.1)
    assert ColorJitter().ranges() == {}
    assert RandomInvert().p == RandomPosterize(1).p == RandomSolarize(1).p == RandomAdjustSharpness(1).p == 0.5
    assert RandomAutocontrast().p == RandomEqualize().p == RandomApply([]).p == 0.5
    assert GaussianBlur(3) == GaussianBlur((3, 3), (0.1, 2.0))
    assert TrivialAugmentWide() == TrivialAugmentWide(31, "nearest", None)
    assert RandAugment() == RandAugment(2, 9, 31, "nearest", None)
    assert AutoAugment() == AutoAugment("imagenet", "nearest", None)


def test_color_jitter():
    drawn = draw(JITTER)
    ranges = {
        Kind.BRIGHTNESS: (0.6, 1.4),
        Kind.CONTRAST: (0.3, 0.9),
        Kind.SATURATION: (0, 3),
        Kind.HUE: (-0.25, 0.25),
    }
    assert list(JITTER.ranges()) == list(ranges)
    assert np.allclose(list(JITTER.ranges().values()), list(ranges.values()))
    assert drawn.kind.shape == (N, 4)
    assert_frequencies([tuple(row) for row in drawn.kind.tolist()], equally(itertools.permutations(ranges)))
    # Each factor by the sample's index, whatever its place in the order.
    factors = np.take_along_axis(drawn.magnitude, np.argsort(drawn.kind, axis=1), axis=1)
    for column, (low, high) in zip(factors.T, ranges.values(), strict=True):
        assert_uniform((column - low) / (high - low), 1.95)
    assert np.abs(np.corrcoef(np.concatenate([factors.T, drawn.kind.T[:1]])) - np.eye(5)).max() < 0.03


def test_color_jitter_of_some_factors():
    every, some = draw(JITTER), draw(ColorJitter(contrast=(0.3, 0.9), hue=0.25, brightness=(1, 1)))
    assert_frequencies([tuple(row) for row in some.kind.tolist()], equally([(5, 7), (7, 5)]))
    for kind in (Kind.CONTRAST, Kind.HUE):  # the others do not move its draws
        assert np.array_equal(every.magnitude[every.kind == kind], some.magnitude[some.kind == kind])
    nothing = draw(ColorJitter())
    assert nothing.kind.shape == nothing.magnitude.shape == (N, 0)


def expected_magnitudes(kind, largest, bits, bins):
    """The magnitudes that an operation of TrivialAugment or RandAugment has, by their definition."""
    share = np.arange(bins) / (bins - 1)
    if kind == Kind.POSTERIZE:
        return 8 - np.round(share * bits)
    if kind == Kind.SOLARIZE:
        return 255 * (1 - share)
    if kind not in largest:
        return np.zeros(1)
    values = np.concatenate([share, -share]) * largest[kind]
    return 1 + values if kind in FACTORS else values


def test_trivial_augment():
    drawn = draw(TrivialAugmentWide(), n=3 * N)
    assert drawn.kind.shape == (3 * N, 1)
    assert_frequencies(drawn.kind[:, 0], equally(CHOICES))
    for kind in CHOICES:
        magnitudes = drawn.magnitude[drawn.kind == kind]
        expected = expected_magnitudes(kind, WIDE, 6, 31)
        bins = Counter(np.round(expected, 4).tolist())
        share = {value: count / len(expected) for value, count in bins.items()}
        assert_frequencies([min(share, key=lambda v: abs(v - m)) for m in magnitudes.tolist()], share)
        assert np.abs(magnitudes[:, None] - expected).min(axis=1).max() < 1e-5 * max(1, np.abs(expected).max())


@pytest.mark.parametrize("magnitude", [0, 9, 30])
def test_rand_augment(magnitude):
    drawn = draw(RandAugment(3, magnitude))
    assert drawn.kind.shape == (N, 3)
    assert_frequencies(drawn.kind.ravel(), equally(CHOICES))
    assert_frequencies(
        [tuple(row) for row in drawn.kind[:, ::2].tolist()], equally(itertools.product(CHOICES, CHOICES))
    )
    for kind in CHOICES:
        magnitudes = drawn.magnitude[drawn.kind == kind]
        every = expected_magnitudes(kind, NARROW, 4, 31)
        expected = np.unique(every[magnitude::31] if kind not in (Kind.AUTOCONTRAST, Kind.EQUALIZE) else every)
        if kind == Kind.NOTHING:
            expected = np.zeros(1)
        assert np.abs(magnitudes[:, None] - expected).min(axis=1).max() < 1e-5 * max(1, np.abs(expected).max())
        if len(expected) == 2:
            assert_frequencies(magnitudes > expected.mean(), equally([True, False]))


@pytest.mark.parametrize("name", sorted(POLICIES))
def test_auto_augment(name):
    drawn, pairs = draw(AutoAugment(name), n=4 * N), POLICIES[name]
    assert len(pairs) == 25
    expected = Counter()
    for (first, p, _), (second, q, _) in pairs:
        for one, probability in ((first, p), (Kind.NOTHING, 1 - p)):
            for two, other in ((second, q), (Kind.NOTHING, 1 - q)):
                expected[one, two] += probability * other / 25
    expected = {pair: p for pair, p in expected.items() if p > 0}
    assert_frequencies([tuple(row) for row in drawn.kind.tolist()], expected)
    # What a bin of ten stands for: a share of the largest magnitude.
    possible = {kind: {0.0} for kind in Kind}
    for kind, _, bin in itertools.chain(*pairs):
        values = expected_magnitudes(kind, NARROW, 4, 10)
        possible[kind] |= set(values[bin::10].tolist()) if len(values) > 1 else {0.0}
    for kind in Kind:
        magnitudes = drawn.magnitude[drawn.kind == kind]
        if kind in SIGNED | FACTORS and len(magnitudes):
            centre = 1 if kind in FACTORS else 0
            magnitudes = magnitudes[magnitudes != centre]
            assert_frequencies(magnitudes > centre, equally([True, False]))
        for value in np.unique(magnitudes):
            assert min(abs(value - other) for other in possible[kind]) < 1e-4


@pytest.mark.parametrize(("name", "row", "kind", "magnitude", "probability"), [
    # Solarize at bin 5 of ten from 255 down to 0, rotate at bin 9 of 30 degrees, posterize at bin 8 keeps 8 - 4 bits.
    ("imagenet", 0, (Kind.POSTERIZE, Kind.ROTATE), (4, 30), (0.4, 0.6)),
    ("imagenet", 1, (Kind.SOLARIZE, Kind.AUTOCONTRAST), (255 * 4 / 9, 0), (0.6, 0.6)),
    ("imagenet", 15, (Kind.ROTATE, Kind.SATURATION), (30 * 8 / 9, 1.2), (0.8, 1.0)),
    ("cifar10", 3, (Kind.SHEAR_Y, Kind.TRANSLATE_Y), (0.3 * 8 / 9, 150), (0.5, 0.7)),
    ("cifar10", 10, (Kind.SATURATION, Kind.TRANSLATE_X), (1.7, 300 * 8 / 9), (0.7, 0.5)),
    ("svhn", 24, (Kind.SHEAR_X, Kind.INVERT), (0.3 * 2 / 9, 0), (0.7, 0.1)),
])  # fmt: skip
def test_rows_of_the_policies(name, row, kind, magnitude, probability):
    policy = auto_augment_policy(name, *SIZE)
    assert tuple(policy.kind[row]) == kind
    assert policy.magnitude[row, :, 0] == pytest.approx(magnitude)
    assert tuple(policy.probability[row]) == probability


ALL = [
    RandomHorizontalFlip(),
    JITTER,
    RandomGrayscale(0.5),
    TrivialAugmentWide(),
    RandAugment(),
    AutoAugment(),
    RandomVerticalFlip(),
    GaussianBlur((7, 3)),
    RandomApply([RandomInvert(), RandomPosterize(3)], 0.7),
    RandomSolarize(99),
    RandomAdjustSharpness(1.5),
    RandomAutocontrast(),
    RandomEqualize(),
]
WIDTH = 19  # operations


def same(a, b):
    return all(np.array_equal(getattr(a, name), getattr(b, name)) for name in ("kind", "magnitude", "kernel_size"))


def test_a_sample_does_not_depend_on_its_batch():
    indices, copies = [5, 17, 2**31 + 3, 900, 31, 8], [0, 1, 2, 3, 0, 2**32 - 1]
    whole = draw(*ALL, indices=indices, copies=copies)
    assert whole.kind.shape == whole.magnitude.shape == (6, WIDTH)
    assert (whole.kind.dtype, whole.magnitude.dtype) == (np.uint8, np.float32)
    assert same(whole, draw(*ALL, indices=indices, copies=copies))
    for i in range(6):
        assert same(whole.at(slice(i, i + 1)), draw(*ALL, indices=indices[i : i + 1], copies=copies[i : i + 1]))


@pytest.mark.parametrize("change", [
    {"seed": 1},
    {"seed": 2**32},
    {"epoch": 1},
    {"indices": np.arange(50) + 50},
    {"indices": np.arange(50) + 2**31},
    {"copies": np.ones(50)},
    {"copies": np.full(50, 2**31)},
])  # fmt: skip
@pytest.mark.parametrize("step", ALL)
def test_seed_epoch_index_and_copy_each_change_the_draws(step, change):
    assert not same(draw(step, n=50), draw(step, **{"indices": np.arange(50), **change}))


def test_steps_draw_independently():
    alone = [draw(step) for step in ALL]
    together = draw(*ALL)
    assert np.array_equal(together.kind, np.concatenate([one.kind for one in alone], axis=1))
    assert np.array_equal(together.magnitude, np.concatenate([one.magnitude for one in alone], axis=1))
    twice = draw(RandomGrayscale(0.5), RandomVerticalFlip(), RandomGrayscale(0.5))
    assert np.array_equal(twice.kind[:, :1], draw(RandomGrayscale(0.5)).kind)
    chosen = (twice.kind != 0).T
    assert np.abs(np.corrcoef(chosen) - np.eye(3)).max() < 0.03


def test_where_the_draws_come_from():
    # A change here changes what every seed stands for.
    index, copy = 7, 5
    purposes = {
        RandomHorizontalFlip: 0x200,
        RandomVerticalFlip: 0x210,
        RandomGrayscale: 0x220,
        RandomInvert: 0x280,
        partial(RandomPosterize, 4): 0x290,
        partial(RandomSolarize, 4): 0x2A0,
        partial(RandomAdjustSharpness, 4): 0x2B0,
        RandomAutocontrast: 0x2C0,
        RandomEqualize: 0x2D0,
        partial(RandomApply, [RandomInvert(1)]): 0x2E0,
    }
    for make, purpose in purposes.items():
        counter = np.array([7, 5, 11, purpose << 16], np.uint32)
        p = float(philox(13, counter)[0] / 2**32)
        for probability, done in ((p, False), (p + 1e-6, True)):
            drawn = draw(make(p=probability), indices=[index], copies=[copy], seed=13, epoch=11)
            assert (drawn.kind[0, 0] != Kind.NOTHING) == done
    sigma = 1 + philox(13, np.array([7, 5, 11, 0x270 << 16], np.uint32))[0] / 2**32
    drawn = draw(GaussianBlur(3, (1, 2)), indices=[index], copies=[copy], seed=13, epoch=11)
    assert drawn.magnitude[0, 0] == np.float32(sigma)


@pytest.mark.parametrize(("steps", "fill"), [
    ([], (0, 0, 0)),
    ([JITTER], (0, 0, 0)),
    ([TrivialAugmentWide()], (0, 0, 0)),
    ([TrivialAugmentWide(fill=128)], (128, 128, 128)),
    ([RandAugment(fill=[3])], (3, 3, 3)),
    ([GaussianBlur(3), RandomApply([JITTER, RandomApply([RandAugment(fill=7)])])], (7, 7, 7)),
    ([AutoAugment(fill=(1, 2, 255)), JITTER, RandAugment(fill=[1, 2, 255])], (1, 2, 255)),
])  # fmt: skip
def test_fill(steps, fill):
    drawn = draw(*steps, n=2)
    assert drawn.fill == fill
    assert drawn.at(slice(1)).fill == fill


@pytest.mark.parametrize(("steps", "bilinear"), [
    ([], False),
    ([JITTER, AutoAugment()], False),
    ([TrivialAugmentWide(interpolation="bilinear"), RandomInvert()], True),
    ([RandAugment(0, interpolation="bilinear")], True),
    ([GaussianBlur(3), RandomApply([JITTER, RandomApply([AutoAugment(interpolation="bilinear")])])], True),
])  # fmt: skip
def test_interpolation(steps, bilinear):
    drawn = draw(*steps, n=2)
    assert drawn.bilinear is bilinear
    assert drawn.at(slice(1)).bilinear is bilinear


def test_interpolation_does_not_move_draws():
    for cls in (TrivialAugmentWide, RandAugment, AutoAugment):
        assert same(draw(cls(interpolation="bilinear"), n=99), draw(cls(), n=99))


def test_no_samples_and_no_steps():
    assert draw(*ALL, n=0).kind.shape == (0, WIDTH)
    assert draw(n=3).kind.shape == draw(RandAugment(0), n=3).magnitude.shape == (3, 0)


@pytest.mark.parametrize("value", [*ALL, Operations(np.zeros((1, 1), np.uint8), np.zeros((1, 1), np.float32))])
def test_pickle(value):
    assert repr(pickle.loads(pickle.dumps(value))) == repr(value)


@pytest.mark.parametrize(("make", "error", "message"), [
    (lambda: RandomHorizontalFlip(1.1), ValueError, "RandomHorizontalFlip: p is 1.1; expected a probability, 0 to 1"),
    (lambda: RandomVerticalFlip(-0.1), ValueError, "RandomVerticalFlip: p is -0.1"),
    (lambda: RandomGrayscale(float("nan")), ValueError, "RandomGrayscale: p is nan"),
    (lambda: RandomGrayscale("0.5"), TypeError, "RandomGrayscale: p is '0.5'"),
    (lambda: ColorJitter(brightness=-0.1), ValueError, "brightness is -0.1; expected 0 or more, or a pair"),
    (lambda: ColorJitter(contrast=(0.5, 0.4)), ValueError, r"contrast is \(0.5, 0.4\).* 0 <= low <= high"),
    (lambda: ColorJitter(saturation=(-0.5, 0.4)), ValueError, "saturation is"),
    (lambda: ColorJitter(saturation=float("inf")), ValueError, "saturation is inf, a range from 0.0 to inf"),
    (lambda: ColorJitter(brightness=float("nan")), ValueError, "brightness is nan"),
    (lambda: ColorJitter(hue=0.6), ValueError, "hue is 0.6, a range from -0.6 to 0.6; expected -0.5 <= low"),
    (lambda: ColorJitter(hue=(-0.6, 0)), ValueError, "hue is"),
    (lambda: ColorJitter(hue="red"), TypeError, "hue is 'red'; expected a number or a pair"),
    (lambda: ColorJitter(contrast=(1, 2, 3)), TypeError, "contrast is"),
    (lambda: TrivialAugmentWide(1), ValueError, "num_magnitude_bins is 1; expected at least 2"),
    (lambda: TrivialAugmentWide(2.5), TypeError, "num_magnitude_bins is 2.5; expected a whole number"),
    (lambda: TrivialAugmentWide(fill=256), ValueError, "TrivialAugmentWide: fill is 256; expected 0 to 255"),
    (lambda: TrivialAugmentWide(fill=(1, 2)), ValueError, "fill is"),
    (lambda: TrivialAugmentWide(fill=float("nan")), TypeError, "fill is nan"),
    (lambda: RandAugment(fill="black"), TypeError, "RandAugment: fill is 'black'"),
    (lambda: RandAugment(-1), ValueError, "num_ops is -1; expected 0 to"),
    (lambda: RandAugment(magnitude=31), ValueError, "magnitude is 31; expected 0 to 30"),
    (lambda: RandAugment(magnitude=-1), ValueError, "magnitude is -1"),
    (lambda: AutoAugment("mnist"), ValueError, "policy is 'mnist'; expected one of 'imagenet', 'cifar10', 'svhn'"),
    (lambda: AutoAugment(fill=[1, 2, -3]), ValueError, "AutoAugment: fill is"),
    (lambda: draw("flip", n=1), TypeError, "a step is str; expected one of RandomHorizontalFlip, "),
    (lambda: draw(*[JITTER] * 17, n=1), ValueError, "more than 16 steps of class ColorJitter"),
    (lambda: draw(AutoAugment(), RandAugment(fill=3), n=1), ValueError, r"fills, \(0, 0, 0\) and \(3, 3, 3\)"),
    (lambda: draw(AutoAugment(), RandomApply([RandAugment(fill=3)]), n=1), ValueError, r"fills, \(0, 0, 0\) and \(3"),
    (lambda: draw(AutoAugment(), RandomApply([RandAugment(interpolation="bilinear")]), n=1), ValueError,
     "the steps have different interpolations, bilinear and nearest; give all the same"),
    (lambda: draw(*[RandomApply([JITTER] * 9)] * 2, n=1), ValueError, "more than 16 steps of class ColorJitter"),
    (lambda: draw(*[RandomApply([])] * 17, n=1), ValueError, "more than 16 steps of class RandomApply"),
    (lambda: draw(GaussianBlur((1, 5)), n=1, size=(2, 9)), ValueError, "1 x 5 .* 9 x 2 pixels.* at most 17 x 3"),
    (lambda: draw(GaussianBlur((19, 1)), n=0, size=(2, 9)), ValueError, "19 x 1 .* 9 x 2 pixels.* at most 17 x 3"),
    (lambda: draw(JITTER, indices=[-1]), ValueError, "indices are from -1 to -1; expected 0 to"),
    (lambda: draw(JITTER, indices=[0, 2**32]), ValueError, "indices are from 0 to 4294967296"),
    (lambda: draw(JITTER, indices=[0], copies=[2**32]), ValueError, "copies are from 4294967296 to"),
])  # fmt: skip
def test_bad_arguments(make, error, message):
    with pytest.raises(error, match=message):
        make()
