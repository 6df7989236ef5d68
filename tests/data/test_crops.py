"""Pixels of the crops on the CPU, decoded, resized and padded: those that Pillow makes of the whole image."""

import numpy as np
import pytest
import torch
from PIL import Image

from fastfeed import FolderSource, transforms
from fastfeed._extension import extension
from fastfeed.data.graph import Graph
from fastfeed.data.pipeline import Entry
from fastfeed.data.plan import make_plan
from tests.data.test_resample import PILLOW_CHOOSES_THE_ORDER, resized
from tests.images import picture
from tests.torchvision_ops import torchvision_or_skip

pytestmark = pytest.mark.dali

# Heights and widths: a pixel, a row, a column, the windows' own, smaller than they in one way and in both, very long.
SIZES = [(1, 1), (1, 200), (200, 1), (24, 24), (30, 41), (2, 3), (17, 90), (90, 17), (48, 64), (80, 61), (7, 1500)]


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """Return a folder of PNG and JPEG files, of smooth pictures and of noise, which filters overshoot."""
    root = tmp_path_factory.mktemp("crops")
    (root / "a").mkdir()
    rng = np.random.default_rng(0)
    for i, size in enumerate(SIZES):
        noise = Image.fromarray(rng.integers(0, 256, (*size, 3), dtype=np.uint8))
        noise.save(root / "a" / f"{i:02}.png")
        picture(*size, seed=i).save(root / "a" / f"{i:02}.jpg", quality=90)
    return FolderSource(root)


def crop_all(source, crop, size=None):
    """Return the plan and the pixels of all images."""
    indices = np.arange(len(source))
    transform = transforms.Transform(crop)
    read = source.read(indices, extension().Pool(1))
    plan = make_plan(transform, read.sizes, indices, seed=5, epoch=0, size=size)
    graph = Graph(transform, len(source), torch.device("cpu"), 2, 1)
    graph.submit(Entry(list(read.data), plan, size or transform.size))
    return plan, graph.result().wait().numpy()


def whole_images(source):
    for path, _ in source.samples:
        with Image.open(path) as image:
            yield np.asarray(image)


def resized_size(image, resize):
    """Return what torchvision's Resize makes of an image: height and width."""
    short = min(image.shape[:2])
    return resize if isinstance(resize, tuple) else tuple(int(resize * side / short) for side in image.shape[:2])


@pytest.mark.parametrize("crop", [
    transforms.CenterCrop(24, 28),
    transforms.CenterCrop(24, 24, "bicubic"),
    transforms.CenterCrop((20, 24), 32, "lanczos"),
    transforms.CenterCrop(24, (30, 41)),
    transforms.CenterCrop((24, 30), (24, 30), "bicubic"),
    transforms.RandomCrop(24, resize=28),
    transforms.RandomCrop(24, resize=24),
    transforms.RandomCrop((20, 24), resize=(30, 41), interpolation="bicubic"),
    transforms.RandomCrop(60, resize=90, interpolation="lanczos"),
], ids=str)  # fmt: skip
def test_crops_of_resized_images(source, crop):
    plan, pixels = crop_all(source, crop)
    height, width = transforms.Transform(crop).size
    for i, image in enumerate(whole_images(source)):
        size = resized_size(image, crop.resize)
        filter_ = Image.Resampling[crop.interpolation.upper()]
        top, left = plan.resized[i, :2].tolist()
        if isinstance(crop, transforms.CenterCrop):
            assert (top, left) == (round((size[0] - height) / 2), round((size[1] - width) / 2))
        expected = resized(image, (0, 0, *image.shape[:2]), size, filter_)[top : top + height, left : left + width]
        np.testing.assert_array_equal(pixels[i], expected, f"{image.shape} to {size}")
    if isinstance(crop, transforms.RandomCrop):
        assert len(np.unique(plan.resized[:, :2], axis=0)) > 3


@pytest.mark.parametrize("size", [(24, 24), (30, 41), (61, 40), (1, 1), (100, 7)])
def test_central_windows_of_stored_images(source, size):
    _, pixels = crop_all(source, transforms.CenterCrop(size))
    for got, image in zip(pixels, whole_images(source), strict=True):
        # torchvision's rule: pad what is missing, less before than behind, then round the corner, halves to even.
        missing = [max(wanted - side, 0) for wanted, side in zip(size, image.shape[:2], strict=True)]
        image = np.pad(image, [*((m // 2, m - m // 2) for m in missing), (0, 0)])
        top, left = (round((side - wanted) / 2) for wanted, side in zip(size, image.shape[:2], strict=True))
        np.testing.assert_array_equal(got, image[top : top + size[0], left : left + size[1]])


def test_random_interpolation(source):
    plan, pixels = crop_all(source, transforms.RandomResizedCrop(20, (0.3, 1.0), interpolation="random"))
    different = 0
    for i, image in enumerate(whole_images(source)):
        (top, left), (height, width) = plan.start[i], plan.shape[i]
        window = image[top : top + height, left : left + width]
        bilinear, bicubic = (
            resized(window, (0, 0, height, width), (20, 20), filter_)
            for filter_ in (Image.Resampling.BILINEAR, Image.Resampling.BICUBIC)
        )
        cubic = plan.filter[i] == Image.Resampling.BICUBIC
        np.testing.assert_array_equal(pixels[i], bicubic if cubic else bilinear)
        different += not np.array_equal(bilinear, bicubic)
    assert different > len(source) / 2
    assert len(set(plan.filter.tolist())) == 2


def test_another_size_resizes_in_proportion(source):
    declared, changed = transforms.RandomCrop(20, resize=24), transforms.RandomCrop(30, resize=36)
    (_, expected), (_, got) = crop_all(source, changed), crop_all(source, declared, (30, 30))
    np.testing.assert_array_equal(got, expected)


@pytest.mark.skipif(not PILLOW_CHOOSES_THE_ORDER, reason="the order of the passes is that of Pillow 13")
@pytest.mark.parametrize("crop", [
    transforms.CenterCrop(24, 28),
    transforms.CenterCrop((20, 24), 31, "bicubic"),
    transforms.CenterCrop(24, (30, 41), "lanczos"),
    transforms.CenterCrop((61, 40)),
    transforms.RandomCrop(24, resize=28),
    transforms.RandomCrop((20, 24), resize=(30, 41), interpolation="bicubic"),
    transforms.RandomResizedCrop(20, (0.3, 1.0), interpolation="random"),
], ids=str)  # fmt: skip
def test_pixels_are_torchvisions(source, crop):
    theirs = torchvision_or_skip("torchvision.transforms")
    plan, pixels = crop_all(source, crop)
    size = transforms.Transform(crop).size
    for i, (path, _) in enumerate(source.samples):
        image, mode = Image.open(path), theirs.InterpolationMode(Image.Resampling(int(plan.filter[i])).name.lower())
        if isinstance(crop, transforms.RandomResizedCrop):
            window = (*plan.start[i].tolist(), *plan.shape[i].tolist())
            expected = theirs.functional.resized_crop(image, *window, size, mode)
        elif isinstance(crop, transforms.RandomCrop):
            image = theirs.Resize(crop.resize, mode)(image)
            expected = theirs.functional.crop(image, *plan.resized[i, :2].tolist(), *size)
        else:
            resize = [] if crop.resize is None else [theirs.Resize(crop.resize, mode)]
            expected = theirs.Compose([*resize, theirs.CenterCrop(size)])(image)
        np.testing.assert_array_equal(pixels[i], np.asarray(expected), f"{image.size}")


def test_central_windows_of_all_small_sizes():
    theirs = torchvision_or_skip("torchvision.transforms")
    for height in range(1, 8):
        for width in range(1, 8):
            image = torch.arange(1, 1 + height * width).view(1, height, width)
            for size in [(1, 1), (2, 5), (5, 2), (4, 4), (3, 6), (7, 8)]:
                plan = make_plan(
                    transforms.Transform(transforms.CenterCrop(size)),
                    np.array([[height, width]]), np.zeros(1, np.int64), seed=0, epoch=0,
                )  # fmt: skip
                (top, left), (h, w), place = plan.start[0], plan.shape[0], plan.place[0]
                assert (h, w) == tuple(place[2:])
                got = torch.zeros(size, dtype=torch.int64)
                got[place[0] : place[0] + h, place[1] : place[1] + w] = image[0, top : top + h, left : left + w]
                assert torch.equal(got, theirs.functional.center_crop(image, list(size))[0]), (height, width, size)
