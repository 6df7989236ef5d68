"""What DataLoader adds where PyTorch's workers make the batches: shares of ranks, states, indices, stable addresses."""

import copy
import json
import pickle

import numpy as np
import pytest
import torch
from torch.utils.data import BatchSampler, DistributedSampler, TensorDataset

from fastfeed import DataLoader as PlainDataLoader
from fastfeed.data.samplers import RepeatedAugmentation, WeightedSampler
from tests.loaders import index_of
from tests.torch_loaders import PYTORCHS, DataLoader, Mapped, assert_same

N = 23


def shares(world_size, **options):
    """Return the loaders of all ranks."""
    return [DataLoader(range(N), rank=rank, world_size=world_size, **options) for rank in range(world_size)]


def flat(batches):
    return [int(i) for batch in batches for i in np.atleast_1d(batch)]


# ------------------------------------------------------------------------------------------------ ranks


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("batch_size", [None, 4])
def test_ranks_share_an_epoch(workers, batch_size):
    loaders = shares(3, batch_size=batch_size, shuffle=True, num_workers=workers, info=True)
    epochs = [list(data) for data in loaders]
    assert {len(data) for data in loaders} == {len(batches) for batches in epochs} == {8 if batch_size is None else 2}
    assert sorted(i for batches in epochs for i in index_of(batches)) == list(range(N))
    one = flat(DataLoader(range(N), batch_size, shuffle=True))
    ours = [flat(batch for batch, _ in batches) for batches in epochs]
    assert [ours[i % 3][i // 3] for i in range(N)] == one  # dealt in turn from the order of one


@pytest.mark.parametrize("workers", [0, 2])
def test_a_distributed_sampler_whose_epoch_the_script_sets(workers):
    epochs = {}
    for loader in (DataLoader, PYTORCHS):
        sampler = DistributedSampler(range(N), num_replicas=2, rank=1, shuffle=True, seed=3)
        data = loader(range(N), 4, sampler=sampler, num_workers=workers)
        epochs[loader] = []
        for epoch in (0, 1, 5):
            sampler.set_epoch(epoch)
            epochs[loader].append(flat(data))
            assert data.sampler.epoch == epoch
    assert epochs[DataLoader] == epochs[PYTORCHS]
    assert len({*map(tuple, epochs[PYTORCHS])}) == 3
    assert len(epochs[PYTORCHS][0]) == 12


@pytest.mark.parametrize("batched", [False, True])
@pytest.mark.parametrize("epochs", [(None, None, None), (0, 0, 0), (2, 2, None), (4, None, 3), (1, 0, 1)])
def test_a_distributed_samplers_epoch_is_the_scripts_to_set(epochs, batched):
    def run(loader):
        sampler = DistributedSampler(range(N), num_replicas=2, rank=1)
        how = {"batch_sampler": BatchSampler(sampler, 4, False)} if batched else {"batch_size": 4, "sampler": sampler}
        data, given = loader(range(N), **how), []
        for epoch in epochs:
            if epoch is not None:
                sampler.set_epoch(epoch)
            given.append(flat(data))
        return given

    assert run(DataLoader) == run(PYTORCHS)


def test_set_epoch_sets_a_distributed_sampler():
    sampler = DistributedSampler(range(N), 1, 0)
    data = DataLoader(range(N), 4, sampler=sampler)
    data.set_epoch(3)
    assert (sampler.epoch, flat(data)) == (3, list(sampler))
    assert (sampler.epoch, data.epoch) == (3, 4)  # what the loader draws itself is new in each epoch


@pytest.mark.parametrize("taken", [0, 2])
@pytest.mark.parametrize("again", [None, 7])  # what the script sets after it loaded the state
def test_a_state_has_the_epoch_of_a_distributed_sampler(taken, again):
    def made():
        sampler = DistributedSampler(range(N), 1, 0)
        return DataLoader(range(N), 4, sampler=sampler), sampler

    data, sampler = made()
    sampler.set_epoch(7)
    flat(data), flat(data)  # so that the loader's epoch is another one, 9
    batches = iter(data)
    first = flat(next(batches) for _ in range(taken))
    state = json.loads(json.dumps(data.state_dict()))
    resumed, own = made()
    resumed.load_state_dict(state)
    if again is not None:
        own.set_epoch(again)
    assert resumed.epoch == 9
    assert first + flat(resumed) == list(sampler)
    assert own.epoch == 7


@pytest.mark.parametrize("batched", [False, True])
@pytest.mark.parametrize("by", ["sampler, then load", "load, then sampler", "load, then loader"])
@pytest.mark.parametrize("taken", [0, 2])
@pytest.mark.parametrize("first", [0, 1])  # as scripts count epochs
def test_a_script_that_sets_epochs_is_resumed(first, taken, by, batched):
    def made():
        sampler = DistributedSampler(range(N), 1, 0)
        how = {"batch_sampler": BatchSampler(sampler, 4, False)} if batched else {"batch_size": 4, "sampler": sampler}
        return DataLoader(range(N), **how), sampler

    data, sampler = made()
    epochs = []
    for epoch in range(first, first + 4):
        sampler.set_epoch(epoch)
        epochs.append([*sampler])
    for epoch in (first, first + 1):
        sampler.set_epoch(epoch)
        flat(data)
    if taken:  # else the state is that of the end of an epoch, where the next one is not set yet
        sampler.set_epoch(first + 2)
        batches = iter(data)
        assert flat(next(batches) for _ in range(taken)) == epochs[2][: 4 * taken]
    state = json.loads(json.dumps(data.state_dict()))
    resumed, own = made()
    if by.startswith("sampler"):
        own.set_epoch(first + 2)
    resumed.load_state_dict(state)
    if by.endswith("sampler"):
        own.set_epoch(first + 2)
    elif by.endswith("loader"):
        resumed.set_epoch(first + 2)
    assert resumed.epoch == first + 2
    assert flat(resumed) == epochs[2][4 * taken :]
    own.set_epoch(first + 3)
    assert flat(resumed) == epochs[3]
    assert resumed.epoch == first + 4


def test_the_epoch_that_a_sampler_is_set_to_is_the_loaders():
    sampler = DistributedSampler(range(N), 1, 0)
    data = DataLoader(range(N), 4, sampler=sampler)
    flat(data)
    sampler.set_epoch(5)
    assert data.epoch == data.state_dict()["epoch"] == 5
    resumed = DataLoader(range(N), 4, sampler=DistributedSampler(range(N), 1, 0))
    resumed.load_state_dict(data.state_dict())
    assert flat(resumed) == flat(data)
    assert resumed.epoch == data.epoch == 6


@pytest.mark.parametrize("place", [5, {}, {"epoch": "x", "own": None}, {"epoch": -1, "own": None}])
def test_a_bad_place_of_a_sampler_leaves_the_loader_as_it_was(place):
    data = PlainDataLoader(range(N), 4, sampler=DistributedSampler(range(N), 1, 0), device="cpu")
    next(iter(data))
    before = data.state_dict()
    with pytest.raises((TypeError, ValueError), match="the state's sampler"):
        data.load_state_dict({**before, "sampler": place, "seed": before["seed"] ^ 1})
    assert (data.state_dict(), data.sampler.epoch) == (before, 0)


def test_set_epoch_of_the_loaders_own_sampler():
    data = DataLoader(range(N), shuffle=True)
    data.sampler.set_epoch(4)
    assert data.epoch == 4
    expected = DataLoader(range(N), shuffle=True)
    expected.set_epoch(4)
    assert list(data.sampler) == flat(expected) == flat(data)


# ----------------------------------------------------------------------------------------------- states


class StatefulSampler:
    """Indices in an order of its own, which it goes on with."""

    def __init__(self):
        self.at, self.given = 0, 0

    def __len__(self):
        return N

    def __iter__(self):
        while self.at < N:
            self.at += 1
            self.given += 1
            yield 7 * self.at % N
        self.at = 0

    def state_dict(self):
        return {"at": self.at}

    def load_state_dict(self, state):
        self.at = state["at"]


MADE = {
    "in order": lambda: {"batch_size": 4},
    "shuffled": lambda: {"batch_size": 4, "shuffle": True, "drop_last": True},
    "samples": lambda: {"batch_size": None, "shuffle": True},
    "by schedule": lambda: {"batch_size": lambda epoch, step: 2 + step, "shuffle": True},
    "weighted": lambda: {"batch_size": 4, "sampler": WeightedSampler(np.arange(N))},
    "repeated": lambda: {"batch_size": 4, "sampler": RepeatedAugmentation(2)},
    "by a sampler": lambda: {"batch_size": 4, "sampler": DistributedSampler(range(N), 1, 0)},
    "by batches": lambda: {"batch_sampler": BatchSampler(range(N), 5, False)},
    "by a stateful sampler": lambda: {"batch_size": 4, "sampler": StatefulSampler()},
}


@pytest.mark.parametrize("how", MADE)
def test_a_resume_gives_what_is_left(how):
    with_workers = ((2, 2, 0), (0, 1, 2)) if how in ("shuffled", "by a stateful sampler") else ()
    for workers, taken, workers_then in ((0, 0, 0), (0, 3, 0), *with_workers):
        data = DataLoader(range(N), **MADE[how](), num_workers=workers)
        list(data)  # the second epoch is the one that is left
        iterator = iter(data)
        for _ in range(taken):
            next(iterator)
        state = json.loads(json.dumps(data.state_dict()))
        left = list(iterator)
        resumed = DataLoader(range(N), **MADE[how](), num_workers=workers_then)
        resumed.load_state_dict(state)
        running = iter(resumed)
        assert len(running) == len(left)
        assert_same(list(running), left)
        if "stateful" in how and workers_then == 0:
            assert resumed.sampler.given == N - 4 * taken  # nothing is drawn again
        assert_same(list(resumed), list(data))
        assert resumed.state_dict() == data.state_dict()


def test_a_resume_on_other_ranks_and_of_another_batch_size():
    options = {"shuffle": True, "info": True}
    loaders = shares(2, batch_size=4, **options)
    running = [iter(data) for data in loaders]
    first = [next(iterator) for iterator in running]
    assert loaders[0].state_dict() == loaders[1].state_dict()
    rest = shares(3, batch_size=2, **options)
    for data in rest:
        data.load_state_dict(loaders[0].state_dict())
    assert sorted(index_of(first) + [i for data in rest for i in index_of(data)]) == list(range(N))


def test_a_copys_epochs_are_its_own():
    data = DataLoader(range(N), 4, shuffle=True)
    next(iter(data))
    place = data.state_dict()
    copied = copy.copy(data)
    assert copied.state_dict() == place
    list(copied)
    assert (copied.epoch, data.epoch, data.state_dict()) == (2, 1, place)


def test_a_state_of_something_else_is_refused():
    state = DataLoader(range(N), shuffle=True).state_dict()
    for data, name in (
        (DataLoader(range(N)), "order"),
        (DataLoader(range(N - 1), shuffle=True), "samples"),
        (DataLoader(range(N), shuffle=True, seed=1), "seed"),
    ):
        with pytest.raises(ValueError, match=f"the state is of a loader with {name} = "):
            data.load_state_dict(state)


# ------------------------------------------------------------------------------- indices, and addresses


@pytest.mark.parametrize("workers", [0, 1])
def test_info(workers):
    for dataset, rest in ((TensorDataset(torch.arange(5)), 1), (Mapped(5, lambda i: {"i": i}), 1), (range(5), 1)):
        batches = list(DataLoader(dataset, 3, sampler=[4, 0, 2, 2], num_workers=workers, info=True))
        assert [type(batch) for batch in batches] == [tuple] * 2
        assert [len(batch) for batch in batches] == [rest + 1] * 2
        info = batches[0][-1]
        assert (info.index.tolist(), info.valid.tolist()) == ([4, 0, 2], [True] * 3)
        assert info.path == ["sample 4", "sample 0", "sample 2"]
        assert batches[1][-1].index.tolist() == [2]
    sample, info = next(iter(DataLoader(range(5), None, shuffle=True, info=True)))
    assert info.index.tolist() == [sample]
    with pytest.raises(TypeError, match="the sampler gave 'a', and info=True needs indices that are whole numbers"):
        list(DataLoader({"a": 1}, sampler="a", info=True))


@pytest.mark.parametrize("workers", [0, 1])
def test_stable_addresses(workers):
    dataset = Mapped(7, lambda i: {"x": torch.full((2,), i), "name": str(i)})
    data = DataLoader(dataset, 2, drop_last=True, num_workers=workers, stable_addresses=True)
    seen = [(batch["x"].data_ptr(), batch["x"][:, 0].tolist(), batch["name"]) for _ in range(2) for batch in data]
    assert len({address for address, *_ in seen}) == 1
    assert [row[1:] for row in seen[:3]] == [([0, 1], ["0", "1"]), ([2, 3], ["2", "3"]), ([4, 5], ["4", "5"])]
    copied = pickle.loads(pickle.dumps(DataLoader(list(range(4)), 2, stable_addresses=True)))
    first, second = copied
    assert first.data_ptr() == second.data_ptr()
    with pytest.raises(ValueError, match=r"needs batches of one shape.*drop_last=True"):
        list(DataLoader(range(5), 2, stable_addresses=True))


@pytest.mark.gpu
@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("stable", [False, True])
def test_batches_are_moved_to_the_gpu(workers, stable):
    dataset = Mapped(8, lambda i: {"x": torch.full((2,), i), "deep": [torch.tensor(i), str(i)]})
    data = DataLoader(dataset, 2, num_workers=workers, stable_addresses=stable, device="cuda")
    expected = DataLoader(dataset, 2)
    for batch, other in zip(data, expected, strict=True):
        assert batch["x"].is_cuda
        assert_same({"x": batch["x"].cpu(), "deep": [batch["deep"][0].cpu(), batch["deep"][1]]}, other)
    iterator = iter(data)
    next(iterator)
    assert data.state_dict()["consumed"] == 2  # whatever is on its way


@pytest.mark.parametrize("workers", [0, 2])
def test_an_order_by_a_generator_goes_on(workers):
    def make():
        return DataLoader(
            torch.arange(23), 4, shuffle=True, num_workers=workers, generator=torch.Generator().manual_seed(3)
        )

    data = make()
    epochs = [[batch.tolist() for batch in data] for _ in range(3)]
    theirs = PYTORCHS(torch.arange(23), 4, shuffle=True, generator=torch.Generator().manual_seed(3))
    if workers == 0:  # whose seeds come from the same generator, as in PyTorch's loader
        assert epochs == [[batch.tolist() for batch in theirs] for _ in range(3)]
    for done in range(6):
        stopped = make()
        list(stopped)
        iterator = iter(stopped)
        given = [next(iterator).tolist() for _ in range(done)]
        resumed = make()
        resumed.load_state_dict(json.loads(json.dumps(stopped.state_dict())))
        assert given + [batch.tolist() for batch in resumed] == epochs[1]
        assert [batch.tolist() for batch in resumed] == epochs[2]
