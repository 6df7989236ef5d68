"""ListSource: paths with targets of every form."""

import os
import pickle
from collections import namedtuple

import numpy as np
import pytest
import torch
from torch.utils.data import default_collate

from fastfeed.data.sources import ListSource
from tests.images import write_folder

Pair = namedtuple("Pair", "a b")


@pytest.fixture(scope="module")
def paths(tmp_path_factory):
    root = write_folder(tmp_path_factory.mktemp("list"), {"a": 4})
    return [root / "a" / f"{i:03}.jpg" for i in range(4)]


def equal(got, expected):
    assert type(got) is type(expected)
    if isinstance(expected, torch.Tensor):
        assert got.dtype == expected.dtype
        assert torch.equal(got, expected)
    elif isinstance(expected, dict):
        assert list(got) == list(expected)
        for key in expected:
            equal(got[key], expected[key])
    elif isinstance(expected, list | tuple) and not all(isinstance(x, str) for x in expected):
        assert len(got) == len(expected)
        for x, y in zip(got, expected, strict=True):
            equal(x, y)
    else:
        assert got == expected


def test_paths_in_their_order(paths, pool):
    source = ListSource([str(paths[2]), paths[0], paths[2]], [5, 0, 1])
    batch = source.read(np.array([2, 0, 1]), pool)
    assert batch.names == [str(paths[2]), str(paths[2]), str(paths[0])] == [source.name(i) for i in (2, 0, 1)]
    assert [data.tobytes() for data in batch.data] == [open(name, "rb").read() for name in batch.names]  # noqa: SIM115
    assert batch.targets.tolist() == [1, 5, 0]
    assert source.labels.tolist() == [5, 0, 1]
    assert source.classes is None
    assert len(source) == 3


def test_root_and_bytes(paths, pool):
    source = ListSource(["000.jpg", os.fsencode("001.jpg").decode()], [0, 1], root=paths[0].parent, classes=["x", "y"])
    assert source.paths == [str(path) for path in paths[:2]]
    assert source.classes == ["x", "y"]
    assert source.read([0, 1], pool).errors == [None, None]
    absent = ListSource(["000.jpg", "absent.jpg"], [0, 1], root=paths[0].parent)
    assert absent.read([0, 1], pool).errors == [None, "No such file or directory"]


def test_the_home_folder_is_a_root(paths, pool, monkeypatch):
    monkeypatch.setenv("HOME", str(paths[0].parents[1]))
    assert ListSource(["000.jpg", "~x"], [0, 1], root="~/a").paths == [str(paths[0]), str(paths[0].parent / "~x")]


LABELS = [3, 0, 2, 1]


@pytest.mark.parametrize("targets", [
    LABELS, tuple(LABELS), range(4), np.array(LABELS), np.array(LABELS, np.uint8), np.array(LABELS, ">i4"),
    torch.tensor(LABELS), torch.tensor(LABELS, dtype=torch.int32), [np.int64(i) for i in LABELS],
    torch.tensor(LABELS, dtype=torch.uint64),
])  # fmt: skip
def test_class_indices(paths, pool, targets):
    source = ListSource(paths, targets)
    expected = np.array([int(i) for i in targets])
    assert source.labels.dtype == np.int64
    assert source.labels.tolist() == expected.tolist()
    equal(source.read([3, 1], pool).targets, torch.from_numpy(expected[[3, 1]]))


MULTI = np.eye(4, 3, dtype=np.float32)


@pytest.mark.parametrize(("targets", "dtype"), [
    (MULTI, torch.float32), (torch.from_numpy(MULTI).double(), torch.float64), (MULTI.astype(bool), torch.bool),
    (MULTI.astype(np.int8), torch.int8), (MULTI[:, 0], torch.float32), (MULTI.astype(">f8")[::-1], torch.float64),
    (torch.from_numpy(MULTI).requires_grad_(), torch.float32),
])  # fmt: skip
def test_rows_of_an_array(paths, pool, targets, dtype):
    source = ListSource(paths, targets)
    expected = np.array(targets.detach().numpy() if isinstance(targets, torch.Tensor) else targets, float)[[2, 0, 2]]
    got = source.read([2, 0, 2], pool).targets
    equal(got, torch.from_numpy(expected.copy()).to(dtype))
    assert not got.requires_grad
    assert source.labels is None


@pytest.mark.parametrize("kind", [dict, tuple, Pair])
def test_columns(paths, pool, kind):
    a, b = np.arange(8.0).reshape(4, 2), torch.tensor([7, 5, 3, 1])
    targets = {"a": a, "b": {"c": b}} if kind is dict else (a, {"c": b}) if kind is tuple else Pair(a, {"c": b})
    got = ListSource(paths, targets).read([1, 3], pool).targets
    first, second = torch.tensor([[2.0, 3.0], [6.0, 7.0]], dtype=torch.float64), {"c": torch.tensor([5, 1])}
    equal(got, {"a": first, "b": second} if kind is dict else kind([first, second]) if kind is tuple else
          Pair(first, second))  # fmt: skip


@pytest.mark.parametrize("targets", [
    [0.5, 1.5, 2.5, 3.5],
    [True, False, True, True],
    list("abcd"),
    [{"label": i, "text": str(i), "box": (i, i + 0.5)} for i in range(4)],
    [Pair(i, np.full(3, i)) for i in range(4)],
    [np.full((2, 2), i) for i in range(4)],
    ({"a": 1}, {"a": 2}, {"a": 3}, {"a": 4}),
    [torch.tensor(i) for i in range(4)],
])  # fmt: skip
def test_what_is_collated(paths, pool, targets):
    source = ListSource(paths, targets)
    assert source.labels is None
    for indices in ([2, 0, 2], [1]):
        # In pairs, as PyTorch's loader has them with their images.
        equal(source.read(indices, pool).targets, default_collate([(0, targets[i]) for i in indices])[1])


@pytest.mark.parametrize("one", [1, np.int8(1), np.float32(1), 1.0])
def test_the_dtype_does_not_depend_on_who_shares_a_batch(paths, pool, one):
    source = ListSource(paths, [{"s": np.float32(0.5)}, {"s": one}, {"s": 2, "more": 1}, {"s": 2.5}])
    values = torch.tensor([0.5, 1, 2, 2.5], dtype=torch.float64)
    for indices in ([1, 2], [0, 3], [2]):
        equal(source.read(indices, pool).targets, {"s": values[indices]})
    equal(ListSource(paths, [np.float32(0.5), one, 2, 2.5]).read([1, 2], pool).targets, values[1:3])


def test_without_targets(paths, pool):
    source = ListSource(paths, classes=["x", "y"])
    assert (source.labels.dtype, source.labels.tolist(), source.classes) == (np.int64, [-100] * 4, ["x", "y"])
    equal(source.subset([3, 1]).read([1, 0, 1], pool).targets, torch.tensor([-100] * 3))
    equal(ListSource(paths, None).read([], pool).targets, torch.zeros(0, dtype=torch.int64))


def test_targets_are_copies(paths, pool):
    for targets in (np.arange(4), torch.arange(4)):
        source = ListSource(paths, targets)
        targets[:] = 9
        assert source.read([0, 1], pool).targets.tolist() == [0, 1]


@pytest.mark.parametrize("targets", [LABELS, MULTI, {"a": MULTI}, list("abcd")])
def test_subsets_and_copies(paths, pool, targets):
    source = ListSource(paths, targets)
    for part in (source.subset([3, 1, 3]), pickle.loads(pickle.dumps(source.subset([3, 1, 3])))):
        assert part.paths == [str(paths[i]) for i in (3, 1, 3)]
        equal(part.read([1, 2], pool).targets, source.read([1, 3], pool).targets)
        assert (part.labels is None) == (source.labels is None)
        if source.labels is not None:
            assert part.labels.tolist() == [1, 0, 1]


P = ["a.jpg", "b.jpg"]


@pytest.mark.parametrize(("paths", "targets", "options", "error", "message"), [
    ([], [], {}, ValueError, "paths is empty"),
    ("a.jpg", [0], {}, TypeError, "paths is 'a.jpg'; expected a list of paths"),
    (3, [0], {}, TypeError, "paths is 3"),
    (["a.jpg", 3], [0, 1], {}, TypeError, r"paths\[1\] is of type int"),
    (["a.jpg", ""], [0, 1], {}, ValueError, r"paths\[1\] is ''; expected the path of a file"),
    (["a\0.jpg"], [0], {}, ValueError, r"paths\[0\] is 'a\\x00.jpg'"),
    (P, [0], {}, ValueError, "targets has 1 entries, but there are 2 paths"),
    (P, 3, {}, TypeError, "targets is of type int"),
    (P, "01", {}, TypeError, "targets is of type str"),
    (P, [0, "1"], {}, TypeError, r"targets\[1\] is of type str, but targets\[0\] of type int"),
    (P, [0, True], {}, TypeError, r"targets\[1\] is of type bool, but targets\[0\] of type int"),
    (P, [0, 1.5], {}, TypeError, r"targets\[1\] is of type float, but targets\[0\] of type int; expected one type"),
    (P, [{"s": 1}, {"s": 2.5}], {}, TypeError,
     r"targets\[1\]\['s'\] is of type float, but targets\[0\]\['s'\] of type int; expected one type"),
    (P, [{"s": 1}, {"s": True}], {}, TypeError, r"targets\[1\]\['s'\] is of type bool, but .* of type int"),
    (P, [{"s": True}, {"s": 0}], {}, TypeError, r"targets\[1\]\['s'\] is of type int, but .* of type bool"),
    (P, [{"s": 1}, {"t": 1}], {}, TypeError, r"targets\[1\] is of type dict without 's', but .* dict with 's'"),
    (P, [[1, 2], [1]], {}, TypeError, r"targets\[1\] is of type list of length 1, but .* of length 2"),
    (P, [np.zeros(2), np.zeros(2, np.float32)], {}, TypeError, r"\[1\] is of type float32 array, but .* float64 array"),
    (P, [torch.ones(2), torch.ones(2).half()], {}, TypeError, r"is of type float16 tensor, but .* float32 tensor"),
    (P, [0, 2**63], {}, ValueError, "integers that do not fit 63 bits"),
    (P, np.array([0, 2**63], np.uint64), {}, ValueError, "integers that do not fit 63 bits"),
    (P, [object(), object()], {}, ValueError, "targets cannot be made into a batch: .*object"),
    (P, [None, None], {}, ValueError, "targets cannot be made into a batch: .*NoneType"),
    (P, np.zeros(3), {}, ValueError, r"targets has shape \[3\], but there are 2 paths; expected \[2, ...\]"),
    (P, np.array(["a", "b"]), {}, TypeError, "targets is an array of <U1; expected numbers"),
    (P, torch.tensor(1), {}, ValueError, r"targets has shape \[\]"),
    (P, torch.eye(2).to_sparse(), {}, TypeError, "targets is a tensor of layout torch.sparse_coo"),
    (P, {"a": np.zeros(2), "b": [1, 2]}, {}, TypeError, r"targets\['b'\]\[0\] is of type int; expected an array"),
    (P, {"a": np.zeros(3)}, {}, ValueError, r"targets\['a'\] has shape \[3\]"),
    (P, [0, 2], {"classes": ["x", "y"]}, ValueError, "a target is 2, but there are 2 classes"),
    (P, [0, -1], {"classes": ["x", "y"]}, ValueError, "a target is -1, but there are 2 classes"),
    (P, [0, 1], {"classes": "xy"}, TypeError, "classes is 'xy'; expected a list of names"),
    (P, [0.0, 1.0], {"classes": ["x", "y"]}, TypeError, "classes names class indices"),
])  # fmt: skip
def test_lists_that_are_none(paths, targets, options, error, message):
    with pytest.raises(error, match=message):
        ListSource(paths, targets, **options)


def test_targets_of_different_shapes(paths, pool):
    source = ListSource(paths, [np.zeros(i) for i in range(4)])
    assert source.read([1], pool).targets.shape == (1, 1)
    with pytest.raises(ValueError, match=r"targets cannot be made into a batch: .*size"):
        source.read([1, 2], pool)
