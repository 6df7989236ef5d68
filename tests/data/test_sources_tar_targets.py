"""TarSource's targets: their structure is that of the first sample, and what has another one is a bad sample."""

import io
import json
import pickle
import tarfile

import numpy as np
import pytest
import torch

from fastfeed import DataLoader, transforms
from fastfeed.data.sources import TarSource
from tests.images import picture

MODES = ["replace", "drop"]


def make(folder, targets, **options):
    """Return a source of JSON targets: bytes stand as they are, and None for no member at all."""
    image = io.BytesIO()
    picture(20, 20).save(image, "JPEG")
    with tarfile.open(folder / "a.tar", "w") as tar:
        for i, target in enumerate(targets):
            text = target if isinstance(target, bytes | None) else json.dumps(target).encode()
            for name, data in ((f"{i:03}.jpg", image.getvalue()), (f"{i:03}.json", text)):
                if data is not None:
                    info = tarfile.TarInfo(name)
                    info.size = len(data)
                    tar.addfile(info, io.BytesIO(data))
    return TarSource(folder / "a.tar", cache_dir=folder, **{"target": "json", **options})


@pytest.mark.parametrize(("first", "other", "problem"), [
    ([1, 2], [1], "it is a list of length 1, and there a list of length 2"),
    ([1, 2], [1, 2, 3], "it is a list of length 3, and there a list of length 2"),
    ([[1, 2], [3, 4]], [[1, 2], [3]], "[1] is a list of length 1, and there a list of length 2"),
    ({"a": []}, {"a": [1]}, "['a'] is a list of length 1, and there a list of length 0"),
    ({"a": 1, "b": 2}, {"a": 1}, "it is a dict without 'b', and there a dict with 'b'"),
    ({"a": [1]}, {"a": 1}, "['a'] is an int, and there a list"),
    (1, "x", "it is a str, and there an int"),
    ("x", 1, "it is an int, and there a str"),
    ({"a": "x"}, {"a": 1.5}, "['a'] is a float, and there a str"),
    ({"score": 1}, {"score": 1.5}, "['score'] is a float, and there an int: write 1.0 for 1 there, or"),
    ({"a": 1}, {"a": True}, "['a'] is a bool, and there an int"),
    ({"a": True}, {"a": 1}, "['a'] is an int, and there a bool"),
    ({"a": 1.5}, {"a": True}, "['a'] is a bool, and there a float"),
    (1.5, 10**400, "it is an int too large for a float, and there a float"),
], ids=str)  # fmt: skip
def test_a_target_that_is_not_like_the_first(tmp_path, pool, first, other, problem):
    source = make(tmp_path, [first, other, first, other])
    expected = torch.utils.data.default_collate([(first,)] * 2)[0]
    for indices, bad in (([2, 1], [1]), ([3, 0], [0]), ([0, 2], []), ([1, 3], [0, 1])):  # whoever else is there
        batch = source.read(indices, pool)
        assert [i for i, error in enumerate(batch.errors) if error is not None] == bad
        for i in bad:
            assert batch.errors[i].startswith(f"its target is not like that of {source.name(0)}: {problem}")
            assert batch.errors[i].endswith("give `target` a function")
        assert equal(batch.targets, expected)


def equal(a, b):
    assert type(a) is type(b)
    if isinstance(a, torch.Tensor):
        return a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(equal(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(equal, a, b))
    return a == b


def test_keys_are_those_of_the_first(tmp_path, pool):
    source = make(tmp_path, [{"a": 1}, {"a": 2, "b": 3}])
    for indices in ([0, 1], [1, 0], [1], [1, 1]):
        batch = source.read(indices, pool)
        assert batch.errors == [None] * len(indices)
        assert list(batch.targets) == ["a"]
        assert batch.targets["a"].tolist() == [i + 1 for i in indices]


def test_an_int_where_the_first_has_a_float_becomes_one(tmp_path, pool):
    source = make(tmp_path, [{"a": 0.5}, {"a": 1}, {"a": 2}])
    for indices in ([1, 2], [2], [0, 1]):
        batch = source.read(indices, pool)
        assert batch.errors == [None] * len(indices)
        assert equal(batch.targets, {"a": torch.tensor([[0.5, 1, 2][i] for i in indices], dtype=torch.float64)})


def test_what_a_function_returns_has_one_type(tmp_path, pool):
    types = {"0": int, "1": np.float32, "2": np.int16, "3": float}
    for first, bad in (("0", [False, True, False, True]), ("1", [False] * 4)):
        source = make(
            tmp_path, [{"n": n} for n in (first, "1", "2", "3")], target=lambda m: types[json.loads(m["json"])["n"]](7)
        )
        batch = source.read([0, 1, 2, 3], pool)
        assert [error is not None for error in batch.errors] == bad
        assert equal(batch.targets, torch.tensor([7] * 4, dtype=torch.int64 if first == "0" else torch.float64))
        assert all(error is None or error.endswith("it is a float, and there an int") for error in batch.errors)


def test_the_first_is_the_first_that_can_be_read(tmp_path, pool):
    source = make(tmp_path, [b"{", None, {"a": None}, {"a": [1.5, 2]}, {"a": [3]}])
    for same in (source, pickle.loads(pickle.dumps(source)), source.subset([0, 1, 2, 3, 4])):
        batch = same.read([4, 2, 0, 3, 1], pool)
        assert [error is None for error in batch.errors] == [False, False, False, True, False]
        assert batch.errors[0].startswith(f"its target is not like that of {source.name(3)}")
        assert "NoneType" in batch.errors[1]
        assert "cannot be read" in batch.errors[2]
        assert batch.errors[4] == "no .json member beside it"
        assert [column.tolist() for column in batch.targets["a"]] == [[1.5] * 5, [2] * 5]
    # A subset without it has the same structure.
    assert source.subset([4]).read([0], pool).errors[0].startswith(f"its target is not like that of {source.name(3)}")


@pytest.mark.parametrize("target", [{"a": [1, 2]}, 0.5, "text", [[1, 2], [3.5, 4]]], ids=str)
def test_a_batch_of_bad_targets_has_the_kind_and_shape_of_others(tmp_path, pool, target):
    source = make(tmp_path, [target, b"{", b"{", None])
    expected = source.read([0, 0, 0], pool).targets
    batch = source.read([1, 2, 3], pool)
    assert None not in batch.errors
    assert equal(batch.targets, expected)


def test_no_target_that_can_be_read(tmp_path, pool):
    batch = make(tmp_path, [b"{", {"a": None}]).read([1, 0], pool)
    assert "NoneType" in batch.errors[0]
    assert "cannot be read" in batch.errors[1]
    assert batch.targets.tolist() == [-100, -100]


def test_the_search_for_the_first_has_an_end(tmp_path, pool):
    calls = []

    def target(members):
        calls.append(members["json"])
        return json.loads(members["json"])

    source = make(tmp_path, [b"{"] * 150 + [[1], [1, 2], [3]], target=target)
    for _ in range(2):
        batch = source.read([152, 3, 151, 150], pool)
        # The first of the batch, where there is none in the first hundred samples.
        assert [error is None for error in batch.errors] == [True, False, False, True]
        assert [column.tolist() for column in batch.targets] == [[3, 3, 3, 1]]
    assert len(calls) == 100 + 2 * 4


def test_the_first_is_looked_for_once(tmp_path, pool):
    calls = []

    def target(members):
        calls.append(members["json"])
        return json.loads(members["json"])

    source = make(tmp_path, [1, 2, 3], target=target)
    for _ in range(3):
        assert source.read([2, 1], pool).targets.tolist() == [3, 2]
    assert sorted(calls) == [b"1"] + [b"2"] * 3 + [b"3"] * 3


@pytest.mark.dali
@pytest.mark.parametrize("mode", MODES)
def test_ragged_targets_do_not_end_an_epoch(tmp_path, mode):
    ragged = {2, 5, 6, 7}  # of batches of two: one of the second and of the third, and all of the last
    source = make(tmp_path, [{"box": [i] * (3 if i in ragged else 2)} for i in range(8)])
    data = DataLoader(source, 2, transform=transforms.train(16), device="cpu", on_error=mode, info=True)
    batches = list(data)
    assert {sample.index for sample in data.errors} == ragged
    for images, target, info in batches:
        assert len(images) == len(info.index) == len(info.valid)
        assert [column.dtype for column in target["box"]] == [torch.int64] * 2
        assert all(len(column) == len(images) for column in target["box"])
        good = info.valid.numpy()
        assert np.array_equal(target["box"][0].numpy()[good], info.index.numpy()[good])
    assert [info.valid.tolist() for *_, info in batches] == (
        [[True, True], [False, True], [True, False], [False, False]]
        if mode == "replace"
        else [[True] * 2, [True], [True]]
    )
