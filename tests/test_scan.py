import csv
import io
import os
import subprocess
import sys
import tarfile

import pytest

from fastfeed.cli import main
from fastfeed.data.sources import ListSource
from fastfeed.scan import find_images, scan
from tests.images import picture, write_folder

pytestmark = pytest.mark.dali

CUT = "a JPEG file without its end: cut short"
BROKEN = "the file is truncated or corrupt ({} bytes)"


def without_tables(path):
    path.write_bytes(path.read_bytes().replace(b"\xff\xdb", b"\xff\xfe"))
    return BROKEN.format(path.stat().st_size)


def write_tar(path, files):
    with tarfile.open(path, "w") as tar:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


@pytest.fixture
def bad_folder(tmp_path):
    """A nested folder of 46 images, some of them bad, and those with their reasons."""
    root = write_folder(tmp_path / "data", {"cat": 20, "dog": 15, "owl/grey": 10})
    (root / "cat" / "004.jpg").write_bytes(b"")
    (root / "dog" / "000.jpg").write_bytes((root / "dog" / "000.jpg").read_bytes()[:-1])
    (root / "owl" / "grey" / "009.jpg").unlink()
    (root / "owl" / "grey" / "009.jpg").symlink_to("absent")
    os.mkfifo(root / "dog" / "pipe.png")
    bad = {
        root / "cat" / "004.jpg": "an empty file",
        root / "cat" / "019.jpg": without_tables(root / "cat" / "019.jpg"),
        root / "dog" / "000.jpg": CUT,
        root / "dog" / "pipe.png": "a pipe or a device, not a file",
        root / "owl" / "grey" / "009.jpg": "No such file or directory",
    }
    return root, {str(path): reason for path, reason in bad.items()}


@pytest.mark.parametrize("workers", [0, 1, 3])
@pytest.mark.parametrize("count", [1, 16, 17, 45])
def test_every_sample_in_order(bad_folder, count, workers):
    root, bad = bad_folder
    source = find_images(root).subset(range(count))
    names = [source.name(i) for i in range(count)]
    assert list(scan(source, workers=workers)) == [(name, bad.get(name)) for name in names]


def test_all_bad(tmp_path):
    root = write_folder(tmp_path / "data", {"a": 40})
    bad = {str(path): without_tables(path) for path in sorted((root / "a").iterdir())}
    assert dict(scan(find_images(root))) == bad


def test_damage_is_found_wherever_it_lies(tmp_path):
    # PNG has checksums, so that any changed byte shows.
    picture(200, 200).save(tmp_path / "a.png")
    data = (tmp_path / "a.png").read_bytes()
    paths = []
    for share in (0.05, 0.5, 0.98):
        paths.append(tmp_path / f"{share}.png")
        at = int(share * len(data))
        paths[-1].write_bytes(data[:at] + bytes([data[at] ^ 0xFF]) + data[at + 1 :])
    found = dict(scan(ListSource([tmp_path / "a.png", *paths], [0] * 4)))
    assert found.pop(str(tmp_path / "a.png")) is None
    assert found == {str(path): BROKEN.format(len(data)) for path in paths}


def test_max_pixels(tmp_path):
    root = write_folder(tmp_path / "data", {"a": 2}, sizes=((30, 40), (31, 40)))
    source = find_images(root)
    assert [problem for _, problem in scan(source, max_pixels=1240)] == [None, None]
    assert [problem for _, problem in scan(source, max_pixels=1239)] == [
        None,
        "its header says 31 x 40 pixels, and max_pixels is 1239",
    ]
    with pytest.raises(ValueError, match="max_pixels is 0"):
        next(scan(source, max_pixels=0))
    with pytest.raises(ValueError, match="workers is -1"):
        next(scan(source, workers=-1))


def test_what_is_found_in_folders(tmp_path):
    for name in ("b.jpg", "a.PNG", "z/2.webp", "z/y/1.bmp", "c/3.jpeg", ".hidden.jpg", ".trash/4.jpg", "notes.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "folder.jpg").mkdir()
    (tmp_path / "folder.jpg" / "5.jpg").touch()
    (tmp_path / "z" / "loop").symlink_to(tmp_path)
    source = find_images(tmp_path)
    found = [os.path.relpath(source.name(i), tmp_path) for i in range(len(source))]
    assert found == ["a.PNG", "b.jpg", "c/3.jpeg", "folder.jpg/5.jpg", "z/2.webp", "z/y/1.bmp"]


@pytest.mark.parametrize(("name", "problem"), [
    ("a.JPG", None), ("a.jfif", None), ("a.gif", "a GIF file; expected JPEG, PNG, BMP or WebP"),
    ("a.png", "an empty file"),
])  # fmt: skip
def test_one_image(tmp_path, capsys, name, problem):
    path = tmp_path / name
    if problem != "an empty file":
        picture(8, 9).save(path, format="GIF" if name.endswith("gif") else "JPEG")
    else:
        path.touch()
    assert main(["scan", str(path)]) == (problem is not None)
    lines = [f"{path}: {problem}"] if problem else []
    assert capsys.readouterr().out.splitlines() == [*lines, f"1 images, {len(lines)} bad"]


def test_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    write_folder(tmp_path / "data", {"a": 1})
    assert find_images("~/data").paths == [str(tmp_path / "data" / "a" / "000.jpg")]


@pytest.mark.parametrize("where", ["a.tar", "", "{a,b}.tar", "*.tar"])
def test_tar_shards(tmp_path, where, capsys):
    root = write_folder(tmp_path / "data", {"cat": 3})
    good, *_ = (path.read_bytes() for path in sorted((root / "cat").iterdir()))
    shards = tmp_path / "shards"
    shards.mkdir()
    # Some samples have targets, and some not: the scan is of images.
    write_tar(shards / "a.tar", {"cat/0.jpg": good, "cat/1.jpg": good[:-1], "cat/1.cls": b"1", "2.jpg": b"GIF89a"})
    if where != "a.tar":
        write_tar(shards / "b.tar", {"3.jpg": b""})
    assert main(["scan", str(shards / where)]) == 1
    bad = [f"{shards / 'a.tar'}: cat/1.jpg: {CUT}", f"{shards / 'a.tar'}: 2.jpg: a GIF file; expected"]
    if where != "a.tar":
        bad.append(f"{shards / 'b.tar'}: 3.jpg: an empty file")
    *lines, last = capsys.readouterr().out.splitlines()
    assert len(lines) == len(bad)
    assert all(line.startswith(start) for line, start in zip(lines, bad, strict=True))
    assert last == f"{3 if where == 'a.tar' else 4} images, {len(bad)} bad"


def test_command(bad_folder, tmp_path, capsys):
    root, bad = bad_folder
    assert main(["scan", str(root), "-o", str(tmp_path / "bad.tsv"), "--workers", "2"]) == 1
    out, err = capsys.readouterr()
    assert out.splitlines() == [*(f"{path}: {reason}" for path, reason in bad.items()), "46 images, 5 bad"]
    assert err == ""  # no bar where there is no terminal, and no log lines
    assert (tmp_path / "bad.tsv").read_text() == "".join(f"{path}\t{reason}\n" for path, reason in bad.items())


def test_images_that_are_not_read_are_one_line(tmp_path, capsys):
    root = write_folder(tmp_path / "data", {"a": 2})
    for name in ("x.tif", "a/y.gif", "a/z.tif"):
        (root / name).touch()
    assert main(["scan", str(root)]) == 0
    out, err = capsys.readouterr()
    assert out == "2 images, 0 bad\n"
    assert err == (
        f"fastfeed scan: images in {root} are passed over, for only JPEG, PNG, BMP and WebP are read: "
        "1 .gif, 2 .tif. Convert them, to PNG say, or remove them\n"
    )


def test_command_without_bad_files(tmp_path, capsys):
    root = write_folder(tmp_path / "data", {"a": 2})
    (tmp_path / "bad.tsv").write_text("of an earlier scan")
    assert main(["scan", str(root), "-o", str(tmp_path / "bad.tsv")]) == 0
    assert capsys.readouterr().out == "2 images, 0 bad\n"
    assert (tmp_path / "bad.tsv").read_text() == ""
    assert main(["scan", str(root), "--max-pixels", "100"]) == 1


def test_names_of_any_kind(tmp_path, capsys):
    root = tmp_path / "data"
    root.mkdir()
    names = ["a\tb.jpg", 'quote".jpg', "é.jpg", os.fsdecode(b"\xe9.jpg")]
    for name in names:
        (root / name).touch()
    assert main(["scan", str(root), "-o", str(tmp_path / "bad.tsv")]) == 1
    with open(tmp_path / "bad.tsv", encoding="utf-8", errors="surrogateescape", newline="") as file:
        rows = list(csv.reader(file, dialect="excel-tab"))
    assert sorted(rows) == sorted([str(root / name), "an empty file"] for name in names)
    assert r"\udce9.jpg: an empty file" in capsys.readouterr().out


def test_the_bar_is_on_stderr(bad_folder, monkeypatch, capsys):
    root, _ = bad_folder

    class Terminal(io.StringIO):
        def isatty(self):
            return True

    screen = Terminal()
    monkeypatch.setattr(sys, "stderr", screen)
    assert main(["scan", str(root)]) == 1
    assert "| 46/46 [" in screen.getvalue()
    assert "46/46" not in capsys.readouterr().out


@pytest.mark.parametrize(("arguments", "message"), [
    (["{absent}"], "fastfeed scan: no such file or folder: {absent}"),
    (["{empty}"], "fastfeed scan: no images in {empty}. Expected files that end in .jpg"),
    (["{text}"], "fastfeed scan: {text} is not a tar file; expected a folder or a tar shard"),
    (["{absent}.jpg"], "fastfeed scan: no such file or folder: {absent}.jpg"),
    (["{folder}", "--workers", "-1"], "fastfeed scan: workers is -1"),
    (["{folder}", "--max-pixels", "0"], "fastfeed scan: max_pixels is 0"),
    (["{folder}", "-o", "{absent}/bad.tsv"], "fastfeed scan: [Errno 2] No such file or directory: '{absent}/bad.tsv'"),
])  # fmt: skip
def test_errors_are_one_line(tmp_path, capsys, arguments, message):
    names = {name: tmp_path / name for name in ("absent", "empty", "text", "folder")}
    names["empty"].mkdir()
    names["text"].write_text("nothing")
    write_folder(names["folder"], {"a": 1})
    assert main(["scan", *(a.format(**names) for a in arguments)]) == 2
    out, err = capsys.readouterr()
    assert (out, len(err.splitlines())) == ("", 1)
    assert err.startswith(message.format(**names))


def test_usage():
    with pytest.raises(SystemExit) as stopped:
        main(["scan"])
    assert stopped.value.code == 2


def test_interrupted(bad_folder):
    # In a process of its own, that interrupts itself after the first bad file.
    root, _ = bad_folder
    script = f"""
import signal, sys
import fastfeed.cli
from tqdm import tqdm
write = tqdm.write
tqdm.write = lambda text: (write(text), signal.raise_signal(signal.SIGINT))
sys.exit(fastfeed.cli.main(["scan", {str(root)!r}, "-o", {str(root / "bad.tsv")!r}]))
"""
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert result.returncode == 130
    assert result.stderr.splitlines()[-1] == "fastfeed scan: interrupted"
    assert "Traceback" not in result.stderr
    assert (root / "bad.tsv").read_text().splitlines() == [f"{root / 'cat' / '004.jpg'}\tan empty file"]
