from itertools import permutations

import numpy as np
import pytest
import torch

from fastfeed.data.order import Batches, Picks, permutation, rank_and_world_size, step_bounds
from fastfeed.data.philox import philox


def shuffled_by_the_book(size, seed, epoch):
    order = list(range(size))
    for i in range(size):
        words = [int(word) for word in philox(seed, np.array([i // 2, 0, epoch, 0x6F726472], np.uint32))]
        random = words[1] << 32 | words[0] if i % 2 == 0 else words[3] << 32 | words[2]
        j = i + (random * (size - i) >> 64)
        order[i], order[j] = order[j], order[i]
    return order


def p_value(observed, expected, degrees):
    """The chance that independent draws lie as far from what is expected, or farther, by Pearson's chi-square test."""
    statistic = float(np.sum((observed - expected) ** 2 / expected))
    return float(torch.special.gammaincc(torch.tensor(degrees / 2), torch.tensor(statistic / 2)))


# The draws are made in blocks of 256.
@pytest.mark.parametrize("size", [0, 1, 2, 3, 7, 255, 256, 257, 512, 513, 777])
@pytest.mark.parametrize(("seed", "epoch"), [(0, 0), (1, 2), (2**64 - 1, 2**32 - 1), (0x0123456789ABCDEF, 17)])
def test_permutation_is_fisher_and_yates_shuffle(size, seed, epoch):
    order = permutation(size, seed=seed, epoch=epoch)
    assert order.dtype == np.int64
    assert order.tolist() == shuffled_by_the_book(size, seed, epoch)


def test_permutation_depends_on_every_bit_of_seed_and_epoch():
    orders = [permutation(100, seed=1 << bit, epoch=0) for bit in range(64)]
    orders += [permutation(100, seed=0, epoch=1 << bit) for bit in range(32)]
    assert len({tuple(order) for order in orders}) == 96
    assert np.array_equal(permutation(100, seed=2**64 + 5, epoch=2**32 + 6), permutation(100, seed=5, epoch=6))
    assert np.array_equal(permutation(100, seed=-1, epoch=0), permutation(100, seed=2**64 - 1, epoch=0))


@pytest.mark.parametrize("by", ["epoch", "seed"])
def test_every_permutation_of_four_is_equally_likely(by):
    fixed = {"epoch": 3, "seed": 11}
    names = list(permutations(range(4)))
    counts = dict.fromkeys(names, 0)
    for i in range(24_000):
        counts[tuple(permutation(4, **(fixed | {by: i})).tolist())] += 1
    assert 1e-4 < p_value(np.array(list(counts.values())), 1000, degrees=23) < 1 - 1e-4


def test_every_position_is_equally_likely():
    size, epochs, bins = 600, 1000, 10
    counts = np.zeros((bins, bins))
    for epoch in range(epochs):
        where = np.arange(size) * bins // size
        np.add.at(counts, (where, permutation(size, seed=5, epoch=epoch) * bins // size), 1)
    # Rows and columns have fixed sums, and one permutation's entries vary by n / (n - 1) more than independent ones'.
    expected = epochs * size / bins**2
    assert 1e-4 < p_value(counts, expected * size / (size - 1), degrees=(bins - 1) ** 2) < 1 - 1e-4


@pytest.mark.parametrize("size", [-1, 2.0, True, "3"])
def test_permutation_names_a_bad_size(size):
    with pytest.raises(ValueError, match="size is"):
        permutation(size, seed=0, epoch=0)


# ------------------------------------------------------------------------------------------------ steps


@pytest.mark.parametrize(("length", "batch_size", "world_size", "drop_last", "start", "expected"), [
    (10, 4, 1, False, 0, [0, 4, 8, 10]),
    (10, 4, 1, True, 0, [0, 4, 8]),
    (8, 4, 1, False, 0, [0, 4, 8]),
    (8, 4, 1, True, 0, [0, 4, 8]),
    (3, 4, 1, False, 0, [0, 3]),
    (3, 4, 1, True, 0, [0]),
    (0, 4, 1, False, 0, [0]),
    (0, 4, 3, True, 0, [0]),
    (20, 3, 2, False, 0, [0, 6, 12, 18, 20]),
    (20, 3, 2, True, 0, [0, 6, 12, 18]),
    (20, 3, 2, False, 7, [7, 13, 19, 20]),
    (20, 3, 2, True, 7, [7, 13, 19]),
    (20, 3, 2, False, 20, [20]),
    (3, 1, 7, False, 0, [0, 3]),
    (5, 2**62, 2**62, False, 0, [0, 5]),
    (20, lambda step: step + 1, 2, False, 0, [0, 2, 6, 12, 20]),
    (21, lambda step: step + 1, 2, False, 0, [0, 2, 6, 12, 20, 21]),
    (21, lambda step: step + 1, 2, True, 0, [0, 2, 6, 12, 20]),
    (5, lambda step: 2**70, 2, True, 0, [0]),
    (0, lambda step: 0, 1, False, 0, [0]),
])  # fmt: skip
def test_step_bounds(length, batch_size, world_size, drop_last, start, expected):
    bounds = step_bounds(length, batch_size, world_size=world_size, drop_last=drop_last, start=start)
    assert bounds.dtype == np.int64
    assert bounds.tolist() == expected


def test_a_schedule_is_asked_for_every_step_from_the_first():
    asked = []
    step_bounds(12, lambda step: asked.append(step) or 3, step=5)
    assert asked == [5, 6, 7, 8]


@pytest.mark.parametrize(("arguments", "message"), [
    ({"batch_size": 0}, "batch_size is 0"),
    ({"batch_size": 2.0}, "batch_size is 2.0"),
    ({"batch_size": lambda step: 2 - step}, "batch_size of step 2 is 0"),
    ({"world_size": 0}, "world_size is 0"),
    ({"length": -1}, "length is -1"),
    ({"start": 11}, "start is 11, but the epoch has 10 positions"),
    ({"start": -1}, "start is -1"),
    ({"step": -1}, "step is -1"),
])  # fmt: skip
def test_step_bounds_name_what_is_wrong(arguments, message):
    with pytest.raises(ValueError, match=message):
        step_bounds(**({"length": 10, "batch_size": 4} | arguments))


# ------------------------------------------------------------------------------------------------ ranks


def epoch_of(length):
    """An epoch whose samples and copies tell their positions."""
    return Picks(np.arange(length) + 1000, np.arange(length) * 2)


def test_positions_go_to_ranks_in_turn():
    first, second = (Batches(epoch_of(11), 2, rank=rank, world_size=2) for rank in range(2))
    assert [batch.position.tolist() for batch in first] == [[0, 2], [4, 6], [8, 10]]
    assert [batch.position.tolist() for batch in second] == [[1, 3], [5, 7], [9, 8]]  # 8 is the step's first
    assert [batch.valid.tolist() for batch in first] == [[True, True]] * 3
    assert [batch.valid.tolist() for batch in second] == [[True, True]] * 2 + [[True, False]]
    assert [batch.consumed for batch in second] == [4, 8, 11]
    assert [batch.step for batch in second] == [0, 1, 2]
    for batch in [*first, *second]:
        assert np.array_equal(batch.index, batch.position + 1000)
        assert np.array_equal(batch.copy, batch.position * 2)


def test_as_the_distributed_sampler_deals():
    length, world_size = 24, 4
    for rank in range(world_size):
        theirs = torch.utils.data.DistributedSampler(range(length), world_size, rank, shuffle=False)
        ours = Batches(Picks(np.arange(length), np.zeros(length, np.int64)), 3, rank=rank, world_size=world_size)
        assert np.concatenate([batch.index for batch in ours]).tolist() == list(theirs)


def test_fewer_samples_than_ranks():
    shares = [list(Batches(epoch_of(3), 5, rank=rank, world_size=7)) for rank in range(7)]
    assert [[batch.index.tolist() for batch in share] for share in shares] == [
        [[1000]], [[1001]], [[1002]], [[1000]], [[1000]], [[1000]], [[1000]],
    ]  # fmt: skip
    assert [share[0].valid.tolist() for share in shares] == [[True]] * 3 + [[False]] * 4
    assert all(len(Batches(epoch_of(3), 5, drop_last=True, rank=rank, world_size=7)) == 0 for rank in range(7))


@pytest.mark.parametrize("i", [-1, 3, 2**70])
def test_a_batch_outside_of_the_epoch(i):
    with pytest.raises(IndexError, match=f"batch {i} of 3"):
        Batches(epoch_of(11), 4).batch(i)


def test_an_empty_epoch_has_no_batches():
    for drop_last in (False, True):
        empty = Batches(epoch_of(0), 4, drop_last=drop_last, rank=1, world_size=2)
        assert len(empty) == 0
        assert list(empty) == []


def test_rank_and_world_size():
    assert rank_and_world_size() == (0, 1)
    assert rank_and_world_size(2, 3) == (2, 3)


@pytest.mark.parametrize(("rank", "world_size", "message"), [
    (3, 3, "rank is 3; expected 0 to 2"),
    (-1, 3, "rank is -1"),
    (0, 0, "world_size is 0"),
    (1.0, 3, "rank is 1.0"),
    (0, None, "rank is 0 and world_size is None"),
    (None, 2, "rank is None and world_size is 2"),
])  # fmt: skip
def test_rank_and_world_size_name_what_is_wrong(rank, world_size, message):
    with pytest.raises(ValueError, match=message):
        rank_and_world_size(rank, world_size)
    if rank is not None and world_size is not None:
        with pytest.raises(ValueError, match=message):
            Batches(epoch_of(9), 2, rank=rank, world_size=world_size)
