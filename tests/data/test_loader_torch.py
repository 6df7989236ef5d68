"""DataLoader beside PyTorch's, over datasets that DALI does not decode: batches, their order, and iterating."""

import copy
import pickle
import weakref
from collections import Counter, UserDict, namedtuple
from types import MappingProxyType

import numpy as np
import pytest
import torch
from torch.utils.data import (
    BatchSampler,
    ConcatDataset,
    DistributedSampler,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    Subset,
    SubsetRandomSampler,
    TensorDataset,
    WeightedRandomSampler,
)

from fastfeed.data.samplers import ClassBalancedSampler
from tests.torch_loaders import PYTORCHS, DataLoader, Mapped, NoLength, Unsized, assert_same, generator

Point = namedtuple("Point", "x y")


class Bulk(Mapped):
    def __getitems__(self, indices):
        return [(i, len(indices)) for i in indices]


class Listed(list):
    """A list of another type."""


def sample(i):
    return torch.full((2,), i), i


# --------------------------------------------------------------------------------------------- batches

DATASETS = {
    "tensors": TensorDataset(torch.arange(20.0).reshape(10, 2), torch.arange(10)),
    "a list": list(range(10)),
    "a list of pairs": [sample(i) for i in range(10)],
    "a tensor": torch.arange(10),
    "an array": np.arange(20).reshape(10, 2),
    "arrays": Mapped(10, lambda i: np.ones((2, 3, 4), np.float32) * i),
    "NumPy's scalars": Mapped(10, lambda i: (np.float16(i), np.uint8(i), np.int64(i), np.float64(i))),
    "Python's scalars": Mapped(10, lambda i: (i, i / 3, i % 2 == 0)),
    "strings": Mapped(10, lambda i: (f"{i}", f"{i}".encode())),
    "mappings": Mapped(10, lambda i: {"image": torch.full((2,), i), "meta": {"number": i, "name": f"{i}"}}),
    "named tuples": Mapped(10, lambda i: Point(i, Point(torch.ones(1), "y"))),
    "lists of another type": Mapped(10, lambda i: Listed([i, Listed([2 * i])])),
    "mappings of another type": Mapped(10, lambda i: UserDict(a=i)),
    "nested": Mapped(10, lambda i: [(i, [torch.ones(i % 1)]), {"a": [i, (i,)]}]),
    "a subset": Subset([sample(i) for i in range(30)], range(29, 9, -2)),
    "concatenated": ConcatDataset([range(4), range(10, 16)]),
    "samples in bulk": Bulk(10, lambda i: (i, -1)),
    "none": [],
    "a dict of indices": {i: str(i) for i in range(10)},
}
ARGUMENTS = {
    "by default": lambda: {},
    "of 3": lambda: {"batch_size": 3},
    "of 3, whole ones": lambda: {"batch_size": 3, "drop_last": True},
    "samples": lambda: {"batch_size": None},
    "samples of workers": lambda: {"batch_size": None, "num_workers": 2},
    "of workers": lambda: {"batch_size": 4, "num_workers": 2, "prefetch_factor": 3},
    "by a sampler": lambda: {"batch_size": 4, "sampler": [3, 1, 1, 2, 0, 9]},
    "by a batch sampler": lambda: {"batch_sampler": [[3, 1], (1, 2, 0), [9]]},
    "by PyTorch's batch sampler": lambda: {"batch_sampler": BatchSampler(range(10), 4, True)},
    "collated": lambda: {"batch_size": 4, "collate_fn": repr},
    "collated each": lambda: {"batch_size": None, "collate_fn": repr},
}


@pytest.mark.parametrize("how", ARGUMENTS)
def test_batches_are_pytorchs(how):
    with_workers = ("strings", "nested", "samples in bulk")  # a few: processes take their time
    for name, dataset in DATASETS.items():
        if (len(dataset) == 0 and "sampler" in how) or ("workers" in how and name not in with_workers):
            continue
        ours, theirs = (cls(dataset, **ARGUMENTS[how]()) for cls in (DataLoader, PYTORCHS))
        assert len(ours) == len(theirs), name
        for _ in range(2):
            assert_same(list(ours), list(theirs))
        assert len(ours) == len(theirs) == len(list(ours)), name


def test_what_a_collate_fn_gives_comes_as_it_is():
    given = [MappingProxyType({"a": torch.ones(1)}), Counter("aab"), None, {1, 2}, object(), torch.eye(2).to_sparse()]
    for one in given:
        assert next(iter(DataLoader(range(2), collate_fn=lambda batch, one=one: one))) is one


def test_a_batch_is_the_consumers():
    for batch in DataLoader(range(3)):
        kept = weakref.ref(batch)
        del batch
        assert kept() is None


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_autograd_is_in_the_consumers_mode(mode):
    weight = torch.ones(1, requires_grad=True)
    for loader in (DataLoader, PYTORCHS):
        with mode():
            batch = next(iter(loader(Mapped(2, lambda i: weight * i))))
        assert batch.requires_grad == (mode is torch.enable_grad)
    with torch.inference_mode():
        assert not next(iter(DataLoader(range(2)))).is_inference()  # it may be trained with


# --------------------------------------------------------------------------------------------- order

BY_GENERATOR = {
    "batches": {"batch_size": 3},
    "samples": {"batch_size": None},
    "of workers": {"batch_size": 2, "num_workers": 2},
    "of workers that stay": {"batch_size": 2, "num_workers": 1, "persistent_workers": True},
}


@pytest.mark.parametrize("how", BY_GENERATOR)
def test_a_generator_gives_pytorchs_order(how):
    ours, theirs = (
        cls(range(10), shuffle=True, generator=generator(), **BY_GENERATOR[how]) for cls in (DataLoader, PYTORCHS)
    )
    epochs = []
    for _ in range(2):
        epochs.append(list(ours))
        assert_same(epochs[-1], list(theirs))
    next(iter(ours)), next(iter(theirs))  # one that is left early
    assert_same(list(ours), list(theirs))
    assert str(epochs[0]) != str(epochs[1])


SAMPLERS = {
    "random": lambda: RandomSampler(range(10), generator=generator()),
    "of a number": lambda: RandomSampler(range(10), num_samples=23, generator=generator()),
    "with replacement": lambda: RandomSampler(range(10), replacement=True, num_samples=5, generator=generator()),
    "weighted": lambda: WeightedRandomSampler([0.1, 0.9, 3.0], 7, generator=generator()),
    "of a subset": lambda: SubsetRandomSampler(range(2, 8), generator=generator()),
    "sequential": lambda: SequentialSampler(range(10)),
    "distributed": lambda: DistributedSampler(range(10), 3, 1, seed=5),
    "a range": lambda: range(2, 9),
    "an array": lambda: np.array([4, 2]),
    "a tensor": lambda: torch.tensor([4, 2]),
    "a set": lambda: {4, 2},
}


@pytest.mark.parametrize("name", SAMPLERS)
def test_samplers_of_pytorch(name):
    ours, theirs = (cls(range(10), 2, sampler=SAMPLERS[name]()) for cls in (DataLoader, PYTORCHS))
    assert len(ours) == len(theirs)
    assert_same(list(ours), list(theirs))


@pytest.mark.parametrize("dataset", [Unsized(), NoLength()])
@pytest.mark.parametrize("workers", [0, 1])
def test_keys_and_no_length(dataset, workers):
    keys = ["a", ("b", 2), 3.5, None]
    for options in ({"sampler": keys}, {"sampler": keys, "batch_size": None}, {"batch_sampler": [keys[:3], keys[3:]]}):
        ours, theirs = (cls(dataset, num_workers=workers, **options) for cls in (DataLoader, PYTORCHS))
        assert len(ours) == len(theirs)
        assert ours.state_dict()["samples"] is None
        assert_same(list(ours), list(theirs))


def test_a_batch_of_indices_that_is_a_tensor():
    batches = list(torch.tensor([4, 2, 2, 0]).split(3))
    ours, theirs = (cls(torch.arange(9), batch_sampler=batches) for cls in (DataLoader, PYTORCHS))
    assert_same(list(ours), list(theirs))


def test_a_batch_of_a_sampler_for_a_dataset_that_batches_itself():
    dataset = Mapped(6, lambda indices: torch.tensor(indices) * 2)
    batches = BatchSampler(range(6), 4, False)
    ours, theirs = (cls(dataset, batch_size=None, sampler=batches) for cls in (DataLoader, PYTORCHS))
    assert_same(list(ours), list(theirs))


def test_shuffle_gives_each_sample_once_in_a_new_order_every_epoch():
    for options in ({"batch_size": 3}, {"batch_size": None}, {"batch_size": 4, "num_workers": 2}):
        data = DataLoader(range(50), shuffle=True, **options)
        epochs = [[int(i) for batch in data for i in np.atleast_1d(batch)] for _ in range(2)]
        assert [sorted(epoch) for epoch in epochs] == [[*range(50)]] * 2
        assert len({tuple(epoch) for epoch in epochs} | {tuple(range(50))}) == 3


def test_a_dataset_without_samples_is_not_shuffled():
    for loader in (DataLoader, PYTORCHS):
        assert list(loader([])) == []
        with pytest.raises(ValueError, match=r"shuffle is True, but list has no|num_samples should be a positive"):
            loader([], shuffle=True)


def test_a_dataset_that_grows():
    dataset = [torch.ones(1)] * 4
    loaders = [DataLoader(dataset, shuffle=shuffle) for shuffle in (False, True)]
    assert [len(list(data)) for data in loaders] == [4, 4]
    dataset.append(torch.ones(1))
    assert [len(data) for data in loaders] == [5, 5]
    assert [len(list(data)) for data in loaders] == [5, 5]


# --------------------------------------------------------------------------------------------- iterating


def test_iterating_again_and_several_times_at_once():
    data = DataLoader(range(6), 2, num_workers=1)
    first, second = iter(data), iter(data)
    assert [next(first).tolist(), next(second).tolist(), next(first).tolist()] == [[0, 1], [0, 1], [2, 3]]
    for _ in data:
        break
    assert [batch.tolist() for batch in data] == [[0, 1], [2, 3], [4, 5]]
    assert [batch.tolist() for batch in second] == [[2, 3], [4, 5]]
    assert [batch.tolist() for batch in first] == [[4, 5]]
    for iterator in (first, second):
        with pytest.raises(StopIteration):
            next(iterator)


def test_an_iterator_takes_its_epoch_with_its_first_batch():
    expected = [[batch.tolist() for batch in one] for one in [DataLoader(range(9), 2, shuffle=True)] * 3]
    data = DataLoader(range(9), 2, shuffle=True)
    iter(data), iter(data)  # as some trainers do, before they set the epoch
    iterator = iter(data)
    data.sampler.set_epoch(2)
    assert next(iterator).tolist() == expected[2][0]
    assert (data.epoch, data.state_dict()["epoch"], data.state_dict()["consumed"]) == (3, 2, 2)
    data.set_epoch(1)
    later, first = iter(data), iter(data)
    assert [next(first).tolist(), next(later).tolist()] == [expected[1][0], expected[2][0]]
    resumed = iter(other := DataLoader(range(9), 2, shuffle=True))
    other.load_state_dict(data.state_dict())
    other.set_epoch(2)
    assert len(resumed) == 4
    assert [batch.tolist() for batch in resumed] == expected[2][1:]


def test_length_before_during_and_after():
    data = DataLoader(range(7), 2)
    assert (len(data), len(iter(data))) == (4, 4)
    iterator = iter(data)
    next(iterator)
    assert (len(data), len(iterator)) == (4, 4)
    list(iterator)
    assert (len(data), len(iterator)) == (4, 4)
    unsized = DataLoader(Unsized(), sampler=iter("abc"))
    for length in (lambda: len(unsized), lambda: len(iter(unsized))):
        with pytest.raises(TypeError, match="has no len"):
            length()
    assert list(unsized) == [["value of a"], ["value of b"], ["value of c"]]


# --------------------------------------------------------------------------------------------- copies


@pytest.mark.parametrize("how", ["copy", "deepcopy", "pickle"])
@pytest.mark.parametrize("workers", [0, 1])
def test_copies(how, workers):
    options = {"num_workers": workers, "persistent_workers": workers > 0, "shuffle": True, "sampler": None}
    data = DataLoader(list(range(6)), 2, **options)
    expected = [batch.tolist() for batch in data]
    running = iter(data)
    begun = next(running).tolist()
    make = {"copy": copy.copy, "deepcopy": copy.deepcopy, "pickle": lambda data: pickle.loads(pickle.dumps(data))}
    other = make[how](data)
    rest = [batch.tolist() for batch in running]
    other.set_epoch(0)
    assert [batch.tolist() for batch in other] == expected
    data.set_epoch(1)
    assert [batch.tolist() for batch in data] == [begun, *rest]


def test_our_samplers_take_the_labels_of_a_dataset():
    class Labelled(Mapped):
        targets = [0] * 8 + [1] * 2

    data = DataLoader(Labelled(10, lambda i: i), 5, sampler=ClassBalancedSampler(num_samples=200))
    index = torch.cat(list(data))
    assert 60 <= int((index >= 8).sum()) <= 140  # 40 without balance


def noisy(i):
    return i + torch.rand(1)


class NoisyStream(IterableDataset):
    def __iter__(self):
        return map(noisy, range(6))


ORDERS = {
    "the dataset's": lambda: {},
    "a sampler's": lambda: {"sampler": RandomSampler(range(6))},
    "a generator's": lambda: {"shuffle": True, "generator": generator()},
    "a stream's": lambda: {"dataset": NoisyStream()},
}


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("order", ORDERS)
def test_what_a_dataset_draws_is_what_it_draws_beside_pytorchs(order, workers):
    def drawn(cls, **seed):
        torch.manual_seed(7)
        how = {"dataset": Mapped(6, noisy), "num_workers": workers, **ORDERS[order](), **seed}
        loader = cls(**how, multiprocessing_context="fork" if workers else None)
        return [[*loader], [*loader], torch.rand(1)]

    assert_same(drawn(DataLoader, seed=None), drawn(PYTORCHS))
