"""DataLoader over iterable datasets, beside PyTorch's: batches, lengths, errors, and going on in the middle."""

import warnings

import pytest
import torch
from torch.utils.data import ChainDataset, IterableDataset, get_worker_info
from torch.utils.data.datapipes.iter import IterableWrapper

from tests.torch_loaders import PYTORCHS, DataLoader, Stream, assert_same, outcomes


class Sized(Stream):
    def __len__(self):
        return self.n


class Shared(Sized):
    """A stream that its workers share out."""

    def __iter__(self):
        info = get_worker_info()
        return iter(range(self.n)) if info is None else iter(range(info.id, self.n, info.num_workers))


class Uneven(Stream):
    """A worker gives as many as its number says."""

    def __iter__(self):
        return iter(range(4 * get_worker_info().id))


class Itself(IterableDataset):
    """A stream that is its own iterator, fails, and goes on."""

    def __init__(self):
        self.at = -1

    def __iter__(self):
        self.at = -1
        return self

    def __next__(self):
        self.at += 1
        if self.at == 6:
            raise StopIteration
        if self.at in (1, 4):
            raise LookupError(f"at {self.at}")
        return self.at


class Stateful(Stream):
    """A stream that knows where it is, and can go on from there."""

    def __init__(self, n):
        super().__init__(n)
        self.made, self.loaded, self.state = 0, 0, {"at": 0}

    def __iter__(self):
        self.state["at"], self.loaded = self.loaded, 0
        while self.state["at"] < self.n:
            self.state["at"] += 1
            self.made += 1
            yield self.state["at"] - 1

    def state_dict(self):
        return self.state  # its own, which it goes on to change

    def load_state_dict(self, state):
        self.loaded = state["at"]


STREAMS = {
    "of a length": Sized(10),
    "of none": Stream(10),
    "shared": Shared(11),
    "chained": ChainDataset([Sized(4), Sized(3)]),
    "empty": Sized(0),
}
ARGUMENTS = {
    "by default": {},
    "of 4": {"batch_size": 4},
    "of 4, whole ones": {"batch_size": 4, "drop_last": True},
    "samples": {"batch_size": None},
    "of workers": {"batch_size": 4, "num_workers": 2},
    "of workers, whole ones": {"batch_size": 4, "num_workers": 2, "drop_last": True},
    "of workers that stay": {"batch_size": None, "num_workers": 2, "persistent_workers": True, "prefetch_factor": 3},
    "collated": {"batch_size": 3, "collate_fn": repr},
}


@pytest.mark.parametrize("how", ARGUMENTS)
def test_batches_are_pytorchs(how):
    streams = {"uneven": Uneven(0), "shared": STREAMS["shared"]} if "workers" in how else STREAMS
    for name, dataset in streams.items():
        ours, theirs = (cls(dataset, **ARGUMENTS[how]) for cls in (DataLoader, PYTORCHS))
        for _ in range(1 + ("stay" in how)):
            assert_same(list(ours), list(theirs))
        if hasattr(dataset, "__len__"):
            assert len(ours) == len(iter(ours)) == len(theirs), name
        else:
            with pytest.raises(TypeError, match="has no len"):
                len(ours)


def test_a_length_that_is_too_short_warns_as_pytorchs():
    for loader in (DataLoader, PYTORCHS):
        dataset = Sized(3)
        data = loader(dataset)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            dataset.n = 5
            assert sum(1 for _ in data) == 5  # nobody has asked for the length, as `list` would
            dataset.n = 3
            assert len(data) == 3
        dataset.n = 5
        with pytest.warns(UserWarning, match=r"Length of IterableDataset .* was reported to be 3.* [45] samples"):
            assert sum(1 for _ in data) == 5


@pytest.mark.parametrize("workers", [0, 1])
def test_errors_and_the_batches_after_them(workers):
    ours, theirs = (outcomes(cls(Itself(), num_workers=workers)) for cls in (DataLoader, PYTORCHS))
    assert str(ours) == str(theirs)
    assert [type(one) for one in ours].count(tuple) == 2


def test_several_iterators():
    data = DataLoader(Stream(4), 2)
    first, second = iter(data), iter(data)
    assert [next(it).tolist() for it in (first, second, first, second)] == [[0, 1], [0, 1], [2, 3], [2, 3]]
    for _ in data:
        break
    assert [batch.tolist() for batch in data] == [[0, 1], [2, 3]]


@pytest.mark.parametrize("options", [{"info": True}, {"batch_size": lambda epoch, step: 2}], ids=["info", "batch_size"])
def test_what_needs_indices_is_refused(options):
    with pytest.raises(ValueError, match=rf"{next(iter(options))}.*needs indices of samples, and Stream is iterable"):
        DataLoader(Stream(3), **options)


# ----------------------------------------------------------------------------------------------- states


@pytest.mark.parametrize("dataset", [Stream, Stateful])
@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("batch_size", [None, 2])
def test_a_resume_gives_what_is_left(dataset, workers, batch_size):
    def make():
        return DataLoader(dataset(7), batch_size, num_workers=workers)

    expected = list(make())
    for taken in (0, 3) if workers == 0 else (1,):
        data = make()
        iterator = iter(data)
        first = [next(iterator) for _ in range(taken)]
        state = data.state_dict()
        next(iterator)  # which changes nothing in the state
        resumed = make()
        resumed.load_state_dict(state)
        assert_same(first + list(resumed), expected)
        if dataset is Stateful and workers == 0:
            assert resumed.dataset.made == 7 - taken * (batch_size or 1)  # nothing is made again
        assert_same(list(resumed), expected)  # and the next epoch is whole
        assert resumed.epoch == 2


def test_a_resume_between_epochs_and_of_another_number_of_workers():
    data = DataLoader(Stateful(5), 2)
    list(data)
    other = DataLoader(Stateful(5), 2)
    other.load_state_dict(data.state_dict())
    assert (other.epoch, len(list(other))) == (1, 3)
    iterator = iter(data)
    next(iterator)
    other = DataLoader(Stream(5), 2, num_workers=1)
    other.load_state_dict(data.state_dict())
    assert [batch.tolist() for batch in other] == [[2, 3], [4]]


def test_a_state_counts_batches_that_failed():
    data = DataLoader(Itself())
    iterator = iter(data)
    next(iterator)
    with pytest.raises(LookupError):
        next(iterator)
    assert next(iterator).item() == 2
    resumed = DataLoader(Itself())
    resumed.load_state_dict(data.state_dict())
    assert next(iter(resumed)).item() == 3


def test_stable_addresses():
    batches = iter(DataLoader(Stream(6), 2, stable_addresses=True))
    first = next(batches)
    address = first.data_ptr()
    assert first.tolist() == [0, 1]
    assert [batch.data_ptr() for batch in batches] == [address] * 2
    assert first.tolist() == [4, 5]
    with pytest.raises(ValueError, match=r"needs batches of one shape.*drop_last=True"):
        list(DataLoader(Stream(5), 2, stable_addresses=True))
    assert torch.is_tensor(first)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("shuffle", [None, False, True, 1])
def test_a_datapipe_that_shuffles(shuffle, workers):
    given = []
    for loader in (DataLoader, PYTORCHS):
        torch.manual_seed(3)
        pipe = IterableWrapper(range(12)).shuffle().sharding_filter()
        data = loader(pipe, 4, shuffle=shuffle, num_workers=workers, generator=torch.Generator().manual_seed(1))
        given.append([batch.tolist() for batch in data])
    ours, theirs = given
    assert ours == theirs
    values = [value for batch in ours for value in batch]
    assert sorted(values) == [*range(12)]
    assert (values == sorted(values)) == (shuffle is False and workers == 0)
