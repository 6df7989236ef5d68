import numpy as np
import pytest

from fastfeed.data.philox import philox, uniform

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


def test_uniform_is_in_the_half_open_interval():
    ends = uniform(np.array([0, 2**32 - 1], np.uint32))
    assert ends[0] == 0.0
    assert ends[1] < 1.0
    assert np.float32(ends[1]) <= 1.0
