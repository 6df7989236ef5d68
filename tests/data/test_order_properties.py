import numpy as np
import pytest

from fastfeed.data.order import Batches, Picks, permutation

hypothesis = pytest.importorskip("hypothesis")
st = hypothesis.strategies

SEEDS, EPOCHS = st.integers(0, 2**64 - 1), st.integers(0, 2**32 - 1)
WORLD_SIZES = st.sampled_from([1, 2, 3, 4, 7])
LENGTHS = st.integers(0, 200)
# A constant, or a schedule.
BATCH_SIZES = st.one_of(
    st.integers(1, 40), st.lists(st.integers(1, 9), min_size=1, max_size=5).map(lambda s: lambda step: s[step % len(s)])
)


def size_at(batch_size, step):
    return batch_size(step) if callable(batch_size) else batch_size


def epoch_of(length):
    return Picks(np.arange(length) + 1000, np.arange(length) * 2)


def shares(length, batch_size, world_size, **arguments):
    return [
        list(Batches(epoch_of(length), batch_size, rank=rank, world_size=world_size, **arguments))
        for rank in range(world_size)
    ]


def valid_positions(shares):
    return sorted(int(p) for share in shares for batch in share for p in batch.position[batch.valid])


def same(a, b):
    arrays = ("index", "copy", "valid", "position")
    return (
        all(np.array_equal(getattr(a, name), getattr(b, name)) for name in arrays)
        and a.step == b.step
        and a.consumed == b.consumed
    )


@hypothesis.given(size=LENGTHS, seed=SEEDS, epoch=EPOCHS)
def test_every_epoch_is_a_permutation(size, seed, epoch):
    assert np.array_equal(np.sort(permutation(size, seed=seed, epoch=epoch)), np.arange(size))


@hypothesis.settings(max_examples=300, deadline=None)
@hypothesis.given(
    length=LENGTHS, batch_size=BATCH_SIZES, world_size=WORLD_SIZES, drop_last=st.booleans(), data=st.data()
)
def test_the_ranks_together_make_the_epoch(length, batch_size, world_size, drop_last, data):
    start = data.draw(st.integers(0, length))
    ranks = shares(length, batch_size, world_size, drop_last=drop_last, start=start)

    # By the letter: whole steps as long as they go, then what remains.
    bounds = [start]
    while bounds[-1] < length and bounds[-1] + world_size * size_at(batch_size, len(bounds) - 1) <= length:
        bounds.append(bounds[-1] + world_size * size_at(batch_size, len(bounds) - 1))
    if not drop_last and bounds[-1] < length:
        bounds.append(length)

    assert valid_positions(ranks) == list(range(start, bounds[-1]))
    for rank, share in enumerate(ranks):
        assert [batch.consumed for batch in share] == bounds[1:]
        assert len(share) == len(bounds) - 1
        for step, batch in enumerate(share):
            assert batch.step == step
            whole = bounds[step + 1] - bounds[step] == world_size * size_at(batch_size, step)
            if whole:
                assert len(batch.index) == size_at(batch_size, step)
                assert batch.valid.all()
            else:
                assert len(batch.index) == int(np.ceil((bounds[step + 1] - bounds[step]) / world_size))
            assert (batch.position[batch.valid] % world_size == rank).all()
            assert (np.diff(batch.position[batch.valid]) == world_size).all()
            assert (batch.position[~batch.valid] == bounds[step]).all()
            assert not (~batch.valid[:-1] & batch.valid[1:]).any()  # padding stands last
            assert np.array_equal(batch.index, batch.position + 1000)
            assert np.array_equal(batch.copy, batch.position * 2)
    if world_size == 1:
        assert all(batch.valid.all() for batch in ranks[0])


@hypothesis.settings(max_examples=200, deadline=None)
@hypothesis.given(
    length=LENGTHS, batch_size=BATCH_SIZES, world_size=WORLD_SIZES, drop_last=st.booleans(), data=st.data()
)
def test_to_resume_is_to_go_on(length, batch_size, world_size, drop_last, data):
    rank = data.draw(st.integers(0, world_size - 1))
    place = {"rank": rank, "world_size": world_size, "drop_last": drop_last}
    whole = list(Batches(epoch_of(length), batch_size, **place))
    for done, batch in enumerate(whole, 1):
        resumed = Batches(epoch_of(length), batch_size, **place, start=batch.consumed, step=batch.step + 1)
        assert len(resumed) == len(whole) - done
        assert all(same(a, b) for a, b in zip(resumed, whole[done:], strict=True))


@hypothesis.settings(max_examples=200, deadline=None)
@hypothesis.given(
    length=LENGTHS, batch_sizes=st.tuples(BATCH_SIZES, BATCH_SIZES), world_sizes=st.tuples(WORLD_SIZES, WORLD_SIZES),
    data=st.data(),
)  # fmt: skip
def test_another_number_of_ranks_goes_on_where_the_first_stopped(length, batch_sizes, world_sizes, data):
    before = shares(length, batch_sizes[0], world_sizes[0])
    steps = data.draw(st.integers(0, len(before[0])))
    before = [share[:steps] for share in before]
    consumed = before[0][-1].consumed if steps else 0
    after = shares(length, batch_sizes[1], world_sizes[1], start=consumed, step=steps)
    assert sorted(valid_positions(before) + valid_positions(after)) == list(range(length))
