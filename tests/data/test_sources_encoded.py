"""Datasets that say where their encoded images are, and files whose targets are made when they are read."""

import copy
import io
import os
import pickle
import signal
import threading

import numpy as np
import pytest
import torch

from fastfeed.data.sources import EncodedSource, SampleSource
from tests.images import picture, write_folder


class Photos:
    """Samples in files (even indices) and in memory (odd ones)."""

    def __init__(self, root, count=5):
        self.paths = sorted(write_folder(root, {"a": count}).glob("*/*"))
        self.calls = []

    def __len__(self):
        return len(self.paths)

    def get_encoded(self, index):
        self.calls.append((index, threading.get_ident()))
        path = self.paths[index]
        return (path if index % 2 == 0 else path.read_bytes()), {"number": index, "name": f"p{index}"}


class Given:
    """What it is given, as it is."""

    def __init__(self, *samples):
        self.samples = samples

    def __len__(self):
        return len(self.samples)

    def get_encoded(self, index):
        return self.samples[index]


def jpeg(height=8, width=9, format="JPEG"):
    file = io.BytesIO()
    picture(height, width).save(file, format)
    return file.getvalue()


def test_paths_and_bytes_come_in_the_order_of_the_indices(tmp_path, pool):
    photos = Photos(tmp_path / "photos")
    source = EncodedSource([photos])
    order = [3, 0, 1, 4, 0]
    batch = source.read(order, pool)
    assert [data.tobytes() for data in batch.data] == [photos.paths[i].read_bytes() for i in order]
    assert batch.sizes.tolist() == [[48, 64], [48, 64], [80, 60], [80, 60], [48, 64]]
    assert batch.targets["number"].tolist() == order
    assert batch.targets["name"] == [f"p{i}" for i in order]
    assert batch.names == ["Photos[3]", str(photos.paths[0]), "Photos[1]", str(photos.paths[4]), str(photos.paths[0])]
    assert batch.errors == [None] * 5
    assert photos.calls == [(i, threading.get_ident()) for i in order]
    assert len(source) == 5
    assert source.name(2) == "Photos[2]"
    assert source.labels is None


def test_anything_bytes_like_is_read(pool):
    data = jpeg()
    array = np.frombuffer(data, np.uint8)
    both = np.frombuffer(data + bytes(len(data) % 2), np.uint8).reshape(2, -1)
    kinds = [data, bytearray(data), memoryview(data), array, array.view(np.int8), both]
    batch = EncodedSource([Given(*((kind, 1.5) for kind in kinds))]).read(range(len(kinds)), pool)
    assert [found.tobytes() for found in batch.data] == [data] * 5 + [both.tobytes()]
    assert batch.sizes.tolist() == [[8, 9]] * 6
    assert batch.targets.dtype == torch.float64


def test_bad_samples_have_their_errors(tmp_path, pool):
    source = EncodedSource([Given((b"", 0), (b"no image", 1), (str(tmp_path / "nothing.jpg"), 2), (jpeg(), 3))])
    batch = source.read([0, 1, 2, 3], pool)
    assert batch.errors[2] == "No such file or directory"
    assert [error is None for error in batch.errors] == [False, False, False, True]
    assert batch.names == ["Given[0]", "Given[1]", str(tmp_path / "nothing.jpg"), "Given[3]"]


@pytest.mark.parametrize(("sample", "message"), [
    (None, r"get_encoded\(\) of Given\[0\] returned NoneType; expected a pair"),
    ((b"", 1, 2), "returned 3 values; expected a pair"),
    ((3, 1), r"returned int for the image; expected a pair: the path of an image file, or its bytes; and the target"),
    ((np.zeros(4, np.float32), 1), "returned ndarray for the image"),
    ((np.zeros((4, 4), np.uint8)[:, 1:], 1), "returned ndarray for the image"),
])  # fmt: skip
def test_what_is_no_sample(pool, sample, message):
    with pytest.raises(TypeError, match=message):
        EncodedSource([Given(sample)]).read([0], pool)


def test_what_get_encoded_raises_is_raised(pool):
    class Broken(Given):
        def get_encoded(self, index):
            raise ZeroDivisionError(f"sample {index}")

    with pytest.raises(ZeroDivisionError, match="sample 1"):
        EncodedSource([Broken(1, 2)]).read([1], pool)


def test_targets_that_do_not_go_together(pool):
    with pytest.raises(ValueError, match="targets cannot be made into a batch"):
        EncodedSource([Given((jpeg(), 1), (jpeg(), None))]).read([0, 1], pool)


def test_several_datasets_and_subsets(pool):
    first, second = Given((jpeg(8, 9), 10), (jpeg(7, 9), 11)), Given((jpeg(6, 9), 20))
    source = EncodedSource([first, second])
    assert [source.name(i) for i in range(len(source))] == ["Given[0]", "Given[1]", "Given[0]"]
    assert source.read([2, 1], pool).targets.tolist() == [20, 11]
    assert source.subset([2, 0]).subset([1, 0, 1]).read([0, 1, 2], pool).targets.tolist() == [10, 20, 10]
    with pytest.raises(IndexError, match="index 3 is out of range"):
        source.read([3], pool)


@pytest.mark.parametrize("make", [copy.deepcopy, lambda source: pickle.loads(pickle.dumps(source))])
def test_copies(make, pool, tmp_path):
    paths = [str(path) for path in Photos(tmp_path / "p", 2).paths]
    for source in (EncodedSource([Given((jpeg(), 1), (jpeg(), 2))]), SampleSource(paths, [0, 1], [None, str])):
        before = source.read([1], pool).targets
        source._calling._lock.acquire()  # as in another thread, when the copy is made
        assert make(source).read([1], pool).targets == before


def test_a_child_does_not_wait_for_a_lock_of_its_parent(pool):
    source = EncodedSource([Given((jpeg(), 7))])
    with source._calling:
        child = os.fork()
        if child == 0:
            signal.alarm(5)
            with source._calling:
                os._exit(7)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7


def test_calls_come_one_at_a_time(pool):
    inside, most = [], []

    class Slow(Given):
        def get_encoded(self, index):
            inside.append(index)
            most.append(len(inside))
            threading.Event().wait(0.005)
            inside.remove(index)
            return super().get_encoded(index)

    source = EncodedSource([Slow(*[(jpeg(), i) for i in range(4)])])
    subset = source.subset([2, 3])
    threads = [threading.Thread(target=s.read, args=([0, 1], pool)) for s in (source, subset, source)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == [1] * 6


def test_targets_are_made_when_samples_are_read(tmp_path, pool):
    paths = Photos(tmp_path / "photos", 4).paths
    calls = []

    def double(target):
        calls.append(target)
        return 2 * target

    source = SampleSource(paths, [0, 1, 2, 3], [double, None, double, lambda target: -target])
    assert calls == []
    batch = source.read([3, 2, 1, 2], pool)
    assert batch.targets.tolist() == [-3, 4, 1, 4]
    assert batch.names == [str(paths[i]) for i in (3, 2, 1, 2)]
    assert [data.tobytes() for data in batch.data] == [paths[i].read_bytes() for i in (3, 2, 1, 2)]
    assert calls == [2, 2]
    part = source.subset([2, 3])
    assert part.read([1, 0], pool).targets.tolist() == [-3, 4]
    assert (part.name(1), len(part), part.labels) == (str(paths[3]), 2, None)


def test_what_a_target_transform_raises_is_raised(tmp_path, pool):
    paths = Photos(tmp_path / "photos", 1).paths
    with pytest.raises(KeyError, match="3"):
        SampleSource(paths, [3], [{}.__getitem__]).read([0], pool)


@pytest.mark.parametrize(("arguments", "error", "message"), [
    ((["a"], [0, 1], [None]), ValueError, "there are 1 paths, 2 targets and 1 transforms"),
    (([], [], []), ValueError, "paths is empty"),
    (([3], [0], [None]), TypeError, r"paths\[0\] is of type int"),
])  # fmt: skip
def test_arguments_of_sample_source(arguments, error, message):
    with pytest.raises(error, match=message):
        SampleSource(*arguments)
