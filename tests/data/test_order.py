import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastfeed.data.order import batches, epoch_order


@given(size=st.integers(0, 300), seed=st.integers(0, 2**64 - 1), epoch=st.integers(0, 2**32 - 1))
def test_every_epoch_is_a_permutation(size, seed, epoch):
    order = epoch_order(size, shuffle=True, seed=seed, epoch=epoch)
    assert np.array_equal(np.sort(order), np.arange(size))


def test_order_is_a_function_of_seed_and_epoch():
    def order(seed, epoch):
        return epoch_order(1000, shuffle=True, seed=seed, epoch=epoch).tolist()

    assert order(1, 2) == order(1, 2)
    assert order(1, 2) != order(1, 3)
    assert order(1, 2) != order(2, 2)
    assert epoch_order(5, shuffle=False, seed=1, epoch=2).tolist() == [0, 1, 2, 3, 4]


def test_positions_are_uniform():
    # 2000 epochs of 6 samples: each sample is expected 333 times at each position, standard deviation 17.
    counts = np.zeros((6, 6))
    for epoch in range(2000):
        counts[np.arange(6), epoch_order(6, shuffle=True, seed=0, epoch=epoch)] += 1
    assert np.abs(counts - 2000 / 6).max() < 5 * 17


@pytest.mark.parametrize(("size", "batch_size", "drop_last", "lengths"), [
    (10, 4, False, [4, 4, 2]),
    (10, 4, True, [4, 4]),
    (8, 4, False, [4, 4]),
    (3, 4, False, [3]),
    (3, 4, True, []),
    (0, 4, False, []),
])  # fmt: skip
def test_batches(size, batch_size, drop_last, lengths):
    cut = batches(np.arange(size), batch_size, drop_last=drop_last)
    assert [len(b) for b in cut] == lengths
    assert np.concatenate([*cut, np.zeros(0, int)]).tolist() == list(range(sum(lengths)))
