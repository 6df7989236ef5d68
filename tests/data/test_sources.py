"""Sources of files: a folder of class folders, and what all sources have in common."""

import copy
import itertools
import os
import pickle
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from fastfeed import DataLoader, transforms
from fastfeed._extension import extension
from fastfeed.data.sources import EncodedBatch, FolderSource
from tests.images import picture, write_folder


def test_classes_and_samples_in_sorted_order(tmp_path):
    write_folder(tmp_path, {"dog": 2, "cat": 1})
    (tmp_path / "dog" / "more").mkdir()
    picture(9, 9).save(tmp_path / "dog" / "more" / "000.PNG")
    (tmp_path / "dog" / "notes.txt").write_text("not an image")
    source = FolderSource(tmp_path)
    assert source.classes == ["cat", "dog"]
    assert [(os.path.relpath(p, tmp_path), t) for p, t in source.samples] == [
        ("cat/000.jpg", 0), ("dog/000.jpg", 1), ("dog/001.jpg", 1), ("dog/more/000.PNG", 1),
    ]  # fmt: skip
    assert len(source) == 4


def test_links_to_folders_and_files_are_followed(tmp_path):
    write_folder(tmp_path / "elsewhere", {"x": 2})
    (tmp_path / "root" / "a").mkdir(parents=True)
    (tmp_path / "root" / "a" / "linked").symlink_to(tmp_path / "elsewhere" / "x")
    (tmp_path / "root" / "b").symlink_to(tmp_path / "elsewhere" / "x")
    source = FolderSource(tmp_path / "root")
    assert [os.path.relpath(p, tmp_path / "root") for p, _ in source.samples] == [
        "a/linked/000.jpg", "a/linked/001.jpg", "b/000.jpg", "b/001.jpg",
    ]  # fmt: skip


@pytest.mark.parametrize("threads", [0, 1, 3])
def test_read_gives_the_files_bytes_sizes_and_targets(tmp_path, threads):
    source = FolderSource(write_folder(tmp_path, {"a": 5, "b": 6}))
    indices = np.array([10, 3, 3, 0])
    batch = source.read(indices, extension().Pool(threads))
    for i, data, size, target, name in zip(indices, batch.data, batch.sizes, batch.targets, batch.names, strict=True):
        path, expected_target = source.samples[i]
        with open(path, "rb") as file:
            assert data.tobytes() == file.read()
        with Image.open(path) as image:
            assert tuple(size) == (image.height, image.width)
        assert target == expected_target
        assert name == path == source.name(i)
    assert batch.errors == [None] * 4
    assert batch.orientation.tolist() == [1] * 4
    assert batch.targets.dtype == torch.int64


@pytest.mark.parametrize("n", [0, 1, 300])  # more than stay open from one step of the reader to the next
def test_batches_of_every_size(tmp_path, pool, n):
    source = FolderSource(write_folder(tmp_path, {"a": 3}))
    indices = np.arange(n) % 3
    batch = source.read(indices, pool)
    contents = [open(path, "rb").read() for path, _ in source.samples]  # noqa: SIM115
    assert [data.tobytes() for data in batch.data] == [contents[i] for i in indices]
    assert (len(batch.names), batch.sizes.shape, batch.orientation.shape) == (n, (n, 2), (n,))


def test_one_aligned_block_that_serves_again(tmp_path, pool):
    source = FolderSource(write_folder(tmp_path, {"a": 5}))

    def addresses(batch):
        return [data.ctypes.data for data in batch.data]

    first = source.read(np.arange(5), pool)
    assert all(address % 64 == 0 for address in addresses(first))
    ends = [address + len(data) for address, data in zip(addresses(first), first.data, strict=True)]
    assert all(0 <= start - end < 64 for start, end in zip(addresses(first)[1:], ends, strict=False))
    used = addresses(first)
    second = source.read(np.arange(5), pool)
    assert not set(addresses(second)) & set(used)
    expected = first.data[4].tobytes()
    last = first.at(slice(4, 5))
    del first
    assert not set(addresses(source.read(np.arange(5), pool))) & set(used)  # a view of it is still there
    assert last.data[0].tobytes() == expected
    del last
    assert addresses(source.read(np.arange(5), pool)) == used


def test_files_are_closed(tmp_path, pool):
    source = FolderSource(write_folder(tmp_path, {"a": 5}))
    os.remove(source.samples[2][0])
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(3):
        source.read(np.arange(5), pool)
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_process_that_may_open_no_more_files_blames_no_sample(tmp_path, pool):
    resource = pytest.importorskip("resource")
    source = FolderSource(write_folder(tmp_path, {"a": 5}))
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (0, limits[1]))
        with pytest.raises(OSError, match="Too many open files") as error:
            source.read(np.arange(5), pool)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    assert error.value.filename in [path for path, _ in source.samples]
    assert source.read(np.arange(5), pool).errors == [None] * 5


@pytest.mark.parametrize("make", [copy.deepcopy, lambda source: pickle.loads(pickle.dumps(source))])
def test_copies_read_the_same(tmp_path, pool, make):
    source = FolderSource(write_folder(tmp_path, {"a": 2, "b": 1}))
    source.read(np.array([0]), pool)
    other = make(source)
    assert (other.samples, other.classes, other.labels.tolist()) == (source.samples, ["a", "b"], [0, 0, 1])
    assert other.read(np.array([2]), pool).data[0].tobytes() == source.read(np.array([2]), pool).data[0].tobytes()


def test_threads_read_at_the_same_time(tmp_path, pool):
    source = FolderSource(write_folder(tmp_path, {"a": 9}))
    contents = [open(path, "rb").read() for path, _ in source.samples]  # noqa: SIM115
    wrong = []

    def work(seed):
        rng = np.random.default_rng(seed)
        for _ in range(30):
            indices = rng.integers(0, 9, 7)
            batch = source.read(indices, pool)
            if [data.tobytes() for data in batch.data] != [contents[i] for i in indices]:
                wrong.append(indices)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


@pytest.mark.parametrize(("indices", "error", "message"), [
    ([3], IndexError, "index 3 is out of range for a source of 3 samples"),
    ([0, -1], IndexError, "index -1 is out of range"),
    ([0.0], TypeError, r"indices are float64 \[1\]; expected integers"),
    ([True], TypeError, r"indices are bool \[1\]; expected integers"),
    ([[0]], TypeError, r"indices are int64 \[1, 1\]"),
])  # fmt: skip
def test_indices_that_are_none(tmp_path, pool, indices, error, message):
    source = FolderSource(write_folder(tmp_path, {"a": 3}))
    with pytest.raises(error, match=message):
        source.read(np.array(indices), pool)
    with pytest.raises(error, match=message):
        source.subset(indices)


def test_a_part_of_a_batch():
    batch = EncodedBatch(
        data=[np.full(i, i, np.uint8) for i in range(4)],
        sizes=np.arange(8).reshape(4, 2),
        orientation=np.arange(1, 5, dtype=np.uint8),
        targets={"box": torch.arange(8).reshape(4, 2), "text": list("abcd"), "pair": [torch.arange(4), tuple("wxyz")]},
        names=list("abcd"),
        errors=[None, "an empty file", None, None],
    )
    part = batch.at(slice(1, 3))
    assert [data.tolist() for data in part.data] == [[1], [2, 2]]
    assert part.sizes.tolist() == [[2, 3], [4, 5]]
    assert part.orientation.tolist() == [2, 3]
    assert part.targets["box"].tolist() == [[2, 3], [4, 5]]
    assert part.targets["text"] == ["b", "c"]
    assert (part.targets["pair"][0].tolist(), part.targets["pair"][1]) == ([1, 2], ("x", "y"))
    assert (part.names, part.errors) == (["b", "c"], ["an empty file", None])


def test_unreadable_files_have_their_error_and_the_others_none(tmp_path, pool):
    source = FolderSource(write_folder(tmp_path, {"a": 7}))
    paths = [path for path, _ in source.samples]
    os.remove(paths[1])
    os.remove(paths[2])
    os.mkdir(paths[2])
    os.remove(paths[3])
    os.mkfifo(paths[3])  # with no writer: to open it as a file would wait for one
    os.truncate(paths[4], 0)
    os.truncate(paths[5], 2**43)  # takes no room on disk
    before = source.read(np.arange(7), pool)
    assert before.errors == [
        None, "No such file or directory", "a folder", "a pipe or a device, not a file", "an empty file",
        "8796093022208 bytes: too large for an image, which may have 2 GiB", None,
    ]  # fmt: skip
    assert [len(data) > 0 for data in before.data] == [True, False, False, False, False, False, True]
    assert (before.sizes > 0).all(axis=1).tolist() == [True, False, False, False, False, False, True]
    assert before.orientation.tolist() == [1] * 7
    assert before.names == paths


def test_files_that_change_while_they_are_read(tmp_path, pool):
    source = FolderSource(write_folder(tmp_path, {"a": 1}, sizes=[(900, 900)]))
    path = source.samples[0][0]
    whole = os.path.getsize(path)
    done = threading.Event()

    def change():
        while not done.is_set():
            for size in (whole // 2, 2 * whole, whole + 1, 0):
                os.truncate(path, size)

    thread = threading.Thread(target=change)
    thread.start()
    try:
        errors, until = set(), time.monotonic() + 60
        for i in itertools.count():  # on a machine that does other things too, the two may miss each other for long
            errors.update(source.read(np.zeros(8, np.int64), pool).errors)
            if i >= 100 and ("changed while it was read" in errors or time.monotonic() > until):
                break
    finally:
        done.set()
        thread.join()
    assert errors <= {
        "changed while it was read", "an empty file", "a JPEG file without its end: cut short", None,
        "no complete JPEG, PNG, BMP or WebP header",
    }  # fmt: skip
    assert "changed while it was read" in errors


@pytest.mark.skipif(os.getuid() == 0, reason="root may read everything")
def test_what_may_not_be_read(tmp_path, pool):
    source = FolderSource(write_folder(tmp_path, {"a": 1}))
    os.chmod(source.samples[0][0], 0)
    assert source.read(np.array([0]), pool).errors == ["Permission denied"]
    os.chmod(tmp_path / "a", 0)
    try:
        with pytest.raises(PermissionError):
            FolderSource(tmp_path)
    finally:
        os.chmod(tmp_path / "a", 0o700)


def test_links_that_form_a_ring_end(tmp_path, pool):
    write_folder(tmp_path, {"a": 1, "b": 1})
    (tmp_path / "a" / "up").symlink_to(tmp_path)
    (tmp_path / "a" / "self").symlink_to(tmp_path / "a")
    (tmp_path / "a" / "other").symlink_to(tmp_path / "b")
    (tmp_path / "b" / "back").symlink_to(tmp_path / "a")
    (tmp_path / "a" / "loop").symlink_to(tmp_path / "a" / "loop")
    (tmp_path / "b" / "loop.jpg").symlink_to(tmp_path / "b" / "loop.jpg")
    source = FolderSource(tmp_path)
    assert [os.path.relpath(path, tmp_path) for path, _ in source.samples] == [
        "a/000.jpg", "a/other/000.jpg", "a/other/loop.jpg", "b/000.jpg", "b/loop.jpg", "b/back/000.jpg",
    ]  # fmt: skip
    assert source.read(np.array([4]), pool).errors == ["Too many levels of symbolic links"]


def test_hidden_files_and_folders_are_passed_over(tmp_path):
    write_folder(tmp_path, {"a": 1, ".cache": 1})
    (tmp_path / "a" / "._000.jpg").write_bytes(b"a resource fork")
    source = FolderSource(tmp_path)
    assert source.classes == ["a"]
    assert [os.path.basename(p) for p, _ in source.samples] == ["000.jpg"]


def test_jpeg_files_by_any_of_their_names(tmp_path, pool):
    (tmp_path / "a").mkdir()
    for name in ("0.jfif", "1.JPE", "2.Jpeg"):
        picture(8, 9).save(tmp_path / "a" / name, format="JPEG")
    source = FolderSource(tmp_path)
    assert [os.path.basename(path) for path, _ in source.samples] == ["0.jfif", "1.JPE", "2.Jpeg"]
    assert source.read(np.arange(3), pool).errors == [None] * 3


def test_images_that_are_not_read_are_counted(tmp_path):
    write_folder(tmp_path, {"a": 1, "b/more": 1})
    for name in ("a/x.tiff", "a/x.GIF", "b/y.b.tiff", "b/more/z.tiff"):
        (tmp_path / name).touch()
    with pytest.warns(UserWarning, match="passed over") as warned:
        source = FolderSource(tmp_path)
    assert [str(warning.message) for warning in warned] == [
        f"images in {tmp_path} are passed over, for only JPEG, PNG, BMP and WebP are read: 1 .gif, 3 .tiff. "
        "Convert them, to PNG say, or remove them"
    ]
    assert warned[0].filename == __file__
    assert len(source) == 2


@pytest.mark.filterwarnings("error")
def test_files_that_are_no_images_are_passed_over_in_silence(tmp_path):
    write_folder(tmp_path, {"a": 1})
    for name in (".DS_Store", "Thumbs.db", "notes.txt", "tiff", "._x.tif", ".gif", "x.tif.bak", "x.jpg.gz", "x.svg"):
        (tmp_path / "a" / name).touch()
    (tmp_path / "a" / "folder.tif").mkdir()
    (tmp_path / ".trash").mkdir()
    (tmp_path / ".trash" / "x.tif").touch()
    assert len(FolderSource(tmp_path)) == 1


def test_a_class_of_images_that_are_not_read(tmp_path):
    write_folder(tmp_path, {"a": 1})
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "x.heic").touch()
    with (
        pytest.warns(UserWarning, match="images in .* are passed over, .*: 1 .heic"),
        pytest.raises(FileNotFoundError, match="no images in 1 of the 2 class folders of .*: b"),
    ):
        FolderSource(tmp_path)


@pytest.mark.parametrize(("classes", "used"), [
    (["train", "val"], "train"), (["Test", "Training"], "Training"), (["test"], "test"),
    (["test", "valid", "validation"], "test"),
])  # fmt: skip
def test_classes_that_are_probably_splits(tmp_path, classes, used):
    write_folder(tmp_path, {f"{name}/cat": 1 for name in classes})
    with pytest.warns(UserWarning, match="the classes of") as warned:
        assert FolderSource(tmp_path).classes == classes
    assert [str(warning.message) for warning in warned] == [
        f"the classes of {tmp_path} are {', '.join(classes)}. If these are parts of a dataset, with class folders in "
        f"them, give the path of one: {tmp_path / used}"
    ]
    assert warned[0].filename == __file__


@pytest.mark.dali
def test_a_warning_is_where_the_loader_was_made(tmp_path):
    with pytest.warns(UserWarning, match="the classes of") as warned:
        DataLoader(write_folder(tmp_path, {"val/cat": 1}), device="cpu", transform=transforms.eval(8))
    assert warned[0].filename == __file__


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("classes", [["a", "train"], ["pass", "test"], ["trains", "vals"], ["test"], ["train", "val"]])
def test_classes_that_have_the_name_of_a_split_among_others(tmp_path, classes):
    assert FolderSource(write_folder(tmp_path, dict.fromkeys(classes, 1))).classes == classes


def test_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    write_folder(tmp_path / "data", {"a": 1})
    for root in ("~/data", Path("~/data")):
        assert FolderSource(root).samples == [(str(tmp_path / "data" / "a" / "000.jpg"), 0)]
    with pytest.raises(FileNotFoundError, match=f"no such folder: {tmp_path}/absent"):
        FolderSource("~/absent")
    monkeypatch.chdir(tmp_path)
    os.rename("data", "~data")
    assert len(FolderSource("~data")) == 1  # of no user: the folder of that name


def test_folders_that_are_no_dataset(tmp_path):
    with pytest.raises(FileNotFoundError, match="the path of the folder is empty"):
        FolderSource("")
    with pytest.raises(FileNotFoundError, match="no such folder: .*/absent"):
        FolderSource(tmp_path / "absent")
    with pytest.raises(FileNotFoundError, match="no class folders in"):
        FolderSource(tmp_path)
    picture(8, 8).save(tmp_path / "a.jpg")
    with pytest.raises(NotADirectoryError, match="not a folder: .*a.jpg"):
        FolderSource(tmp_path / "a.jpg")
    with pytest.raises(FileNotFoundError, match="1 images lie directly in it.*fastfeed.ListSource"):
        FolderSource(tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match=r"no images in 1 of the 1 class folders of .*: empty"):
        FolderSource(tmp_path)


@pytest.mark.parametrize("name", ["naïve 猫.jpg", os.fsdecode(b"latin-\xe9.jpg"), "line\nbreak.jpg"])
def test_any_file_name_is_read(tmp_path, pool, name):
    (tmp_path / "class").mkdir()
    picture(8, 9).save(tmp_path / "class" / name)
    batch = FolderSource(tmp_path).read(np.array([0]), pool)
    assert batch.sizes.tolist() == [[8, 9]]
    assert batch.names == [str(tmp_path / "class" / name)]


def test_subset_keeps_the_classes(tmp_path, pool):
    source = FolderSource(write_folder(tmp_path, {"a": 2, "b": 2}))
    part = source.subset([3, 0])
    assert part.classes == ["a", "b"]
    assert part.labels.tolist() == [1, 0]
    assert part.read(np.array([0, 1]), pool).targets.tolist() == [1, 0]
    assert len(source) == 4
