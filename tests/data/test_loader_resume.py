"""What is left after a resume is what would have come."""

import itertools
import json
import pickle

import pytest
import torch
from torch.utils.data import BatchSampler, DistributedSampler, RandomSampler, SubsetRandomSampler

from fastfeed import Mix
from fastfeed.data.samplers import ClassBalancedSampler, RepeatedAugmentation, WeightedSampler
from fastfeed.data.schedule import MultiScale, ProgressiveSize
from fastfeed.data.sources import FolderSource
from fastfeed.data.transforms import Resize, Transform
from tests.images import write_folder
from tests.loaders import (
    assert_same_batches,
    assert_same_samples,
    by_index,
    everything,
    index_of,
    make_loader,
    ranks,
)  # fmt: skip

pytestmark = pytest.mark.dali

SIZE = 22


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_folder(tmp_path_factory.mktemp("resume") / "data", {"cat": 9, "dog": 8, "owl": 5})


@pytest.fixture
def with_bad_files(tmp_path):
    write_folder(tmp_path, {"a": SIZE}, sizes=((40, 40),))
    for number in (3, 8, 9, 20):
        path = tmp_path / "a" / f"{number:03}.jpg"
        path.write_bytes(path.read_bytes()[: 300 * (number % 2)])
    return tmp_path


def taken(data, count):
    """Take some batches of an epoch and leave it, and return them and the state."""
    iterator = iter(data)
    batches = list(itertools.islice(iterator, count))
    return batches, data.state_dict()


def assert_resumes(make, through=lambda state: json.loads(json.dumps(state))):
    """Assert that a new loader goes on from every batch, and with the next epoch, as one that was never stopped."""
    going_on = make()
    first, second = list(going_on), list(going_on)
    assert len(first) == len(going_on)
    for count in range(len(first) + 1):
        left = make()
        batches, state = taken(left, count)
        assert_same_batches(batches, first[:count])
        resumed = make()
        resumed.load_state_dict(through(state))
        assert resumed.epoch == 0
        assert_same_batches(list(resumed), first[count:])
        assert resumed.epoch == 1
        assert_same_batches(list(resumed), second)


OPTIONS = {
    "in order": {},
    "shuffled": {"shuffle": True, "transform": everything()},
    "drop_last": {"shuffle": True, "drop_last": True},
    "little ahead": {"shuffle": True, "prefetch_factor": 1},
    "far ahead": {"shuffle": True, "prefetch_factor": 8},
    "weighted": {"sampler": WeightedSampler([1.0 + i % 3 for i in range(SIZE)], 17)},
    "batches larger than the source": {"sampler": WeightedSampler([1.0] * SIZE, 70), "batch_size": 30},
    "class-balanced": {"sampler": ClassBalancedSampler()},
    "repeated augmentation": {"sampler": RepeatedAugmentation(3), "transform": everything()},
    "mixup": {"shuffle": True, "mix": Mix(mixup=0.4)},
    "cutmix per sample": {"shuffle": True, "mix": Mix(cutmix=1.0, per="sample")},
    "multi-scale": {"shuffle": True, "size": MultiScale((12, 16, 20), every=2)},
    "progressive": {"shuffle": True, "size": ProgressiveSize(8, 16, epochs=2, multiple=8)},
    "rank": {"shuffle": True, "batch_size": 2, "rank": 1, "world_size": 3, "transform": everything()},
}


@pytest.mark.parametrize("case", OPTIONS)
def test_at_every_batch(folder, case):
    assert_resumes(lambda: make_loader(folder, **OPTIONS[case]))


@pytest.mark.parametrize("mode", ["replace", "drop"])
def test_at_every_batch_with_bad_files(with_bad_files, mode):
    assert_resumes(lambda: make_loader(with_bad_files, shuffle=True, on_error=mode))


def seeded():
    return torch.Generator().manual_seed(5)


class Stateful:
    """A sampler that is resumed from its own state: its indices are others every time that it is iterated over."""

    def __init__(self):
        self.state, self.loaded = {"round": 0, "given": 0}, False

    def __len__(self):
        return SIZE

    def __iter__(self):
        if not self.loaded:
            self.state = {"round": self.state["round"] + 1, "given": 0}
        self.loaded = False
        while self.state["given"] < SIZE:
            self.state["given"] += 1
            yield (3 * self.state["given"] + 5 * self.state["round"]) % SIZE

    def state_dict(self):
        return self.state

    def load_state_dict(self, state):
        self.state, self.loaded = dict(state), True


TORCH = {
    "RandomSampler": lambda: {"sampler": RandomSampler(range(SIZE), generator=seeded())},
    "SubsetRandomSampler": lambda: {"sampler": SubsetRandomSampler(range(3, 20), generator=seeded())},
    "a list": lambda: {"sampler": [4, 4, 0, 21, 7, 8]},
    "DistributedSampler": lambda: {
        "sampler": DistributedSampler(range(SIZE), num_replicas=3, rank=1), "rank": 1, "world_size": 3, "batch_size": 2,
    },
    "BatchSampler": lambda: {
        "batch_sampler": BatchSampler(RandomSampler(range(SIZE), generator=seeded()), 5, drop_last=False),
        "batch_size": 1,
    },
    "batches of several sizes": lambda: {"batch_sampler": [[1, 2, 3], [4], [5, 6], [1]], "batch_size": 1},
    "with its own state": lambda: {"sampler": Stateful()},
}  # fmt: skip


@pytest.mark.parametrize("case", TORCH)
def test_samplers_of_pytorch_at_every_batch(folder, case):
    assert_resumes(
        lambda: make_loader(folder, transform=everything(), **TORCH[case]()),
        lambda state: pickle.loads(pickle.dumps(state)),
    )


@pytest.mark.parametrize("case", ["shuffled", "mixup", "multi-scale", "repeated augmentation"])
def test_after_a_resume_of_a_resume(folder, case):
    def make():
        return make_loader(folder, 3, **OPTIONS[case])

    whole = list(make())
    state, got = make().state_dict(), []
    for count in (2, 0, 1, 3, 2):
        resumed = make()
        resumed.load_state_dict(state)
        batches, state = taken(resumed, count)
        got += batches
    assert_same_batches(got, whole)


def test_the_state_is_that_of_the_batch_given_last(folder):
    data = make_loader(folder, prefetch_factor=4)
    identity = {"seed": 0, "samples": SIZE, "order": "Sequential"}
    assert data.state_dict() == {"epoch": 0, "consumed": 0, "step": 0, "sampler": None, "bad": 0, **identity}
    for number, _ in enumerate(data, 1):
        state = data.state_dict()
        assert (state["epoch"], state["consumed"], state["step"]) == (0, min(4 * number, SIZE), number)
    assert (data.state_dict()["epoch"], data.state_dict()["consumed"]) == (1, 0)


def test_the_state_between_load_and_the_first_batch(folder):
    data = make_loader(folder)
    _, state = taken(data, 2)
    resumed = make_loader(folder)
    resumed.load_state_dict(state)
    assert resumed.state_dict() == state
    iterator = iter(resumed)
    assert resumed.state_dict() == state
    next(iterator)
    assert resumed.state_dict()["consumed"] == 12


def test_the_same_loader_goes_back(folder):
    data = make_loader(folder, shuffle=True, transform=everything())
    whole, second = list(data), list(data)
    data.set_epoch(0)
    _, state = taken(data, 2)
    for _ in range(2):
        data.load_state_dict(state)
        assert_same_batches(list(data), whole[2:])
        assert_same_batches(list(data), second)
    iterator = iter(data)
    next(iterator)
    data.load_state_dict(state)  # while an epoch runs, which is left then
    assert_same_batches(list(data), whole[2:])


def test_epochs_after_a_break(folder):
    data = make_loader(folder, shuffle=True)
    second = [list(data), list(data)][1]
    data.set_epoch(0)
    for _ in data:
        break
    assert data.epoch == 1
    assert data.state_dict()["epoch"] == 0  # where the batch given last was
    assert_same_batches(list(data), second)  # and not the rest of the first
    assert data.state_dict()["epoch"] == data.epoch == 2


def test_an_epoch_that_is_set_begins_at_its_beginning(folder):
    data = make_loader(folder, shuffle=True)
    epochs = [list(data) for _ in range(3)]
    _, state = taken(make_loader(folder, shuffle=True), 3)
    for how in (lambda: data.set_epoch(2), lambda: setattr(data, "epoch", 2), lambda: data.sampler.set_epoch(2)):
        data.load_state_dict(state)
        how()
        assert_same_batches(list(data), epochs[2])
        assert data.epoch == 3
        # Scripts set the epoch that they go on in after a resume, too: it goes on.
        data.load_state_dict(state)
        data.set_epoch(0)
        assert_same_batches(list(data), epochs[0][3:])
    next(iter(data))
    data.set_epoch(0)
    assert data.state_dict()["consumed"] == 0
    assert_same_batches(list(data), epochs[0])


def test_the_state_is_the_same_on_every_rank(folder):
    loaders = ranks(folder, 4, 2, shuffle=True)
    for count in range(4):
        states = []
        for data in loaders:
            data.set_epoch(1)
            states.append(taken(data, count)[1])
        assert states == [states[0]] * 4


@pytest.mark.parametrize(("world_size", "batch_size"), [(1, 7), (2, 3), (3, 4), (4, 1), (5, 2)])
def test_onto_other_ranks_and_batch_sizes_between_epochs(folder, world_size, batch_size):
    one = make_loader(folder, shuffle=True, transform=everything())
    list(one)
    state = one.state_dict()
    expected = by_index(one)
    others = ranks(folder, world_size, batch_size, shuffle=True, transform=everything())
    batches = []
    for data in others:
        data.load_state_dict(state)
        batches += list(data)
        assert data.epoch == 2
    assert sorted(index_of(batches)) == list(range(SIZE))
    assert_same_samples(by_index(batches), expected)


@pytest.mark.parametrize(("world_size", "batch_size"), [(1, 4), (1, 7), (2, 3), (3, 4), (4, 1), (5, 2)])
@pytest.mark.parametrize(("old_world_size", "old_batch_size", "steps"), [(1, 4, 3), (2, 3, 1), (2, 3, 3), (4, 2, 2)])
def test_onto_other_ranks_and_batch_sizes_in_the_middle(
    folder, old_world_size, old_batch_size, steps, world_size, batch_size
):
    options = {"shuffle": True, "transform": everything()}
    expected = by_index(make_loader(folder, **options))
    batches = []
    for data in ranks(folder, old_world_size, old_batch_size, **options):
        given, state = taken(data, steps)
        batches += given
    left = SIZE - old_world_size * old_batch_size * steps
    lengths = []
    for data in ranks(folder, world_size, batch_size, **options):
        data.load_state_dict(json.loads(json.dumps(state)))
        given = list(data)
        lengths.append(len(given))
        batches += given
    assert lengths == [-(-left // (world_size * batch_size))] * world_size
    assert sorted(index_of(batches)) == list(range(SIZE))  # each once
    assert_same_samples(by_index(batches), expected)


def test_a_mixed_batch_depends_on_its_place_and_not_on_those_before_it(folder):
    options = {"shuffle": True, "transform": everything(), "mix": Mix(0.4, 1.0)}
    expected = list(make_loader(folder, 8, **options))
    _, state = taken(make_loader(folder, 4, **options), 2)
    resumed = make_loader(folder, 8, **options)
    resumed.load_state_dict(state)
    assert_same_batches(list(resumed), expected[1:])


def test_steps_go_on_counting_at_another_batch_size(folder):
    def size(epoch, step):
        return 8 + step

    _, state = taken(make_loader(folder, 2, size=size), 3)
    resumed = make_loader(folder, 5, size=size)
    resumed.load_state_dict(state)
    assert [images.shape[2] for images, _, _ in resumed] == [11, 12, 13, 14]
    assert [images.shape[2] for images, _, _ in resumed] == [8, 9, 10, 11, 12]


def test_the_state_of_other_listed_indices(folder):
    state = make_loader(folder, 4, sampler=[0, 1, 2]).state_dict()
    make_loader(folder, 4, sampler=range(3)).load_state_dict(state)
    with pytest.raises(ValueError, match="the state is of a loader with order = sampler of indices"):
        make_loader(folder, 4, sampler=[9, 8, 7]).load_state_dict(state)


def test_ranks_with_samplers_of_their_own_need_as_many_ranks(folder):
    def make(rank, world_size):
        sampler = DistributedSampler(range(SIZE), num_replicas=world_size, rank=rank)
        return make_loader(folder, 4, sampler=sampler, rank=rank, world_size=world_size, transform=Transform(Resize(4)))

    _, state = taken(make(0, 2), 1)
    other = make(1, 3)
    other.load_state_dict(state)
    with pytest.raises(ValueError, match=r"start is 8, but 3 ranks .* Resume on the number of ranks that the state"):
        next(iter(other))


def test_wrong_states(folder):
    data = make_loader(folder, shuffle=True)
    _, state = taken(data, 2)
    for other, message in (
        (make_loader(folder, shuffle=True, seed=1), "a loader with seed = 0, and this one has 1"),
        (make_loader(FolderSource(folder).subset(range(20))), "a loader with samples = 22, and this one has 20"),
    ):
        before = other.state_dict()
        with pytest.raises(ValueError, match=message):
            other.load_state_dict(state)
        assert other.state_dict() == before
    for name in state:
        incomplete = {key: value for key, value in state.items() if key != name}
        with pytest.raises(KeyError, match=f"the state has no {name}, only .* what DataLoader.state_dict"):
            data.load_state_dict(incomplete)
    with pytest.raises(KeyError, match="the state has no bad, consumed, .* only model, epoch"):
        data.load_state_dict({"model": {}, "epoch": 3})
    assert data.state_dict() == state


def test_a_state_beyond_the_epoch(folder):
    data = make_loader(folder, sampler=WeightedSampler([1.0] * SIZE, 10))
    with pytest.raises(ValueError, match="start is 16, but the epoch has 10 positions"):
        data.load_state_dict(data.state_dict() | {"consumed": 16, "step": 4})
        next(iter(data))


def test_the_state_of_another_order_is_refused(folder):
    state = make_loader(folder, shuffle=True).state_dict()
    with pytest.raises(ValueError, match="order = Shuffled, and this one has Sequential"):
        make_loader(folder).load_state_dict(state)


def test_setting_the_epoch_leaves_what_was_loaded(folder):
    data = make_loader(folder, shuffle=True)
    next(iter(data))
    data.load_state_dict(data.state_dict())
    data.epoch = 5
    assert (data.state_dict()["epoch"], data.state_dict()["consumed"]) == (5, 0)
    assert_same_batches(list(data), list(make_loader_at(folder, 5)))


def make_loader_at(folder, epoch):
    data = make_loader(folder, shuffle=True)
    data.set_epoch(epoch)
    return data


def test_the_state_is_that_of_the_iterator_begun_last(folder):
    data = make_loader(folder)
    first = iter(data)
    next(first)
    second = iter(data)
    next(second)
    assert (data.state_dict()["epoch"], data.state_dict()["step"]) == (1, 1)
    assert len(list(first)) == len(data) - 1
    assert (data.state_dict()["epoch"], data.state_dict()["step"]) == (1, 1)
    next(second)
    assert (data.state_dict()["epoch"], data.state_dict()["step"]) == (1, 2)
