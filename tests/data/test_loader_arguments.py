"""Arguments of the loader: what is refused, what is warned of, and that they stay as they were given."""

import copy
import inspect
import json
import pickle
import warnings

import numpy as np
import pytest
import torch
from torch.utils.data import BatchSampler, RandomSampler, SequentialSampler

from fastfeed import DataLoader, FolderSource, ListSource, transforms
from fastfeed.data.arguments import choose_threads
from fastfeed.data.samplers import ClassBalancedSampler, RepeatedAugmentation, Shuffled, WeightedSampler
from fastfeed.data.schedule import MultiScale
from tests.images import write_folder
from tests.loaders import assert_same_batches, index_of, make_loader

pytestmark = pytest.mark.dali

SIZE = 13


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_folder(tmp_path_factory.mktemp("arguments") / "data", {"cat": 5, "dog": 6, "owl": 2})


# ------------------------------------------------------------------------------------------- attributes

ARGUMENTS = list(inspect.signature(DataLoader).parameters)
MADE_ANEW = {"sampler", "batch_sampler"}  # each time they are asked for
OF_WORKERS = {
    "pin_memory", "timeout", "worker_init_fn", "multiprocessing_context", "pin_memory_device", "in_order",
}  # fmt: skip


@pytest.mark.parametrize("how", ["made", "run", "copied", "pickled"])
def test_what_the_arguments_set_stays(folder, how):
    data = make_loader(folder, shuffle=True)
    expected = list(data)
    if how == "made":
        data = make_loader(folder, shuffle=True)
    elif how == "copied":
        data = copy.copy(data)
    elif how == "pickled":
        data = pickle.loads(pickle.dumps(data))
    before = {name: getattr(data, name) for name in ARGUMENTS if hasattr(data, name) and name not in MADE_ANEW}
    assert before.keys() >= {"dataset", "batch_size", "shuffle", "seed", "transform", "device", "rank"}
    samples = list(data.sampler)
    for name in set(ARGUMENTS) - OF_WORKERS:
        with pytest.raises(ValueError, match=f"{name} cannot be set once the DataLoader is made: make another one"):
            setattr(data, name, None)
    assert {name: getattr(data, name) for name in before} == before
    assert list(data.sampler) == samples
    assert not hasattr(data, "dtype")  # which is no attribute, and did not become one
    data.epoch = 0
    assert_same_batches(list(data), expected)


def test_the_other_loader_that_the_message_asks_for(folder):
    data = make_loader(folder, shuffle=True, batch_size=4)
    iterator = iter(data)
    next(iterator)
    other = make_loader(folder, shuffle=True, batch_size=3, transform=transforms.eval(8))
    other.load_state_dict(data.state_dict())
    assert index_of(other) == index_of(iterator)


def test_what_pytorchs_workers_have_can_be_set_to_no_effect(folder):
    data = make_loader(folder, shuffle=True)
    expected = list(data)
    for name in OF_WORKERS:
        setattr(data, name, len)  # as trainers do: Lightning seeds workers by a `worker_init_fn` of its own
        assert getattr(data, name) is len
    data.epoch = 0
    assert_same_batches(list(data), expected)


def test_other_attributes_and_those_of_subclasses_can_be_set(folder):
    class Mine(DataLoader):
        def __init__(self, *arguments, **options):
            self.before = 1
            super().__init__(*arguments, **options)
            self.after = 2

    data = Mine(folder, device="cpu")
    data.before, data.after, data.note, data.epoch = 3, 4, "x", 5
    assert (data.before, data.after, data.note, data.epoch) == (3, 4, "x", 5)
    with pytest.raises(ValueError, match="seed cannot be set"):
        data.seed = 1


# --------------------------------------------------------------------------------------------- iterators

LENGTHS = {
    "in order": {},
    "drop_last": {"drop_last": True},
    "rank": {"batch_size": 2, "rank": 1, "world_size": 3},
    "weighted": {"sampler": WeightedSampler([1.0] * SIZE, 9)},
    "fewer than a batch": {"batch_size": 20, "drop_last": True},
    "PyTorch's sampler": {"sampler": SequentialSampler(range(SIZE))},
    "PyTorch's sampler, drop_last": {"sampler": SequentialSampler(range(SIZE)), "drop_last": True},
    "PyTorch's sampler, rank": {"sampler": range(0, SIZE, 3), "batch_size": 2, "rank": 0, "world_size": 3},
    "batch sampler": {"batch_sampler": [[1, 2, 3], [4], [5, 6], [1]], "batch_size": 1},
}


@pytest.mark.parametrize("case", LENGTHS)
def test_the_length_of_an_iterator_is_how_many_batches_it_gives(folder, case):
    data = make_loader(folder, **LENGTHS[case])
    for done in range(len(data) + 1):
        data.set_epoch(0)
        whole = iter(data)
        assert len(whole) == len(data)
        for _ in range(done):
            next(whole)
        assert len(whole) == len(data)  # in all, as PyTorch's
        resumed = make_loader(folder, **LENGTHS[case])
        resumed.load_state_dict(data.state_dict())
        rest = iter(resumed)
        assert len(rest) == len(list(rest)) == len(data) - done
        assert len(resumed) == len(data)
        assert len(iter(resumed)) == len(data)  # of the next epoch


def test_an_iterator_without_a_length(folder):
    class Endless:
        def __iter__(self):
            return iter(range(SIZE))

    data = make_loader(folder, sampler=Endless())
    iterator = iter(data)
    with pytest.raises(TypeError, match=r"object of type 'Endless' has no len\(\)"):
        len(iterator)
    assert len(list(iterator)) == 4


def test_an_iterator_that_is_closed(folder):
    data = make_loader(folder)
    iterator = iter(data)
    next(iterator)
    assert data._engine._idle_graph is None
    iterator.close()
    assert data._engine._idle_graph is not None
    assert list(iterator) == []
    assert iter(iterator) is iterator


# ---------------------------------------------------------------------------------------------- arguments


@pytest.mark.parametrize(("options", "error", "message"), [
    ({"shuffle": "False"}, TypeError, "shuffle is 'False'; expected True or False"),
    ({"shuffle": 4}, TypeError, "shuffle is 4"),
    ({"drop_last": 1}, TypeError, "drop_last is 1"),
    ({"info": None}, TypeError, "info is None"),
    ({"exif": "yes"}, TypeError, "exif is 'yes'"),
    ({"stable_addresses": 2}, TypeError, "stable_addresses is 2"),
    ({"batch_size": 0}, ValueError, "batch_size is 0"),
    ({"batch_size": None, "drop_last": True}, ValueError, "drop_last goes with a batch_size, which is None"),
    ({"batch_size": True}, ValueError, "batch_size is True"),
    ({"batch_size": "4"}, ValueError, "batch_size is '4'"),
    ({"num_workers": 1.5}, ValueError, "num_workers is 1.5"),
    ({"prefetch_factor": 1.5}, ValueError, "prefetch_factor is 1.5"),
    ({"seed": 0.0}, ValueError, "seed is 0.0"),
    ({"max_pixels": 1e6}, ValueError, "max_pixels is 1000000.0"),
    ({"max_errors": True}, ValueError, "max_errors is True"),
    ({"max_errors": np.float32(1.5)}, ValueError, "max_errors is .*1.5"),
    ({"rank": 0.0, "world_size": 2}, ValueError, "rank is 0.0"),
    ({"sampler": RandomSampler}, TypeError, "sampler is type; expected an iterable"),
    ({"sampler": WeightedSampler}, TypeError, "sampler is ABCMeta; expected an iterable"),
    ({"sampler": WeightedSampler([1, 2])}, ValueError, "2 weights for 13 samples"),
    ({"sampler": RepeatedAugmentation(2, 27)}, ValueError, "num_samples is 27; expected at most 26"),
    ({"transform": transforms.train}, TypeError, "transform is function; expected a Transform"),
    ({"mix": 0.2}, TypeError, "mix is float; expected a fastfeed.Mix"),
])  # fmt: skip
def test_bad_arguments(folder, options, error, message):
    with pytest.raises(error, match=message):
        make_loader(folder, **options)


def test_a_bad_argument_is_named_before_the_folder_is_read(tmp_path):
    with pytest.raises(ValueError, match="batch_size is 0"):
        make_loader(tmp_path / "absent", 0)


def test_a_sampler_by_class_needs_class_indices(folder):
    paths = [path for path, _ in FolderSource(folder).samples]
    with pytest.raises(ValueError, match="needs the samples' class indices"):
        make_loader(ListSource(paths, torch.zeros(len(paths), 4)), sampler=ClassBalancedSampler())


def test_no_shuffle_as_pytorch_has_it(folder):
    assert make_loader(folder, shuffle=None).shuffle is False
    assert index_of(make_loader(folder, shuffle=None)) == list(range(SIZE))
    assert index_of(make_loader(folder, shuffle=np.bool_(True))) == index_of(make_loader(folder, shuffle=True))


def test_numpys_numbers_leave_a_state_of_pythons(folder):
    data = make_loader(
        folder, np.int64(4), seed=np.uint64(2**64 - 1), num_workers=np.int8(1), prefetch_factor=np.int32(2),
        max_pixels=np.int64(10**6), max_errors=np.int64(1), on_error="drop", shuffle=True,
        rank=np.int64(0), world_size=np.int64(1),
    )  # fmt: skip
    expected = list(make_loader(folder, 4, seed=2**64 - 1, shuffle=True))
    data.set_epoch(np.int64(0))
    iterator = iter(data)
    got = [next(iterator), next(iterator)]
    state = data.state_dict()
    assert json.loads(json.dumps(state)) == state
    assert_same_batches([*got, *iterator], expected)
    resumed = make_loader(folder, seed=2**64 - 1, shuffle=True)
    resumed.load_state_dict(state | {"epoch": np.int64(0), "consumed": np.int64(8), "step": np.int64(2)})
    assert json.loads(json.dumps(resumed.state_dict())) == state
    assert_same_batches(list(resumed), expected[2:])


def test_sizes_that_a_schedule_gives(folder):
    def shapes(size):
        return [tuple(images.shape[2:]) for images, _, _ in make_loader(folder, size=size)]

    assert shapes(MultiScale(np.array([12, 16]), every=1, seed=1)) == shapes(MultiScale((12, 16), every=1, seed=1))
    assert shapes(lambda epoch, step: np.array([12, 16])) == [(12, 16)] * 4
    assert shapes(lambda epoch, step: [np.int64(12), 16]) == [(12, 16)] * 4
    for size, error in (
        (12.0, TypeError),
        (None, TypeError),
        (True, TypeError),
        (0, ValueError),
        ((1, 2, 3), ValueError),
    ):
        with pytest.raises(error, match=r"size\(epoch=0, step=0\) gave .*: size is "):
            shapes(lambda epoch, step, size=size: size)


# ------------------------------------------------------------------------------------------------ warnings


def test_more_threads_than_cores(folder, monkeypatch):
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: {0, 1, 2})
    message = r"num_workers is 4, and this process may run on 3 cores: .* num_workers=0 is one per core"
    with pytest.warns(UserWarning, match=message) as caught:
        data = DataLoader(folder, device="cpu", num_workers=4)
    assert caught[0].filename == __file__  # where the loader is made
    assert data.num_workers == 4
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert DataLoader(folder, device="cpu", num_workers=3).num_workers == 3
        assert DataLoader(folder, device="cpu").num_workers == 0


@pytest.mark.parametrize(("processes", "threads"), [("1", 8), ("3", 2), ("8", 1), ("20", 1), ("0", 8), ("", 8)])
def test_processes_of_torchrun_share_the_cores(processes, threads, monkeypatch):
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: set(range(8)))
    monkeypatch.setenv("LOCAL_WORLD_SIZE", processes)
    assert choose_threads("num_workers", 0) == threads
    assert choose_threads("num_workers", 5) == 5  # what is asked for is done
    with pytest.raises(ValueError, match="num_workers is 100000; expected at most 4096 threads"):
        choose_threads("num_workers", 100000)
    # Bound to cores of its own: to 2 of 8.
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: {4, 5} if pid == 0 else set(range(8)))
    assert choose_threads("num_workers", 0) == 2


def test_one_of_several_processes_without_torch_distributed(folder, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "4")
    data = DataLoader(folder, device="cpu")  # which may be made before
    with pytest.warns(
        UserWarning, match=r"WORLD_SIZE is 4 .*init_process_group\(\) before .* or give it rank"
    ) as caught:
        len(data)
    assert caught[0].filename == __file__
    with pytest.warns(UserWarning, match="WORLD_SIZE is 4"):
        assert (data.rank, data.world_size) == (0, 1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        list(DataLoader(folder, device="cpu", rank=0, world_size=1))
        list(DataLoader(folder, device="cpu", rank=3, world_size=4))
        for alone in ("1", "", "x"):
            monkeypatch.setenv("WORLD_SIZE", alone)
            list(DataLoader(folder, device="cpu"))


# -------------------------------------------------------------------------------------------------- states

WEIGHTS = [1.0 + i % 3 for i in range(SIZE)]

# Loaders of other orders: the state of none goes on in another.
ORDERS = {
    "in order": {},
    "shuffled": {"sampler": Shuffled()},
    "weighted": {"sampler": WeightedSampler(WEIGHTS)},
    "other weights": {"sampler": WeightedSampler([*WEIGHTS[:-1], 9.0])},
    "fewer draws": {"sampler": WeightedSampler(WEIGHTS, 7)},
    "class-balanced": {"sampler": ClassBalancedSampler()},
    "more class-balanced": {"sampler": ClassBalancedSampler(20)},
    "three copies": {"sampler": RepeatedAugmentation()},
    "two copies": {"sampler": RepeatedAugmentation(2)},
    "two copies of some": {"sampler": RepeatedAugmentation(2, 8)},
    "PyTorch's random": {"sampler": RandomSampler(range(SIZE))},
    "PyTorch's sequential": {"sampler": SequentialSampler(range(SIZE))},
    "PyTorch's batches": {"batch_sampler": BatchSampler(range(SIZE), 3, drop_last=False), "batch_size": 1},
}


def test_a_state_goes_on_in_a_loader_with_the_same_sampler_only(folder):
    loaders = {name: make_loader(folder, **options) for name, options in ORDERS.items()}
    states = {name: json.loads(json.dumps(data.state_dict())) for name, data in loaders.items()}
    for name, data in loaders.items():
        for other, state in states.items():
            if other == name:
                data.load_state_dict(state)
                continue
            with pytest.raises(ValueError) as raised:
                data.load_state_dict(state)
            both = f"order = {state['order']}, and this one has {states[name]['order']}"
            assert both in str(raised.value)
            assert "the same dataset, seed and sampler" in str(raised.value)
        assert data.state_dict() == states[name]


def test_a_state_says_what_the_sampler_was(folder):
    assert make_loader(folder, **ORDERS["two copies of some"]).state_dict()["order"] == (
        "RepeatedAugmentation(repeats=2, num_samples=8)"
    )
    order = make_loader(folder, **ORDERS["fewer draws"]).state_dict()["order"]
    assert order.startswith("WeightedSampler(num_samples=7, weights=")
    assert len(order) < 60


def test_a_state_of_a_class_balanced_order_knows_the_labels(folder):
    source = FolderSource(folder)
    paths = [path for path, _ in source.samples]
    state = make_loader(source, sampler=ClassBalancedSampler()).state_dict()
    same = ListSource(paths, source.labels.tolist())
    make_loader(same, sampler=ClassBalancedSampler()).load_state_dict(state)
    other = make_loader(ListSource(paths, [0, *source.labels[1:-1].tolist(), 0]), sampler=ClassBalancedSampler())
    with pytest.raises(ValueError, match=r"labels=.*labels="):
        other.load_state_dict(state)


@pytest.mark.parametrize(("name", "value"), [("epoch", "1"), ("consumed", -1), ("step", None), ("epoch", 1.5)])
def test_a_state_that_is_no_place(folder, name, value):
    data = make_loader(folder)
    before = data.state_dict()
    with pytest.raises(ValueError, match=f"the state's {name} is {value!r}; expected a whole number, 0 or more"):
        data.load_state_dict(before | {name: value})
    assert data.state_dict() == before
