import os

import numpy as np
import pytest
from PIL import Image

from fastfeed import FolderSource
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
    batch = source.read(indices, threads)
    for i, data, size, target, name in zip(indices, batch.data, batch.sizes, batch.targets, batch.names, strict=True):
        path, expected_target = source.samples[i]
        with open(path, "rb") as file:
            assert data.tobytes() == file.read()
        with Image.open(path) as image:
            assert tuple(size) == (image.height, image.width)
        assert target == expected_target
        assert name == path


def test_files_are_closed(tmp_path):
    source = FolderSource(write_folder(tmp_path, {"a": 5}))
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(3):
        source.read(np.arange(5))
    assert len(os.listdir("/proc/self/fd")) == before


FORMATS = [
    ("baseline.jpg", {"quality": 80}),
    ("progressive.jpg", {"progressive": True, "quality": 80}),
    ("comment.jpg", {"comment": b"\xff\xc0" * 300}),  # what looks like a frame header inside a segment
    ("plain.png", {}),
    ("plain.bmp", {}),
    ("lossy.webp", {"quality": 80}),
    ("lossless.webp", {"lossless": True}),
    ("extended.webp", {"quality": 80, "exif": b"Exif\0\0MM\0*\0\0\0\x08\0\0"}),
]


@pytest.mark.parametrize(("name", "options"), FORMATS)
@pytest.mark.parametrize("size", [(1, 1), (37, 300), (300, 37), (9001, 2), (2, 9001)])
def test_size_from_the_header_of_every_format(tmp_path, name, options, size):
    (tmp_path / "class").mkdir()
    picture(*size).save(tmp_path / "class" / name, **options)
    assert FolderSource(tmp_path).read(np.array([0])).sizes.tolist() == [list(size)]


def read_size(path, data):
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(data)
    return FolderSource(path.parent.parent).read(np.array([0])).sizes[0].tolist()


def test_segments_that_may_stand_before_the_frame_header(tmp_path):
    path = tmp_path / "class" / "a.jpg"
    path.parent.mkdir()
    picture(40, 60).save(path)
    whole = path.read_bytes()
    frame = whole.index(b"\xff\xc0\x00\x11")
    for segment in (
        b"\xff\xc4\x00\x07\x00\x01\x02\x03\x04",  # Huffman tables, whose marker lies among those of frames
        b"\xff\xcc\x00\x07\x00\x01\x02\x03\x04",  # arithmetic coding conditions, likewise
        b"\xff\xff\xff",  # fill bytes
        b"\xff\x01",  # a marker without a length
    ):
        assert read_size(path, whole[:frame] + segment + whole[frame:]) == [40, 60]


def test_a_header_is_read_as_soon_as_it_is_complete(tmp_path):
    path = tmp_path / "class" / "a.jpg"
    path.parent.mkdir()
    picture(40, 60).save(path)
    whole = path.read_bytes()
    end = whole.index(b"\xff\xc0\x00\x11") + 9
    assert read_size(path, whole[:end]) == [40, 60]
    with pytest.raises(ValueError, match="not a readable image"):
        read_size(path, whole[: end - 1])


def test_bmp_stored_top_down(tmp_path):
    path = tmp_path / "class" / "a.bmp"
    path.parent.mkdir()
    picture(40, 60).save(path)
    whole = path.read_bytes()
    assert read_size(path, whole[:22] + (-40).to_bytes(4, "little", signed=True) + whole[26:]) == [40, 60]


def test_size_is_that_of_the_stored_pixels_whatever_exif_says(tmp_path):
    (tmp_path / "class").mkdir()
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees to display
    picture(20, 50).save(tmp_path / "class" / "a.jpg", exif=exif)
    assert FolderSource(tmp_path).read(np.array([0])).sizes.tolist() == [[20, 50]]


@pytest.mark.parametrize(("name", "options"), FORMATS)
def test_every_truncation_of_a_header_is_refused_or_read_rightly(tmp_path, name, options):
    path = tmp_path / "class" / name
    path.parent.mkdir()
    picture(40, 60).save(path, **options)
    whole = path.read_bytes()
    source = FolderSource(tmp_path)
    for length in range(min(len(whole), 1200)):
        path.write_bytes(whole[:length])
        try:
            assert source.read(np.array([0])).sizes.tolist() == [[40, 60]]
        except ValueError as error:
            assert str(path) in str(error)  # noqa: PT017 - either outcome is right, depending on the length


def test_random_bytes_never_crash_the_header_reader(tmp_path):
    rng = np.random.default_rng(0)
    path = tmp_path / "class" / "a.jpg"
    path.parent.mkdir()
    path.touch()
    source = FolderSource(tmp_path)
    starts = [
        b"",
        b"\xff\xd8",
        b"\xff\xd8\xff",
        b"\x89PNG\r\n\x1a\n",
        b"BM",
        b"RIFF\0\0\0\0WEBP",
        b"RIFF\0\0\0\0WEBPVP8 ",
    ]
    refused = 0
    for i in range(700):
        path.write_bytes(starts[i % len(starts)] + rng.bytes(int(rng.integers(0, 60))))
        try:
            assert (source.read(np.array([0])).sizes > 0).all()
        except ValueError:
            refused += 1
    assert refused > 300


def test_unreadable_files_are_named(tmp_path):
    source = FolderSource(write_folder(tmp_path, {"a": 3}))
    gone = source.samples[1][0]
    os.remove(gone)
    with pytest.raises(FileNotFoundError) as error:
        source.read(np.array([0, 1, 2]))
    assert error.value.filename == gone
    os.mkdir(gone)
    with pytest.raises(IsADirectoryError, match="001.jpg"):
        source.read(np.array([0, 1, 2]))


def test_what_is_no_file_is_refused_at_once(tmp_path):
    (tmp_path / "class").mkdir()
    os.mkfifo(tmp_path / "class" / "a.jpg")  # with no writer: to open it as a file would wait for one
    with pytest.raises(OSError, match=r"Invalid argument.*a\.jpg"):
        FolderSource(tmp_path).read(np.array([0]))


def test_a_file_larger_than_memory_is_named(tmp_path):
    (tmp_path / "class").mkdir()
    with open(tmp_path / "class" / "a.jpg", "wb") as file:
        file.truncate(2**43)  # takes no room on disk
    with pytest.raises(OSError, match=r"Cannot allocate memory.*a\.jpg"):
        FolderSource(tmp_path).read(np.array([0]))


def test_hidden_files_and_folders_are_passed_over(tmp_path):
    write_folder(tmp_path, {"a": 1, ".cache": 1})
    (tmp_path / "a" / "._000.jpg").write_bytes(b"a resource fork")
    source = FolderSource(tmp_path)
    assert source.classes == ["a"]
    assert [os.path.basename(p) for p, _ in source.samples] == ["000.jpg"]


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
    with pytest.raises(FileNotFoundError, match="1 images lie directly in it"):
        FolderSource(tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match=r"no images in 1 of the 1 class folders of .*: empty"):
        FolderSource(tmp_path)


@pytest.mark.parametrize("name", ["naïve 猫.jpg", os.fsdecode(b"latin-\xe9.jpg"), "line\nbreak.jpg"])
def test_any_file_name_is_read(tmp_path, name):
    (tmp_path / "class").mkdir()
    picture(8, 9).save(tmp_path / "class" / name)
    assert FolderSource(tmp_path).read(np.array([0])).sizes.tolist() == [[8, 9]]
    source = FolderSource(tmp_path)
    os.remove(source.samples[0][0])
    with pytest.raises(FileNotFoundError) as error:
        source.read(np.array([0]))
    assert error.value.filename == source.samples[0][0]


def test_subset_keeps_the_classes(tmp_path):
    source = FolderSource(write_folder(tmp_path, {"a": 2, "b": 2}))
    part = source.subset([3, 0])
    assert part.classes == ["a", "b"]
    assert part.read(np.array([0, 1])).targets.tolist() == [1, 0]
    assert len(source) == 4
