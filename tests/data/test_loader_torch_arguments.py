"""DataLoader's arguments and attributes beside PyTorch's, for datasets that DALI does not decode; what is refused."""

import inspect
import logging

import pytest
import torch

import fastfeed
from fastfeed.data.workers import WORKER_OPTIONS
from tests.torch_loaders import PYTORCHS, DataLoader, NoLength, Stream, Unsized, generator


def test_the_signature_is_pytorchs_and_more():
    theirs = inspect.signature(PYTORCHS).parameters
    ours = inspect.signature(fastfeed.DataLoader).parameters
    assert list(ours)[: len(theirs)] == list(theirs)
    for name, parameter in theirs.items():
        assert (ours[name].kind, ours[name].default) == (parameter.kind, parameter.default), name
    assert {ours[name].kind for name in list(ours)[len(theirs) :]} == {inspect.Parameter.KEYWORD_ONLY}


MADE = {
    "by default": {},
    "shuffled": {"batch_size": 4, "shuffle": True, "drop_last": True},
    "samples": {"batch_size": None},
    "by a sampler": {"sampler": range(3)},
    "by batches": {"batch_sampler": [[1, 2], [3]]},
    "with workers": {
        "num_workers": 1,
        "timeout": 7,
        "persistent_workers": True,
        "prefetch_factor": 3,
        "worker_init_fn": print,
        "generator": generator(),
        "collate_fn": repr,
    },
    "with workers by default": {"num_workers": 1},
    "iterable": {"dataset": Stream(3)},
}
ATTRIBUTES = [
    "dataset",
    "batch_size",
    "drop_last",
    "num_workers",
    "pin_memory",
    "pin_memory_device",
    "timeout",
    "worker_init_fn",
    "collate_fn",
    "generator",
    "prefetch_factor",
    "persistent_workers",
    "in_order",
]


@pytest.mark.parametrize("how", MADE)
def test_attributes_are_pytorchs(how):
    options = {"dataset": range(10), **MADE[how]}
    ours, theirs = DataLoader(**options), PYTORCHS(**options)
    for name in ATTRIBUTES:
        assert getattr(ours, name) == getattr(theirs, name), name
    assert ours.backend == "torch"
    if how == "iterable":
        return
    if how != "by batches":  # where PyTorch's has one of the whole dataset, which nobody uses
        assert len(ours.sampler) == len(theirs.sampler)
    assert (ours.batch_sampler is None) == (theirs.batch_sampler is None)
    for name in {"sampler", "batch_sampler"} & options.keys():
        assert getattr(ours, name) is getattr(theirs, name) is options[name]
    if ours.batch_sampler is not None:
        assert len(ours.batch_sampler) == len(theirs.batch_sampler)
        if how != "shuffled":
            assert list(ours.batch_sampler) == list(theirs.batch_sampler)


def test_positional_arguments():
    options = (range(4), 2, False, None, None, 0, repr, False, True, 0, None, None, generator())
    ours, theirs = DataLoader(*options), PYTORCHS(*options)
    assert list(ours) == list(theirs) == ["[0, 1]", "[2, 3]"]
    with pytest.raises(TypeError, match="positional"):
        DataLoader(*options, 2)


@pytest.mark.parametrize(
    "name", [name for name in inspect.signature(PYTORCHS).parameters if name not in {*WORKER_OPTIONS, "in_order"}]
)
def test_arguments_stay_as_they_were_given(name):
    data = DataLoader(range(3))
    with pytest.raises(ValueError, match=f"{name} cannot be set"):
        setattr(data, name, {})
    assert len(list(data)) == 3


REFUSED = {
    "batch_size, batch_sampler": {"batch_size": 11, "batch_sampler": [[1]]},
    "batch_size None, batch_sampler": {"batch_size": None, "batch_sampler": [[1]]},
    "shuffle, batch_sampler": {"shuffle": True, "batch_sampler": [[1]]},
    "drop_last, batch_sampler": {"drop_last": True, "batch_sampler": [[1]]},
    "sampler, batch_sampler": {"sampler": [1], "batch_sampler": [[1]]},
    "sampler, shuffle": {"sampler": [1], "shuffle": True},
    "drop_last": {"batch_size": None, "drop_last": True},
    "batch_size": {"batch_size": 0},
    "num_workers": {"num_workers": -1},
    "timeout": {"timeout": -1},
    "prefetch_factor": {"prefetch_factor": 2},
    "prefetch_factor of workers": {"prefetch_factor": -2, "num_workers": 1},
    "persistent_workers": {"persistent_workers": True},
    "multiprocessing_context": {"multiprocessing_context": "fork"},
    "multiprocessing_context's name": {"num_workers": 1, "multiprocessing_context": "bad"},
    "multiprocessing_context's type": {"num_workers": 1, "multiprocessing_context": object()},
    "shuffle of a stream": {"dataset": Stream(3), "shuffle": True},
    "sampler of a stream": {"dataset": Stream(3), "sampler": [1]},
    "batch_sampler of a stream": {"dataset": Stream(3), "batch_sampler": [[1]]},
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_pytorch_refuses(what):
    options = {"dataset": range(20), **REFUSED[what]}
    with pytest.raises((ValueError, TypeError)) as theirs:
        PYTORCHS(**options)
    with pytest.raises(theirs.type) as ours:
        DataLoader(**options)
    for name in what.split(" ")[0].rstrip(",").split("'"):
        assert name in str(ours.value)


DALIS = {
    "transform": fastfeed.transforms.train(16),
    "size": lambda epoch, step: 8,
    "dtype": torch.float16,
    "memory_format": torch.contiguous_format,
    "mix": fastfeed.Mix(mixup=0.2),
    "on_error": "replace",
    "max_errors": 3,
    "max_pixels": 100,
    "exif": True,
}


@pytest.mark.parametrize("name", DALIS)
def test_what_only_dali_does_is_refused(name):
    with pytest.raises(ValueError, match=rf"^{name}: only for images that DALI decodes.*range.*Prefetcher"):
        DataLoader(range(3), **{name: DALIS[name]})


def test_several_that_only_dali_does():
    with pytest.raises(ValueError, match=r"^dtype, on_error: only.*Leave them out"):
        DataLoader(range(3), dtype=torch.float16, on_error="drop")
    with pytest.raises(ValueError, match=r"^backend='dali', but DALI cannot take this dataset: .*range"):
        DataLoader(range(3), backend="dali")
    with pytest.raises(ValueError, match=r"^backend is 'gpu'; expected 'dali', 'torch', or None"):
        DataLoader(range(3), backend="gpu")


@pytest.mark.parametrize("dataset", [3, None, object()])
def test_no_dataset(dataset):
    with pytest.raises(TypeError, match=rf"^dataset is {type(dataset).__name__}; expected the path of a folder"):
        DataLoader(dataset)


def test_no_length_and_no_sampler():
    with pytest.raises(TypeError, match="has no len"):
        DataLoader(Unsized())
    with pytest.raises(NotImplementedError):
        DataLoader(NoLength(), shuffle=True)


def test_a_log_line_says_why(caplog):
    with caplog.at_level(logging.INFO, "fastfeed"):
        DataLoader(range(3))
        DataLoader(range(3), backend="torch")
    assert [record.name for record in caplog.records] == ["fastfeed"] * 2
    first, second = (record.getMessage() for record in caplog.records)
    assert first.startswith("DataLoader: PyTorch's workers make the batches: ")
    assert "range" in first
    assert second.endswith("backend='torch' asks for them")


def test_what_pytorchs_loader_lets_one_set():
    for loader in (DataLoader, PYTORCHS):
        data = loader(torch.arange(6), 3)
        assert len(list(data)) == 2
        data.collate_fn = sum
        data.timeout, data.worker_init_fn = 0, print
        assert (data.collate_fn, data.timeout, data.worker_init_fn) == (sum, 0, print)
        assert [int(batch) for batch in data] == [3, 12]
        with pytest.raises(ValueError, match="batch_size"):
            data.batch_size = 4


@pytest.mark.parametrize("shuffle", [False, True])
def test_a_generator_that_is_none(shuffle):
    with pytest.raises(TypeError, match=r"generator is 3; expected a torch\.Generator"):
        DataLoader(range(3), shuffle=shuffle, generator=3)
