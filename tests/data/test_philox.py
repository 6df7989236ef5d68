from fractions import Fraction

import numpy as np
import pytest
import torch

from fastfeed.data.philox import _fma, philox, standard_normal, uniform

# The known-answer vectors published with Random123 (kat_vectors, philox4x32 10).
KNOWN = [
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    (
        (0xFFFFFFFF,) * 4,
        (0xFFFFFFFF,) * 2,
        (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD),
    ),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]


@pytest.mark.parametrize(("counter", "key", "expected"), KNOWN)
def test_known_answers(counter, key, expected):
    words = philox(key[1] << 32 | key[0], np.array(counter, np.uint32))
    assert [int(w) for w in words] == list(expected)


def test_a_word_depends_on_its_own_counter_alone():
    counters = np.random.default_rng(0).integers(0, 2**32, (50, 3, 4), dtype=np.uint32)
    together = philox(123456789, counters)
    assert np.array_equal(together[7, 2], philox(123456789, counters[7, 2]))


def test_the_key_is_taken_modulo_two_to_the_64():
    counter = np.arange(4, dtype=np.uint32)
    assert np.array_equal(philox(-1, counter), philox(2**64 - 1, counter))
    assert np.array_equal(philox(2**64 + 5, counter), philox(5, counter))


def test_uniform_is_in_the_half_open_interval():
    ends = uniform(np.array([0, 2**32 - 1], np.uint32))
    assert ends[0] == 0.0
    assert ends[1] < 1.0
    assert np.float32(ends[1]) <= 1.0


def test_multiplies_and_adds_with_one_rounding():
    f32 = np.float32
    # A hair below the middle of two neighbours: 1 + 2**-23 + 2**-24 - 2**-70, in fp64 the middle itself.
    a, b, c = np.array([2.0**-24 * (1 + 2.0**-23)], f32), f32(1 - 2.0**-23), f32(1 + 2.0**-23)
    assert _fma(a, b, c) == c
    assert _fma(-a, b, -c) == -c
    assert _fma(a, f32(1 + 2.0**-23), c) == f32(1 + 2.0**-22)
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal((2, 3000)).astype(f32)
    c = (rng.standard_normal(3000) * 2.0 ** rng.integers(-30, 30, 3000)).astype(f32)
    for x, y, z, got in zip(a, b, c, _fma(a, b, c), strict=True):
        exact = Fraction(float(x)) * Fraction(float(y)) + Fraction(float(z))
        distances = [abs(Fraction(float(np.nextafter(got, f32(end)))) - exact) for end in (-np.inf, np.inf)]
        assert abs(Fraction(float(got)) - exact) <= min(distances)


def words_of_all_regions():
    """Words near both ends and the middle, where the parts of the approximation meet, and all over."""
    step = np.arange(0, 2**32, 2**32 // 100_000, dtype=np.uint64)
    near = np.arange(5000, dtype=np.uint64) * 256
    tail = np.linspace(0.003, 0.004, 20_000) * 2**32  # where the tail's polynomial begins
    return np.unique(
        np.concatenate([step, near, 2**32 - 1 - near, 2**31 + near, 2**31 - 1 - near, tail.astype(np.uint64)])
    )


def quantiles(words):
    """The exact results, in double precision: the middles of 2**24 intervals of equal probability."""
    middles = (words >> 8).astype(np.float64) * 2.0**-24 + 2.0**-25
    return torch.special.ndtri(torch.from_numpy(middles)).numpy()


def test_standard_normal_is_the_inverse_of_the_distribution():
    words = words_of_all_regions()
    got, expected = standard_normal(words.astype(np.uint32)), quantiles(words)
    assert got.dtype == np.float32
    # What Giles states; it is 2.8e-7 here.
    assert np.max(np.abs(got - expected) / np.abs(expected)) < 4e-7
    assert np.max(np.abs(got)) < 5.42


def test_standard_normal_is_symmetric_and_never_zero():
    words = words_of_all_regions().astype(np.uint32)
    assert np.array_equal(standard_normal(words), -standard_normal(~words))
    assert np.all(standard_normal(words) != 0)


def test_standard_normal_does_not_use_the_lowest_byte():
    words = np.random.default_rng(0).integers(0, 2**32, 1000, dtype=np.uint32)
    assert np.array_equal(standard_normal(words), standard_normal(words ^ np.uint32(0xFF)))


def test_standard_normal_rises_but_for_roundings():
    got = standard_normal(np.arange(0, 2**32, 2**32 // 2**16, dtype=np.uint64).astype(np.uint32))
    assert np.all(np.diff(got) > 0)


def test_standard_normal_keeps_the_shape():
    assert standard_normal(np.zeros((2, 0, 3), np.uint32)).shape == (2, 0, 3)
    assert standard_normal(philox(0, np.zeros((5, 4), np.uint32))).shape == (5, 4)
