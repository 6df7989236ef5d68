import numpy as np
import pytest

from fastfeed.data.order import Batches
from fastfeed.data.samplers import ClassBalancedSampler, RepeatedAugmentation, WeightedSampler

hypothesis = pytest.importorskip("hypothesis")
st = hypothesis.strategies

SEEDS, EPOCHS = st.integers(0, 2**64 - 1), st.integers(0, 2**32 - 1)
WEIGHTS = st.lists(st.one_of(st.just(0.0), st.floats(0, 1.7e308)), min_size=1, max_size=40).filter(any)


def check(picks, length, size):
    assert len(picks) == length
    assert ((picks.index >= 0) & (picks.index < size)).all()
    # No sample has a copy twice, and none is left out.
    for i in np.unique(picks.index):
        copies = picks.copy[picks.index == i]
        assert np.array_equal(copies, np.arange(len(copies)))


@hypothesis.settings(max_examples=200, deadline=None)
@hypothesis.given(weights=WEIGHTS, num_samples=st.integers(1, 300), seed=SEEDS, epoch=EPOCHS)
def test_weighted(weights, num_samples, seed, epoch):
    with np.errstate(all="raise", under="ignore"):
        picks = WeightedSampler(weights, num_samples).picks(len(weights), None, seed=seed, epoch=epoch)
    check(picks, num_samples, len(weights))
    assert (np.array(weights)[picks.index] > 0).all()


@hypothesis.settings(max_examples=100, deadline=None)
@hypothesis.given(weights=WEIGHTS, numbers=st.tuples(st.integers(1, 300), st.integers(1, 300)), seed=SEEDS)
def test_a_longer_epoch_begins_like_a_shorter_one(weights, numbers, seed):
    a, b = (WeightedSampler(weights, n).picks(len(weights), None, seed=seed, epoch=0) for n in numbers)
    n = min(numbers)
    assert np.array_equal(a.index[:n], b.index[:n])
    assert np.array_equal(a.copy[:n], b.copy[:n])


@hypothesis.settings(max_examples=100, deadline=None)
@hypothesis.given(
    labels=st.lists(st.integers(-(2**40), 2**40), min_size=1, max_size=40), num_samples=st.integers(1, 300), seed=SEEDS
)
def test_class_balanced(labels, num_samples, seed):
    picks = ClassBalancedSampler(num_samples).picks(len(labels), np.array(labels), seed=seed, epoch=0)
    check(picks, num_samples, len(labels))


@hypothesis.settings(max_examples=100, deadline=None)
@hypothesis.given(size=st.integers(1, 600), repeats=st.integers(1, 5), seed=SEEDS, data=st.data())
def test_repeated_augmentation(size, repeats, seed, data):
    num_samples = data.draw(st.none() | st.integers(1, repeats * size))
    sampler = RepeatedAugmentation(repeats, num_samples)
    picks = sampler.picks(size, None, seed=seed, epoch=0)
    check(picks, sampler.length(size), size)
    world_size = data.draw(st.integers(repeats, 8))
    batch_size = data.draw(st.integers(1, 9))
    for rank in range(world_size):
        index = [batch.index[batch.valid] for batch in Batches(picks, batch_size, rank=rank, world_size=world_size)]
        assert len(np.unique(np.concatenate(index))) == sum(map(len, index))
