"""TarSource: how shards are named, where their indices are kept, and shards behind URLs."""

import os
import pickle
import re
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest

from fastfeed.data.sources import TarSource, tar_index
from fastfeed.data.sources.shards import expand_braces
from tests.tars import jpeg, masks, samples, target_tar, whole_tar, write_tar

pytestmark = pytest.mark.usefixtures("cache_folder")


# ------------------------------------------------------------------------------------- names of shards


@pytest.mark.parametrize(("pattern", "names"), [
    ("a.tar", ["a.tar"]),
    ("{0..2}", ["0", "1", "2"]),
    ("t-{008..011}.tar", ["t-008.tar", "t-009.tar", "t-010.tar", "t-011.tar"]),
    ("{9..11}", ["9", "10", "11"]),
    ("{2..0}", ["2", "1", "0"]),
    ("{train,val}-{0..1}", ["train-0", "train-1", "val-0", "val-1"]),
    ("{a,b{1..2}}", ["a", "b1", "a", "b2"]),
    ("{abc}-{1,2}", ["{abc}-1", "{abc}-2"]),
    ("{,x}", ["", "x"]),
    ("{0..", ["{0.."]),
])  # fmt: skip
def test_braces(pattern, names):
    assert expand_braces(pattern) == names


@pytest.mark.parametrize("pattern", ["{0..99999999999}", "{0..999}{0..999}{0..9}"])
def test_too_many_braces(pattern):
    with pytest.raises(ValueError, match="stands for more than 1000000 shards"):
        expand_braces(pattern)


def test_folders_patterns_and_lists(tmp_path, monkeypatch):
    for i in range(3):
        write_tar(tmp_path / f"s-{i}.tar", samples(1 + i))
    write_tar(tmp_path / "a{1,2}.tar", samples(5))
    (tmp_path / "notes.txt").write_text("")
    assert len(TarSource(tmp_path / "s-{0..2}.tar")) == 6
    assert len(TarSource([tmp_path / "s-0.tar", str(tmp_path / "s-{1..2}.tar")])) == 6
    assert [os.path.basename(shard) for shard in TarSource(tmp_path).shards] == [
        "a{1,2}.tar", "s-0.tar", "s-1.tar", "s-2.tar",
    ]  # fmt: skip
    assert len(TarSource(tmp_path / "a{1,2}.tar")) == 5
    assert len(TarSource(f"file://{tmp_path}/s-2.tar")) == 3
    monkeypatch.chdir(tmp_path)
    assert len(TarSource("s-1.tar")) == 2


def test_patterns_of_paths(tmp_path):
    for name in ("s-10", "s-2", ".s-3", "t-0", "t[0]"):
        write_tar(tmp_path / f"{name}.tar", samples(1))
    (tmp_path / "s-4.txt").write_text("")
    (tmp_path / "s.tar.d").mkdir()

    def found(shards):
        return [os.path.relpath(shard, tmp_path) for shard in TarSource(shards).shards]

    for _ in range(2):  # indices lie beside the shards the second time
        assert found(tmp_path / "s*") == found(str(tmp_path / "s-*.tar")) == ["s-10.tar", "s-2.tar"]
    assert found(tmp_path / "{t,s}-?.tar") == ["t-0.tar", "s-2.tar"]
    assert found([tmp_path / "t-*.tar", tmp_path / "s-2.tar"]) == ["t-0.tar", "s-2.tar"]
    assert found(tmp_path / "t[0].tar") == ["t[0].tar"]  # a file of that name, and not t0.tar
    assert found(tmp_path / "s-[12]*.tar") == ["s-10.tar", "s-2.tar"]
    for name in ("run[1]", "run1"):
        (tmp_path / name).mkdir()
        shutil.copy(tmp_path / "s-2.tar", tmp_path / name / f"{name}-2.tar")
    assert found(tmp_path / "run[1]" / "*.tar") == found(tmp_path / "run[1]") == ["run[1]/run[1]-2.tar"]
    assert found(tmp_path / "run[[]1]" / "*.tar") == ["run[1]/run[1]-2.tar"]  # a pattern, for no folder has that name
    with pytest.raises(FileNotFoundError, match="No such file or directory"):
        found(tmp_path / "run[1]" / "absent.tar")
    for pattern in ("x*.tar", "s-*.txt", "absent/*.tar"):
        with pytest.raises(FileNotFoundError, match=re.escape(f"no .tar files match {tmp_path / pattern}")):
            TarSource(tmp_path / pattern)


def test_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    for i in range(2):
        write_tar(tmp_path / f"s-{i}.tar", samples(1 + i))
    for shards in ("~/s-{0..1}.tar", ["~/s-0.tar", Path("~/s-1.tar")], "~"):
        assert TarSource(shards, cache_dir="~/cache").shards == [str(tmp_path / f"s-{i}.tar") for i in range(2)]
    assert len(os.listdir(tmp_path / "cache")) == 2


# ------------------------------------------------------------------------------------- the index


def walks(monkeypatch):
    """Return a list that grows by a path for each shard whose headers are read."""
    walked, walk = [], tar_index.walk
    monkeypatch.setattr(tar_index, "walk", lambda file: walked.append(file.path) or walk(file))
    return walked


def test_the_index_is_made_once(tmp_path, pool, monkeypatch):
    walked = walks(monkeypatch)
    path = target_tar(tmp_path)
    sources = [TarSource(path, target=target) for target in ("json", "txt", masks, "json")]
    assert walked == [str(path)]
    assert sorted(os.listdir(tmp_path)) == ["a.tar", "a.tar.fastfeed-index.npz"]
    first, again = sources[0].read([3, 1], pool), sources[3].read([3, 1], pool)
    assert first.targets["box"][1].tolist() == again.targets["box"][1].tolist()
    assert [data.tobytes() for data in first.data] == [data.tobytes() for data in again.data]
    assert first.names == again.names


@pytest.mark.parametrize("how", ["larger", "same size", "replaced by an older one"])
def test_a_changed_shard_is_read_anew(tmp_path, pool, monkeypatch, how):
    walked = walks(monkeypatch)
    path = write_tar(tmp_path / "a.tar", samples(3))
    TarSource(path)
    write_tar(path, samples(4) if how == "larger" else samples(3, start=3))
    times = {"larger": None, "same size": (0, 10**18 + 1), "replaced by an older one": (0, 10**17)}[how]
    if times is not None:
        os.utime(path, ns=times)
    source = TarSource(path)
    assert len(walked) == 2
    seed = 0 if how == "larger" else 3
    assert source.read([0], pool).data[0].tobytes() == jpeg(seed, 10 + seed, 20)
    TarSource(path)
    assert len(walked) == 2


def test_damaged_indices_are_made_again(tmp_path, monkeypatch):
    path = whole_tar(tmp_path)
    TarSource(path)
    index = Path(f"{path}.fastfeed-index.npz")
    whole = index.read_bytes()
    walked = walks(monkeypatch)
    rng = np.random.default_rng(0)
    damaged = [b"", b"x" * 100, whole[:-1], whole[: len(whole) // 2], pickle.dumps([1])]
    for _ in range(20):
        at = int(rng.integers(0, len(whole)))
        damaged.append(whole[:at] + bytes([whole[at] ^ 0xFF]) + whole[at + 1 :])
    for data in damaged:
        index.write_bytes(data)
        assert TarSource(path).labels.tolist() == [0, 1, 2]
    assert len(walked) > 15  # some bytes of a zip file mean nothing
    index.unlink()
    index.mkdir()  # nothing can take its place
    assert TarSource(path).labels.tolist() == [0, 1, 2]


def test_an_index_of_objects_is_never_unpickled(tmp_path, monkeypatch):
    path = whole_tar(tmp_path)
    TarSource(path)
    index = f"{path}.fastfeed-index.npz"
    with np.load(index) as arrays:
        content = dict(arrays)

    class Trap:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "sprung"),)

    np.savez(index, **{**content, "names": np.array([Trap()], object)})
    walked = walks(monkeypatch)
    assert len(TarSource(path)) == 3
    assert walked == [str(path)]
    assert not (tmp_path / "sprung").exists()


@pytest.mark.parametrize("change", [
    {"version": np.array(0)}, {"identity": np.zeros(3, np.uint8)}, {"images": np.zeros((2, 2), np.int64)},
    {"images": np.zeros((3, 2), np.float64)}, {"first": np.arange(3)}, {"starts": np.zeros(1, np.int64)},
])  # fmt: skip
def test_indices_of_another_form_are_made_again(tmp_path, monkeypatch, change):
    path = whole_tar(tmp_path)
    TarSource(path)
    index = f"{path}.fastfeed-index.npz"
    with np.load(index) as arrays:
        content = dict(arrays)
    np.savez(index, **{**content, **change})
    walked = walks(monkeypatch)
    assert TarSource(path).labels.tolist() == [0, 1, 2]
    assert walked == [str(path)]


def test_where_indices_are_kept(tmp_path, cache_folder, monkeypatch):
    walked = walks(monkeypatch)
    (tmp_path / "shards").mkdir()
    path = whole_tar(tmp_path / "shards")
    TarSource(path, cache_dir=tmp_path / "mine")
    assert os.listdir(tmp_path / "shards") == ["a.tar"]
    (index,) = os.listdir(tmp_path / "mine")
    assert index.startswith("a.tar.")
    assert index.endswith(".fastfeed-index.npz")
    TarSource(path, cache_dir=tmp_path / "mine")
    assert len(walked) == 1
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="file"):
        TarSource(path, cache_dir=tmp_path / "file" / "sub")

    save = tar_index._save

    def fails(index, place, identity):
        if place.parent == tmp_path / "shards":
            raise PermissionError(13, "Permission denied", str(place))
        save(index, place, identity)

    monkeypatch.setattr(tar_index, "_save", fails)
    walked.clear()
    TarSource(path)
    TarSource(path)
    assert len(walked) == 1
    assert os.listdir(tmp_path / "shards") == ["a.tar"]
    assert len(os.listdir(cache_folder / "indices")) == 1


# ------------------------------------------------------------------------------------- URLs


@pytest.fixture
def memory(tmp_path):
    """Return a folder URL, and put three shards there."""
    fsspec = pytest.importorskip("fsspec")
    system = fsspec.filesystem("memory")
    for i in range(3):
        data = write_tar(tmp_path / "x.tar", samples(2 + i, 10 * i)).read_bytes()
        system.pipe_file(f"/shards/s-{i}.tar", data)
    yield "memory://shards"
    system.rm("/shards", recursive=True)


def test_urls(memory, pool, cache_folder, monkeypatch):
    walked = walks(monkeypatch)
    for shards in (f"{memory}/s-{{0..2}}.tar", [f"{memory}/s-{i}.tar" for i in range(3)], memory):
        source = TarSource(shards)
        assert source.labels.tolist() == [0, 1, 1, 2, 0, 2, 0, 1, 2]
        assert source.shards == [f"memory://{'' if shards is not memory else '/'}shards/s-{i}.tar" for i in range(3)]
        batch = pickle.loads(pickle.dumps(source)).read([8, 0, 3], pool)
        assert [data.tobytes() for data in batch.data] == [jpeg(i, 10 + i, 20) for i in (23, 0, 11)]
        assert batch.sizes.tolist() == [[33, 20], [10, 20], [21, 20]]
        assert all(data.ctypes.data % 64 == 0 for data in batch.data)
        assert batch.targets.tolist() == [2, 0, 2]
        assert batch.errors == [None] * 3
        assert batch.names[1] == source.name(0) == f"{source.shards[0]}: 0000.jpg"
    assert len(os.listdir(cache_folder / "indices")) == 6  # of three URLs, and three that are written otherwise
    assert len(walked) == 6


def test_urls_and_files_together(memory, tmp_path, pool):
    path = write_tar(tmp_path / "a.tar", samples(2, 50))
    batch = TarSource([path, f"{memory}/s-0.tar"]).read([3, 1], pool)
    assert [data.tobytes() for data in batch.data] == [jpeg(1, 11, 20), jpeg(51, 61, 20)]


def test_json_behind_a_url(tmp_path, pool, memory):
    fsspec = pytest.importorskip("fsspec")
    fsspec.filesystem("memory").pipe_file("/shards/j.tar", target_tar(tmp_path).read_bytes())
    batch = TarSource(f"{memory}/j.tar", target="json").read([3, 0], pool)
    assert batch.targets["pad"] == ["x" * 6000, ""]


def test_a_shard_that_goes_from_its_url(memory, pool):
    fsspec = pytest.importorskip("fsspec")
    system = fsspec.filesystem("memory")
    source = TarSource(memory)
    system.rm("/shards/s-1.tar")
    system.pipe_file("/shards/s-2.tar", system.cat_file("/shards/s-2.tar")[:600])
    batch = source.read([0, 2, 6], pool)
    assert batch.errors[0] is None
    assert batch.errors[1].startswith("FileNotFoundError")
    assert "bytes came instead of" in batch.errors[2]
    assert [len(data) > 0 for data in batch.data] == [True, False, False]


def test_urls_that_are_none(memory):
    with pytest.raises(FileNotFoundError, match=f"No such file or directory: '{memory}/absent.tar'"):
        TarSource(f"{memory}/absent.tar")
    with pytest.raises(ValueError, match="Protocol not known: nonsense"):
        TarSource("nonsense://bucket/a.tar")


def test_without_fsspec(monkeypatch):
    monkeypatch.setitem(sys.modules, "fsspec", None)
    with pytest.raises(ImportError, match="memory://x/a.tar is read with fsspec.*pip install fsspec"):
        TarSource("memory://x/a.tar")
