"""TarSource: members and targets of tar shards, held to what Python's tarfile reads."""

import copy
import gzip
import io
import os
import pickle
import re
import tarfile

import numpy as np
import pytest
import torch
from PIL import Image

from fastfeed.data.sources import TarSource
from tests.tars import jpeg, masks, samples, target_tar, whole_tar, write_tar

pytestmark = pytest.mark.usefixtures("cache_folder")


def test_samples_in_order_with_their_classes(tmp_path, pool):
    paths = [write_tar(tmp_path / f"{i}.tar", samples(3 + i, 10 * i)) for i in range(2)]
    source = TarSource(paths)
    names = [f"{paths[0]}: {i:04}.jpg" for i in range(3)] + [f"{paths[1]}: {i:04}.jpg" for i in range(10, 14)]
    assert [source.name(i) for i in range(len(source))] == names
    assert source.labels.tolist() == [0, 1, 2, 1, 2, 0, 1]
    assert source.classes is None
    assert source.shards == [str(path) for path in paths]
    order = np.array([6, 0, 6, 3, 2])
    batch = source.read(order, pool)
    seeds = [0, 1, 2, 10, 11, 12, 13]
    assert [data.tobytes() for data in batch.data] == [jpeg(seeds[i], 10 + seeds[i], 20) for i in order]
    assert batch.sizes.tolist() == [[10 + seeds[i], 20] for i in order]
    assert batch.orientation.tolist() == [1] * 5
    assert batch.targets.dtype == torch.int64
    assert batch.targets.tolist() == [1, 0, 1, 1, 2]
    assert batch.names == [names[i] for i in order]
    assert batch.errors == [None] * 5
    assert TarSource(paths, classes=["x", "y", "z"]).classes == ["x", "y", "z"]
    with pytest.raises(ValueError, match="a target is 2, but there are 2 classes"):
        TarSource(paths, classes=["x", "y"])


def test_a_large_batch_of_several_shards(tmp_path, pool):
    paths = [write_tar(tmp_path / f"{i}.tar", samples(40, 40 * i)) for i in range(3)]
    source = TarSource(paths)
    order = np.random.default_rng(0).integers(0, 120, 300)
    before = len(os.listdir("/proc/self/fd"))
    batch = source.read(order, pool)
    assert len(os.listdir("/proc/self/fd")) == before
    assert [data.tobytes() for data in batch.data] == [jpeg(i, 10 + i, 20) for i in order]
    assert batch.targets.tolist() == [i % 3 for i in order]
    assert source.read([], pool).data == []


LONG = "/".join(["a folder with a long name"] * 9) + "/0001"


@pytest.mark.parametrize("format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
@pytest.mark.parametrize("key", ["0001", "./0001", "some/folders/0001", LONG, "naïve 猫/0001", "x" * 150 + "/0001"])
def test_every_format_and_name(tmp_path, pool, format, key):
    if format == tarfile.USTAR_FORMAT and len(key) > 200:
        pytest.skip("ustar has no names that long")
    path = write_tar(tmp_path / "a.tar", [(f"{key}.jpg", jpeg(0)), (f"{key}.cls", b"7"), ("z.png", b"")], format)
    source = TarSource(path)
    with tarfile.open(path) as tar:
        assert source.name(0) == f"{path}: {tar.getnames()[0]}"
    batch = source.read([0], pool)
    assert batch.data[0].tobytes() == jpeg(0)
    assert batch.targets.tolist() == [7]


def v7_header(name, size, kind=b"\0", *, checksum=sum, size_field=None):
    block = bytearray(512)
    block[: len(name)] = name
    block[100:108] = b"000644 \0"
    block[124:136] = size_field or b"%11o " % size
    block[148:156] = b" " * 8
    block[156:157] = kind
    block[148:156] = b"%06o\0 " % checksum(block)
    return bytes(block)


def padded(data):
    return data + b"\0" * (-len(data) % 512)


END = b"\0" * 1024


def test_the_oldest_format(tmp_path, pool):
    image = jpeg(0)
    signed = lambda block: sum(byte - 256 * (byte > 127) for byte in block)  # noqa: E731
    data = v7_header(b"folder/", 0)
    data += v7_header("é.jpg".encode(), len(image), checksum=signed) + padded(image)
    data += v7_header("é.cls".encode(), 1, size_field=b"\x80" + b"\0" * 10 + b"\x01") + padded(b"5")
    path = tmp_path / "a.tar"
    path.write_bytes(data + END)
    with tarfile.open(path) as tar:
        assert tar.getnames() == ["folder", "é.jpg", "é.cls"]
    batch = TarSource(path).read([0], pool)
    assert batch.data[0].tobytes() == image
    assert batch.targets.tolist() == [5]


def test_a_pax_size_and_global_records(tmp_path, pool):
    def records(**values):
        lines = b""
        for key, value in values.items():
            line = f" {key}={value}\n".encode()
            lines += str(len(line) + 2).encode() + line
        return lines

    image = jpeg(0)
    everyone, own = records(comment="hello"), records(path="0.jpg", size=len(image))
    data = v7_header(b"global", len(everyone), b"g") + padded(everyone)
    data += v7_header(b"own", len(own), b"x") + padded(own) + v7_header(b"short", 0, b"0") + padded(image)
    data += v7_header(b"0.cls", 1) + padded(b"4")
    path = tmp_path / "a.tar"
    path.write_bytes(data + END)
    batch = TarSource(path).read([0], pool)
    assert batch.names == [f"{path}: 0.jpg"]
    assert batch.data[0].tobytes() == image
    assert batch.targets.tolist() == [4]


def link(name, target, kind):
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


def special(name, kind):
    info = tarfile.TarInfo(name)
    info.type = kind
    return info


def test_links_and_what_is_no_file(tmp_path, pool):
    path = write_tar(
        tmp_path / "a.tar",
        [
            special("in", tarfile.DIRTYPE),
            special("in/pipe.jpg", tarfile.FIFOTYPE),
            link("in/before.jpg", "../z/0.jpg", tarfile.SYMTYPE),
            ("z/0.jpg", jpeg(0)),
            ("z/0.cls", b"2"),
            link("hard.jpg", "z/0.jpg", tarfile.LNKTYPE),
            link("twice.jpg", "hard.jpg", tarfile.SYMTYPE),
            link("ring.jpg", "gnir.jpg", tarfile.SYMTYPE),
            link("gnir.jpg", "ring.jpg", tarfile.SYMTYPE),
            link("outside.jpg", "/etc/passwd", tarfile.SYMTYPE),
        ],
    )
    source = TarSource(path)
    names = [source.name(i).partition(": ")[2] for i in range(len(source))]
    assert names == ["z/0.jpg", "in/before.jpg", "hard.jpg", "twice.jpg"]
    batch = source.read(np.arange(4), pool)
    assert {data.tobytes() for data in batch.data} == {jpeg(0)}
    assert batch.errors == [None] + ["no .cls member beside it"] * 3
    assert batch.targets.tolist() == [2, -100, -100, -100]


def test_which_member_is_the_image(tmp_path):
    path = write_tar(
        tmp_path / "a.tar",
        [
            ("0.depth.png", b"depth"), ("0.JPEG", b"image"), ("0.png", b"second"), ("0.cls", b"0"),
            ("1.rgb.webp", b"image"), ("1.cls", b"1"),
            ("README", b""), (".hidden.jpg", b""), ("._0.jpg", b""), ("2.cls", b"2"), ("2.txt", b"no image"),
            ("v1.5/3.jpg", b"image"), ("v1.5/3.cls", b"0"),
        ],
    )  # fmt: skip
    source = TarSource(path)
    assert [source.name(i).partition(": ")[2] for i in range(len(source))] == ["0.JPEG", "1.rgb.webp", "v1.5/3.jpg"]
    assert source.labels.tolist() == [0, 1, 0]


def test_folders_as_classes(tmp_path, pool):
    first = write_tar(tmp_path / "1.tar", [("train/dog/0.jpg", jpeg(0)), ("train/cat/0.jpg", jpeg(1))])
    second = write_tar(tmp_path / "2.tar", [("./ant/0.jpg", jpeg(2)), ("dog/1.jpg", jpeg(3))])
    source = TarSource([first, second], target="folder")
    assert source.classes == ["ant", "cat", "dog"]
    assert source.labels.tolist() == [2, 1, 0, 2]
    assert source.read([2, 3], pool).targets.tolist() == [0, 2]
    write_tar(second, [("./0.jpg", jpeg(0))])
    with pytest.raises(ValueError, match=r"2.tar: ./0.jpg lies in no folder"):
        TarSource([first, second], target="folder")


def test_json_and_text(tmp_path, pool):
    path = target_tar(tmp_path)
    source = TarSource(path, target="json")
    targets = source.read([3, 0], pool).targets
    assert targets["id"].tolist() == [3, 0]
    assert [column.tolist() for column in targets["box"]] == [[3, 0], [3.5, 0.5]]
    assert targets["pad"] == ["x" * 6000, ""]
    assert source.labels is None
    assert TarSource(path, target="txt").read([1, 2], pool).targets == ("caption 1 猫", "caption 2 猫")


def test_a_function_of_the_members(tmp_path, pool):
    source = TarSource(target_tar(tmp_path), target=masks)
    for same in (source, pickle.loads(pickle.dumps(source)), copy.deepcopy(source).subset([0, 1, 2, 3])):
        targets = same.read([2, 1], pool).targets
        assert targets["size"].tolist() == [5000, 10]
        assert targets["sum"].tolist() == [10000, 10]


@pytest.mark.parametrize(("target", "bad", "error"), [
    ("cls", b"dog", "its .cls member is 'dog'; expected a class index"),
    ("cls", b"", "its .cls member is ''; expected a class index"),
    ("cls", b"-1", "its .cls member is '-1'"),
    ("cls", b"9" * 30, "its .cls member is '9999"),
    ("cls", b" " * 5000, "its .cls member is 5000 bytes long; expected a class index"),
    ("cls", None, "no .cls member beside it"),
    ("json", b'{"a"', "its .json member cannot be read: "),
    ("json", b"[" * 100_000, "its .json member cannot be read: "),
    ("json", b"null", "its target is not like that of .*: it is a NoneType, and there an int"),
    ("json", None, "no .json member beside it"),
    ("txt", b"\xff", "its .txt member cannot be read: 'utf-8'"),
    ("number", b"1.5", "its .number member is '1.5'; expected a class index"),
])  # fmt: skip
def test_bad_targets_are_errors_of_their_samples(tmp_path, pool, target, bad, error):
    members = []
    for i in range(4):
        members.append((f"{i}.jpg", jpeg(i)))
        if i != 1 or bad is not None:
            members.append((f"{i}.{target}", bad if i == 1 else b"%d" % i))
    source = TarSource(write_tar(tmp_path / "a.tar", members), target=target)
    batch = source.read([1, 3, 2], pool)
    assert batch.errors[1:] == [None, None]
    assert re.match(error, batch.errors[0])
    expected = ["3", "2"] if target == "txt" else [3, 2]
    assert [value if target == "txt" else value.item() for value in batch.targets[1:]] == expected
    assert len(batch.targets) == 3
    assert len(source.read([1, 1], pool).targets) == 2


def test_a_function_that_raises(tmp_path, pool):
    def parse(members):
        return 1 / int(members["cls"])

    source = TarSource(write_tar(tmp_path / "a.tar", samples(3)), target=parse)
    batch = source.read([1, 0, 2], pool)
    assert batch.errors == [None, "target() raised ZeroDivisionError: division by zero", None]
    assert batch.targets[[0, 2]].tolist() == [1, 0.5]


def test_bad_images_are_errors_of_their_samples(tmp_path, pool):
    file = io.BytesIO()
    Image.new("RGB", (8, 8)).save(file, "GIF")
    images = [jpeg(0), b"", file.getvalue(), jpeg(1)[:-30]]
    path = write_tar(tmp_path / "a.tar", [
        member for i, image in enumerate(images) for member in ((f"{i}.jpg", image), (f"{i}.cls", b"1"))
    ])  # fmt: skip
    source = TarSource(path)
    errors = [None, "an empty file", "a GIF file; expected JPEG, PNG, BMP or WebP",
              "a JPEG file without its end: cut short"]  # fmt: skip
    assert source.read(np.arange(4), pool).errors == errors
    os.truncate(path, os.path.getsize(path) - 512)
    changed = "the shard has changed since its index was read: make the source again"
    assert source.read(np.arange(4), pool).errors == [changed] * 4
    os.remove(path)
    batch = source.read(np.arange(4), pool)
    assert batch.errors == ["No such file or directory"] * 4
    assert [len(data) for data in batch.data] == [0] * 4


def test_subset(tmp_path, pool):
    source = TarSource(write_tar(tmp_path / "a.tar", samples(6)))
    part = source.subset([5, 1, 2]).subset([2, 0])
    assert len(part) == 2
    assert part.labels.tolist() == [2, 2]
    assert [part.name(i)[-8:] for i in range(2)] == ["0002.jpg", "0005.jpg"]
    assert part.read([1], pool).data[0].tobytes() == jpeg(5, 15, 20)
    assert len(source) == 6


# ------------------------------------------------------------------------------------- damaged shards


def test_cut_short(tmp_path):
    path = whole_tar(tmp_path)
    whole = path.read_bytes()
    with tarfile.open(path) as tar:
        end = max(member.offset_data + member.size for member in tar)
    end += -end % 512
    for length in [*range(1, end, 173), *range(512, end + 1, 512)]:
        path.write_bytes(whole[:length])
        with pytest.raises(ValueError, match=r"a\.tar (is cut short|has no end-of-archive mark|is not a tar file)"):
            TarSource(path)
    path.write_bytes(whole[:end])
    with pytest.raises(ValueError, match=r"mark its end with: truncate -s \+1024"):
        TarSource(path)
    os.truncate(path, end + 1024)
    assert len(TarSource(path)) == 3


@pytest.mark.parametrize(("data", "message"), [
    (b"", "is empty; expected a tar file"),
    (b"x" * 100, "is not a tar file"),
    (b"x" * 2000, "is not a tar file"),
    (gzip.compress(b"x" * 5000, mtime=0), "is compressed, .*gzip -d"),
    (b"\x28\xb5\x2f\xfd" + b"x" * 600, "is compressed, .*zstd -d"),
    (END, "no images in"),
    (v7_header(b"a.jpg", 0, b"S") + END, "a.jpg is stored as a sparse file; pack it without tar --sparse"),
    (v7_header(b"a.jpg", 10**9) + END, r"cut short: a.jpg ends at byte 1000000512, and the file at 1536"),
    (v7_header(b"a.jpg", 0) + b"x" * 512 + END, "is damaged: expected a tar header at byte 512"),
    (v7_header(b"a.jpg", 0, size_field=b"12345678901x") + END, "is damaged: expected a tar header at byte 0"),
    (v7_header(b"a.jpg", 0, size_field=b"\xff" * 12) + END, "is damaged"),
    (v7_header(b"name", 10**9, b"L") + END, "is damaged"),
    (v7_header(b"name", 600, b"L") + b"\0" * 512, "is cut short"),
    (v7_header(b"pax", 9, b"x") + padded(b"99 path=x") + END, "is damaged"),
    (v7_header(b"pax", 9, b"x") + padded(b"0 path=x\n") + END, "is damaged"),
    (v7_header(b"pax", 9, b"x") + padded(b"9 size=x\n") + v7_header(b"a", 0) + END, "is damaged"),
    (v7_header(b"pax", 25, b"x") + padded(b"25 GNU.sparse.major=1.01\n") + v7_header(b"a", 0) + END, "sparse"),
    (v7_header(b"a.jpg", 0) * 2 + END, "has two members named a.jpg"),
    (v7_header(b"a.b.jpg", 0) + v7_header(b"a.c.jpg", 0) + END, r"several images of one key, a: .b.jpg, .c.jpg"),
    (v7_header(b"a.jpg", 0) + v7_header(b"a.json", 0) + END, r"no image in .* has a .cls member .*\.json\)"),
])  # fmt: skip
def test_what_is_no_shard(tmp_path, data, message):
    path = tmp_path / "a.tar"
    path.write_bytes(data)
    with pytest.raises(ValueError, match=message) as error:
        TarSource(path)
    assert "a.tar" in str(error.value)


def test_jpeg_files_by_any_of_their_names(tmp_path, pool):
    files = [("0.jfif", jpeg(0)), ("0.cls", b"1"), ("1.rgb.jpe", jpeg(1)), ("1.cls", b"2")]
    batch = TarSource(write_tar(tmp_path / "a.tar", files)).read([0, 1], pool)
    assert (batch.errors, batch.targets.tolist()) == ([None, None], [1, 2])


def test_without_targets(tmp_path, pool):
    files = [("0.jpg", jpeg(0)), ("0.cls", b"no number"), ("1.jpg", jpeg(1)), ("1.txt", b"words")]
    source = TarSource(write_tar(tmp_path / "a.tar", files), target=None)
    assert source.extensions == ["cls", "txt"]
    assert source.labels.tolist() == [-100, -100]
    batch = source.subset([1]).read([0], pool)
    assert batch.targets.tolist() == [-100]
    assert batch.errors == [None]


def test_paths_that_are_none(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"absent.tar"):
        TarSource(tmp_path / "absent.tar")
    with pytest.raises(FileNotFoundError, match=r"no .tar files in [^.]*$"):
        TarSource(tmp_path)
    (tmp_path / "x.tar.gz").touch()
    with pytest.raises(FileNotFoundError, match=r"no .tar files in .*gunzip"):
        TarSource(tmp_path)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(OSError, match="pipe is a pipe or a device; expected a tar file"):
        TarSource(tmp_path / "pipe")
    with pytest.raises(TypeError, match="shards is 3"):
        TarSource(3)
    with pytest.raises(TypeError, match="shards has a int"):
        TarSource([3])
    with pytest.raises(ValueError, match="shards is empty"):
        TarSource([])
    with pytest.raises(ValueError, match="shards has an empty path"):
        TarSource("")
    with pytest.raises(TypeError, match="target is 3; expected an extension"):
        TarSource(whole_tar(tmp_path), target=3)
    with pytest.raises(TypeError, match="leave it out"):
        TarSource(whole_tar(tmp_path), target="folder", classes=["a"])
