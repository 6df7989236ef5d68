"""Images that cannot be decoded: tried once, and then bad before they are tried, with nothing else changed by that."""

import copy
import itertools
import pickle
import shutil
import subprocess
import sys
import threading
import zlib

import pytest
import torch

from fastfeed import transforms
from fastfeed.data import graph
from fastfeed.data.errors import SampleError
from fastfeed.data.samplers import RepeatedAugmentation
from fastfeed.data.sources import ListSource
from tests.images import picture
from tests.loaders import assert_same_batches, everything, make_loader

pytestmark = pytest.mark.dali

COUNT = 12
UNREADABLE, EMPTY = (1, 6, 7, 8, 9, 10), 3  # of batches of three the third is all bad, and the last but for one
MODES = ["replace", "drop"]


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    folder = tmp_path_factory.mktemp("good")
    for i in range(COUNT):
        picture(40 + i, 60 - i, seed=i).save(folder / f"{i}.jpg")
    return folder


@pytest.fixture
def folder(good, tmp_path):
    shutil.copytree(good, tmp_path / "data")
    for i in UNREADABLE:
        spoil(tmp_path / "data" / f"{i}.jpg")
    (tmp_path / "data" / f"{EMPTY}.jpg").write_bytes(b"")
    return tmp_path / "data"


def spoil(path):
    path.write_bytes(path.read_bytes().replace(b"\xff\xdb", b"\xff\xfe"))  # without tables of quantization


def loader(folder, batch_size=3, **options):
    return make_loader(ListSource([folder / f"{i}.jpg" for i in range(COUNT)], range(COUNT)), batch_size, **options)


@pytest.fixture
def builds(monkeypatch):
    """Return a list that gets longer by one with every pipeline that is built."""
    made, build = [], graph.build_pipeline

    def counted(*arguments, **options):
        made.append(None)
        return build(*arguments, **options)

    monkeypatch.setattr(graph, "build_pipeline", counted)
    return made


CROPS = {
    "resized": everything(),
    "padded": transforms.Transform(transforms.RandomCrop(30, padding=6, fill=(1, 200, 80))),
    "centre": transforms.eval(24),
    "resized and cropped": transforms.Transform(transforms.RandomCrop(24, resize=(30, 40))),
    "cut out": transforms.Transform(transforms.CenterCrop(45)),
}


@pytest.mark.parametrize("crop", CROPS)
@pytest.mark.parametrize("mode", MODES)
def test_batches_are_those_of_a_loader_that_does_not_know(folder, builds, mode, crop):
    options = {"shuffle": crop == "resized", "on_error": mode, "transform": CROPS[crop]}
    data = loader(folder, **options)
    for epoch in range(3):
        fresh = loader(folder, **options)
        fresh.set_epoch(epoch)
        expected = list(fresh)
        before = len(builds)
        got = list(data)
        assert (len(builds) > before) == (epoch == 0)
        assert_same_batches(got, expected)
        assert sorted(sample.index for sample in data.errors) == sorted([*UNREADABLE, EMPTY])
        known = {sample.index: sample.reason for sample in data.errors}
        assert known == {sample.index: sample.reason for sample in fresh.errors}


def test_errors_and_their_order_are_the_same(folder, builds):
    def failed(data):
        samples = []
        for _ in range(2):
            with pytest.raises(SampleError) as raised:
                list(data)
            samples.append((str(raised.value), [bad.index for bad in raised.value.samples]))
        assert samples[0] == samples[1]
        return samples[0]

    message, indices = failed(loader(folder, 12))
    assert indices == [EMPTY, *UNREADABLE]
    assert f"{EMPTY}.jpg: an empty file (and 6 more in this batch)" in message
    assert len(builds) > 0
    message, indices = failed(loader(folder, 12, on_error="drop", max_errors=6))
    assert "7 of the epoch's 12 samples are bad, and max_errors=6 allows 6: the last is" in message
    assert f"{UNREADABLE[-1]}.jpg: the file is truncated or corrupt" in message
    order = [9]
    data = loader(folder, 12, on_error="drop", max_errors=1, sampler=order)
    list(data)
    order[:] = [7, 8, 9]  # of which the last is known when the others are not
    message, indices = failed(data)
    assert indices == order
    assert "9.jpg: the file is truncated or corrupt" in message


def test_a_mended_file_is_tried_again(good, folder, builds):
    data = loader(folder, on_error="replace")
    list(data)
    shutil.copy(good / "7.jpg", folder / "7.jpg")
    before = len(builds)
    batch = list(data)[2]
    assert len(builds) == before
    assert batch[2].valid.tolist() == [False, True, False]
    fresh = loader(good)
    fresh.set_epoch(1)
    assert torch.equal(batch[0][1], list(fresh)[2][0][1])
    spoil(folder / "7.jpg")  # and if it is as it was, it is known
    before = len(builds)
    assert list(data)[2][2].valid.tolist() == [False] * 3
    assert len(builds) == before


def test_a_file_that_is_spoilt_otherwise_is_tried_again(folder, builds):
    data = loader(folder, on_error="replace")
    list(data)
    (folder / "1.jpg").write_bytes((folder / "6.jpg").read_bytes())
    before = len(builds)
    assert next(iter(data))[2].valid.tolist() == [True, False, True]
    assert len(builds) > before
    (folder / "1.jpg").unlink()
    before = len(builds)
    assert next(iter(data))[2].valid.tolist() == [True, False, True]
    assert len(builds) == before


def test_what_is_bad_without_being_tried_has_its_own_reason(folder):
    crop = transforms.Transform(transforms.RandomCrop(30))
    data = loader(folder, sampler=[1], transform=crop, size=lambda epoch, step: 30 + 20 * epoch)
    for reason in ("the file is truncated or corrupt", "its 41 x 59 pixels are too few for RandomCrop's 50 x 50"):
        with pytest.raises(SampleError, match=f"1.jpg: {reason}"):
            list(data)


def test_what_fails_in_some_windows_only_is_tried_in_every_epoch(folder, monkeypatch):
    # No file is known of which DALI's own decoders decode the corner alone, so this one is good, and they are said to.
    checksum, can_decode = zlib.crc32((folder / "0.jpg").read_bytes()), graph.Graph._can_decode

    def can_decode_corner(self, pipeline, entry):
        if zlib.crc32(entry.data[0]) == checksum:
            return entry.plan.shape[0].tolist() == [1, 1]
        return can_decode(self, pipeline, entry)

    monkeypatch.setattr(graph.Graph, "_can_decode", can_decode_corner)
    data = loader(folder, on_error="replace", transform=transforms.eval(24))
    assert next(iter(data))[2].valid.tolist() == [False, False, True]
    # Its neighbour, for which it was looked at, is known: the batch is decoded as it is.
    assert next(iter(data))[2].valid.tolist() == [True, False, True]


def test_repeated_samples_are_tried_once(folder, builds):
    data = loader(folder, 1, on_error="drop", sampler=RepeatedAugmentation(3, num_samples=30), prefetch_factor=1)
    once = loader(folder, 1, on_error="drop", sampler=RepeatedAugmentation(1, num_samples=10), prefetch_factor=1)
    list(once)
    before = len(builds)
    list(data)
    # What is under way while one fails is tried too: the one that is read ahead, and the one that is decoded ahead.
    assert len(builds) - before <= 2 * before
    before = len(builds)
    data.set_epoch(0)
    list(data)
    assert len(builds) == before


@pytest.mark.parametrize("how", [copy.copy, copy.deepcopy, lambda data: pickle.loads(pickle.dumps(data))])
def test_copies_know_too(folder, builds, how):
    data = loader(folder, on_error="replace")
    expected = list(data)
    other = how(data)
    before = len(builds)
    other.set_epoch(0)
    assert_same_batches(list(other), expected)
    assert len(builds) <= before + 1  # its own graph
    assert other.errors == data.errors


def test_two_iterators_in_two_threads(folder, builds):
    data, got = loader(folder, on_error="replace", shuffle=True, transform=everything()), {}
    expected = [list(loader_at(folder, epoch)) for epoch in range(3)]
    iterators = [iter(data), iter(data)]
    workers = [threading.Thread(target=lambda i=i: got.update({i: list(iterators[i])})) for i in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    for i in range(2):
        assert_same_batches(got[i], expected[i])
    before = len(builds)
    assert_same_batches(list(data), expected[2])
    assert len(builds) == before


def loader_at(folder, epoch):
    data = loader(folder, on_error="replace", shuffle=True, transform=everything())
    data.set_epoch(epoch)
    return data


def test_what_is_kept_is_as_much_as_there_are_bad_samples(folder):
    data = loader(folder, on_error="replace", shuffle=True)
    for _ in range(3):
        list(data)
        assert sorted(data._engine._preparer._unreadable) == list(UNREADABLE)


# ------------------------------------------------------------------------------------- how many an epoch may have


@pytest.mark.parametrize("mode", MODES)
def test_the_count_of_an_epoch_goes_on_after_a_resume(folder, mode):
    def make():
        return loader(folder, 2, on_error=mode, max_errors=5)

    for steps in range(4):
        left = make()
        assert len(list(itertools.islice(left, steps))) == steps
        state = left.state_dict()
        assert state["bad"] == [0, 1, 2, 2][steps]  # after 0 and 1, 2 and 3, 4 and 5
        resumed = make()
        resumed.load_state_dict(state)
        assert resumed.state_dict() == state
        for _ in range(2):
            with pytest.raises(SampleError, match="6 of the epoch's 12 samples are bad, and max_errors=5 allows 5"):
                list(resumed)
            resumed.load_state_dict(resumed.state_dict())


def test_iterators_in_different_epochs_count_for_themselves(folder):
    data = loader(folder, 2, on_error="drop", max_errors=6)
    first, second = iter(data), iter(data)
    for iterator in (first, second):
        next(iterator)
    for iterator in (first, second):
        with pytest.raises(SampleError, match="7 of the epoch's 12 samples are bad"):
            list(iterator)


def test_positions_count_and_not_samples(folder):
    data = loader(folder, 4, on_error="drop", sampler=[1, 1, 0, 1, 2, 1], max_errors=3)
    iterator = iter(data)
    next(iterator)
    assert data.state_dict()["bad"] == 3
    with pytest.raises(SampleError, match="4 of the epoch's 6 samples are bad"):
        next(iterator)
    assert len(data.errors) == 1
    assert len(list(loader(folder, 4, on_error="drop", sampler=[1, 1, 0, 1, 2, 1], max_errors=4))) == 2


def test_a_new_epoch_begins_with_none(folder):
    data = loader(folder, 4, on_error="replace", max_errors=7)
    for _ in range(3):
        assert data.state_dict()["bad"] == 0
        assert [data.state_dict()["bad"] for _ in data] == [2, 4, 7]


def test_max_errors_is_for_those_that_go_on(folder):
    with pytest.raises(ValueError, match="max_errors is 3, and on_error='raise' allows no bad sample: take"):
        loader(folder, max_errors=3)


def test_a_forked_child_meets_bad_files_after_its_parent_used_all_threads(folder):
    """PyTorch's threads do not outlive a fork: a child that asked for them would wait for ever."""
    script = f"""
import os, torch, fastfeed
from fastfeed.data.sources import ListSource
torch.set_num_threads(2)
torch.rand(1000, 1000).exp()
paths = [{str(folder)!r} + f"/{{i}}.jpg" for i in range({COUNT})]
child = os.fork()
transform = fastfeed.transforms.train(224)
data = fastfeed.DataLoader(ListSource(paths, range({COUNT})), 12, transform=transform, device="cpu", on_error="drop")
count = sum(len(images) for images, _ in data)
if child == 0:
    os._exit(count)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), count)
"""
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    left = COUNT - len(UNREADABLE) - 1
    assert (result.returncode, result.stdout.strip()) == (0, f"{left} {left}"), result.stderr


def test_no_more_batches_are_in_flight_than_an_epoch_has(folder):
    data = loader(folder, 6, prefetch_factor=500, on_error="replace")
    assert data._engine._idle_graph.depth == 2
    assert sum(len(images) for images, *_ in data) == COUNT
