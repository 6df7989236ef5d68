import io
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, JpegImagePlugin

from fastfeed.demo import draw
from fastfeed.demo.draw import CLASSES, MARKER, draw_dataset, draw_jpeg

TRAIN, VAL = 64, 32
ORIENTATION = 0x0112


@pytest.fixture(scope="module")
def drawn(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("demo") / "set"
    draw_dataset(root, train_per_class=TRAIN, val_per_class=VAL)
    return root


@pytest.fixture(scope="module")
def images(drawn) -> list[Image.Image]:
    opened = [Image.open(path) for path in sorted(drawn.glob("*/*/*.jpg"))]
    for image in opened:
        image.load()
    return opened


def contents(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def never(*_):
    raise AssertionError("an image was drawn")


# -- what is in the set


def test_layout(drawn):
    assert {path.name for path in drawn.iterdir()} == {"train", "val", MARKER}
    for split, count in (("train", TRAIN), ("val", VAL)):
        assert sorted(path.name for path in (drawn / split).iterdir()) == list(CLASSES)
        for shape in CLASSES:
            names = sorted(path.name for path in (drawn / split / shape).iterdir())
            assert names == [f"{number:04d}.jpg" for number in range(count)]


def test_files_are_as_mixed_as_promised(images):
    sizes = {image.size for image in images}
    assert len(sizes) > 0.8 * len(images)
    assert min(map(min, sizes)) >= 72
    assert max(map(max, sizes)) <= 240
    aspects = np.array([width / height for width, height in sizes])
    assert aspects.min() < 0.7
    assert aspects.max() > 1.4
    assert 0.4 < (aspects > 1).mean() < 0.6

    def share(condition):
        return np.mean([condition(image) for image in images])

    assert {image.format for image in images} == {"JPEG"}
    assert {image.mode for image in images} == {"RGB", "L"}
    assert 0.06 < share(lambda image: image.mode == "L") < 0.14
    assert 0.10 < share(lambda image: ORIENTATION in image.getexif()) < 0.20
    assert {image.getexif().get(ORIENTATION) for image in images} == {None, *range(1, 9)}
    assert 0.18 < share(lambda image: "progressive" in image.info) < 0.32
    colour = [image for image in images if image.mode == "RGB"]
    assert {JpegImagePlugin.get_sampling(image) for image in colour} == {0, 1, 2}
    assert len({bytes(image.quantization[0]) for image in images}) > 25


def test_greyscale_keeps_the_contrast(images):
    spread = [np.ptp(np.percentile(np.asarray(image), (2, 98))) for image in images if image.mode == "L"]
    assert min(spread) > 40


def mean_colour(rgb):
    return rgb.mean(axis=(0, 1))


def colour_histogram(rgb):
    bins = np.ravel_multi_index(tuple((rgb // 64).astype(int).reshape(-1, 3).T), (4, 4, 4))
    return np.bincount(bins, minlength=64) / len(bins)


def brightness_histogram(rgb):
    # Sorted, so that which of the two colours is brighter does not hide how much of the image each one covers.
    histogram = np.histogram(rgb.mean(axis=2), bins=8, range=(0, 256))[0]
    return np.sort(histogram) / histogram.sum()


def edge_direction(rgb):
    # Which way edges run, not how strongly they agree on it: the latter is a property of the shape.
    dy, dx = np.gradient(rgb.mean(axis=2))
    gradient = dx + 1j * dy
    moments = [np.sum(np.abs(gradient) * np.exp(1j * n * np.angle(gradient))) for n in (2, 4, 6)]
    directions = np.exp(1j * np.angle(moments))
    return np.concatenate([directions.real, directions.imag])


@pytest.mark.parametrize("feature", [mean_colour, colour_histogram, brightness_histogram, edge_direction])
def test_no_cheap_feature_tells_the_classes_apart(drawn, feature):
    def features(split, shape):
        paths = sorted((drawn / split / shape).iterdir())
        return np.array([feature(np.asarray(Image.open(path).convert("RGB"), dtype=float)) for path in paths])

    train = np.array([features("train", shape) for shape in CLASSES])
    scale = train.std(axis=(0, 1)) + 1e-6
    means = train.mean(axis=1) / scale
    right = 0
    for target, shape in enumerate(CLASSES):
        distance = np.linalg.norm(features("val", shape)[:, None] / scale - means, axis=2)
        right += int((distance.argmin(axis=1) == target).sum())
    accuracy = right / (len(CLASSES) * VAL)
    print(f"{feature.__name__}: {accuracy:.1%}")
    assert accuracy < 0.22  # chance is 0.125, with a standard deviation of 0.021 over these 256 images


# -- the same arguments, the same bytes


def test_drawn_twice_is_equal_byte_for_byte(tmp_path):
    for name in ("a", "b"):
        draw_dataset(tmp_path / name, train_per_class=3, val_per_class=2, seed=7)
    assert contents(tmp_path / "a") == contents(tmp_path / "b")
    assert len(contents(tmp_path / "a")) == len(CLASSES) * 5 + 1


def test_any_file_can_be_drawn_alone(drawn):
    for split, shape, number in (("train", "ring", 0), ("train", "star", TRAIN - 1), ("val", "cross", 5)):
        alone = draw_jpeg(0, split, shape, number)
        assert alone == (drawn / split / shape / f"{number:04d}.jpg").read_bytes()


def test_seed_split_class_and_number_each_change_the_image():
    keys = [(0, "train", "disc", 0), (1, "train", "disc", 0), (0, "val", "disc", 0)]
    keys += [(0, "train", "disc", 1), (0, "train", "star", 0)]
    pixels = [Image.open(io.BytesIO(draw_jpeg(*key))).convert("RGB").tobytes() for key in keys]
    assert len(set(pixels)) == len(keys)


# -- what is already in the place


def test_complete_set_is_reused(tmp_path, monkeypatch):
    draw_dataset(tmp_path / "set", train_per_class=1, val_per_class=1)
    monkeypatch.setattr(draw, "draw_jpeg", never)
    draw_dataset(tmp_path / "set", train_per_class=1, val_per_class=1)


def test_empty_folder_and_missing_parents_are_no_obstacle(tmp_path):
    (tmp_path / "empty").mkdir()
    for root in (tmp_path / "empty", tmp_path / "not" / "yet" / "there"):
        draw_dataset(root, train_per_class=1, val_per_class=1)
        assert len(contents(root)) == 2 * len(CLASSES) + 1


@pytest.mark.parametrize("marker", [None, "", "not json", "[]", '{"format": 0}'])
def test_foreign_folder_is_refused_and_left_alone(tmp_path, monkeypatch, marker):
    monkeypatch.setattr(draw, "draw_jpeg", never)
    root = tmp_path / "photos"
    root.mkdir()
    (root / "holiday.jpg").write_bytes(b"mine")
    if marker is not None:
        (root / MARKER).write_text(marker)
    before = contents(tmp_path)
    with pytest.raises(FileExistsError, match=r"photos .*name a folder that does not exist yet"):
        draw_dataset(root, train_per_class=1, val_per_class=1)
    assert contents(tmp_path) == before


def test_file_in_the_place_is_refused(tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(FileExistsError, match="file is not a set drawn by fastfeed"):
        draw_dataset(tmp_path / "file", train_per_class=1, val_per_class=1)
    assert (tmp_path / "file").read_text() == "mine"


def test_other_parameters_or_missing_files_are_refused(tmp_path):
    root = tmp_path / "set"
    draw_dataset(root, train_per_class=1, val_per_class=1)
    with pytest.raises(FileExistsError, match="other parameters"):
        draw_dataset(root, train_per_class=1, val_per_class=1, seed=1)
    (root / "val" / "disc" / "0000.jpg").unlink()
    with pytest.raises(FileExistsError, match="files missing"):
        draw_dataset(root, train_per_class=1, val_per_class=1)
    assert json.loads((root / MARKER).read_text())["seed"] == 0


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError])
def test_interrupted_drawing_leaves_nothing(tmp_path, monkeypatch, error):
    calls = []

    def interrupted(*key):
        calls.append(key)
        if len(calls) == 5:
            raise error
        return draw_jpeg(*key)

    monkeypatch.setattr(draw, "draw_jpeg", interrupted)
    with pytest.raises(error):
        draw_dataset(tmp_path / "set", train_per_class=2, val_per_class=1)
    assert len(calls) == 5
    assert list(tmp_path.iterdir()) == []


def test_two_processes_may_draw_the_same_set(tmp_path, monkeypatch):
    root = tmp_path / "set"

    def overtaken(*key):
        monkeypatch.undo()
        draw_dataset(root, train_per_class=1, val_per_class=1)
        return draw_jpeg(*key)

    monkeypatch.setattr(draw, "draw_jpeg", overtaken)
    draw_dataset(root, train_per_class=1, val_per_class=1)
    assert [path.name for path in tmp_path.iterdir()] == ["set"]
    assert len(contents(root)) == 2 * len(CLASSES) + 1
