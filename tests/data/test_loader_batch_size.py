"""Batch sizes that change between epochs and steps."""

import numpy as np
import pytest
import torch

from fastfeed import Mix
from fastfeed.data import graph
from fastfeed.data.schedule import ProgressiveSize
from tests.images import write_folder
from tests.loaders import assert_same_batches, assert_same_samples, by_index, everything, make_loader, ranks

pytestmark = pytest.mark.dali

COUNT = 23


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_folder(tmp_path_factory.mktemp("loader") / "data", {"cat": 11, "dog": 12})


def growing(epoch, step):
    return 1 + epoch + step % 3


def sizes(batches):
    return [len(images) for images, *_ in batches]


@pytest.mark.parametrize(("drop_last", "expected"), [
    (False, [[1, 2, 3, 1, 2, 3, 1, 2, 3, 1, 2, 2], [2, 3, 4, 2, 3, 4, 2, 3]]),
    (True, [[1, 2, 3, 1, 2, 3, 1, 2, 3, 1, 2], [2, 3, 4, 2, 3, 4, 2, 3]]),
])  # fmt: skip
def test_sizes_and_lengths(folder, drop_last, expected):
    data = make_loader(folder, growing, drop_last=drop_last, shuffle=True)
    for wanted in expected:
        assert len(data) == len(wanted)
        iterator = iter(data)
        assert len(iterator) == len(wanted)
        assert sizes(iterator) == wanted


def test_samples_are_those_of_any_batch_size(folder):
    transform = everything()
    expected, got = (
        make_loader(folder, batch_size, transform=transform, shuffle=True, seed=3) for batch_size in (5, growing)
    )
    for _ in range(2):
        assert_same_samples(by_index(got), by_index(expected))


def test_a_resume_goes_on_in_the_middle_of_an_epoch_that_grows(folder):
    def make():
        size = ProgressiveSize(16, 32, epochs=2, multiple=8)
        return make_loader(folder, growing, size=size, shuffle=True, mix=Mix(0.4, 1.0), seed=3)

    data = make()
    list(data)
    whole = list(data)
    for done in range(len(whole)):
        data.epoch = 1
        iterator = iter(data)
        for _ in range(done):
            next(iterator)
        resumed = make()
        resumed.load_state_dict(data.state_dict())
        rest = iter(resumed)
        assert len(rest) == len(whole) - done
        assert_same_batches(list(rest), whole[done:])


def test_ranks_take_equal_steps(folder):
    shares = [list(data) for data in ranks(folder, 3, growing)]
    assert sizes(shares[0]) == sizes(shares[1]) == sizes(shares[2]) == [1, 2, 3, 1, 1]
    valid = [i for share in shares for *_, info in share for i in info.index[info.valid].tolist()]
    assert sorted(valid) == list(range(COUNT))


def test_no_pipeline_is_built_within_an_epoch(folder, monkeypatch):
    builds, build = [], graph.build_pipeline
    monkeypatch.setattr(graph, "build_pipeline", lambda *a, **o: builds.append(a[1]) or build(*a, **o))
    data = make_loader(folder, growing)
    for _ in range(3):
        list(data)
    assert builds == [3, 4, 5]  # the largest batches of three epochs
    data.epoch = 0
    list(data)
    assert len(builds) == 3


def test_with_a_sampler_of_pytorch(folder):
    sampler = torch.utils.data.SubsetRandomSampler(range(10))
    data = make_loader(folder, growing, sampler=sampler)
    assert len(data) == 6
    assert sizes(data) == [1, 2, 3, 1, 2, 1]


@pytest.mark.parametrize(("batch_size", "message"), [
    (lambda epoch, step: 4 - step, "batch_size of step 4 is 0; expected a whole number, 1 or more"),
    (lambda epoch, step: 2.5, "batch_size of step 0 is 2.5"),
])  # fmt: skip
def test_sizes_that_are_none(folder, batch_size, message):
    with pytest.raises(ValueError, match=message):
        make_loader(folder, batch_size)


def test_a_batch_sampler_decides_alone(folder):
    with pytest.raises(ValueError, match="batch_sampler goes with no batch_size"):
        make_loader(folder, growing, batch_sampler=[[0]])


def test_numpys_numbers(folder):
    assert sizes(make_loader(folder, lambda epoch, step: np.int64(10))) == [10, 10, 3]
