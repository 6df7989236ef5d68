import math
import pickle

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from fastfeed.demo.baseline import IMAGENET_MEAN, IMAGENET_STD, PillowFolder, random_crop_box

SIZES = [(96, 96), (150, 100), (101, 173), (240, 72), (60, 47)]


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


@pytest.fixture
def samples(tmp_path) -> list[tuple[str, int]]:
    """Files with content at every frequency, so that a wrong filter or a wrong window cannot go unseen."""
    rng = np.random.default_rng(0)
    listed = []
    for i, (width, height) in enumerate(SIZES):
        coarse = Image.fromarray(rng.integers(0, 256, (12, 12, 3), dtype=np.uint8)).resize((width, height))
        noise = rng.integers(-20, 21, (height, width, 3))
        pixels = np.clip(np.asarray(coarse) + noise, 0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{i}.jpg", quality=95)
        listed.append((str(tmp_path / f"{i}.jpg"), i))
    return listed


def levels(image: torch.Tensor) -> np.ndarray:
    """Undo the normalisation: [3, S, S] -> [S, S, 3], pixel levels 0..255."""
    mean, std = (torch.tensor(value).view(3, 1, 1) for value in (IMAGENET_MEAN, IMAGENET_STD))
    return ((image * std + mean) * 255).permute(1, 2, 0).numpy()


# -- the crop window


@pytest.mark.parametrize(("width", "height"), [(100, 100), (240, 72), (7, 300), (3, 2), (1, 1), (1, 50)])
@pytest.mark.parametrize(("scale", "ratio"), [((0.08, 1), (3 / 4, 4 / 3)), ((0.9, 1.2), (0.5, 0.6))])
def test_window_lies_inside(width, height, scale, ratio):
    for _ in range(300):
        left, top, right, bottom = random_crop_box(width, height, scale, ratio)
        assert 0 <= left < right <= width
        assert 0 <= top < bottom <= height


def test_windows_are_spread_as_asked():
    scale, ratio = (0.1, 0.4), (1 / 2, 2)  # even the largest and widest fits, so that no try is rejected
    boxes = np.array([random_crop_box(1000, 1000, scale, ratio) for _ in range(4000)])
    left, top, right, bottom = boxes.T
    w, h = right - left, bottom - top

    def assert_uniform(values, low, high):
        assert values.min() >= low - 0.01
        assert values.max() <= high + 0.01
        quartiles = (np.percentile(values, (25, 50, 75)) - low) / (high - low)
        assert quartiles == pytest.approx([0.25, 0.5, 0.75], abs=0.04)  # five standard deviations or more

    assert_uniform(w * h / 1e6, *scale)
    assert_uniform(np.log(w / h), math.log(ratio[0]), math.log(ratio[1]))
    assert_uniform(left / (1000 - w), 0, 1)
    assert_uniform(top / (1000 - h), 0, 1)


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ((100, 90), (0, 0, 100, 90)),  # its own ratio is allowed: all of it
        ((300, 100), (83, 0, 216, 100)),  # too wide: 133 x 100, centred
        ((100, 300), (0, 83, 100, 216)),  # too high: 100 x 133, centred
    ],
)
def test_where_no_window_fits_the_largest_centred_one_is_taken(size, expected):
    assert random_crop_box(*size, (4, 4), (3 / 4, 4 / 3)) == expected


# -- samples


@pytest.mark.parametrize("size", [48, 64])
def test_training_sample_is_the_resized_window(samples, size):
    dataset = PillowFolder(samples, size, flip=0)
    for index, (path, target) in enumerate(samples):
        torch.manual_seed(index)
        image, got = dataset[index]
        assert got == target
        assert image.shape == (3, size, size)
        assert image.dtype == torch.float32
        assert image.is_contiguous()

        torch.manual_seed(index)
        whole = Image.open(path).convert("RGB")
        left, top, right, bottom = random_crop_box(*whole.size, (0.08, 1.0), (3 / 4, 4 / 3))
        window = Image.fromarray(np.asarray(whole)[top:bottom, left:right])
        expected = np.asarray(window.resize((size, size), Image.Resampling.BILINEAR), dtype=np.float32)
        np.testing.assert_allclose(levels(image), expected, atol=1e-3)


def test_flip(samples):
    always, never = PillowFolder(samples, 48, flip=1), PillowFolder(samples, 48, flip=0)
    for index in range(len(samples)):
        torch.manual_seed(index)
        mirrored = always[index][0]
        torch.manual_seed(index)
        assert torch.equal(mirrored, never[index][0].flip(2))


@pytest.mark.parametrize("size", [32, 48, 64, 224])
def test_validation_sample_is_the_centre_at_seven_eighths(samples, size):
    dataset = PillowFolder(samples, size, train=False)
    for index, (path, _) in enumerate(samples):
        whole = Image.open(path).convert("RGB")
        # In one step instead of two: the window's place in the image itself, resized from there.
        short = round(size * 256 / 224)
        resized = [short if side == min(whole.size) else int(short * side / min(whole.size)) for side in whole.size]
        x, y = (side / new for side, new in zip(whole.size, resized, strict=True))
        left, top = (round((side - size) / 2) for side in resized)
        box = (left * x, top * y, (left + size) * x, (top + size) * y)
        expected = np.asarray(whole.resize((size, size), Image.Resampling.BILINEAR, box=box), dtype=np.float32)
        np.testing.assert_allclose(levels(dataset[index][0]), expected, atol=2)


def test_validation_draws_nothing_at_random(samples):
    dataset = PillowFolder(samples, 48, train=False)
    before = torch.get_rng_state()
    assert torch.equal(dataset[1][0], dataset[1][0])
    assert torch.equal(torch.get_rng_state(), before)


def test_mean_and_std_are_per_channel(samples):
    plain = PillowFolder(samples, 48, mean=(0, 0, 0), std=(1, 1, 1), train=False)
    scaled = PillowFolder(samples, 48, mean=(0.1, 0.2, 0.3), std=(0.5, 0.25, 2), train=False)
    image = plain[0][0]
    assert 0 <= image.min() < 0.2
    assert 0.8 < image.max() <= 1
    for channel, (mean, std) in enumerate([(0.1, 0.5), (0.2, 0.25), (0.3, 2)]):
        torch.testing.assert_close(scaled[0][0][channel], (image[channel] - mean) / std)


@pytest.mark.parametrize("mode", ["L", "CMYK", "P", "RGBA"])
def test_every_colour_mode_comes_out_as_rgb(tmp_path, mode):
    path = tmp_path / ("image.jpg" if mode in ("L", "CMYK") else "image.png")
    Image.new("RGB", (80, 80), (204, 204, 204)).convert(mode).save(path)
    image, _ = PillowFolder([(str(path), 0)], 48)[0]
    np.testing.assert_allclose(levels(image), 204, atol=2)


def test_orientation_tag_is_not_obeyed(samples, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    image = Image.open(samples[1][0])
    for name, tags in (("plain.png", Image.Exif()), ("turned.png", exif)):
        image.save(tmp_path / name, exif=tags.tobytes())
    plain, turned = (
        PillowFolder([(str(tmp_path / name), 0)], 48, train=False)[0][0] for name in ("plain.png", "turned.png")
    )
    assert torch.equal(plain, turned)


def test_workers_crop_differently_and_the_seed_brings_it_back(samples):
    dataset = PillowFolder(samples[:1] * 8, 32)

    def epoch():
        torch.manual_seed(3)
        return torch.cat([images for images, _ in DataLoader(dataset, batch_size=2, num_workers=2)])

    images = epoch()
    assert len({image.numpy().tobytes() for image in images}) == len(dataset)
    assert torch.equal(images, epoch())


def test_pickles(samples):
    dataset = PillowFolder(samples, 32, train=False)
    copy = pickle.loads(pickle.dumps(dataset))
    assert len(copy) == len(samples)
    assert torch.equal(copy[2][0], dataset[2][0])
