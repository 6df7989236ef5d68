import io
import tarfile

import numpy as np
import pytest
import torch
from PIL import Image, ImageFont

import fastfeed.preview
from fastfeed import DataLoader, Mix, transforms
from fastfeed.cli import main
from fastfeed.data.sources import ListSource
from fastfeed.preview import contact_sheet, find_labelled_images
from tests.images import picture, write_folder

pytestmark = pytest.mark.dali

SIZE, LINE, GAP = 96, 16, 6


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_folder(tmp_path_factory.mktemp("preview") / "data", {"cat": 4, "dog": 3, "owl": 2})


@pytest.fixture
def labels(monkeypatch):
    """What is written below the images."""
    drawn = []
    draw = fastfeed.preview._draw
    monkeypatch.setattr(
        fastfeed.preview,
        "_draw",
        lambda pictures, lines, columns: drawn.extend(lines) or draw(pictures, lines, columns),
    )
    return drawn


def loader(source, batch_size=4, **options):
    return DataLoader(source, batch_size, **{"transform": transforms.eval(SIZE), "device": "cpu", **options})


def cell(sheet, number, columns, size=SIZE, lines=1):
    """Return an image of the sheet, and the pixels of its label."""
    x = GAP + number % columns * (size + GAP)
    y = GAP + number // columns * (size + lines * LINE + GAP)
    levels = np.asarray(sheet)
    return levels[y : y + size, x : x + size], levels[y + size : y + size + lines * LINE, x : x + size]


def test_images_as_the_network_gets_them(folder, labels):
    data = loader(folder)
    sheet = contact_sheet(data, count=7, columns=3)
    assert sheet.mode == "RGB"
    assert sheet.size == (3 * (SIZE + GAP) + GAP, 3 * (SIZE + LINE + GAP) + GAP)
    assert labels == [["cat"]] * 4 + [["dog"]] * 3
    levels = loader(folder, transform=transforms.eval(SIZE, mean=(0, 0, 0), std=(1 / 255,) * 3))
    expected = np.concatenate([images.round().byte().permute(0, 2, 3, 1).numpy() for images, _ in levels])
    for i in range(7):
        pixels, label = cell(sheet, i, 3)
        assert np.array_equal(pixels, expected[i])
        assert (label < 128).any()
    empty, _ = cell(sheet, 7, 3)
    assert (empty == 250).all()


def test_small_images_are_enlarged(folder):
    sheet = contact_sheet(loader(folder, transform=transforms.eval(32)), count=1)
    assert sheet.size == (96 + 2 * GAP, 96 + LINE + 2 * GAP)
    pixels, _ = cell(sheet, 0, 1)
    assert np.array_equal(pixels, pixels[::3, ::3].repeat(3, axis=0).repeat(3, axis=1))


@pytest.mark.parametrize(("count", "shown"), [(1, 1), (4, 4), (9, 9), (100, 9)])
def test_count(folder, labels, count, shown):
    contact_sheet(loader(folder), count=count)
    assert len(labels) == shown


def test_what_is_erased_has_the_colour_of_the_mean(folder):
    transform = transforms.train(SIZE, erase=transforms.RandomErasing(1.0, scale=(0.2, 0.3)))
    sheet = contact_sheet(loader(folder, transform=transform), count=9, columns=9)
    mean = np.rint(np.array(transform.mean) * 255)
    for i in range(9):
        pixels, _ = cell(sheet, i, 9)
        assert 0.15 < (pixels == mean).all(axis=2).mean() < 0.35


def test_mixed_images_have_two_labels_with_their_weights(folder, labels):
    data = loader(folder, 9, mix=Mix(mixup=1.0), seed=3)
    sheet = contact_sheet(data, count=9, columns=9)
    data.epoch = 0
    ((images, target),) = data
    names = data.dataset.classes
    for i, lines in enumerate(labels):
        a, b, lam = names[target.a[i]], names[target.b[i]], target.lam[i]
        assert lines == ([a] if a == b else [f"{lam:.2f} {a}", f"{1 - lam:.2f} {b}"])
    assert {len(lines) for lines in labels} == {1, 2}
    assert sheet.height == SIZE + 2 * LINE + 2 * GAP
    pixels, _ = cell(sheet, 0, 9, lines=2)
    mean, std = (np.array(values).reshape(3, 1, 1) for values in (data.transform.mean, data.transform.std))
    expected = (images[0].numpy() * std + mean) * 255
    assert np.abs(pixels - expected.transpose(1, 2, 0)).max() <= 0.51


@pytest.mark.parametrize(("targets", "expected"), [
    ([7, -100], [["7"], ["-100"]]),
    ([[0, 1], [1, 1]], [["[0, 1]"], ["[1, 1]"]]),
    (["a  b", "c\nd"], [["a b"], ["c d"]]),
    ([{"name": "a"}, {"name": "b"}], [[""], [""]]),
])  # fmt: skip
def test_targets_that_are_no_classes(tmp_path, labels, targets, expected):
    write_folder(tmp_path / "data", {"a": 2})
    paths = sorted((tmp_path / "data" / "a").iterdir())
    targets = np.array(targets) if isinstance(targets[0], list) else targets
    contact_sheet(loader(ListSource(paths, targets)))
    assert labels == expected


def test_a_sample_without_class_among_others_with(tmp_path, labels):
    write_folder(tmp_path / "data", {"a": 2})
    paths = sorted((tmp_path / "data" / "a").iterdir())
    contact_sheet(loader(ListSource(paths, [1, -100], classes=["a", "b"])))
    assert labels == [["b"], ["-100"]]


def test_long_names_are_cut(folder):
    font = ImageFont.load_default(13)
    text = "a very long name of a class that does not fit"
    cut = fastfeed.preview._cut(text, SIZE, font)
    assert cut.endswith("…")
    assert text.startswith(cut[:-1])
    assert font.getlength(cut) <= SIZE < font.getlength(f"{text[: len(cut)]}…")
    assert fastfeed.preview._cut("cat", SIZE, font) == "cat"
    # Nor do the cells beside it get any of it.
    long = write_folder(folder.parent / "long", {text: 1, "b": 1})
    sheet = contact_sheet(loader(long), count=2, columns=2)
    x = GAP + SIZE
    assert (np.asarray(sheet)[GAP + SIZE :, x : x + GAP] == 250).all()


def test_views_of_a_sample(folder, labels):
    tta = transforms.TTA(crops=5, horizontal_flip=True)
    sheet = contact_sheet(loader(folder, tta=tta, shuffle=False), count=13, columns=10)
    assert labels[:11] == [*([f"{view}: cat"] for view in range(10)), ["0: cat"]]
    assert len(labels) == 13
    plain = contact_sheet(loader(folder), count=2, columns=2)
    centre, _ = cell(plain, 0, 2)
    assert np.array_equal(cell(sheet, 4, 10)[0], centre)  # the fifth
    assert np.array_equal(cell(sheet, 9, 10)[0][:, ::-1], centre)


def test_batches_of_workers_are_refused():
    images = torch.utils.data.TensorDataset(torch.zeros(4, 3, 8, 8), torch.zeros(4, dtype=torch.int64))
    with pytest.raises(ValueError, match="made by PyTorch's workers; expected images that DALI decodes"):
        contact_sheet(DataLoader(images, 2, device="cpu"))


def test_samples_are_refused(folder):
    with pytest.raises(ValueError, match="batch_size is None, and it gives samples; expected one that gives batches"):
        contact_sheet(loader(folder, batch_size=None))
    batches = DataLoader(folder, batch_sampler=[[0, 1], [2]], transform=transforms.eval(SIZE), device="cpu")
    sheet = contact_sheet(batches, count=2)  # whose batch_size is None too
    assert np.array_equal(np.asarray(sheet), np.asarray(contact_sheet(loader(folder), count=2)))


def test_a_loader_without_images(tmp_path):
    root = write_folder(tmp_path / "data", {"a": 3})
    for path in (root / "a").iterdir():
        path.write_bytes(b"")
    with pytest.raises(ValueError, match="the loader gives no images: `loader.errors` lists those that are bad"):
        contact_sheet(loader(root, on_error="drop"))


@pytest.mark.parametrize(("options", "message"), [({"count": 0}, "count is 0"), ({"columns": -1}, "columns is -1")])
def test_bad_arguments(folder, options, message):
    with pytest.raises(ValueError, match=message):
        contact_sheet(loader(folder), **options)


def jpeg(seed):
    file = io.BytesIO()
    picture(40, 40, seed=seed).save(file, "JPEG")
    return file.getvalue()


@pytest.mark.parametrize(("others", "classes", "labels"), [
    ({}, ["cat", "dog"], [0, 1]),
    ({"cat/0.json": b"{}"}, ["cat", "dog"], [0, 1]),
    ({"cat/0.cls": b"3", "dog/1.cls": b"5"}, None, [3, 5]),
])  # fmt: skip
def test_classes_of_shards(tmp_path, others, classes, labels):
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for name, data in {"cat/0.jpg": jpeg(0), "dog/1.jpg": jpeg(1), **others}.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    for path in (tmp_path / "a.tar", tmp_path):
        source = find_labelled_images(path)
        assert (source.classes, source.labels.tolist()) == (classes, labels)
    assert main(["preview", str(tmp_path / "a.tar"), "-o", str(tmp_path / "sheet.png")]) == 0


@pytest.mark.parametrize("options", [
    [],
    ["--eval"],
    ["--auto-augment", "trivial", "--erase", "0.5"],
    ["--auto-augment", "rand", "--mixup", "0.2", "--cutmix", "1"],
    ["--auto-augment", "auto", "--seed", "3"],
])  # fmt: skip
def test_command(folder, tmp_path, capsys, options):
    sheets = []
    for name in ("a.png", "b.png"):
        output = tmp_path / name
        arguments = ["--count", "6", "--columns", "3", "--size", "64", *options]
        assert main(["preview", str(folder), "-o", str(output), *arguments]) == 0
        with Image.open(output) as sheet:
            sheets.append(np.asarray(sheet))
        height, width, _ = sheets[-1].shape
        assert capsys.readouterr().out == f"wrote {output}: {width} x {height} pixels\n"
    assert np.array_equal(*sheets)


def test_options_change_the_sheet(folder, tmp_path):
    def sheet(*options):
        assert main(["preview", str(folder), "-o", str(tmp_path / "sheet.png"), "--size", "64", *options]) == 0
        return (tmp_path / "sheet.png").read_bytes()

    every = [["--eval"], ["--seed", "1"], ["--erase", "1"], ["--mixup", "1"], ["--cutmix", "1"]]
    every += [["--auto-augment", name] for name in ("trivial", "rand", "auto")]
    assert len({sheet(), *(sheet(*options) for options in every)}) == 1 + len(every)


def test_the_default_file(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["preview", str(folder), "--size", "32"]) == 0
    with Image.open("sheet.png") as sheet:
        assert sheet.size == (8 * (96 + GAP) + GAP, 2 * (96 + LINE + GAP) + GAP)


def test_bad_files_are_named_and_left_out(tmp_path, labels, caplog):
    root = write_folder(tmp_path / "data", {"a": 2, "b": 2})
    (root / "a" / "001.jpg").write_bytes(b"")
    assert main(["preview", str(root), "-o", str(tmp_path / "sheet.png"), "--size", "32"]) == 0
    assert sorted(labels) == [["a"], ["b"], ["b"]]
    assert [record.getMessage() for record in caplog.records] == [
        f"dropping sample 1, {root / 'a' / '001.jpg'}: an empty file"
    ]


@pytest.mark.parametrize(("arguments", "message"), [
    (["{absent}"], "no such file or folder: {absent}"),
    (["{empty}"], "no class folders in {empty}"),
    (["{image}"], "{image} is not a tar file; expected a folder or a tar shard"),
    (["{folder}", "--count", "0"], "count is 0"),
    (["{folder}", "--columns", "0"], "columns is 0"),
    (["{folder}", "--size", "0"], "size is 0"),
    (["{folder}", "--erase", "2"], "Transform: erase is 2.0"),
    (["{folder}", "--mixup", "-1"], "Mix: mixup is -1.0"),
    (["{folder}", "--eval", "--erase", "0.1"], "--eval goes with no --auto-augment, --erase"),
    (["{folder}", "-o", "sheet.abc"], "unknown file extension: .abc"),
])  # fmt: skip
def test_errors_are_one_line(folder, tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    names = {"absent": tmp_path / "absent", "empty": tmp_path / "empty", "folder": folder, "image": tmp_path / "a.jpg"}
    picture(8, 8).save(names["image"])
    names["empty"].mkdir()
    assert main(["preview", *(a.format(**names) for a in arguments)]) == 2
    out, err = capsys.readouterr()
    assert (out, len(err.splitlines())) == ("", 1)
    assert err.startswith(f"fastfeed preview: {message.format(**names)}")
