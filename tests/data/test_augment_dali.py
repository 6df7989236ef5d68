"""The operations as DALI operators against those in C++, which are Pillow's."""

import numpy as np
import pytest
import torch

from fastfeed.data.augment import Operations, draw_operations
from fastfeed.data.augment_dali import apply_operations, pack, possible_kinds
from fastfeed.data.policies import Kind
from fastfeed.data.steps import (
    AutoAugment,
    ColorJitter,
    GaussianBlur,
    RandAugment,
    RandomAdjustSharpness,
    RandomApply,
    RandomAutocontrast,
    RandomEqualize,
    RandomGrayscale,
    RandomHorizontalFlip,
    RandomInvert,
    RandomPosterize,
    RandomSolarize,
    TrivialAugmentWide,
)
from tests.data.test_augment_pixels import make_images, run

pytestmark = pytest.mark.dali

DEVICES = ["cpu", pytest.param("gpu", marks=pytest.mark.gpu)]
FACTORS = (0, 0.1, 0.5, 0.77, 1, 1.3, 1.99, 5)
SHEARS = (*np.linspace(-0.99, 0.99, 15), 0.333)
SHIFTS = (0, 0.99, 1, 2.5, -1, -1.7, 31.9, -32, 100)
MAGNITUDES = {
    Kind.BRIGHTNESS: FACTORS,
    Kind.CONTRAST: FACTORS,
    Kind.SATURATION: FACTORS,
    Kind.SHARPNESS: FACTORS,
    Kind.HUE: (-0.5, -0.3, -0.1, -0.003, 0, 0.001, 0.07, 0.2, 0.31, 0.44, 0.5),
    Kind.POSTERIZE: (1, 2, 3, 4.9, 5, 6, 7, 8),
    Kind.SOLARIZE: (0, 0.5, 100, 127.5, 128, 255, 256),
    Kind.SHEAR_X: SHEARS,
    Kind.SHEAR_Y: SHEARS,
    Kind.TRANSLATE_X: SHIFTS,
    Kind.TRANSLATE_Y: SHIFTS,
    Kind.ROTATE: (*np.linspace(-135, 135, 13), 4.5, 180, 171.3),
}
# The share of an image's pixels that may differ, where DALI's coordinates are not exact.
DIFFERENT = {Kind.ROTATE: 2e-4}
EXACT = [kind for kind in Kind if kind not in (Kind.NOTHING, Kind.EQUALIZE, Kind.GAUSSIAN_BLUR, *DIFFERENT)]


def dali_run(images, operations, possible, device="cpu"):
    dali = pytest.importorskip("nvidia.dali")
    fn, types = pytest.importorskip("nvidia.dali.fn"), pytest.importorskip("nvidia.dali.types")

    @dali.pipeline_def(
        batch_size=len(images),
        num_threads=2,
        device_id=0 if device == "gpu" else None,
        enable_conditionals=True,
        prefetch_queue_depth=1,
    )
    def define():
        source = fn.external_source(name="images", ndim=3, dtype=types.UINT8, layout="HWC")
        packed = fn.external_source(name="operations", ndim=2, dtype=types.FLOAT)
        return apply_operations(
            source.gpu() if device == "gpu" else source,
            packed,
            possible,
            operations.fill,
            bilinear=operations.bilinear,
        )

    pipeline = define()
    pipeline.build()
    pipeline.feed_input("images", list(images))
    pipeline.feed_input("operations", pack(operations))
    (output,) = pipeline.run()
    return (output.as_cpu() if device == "gpu" else output).as_array()


def both(kind, size, fill, device, bilinear=False):
    """Return what DALI and C++ make of images by one kind: [images * magnitudes, H, W, 3] each."""
    magnitudes = MAGNITUDES.get(kind, (0,))
    images = make_images(*size)
    repeated = np.repeat(images, len(magnitudes), axis=0)
    column = np.tile(np.array(magnitudes, np.float32), len(images))[:, None]
    operations = Operations(np.full(column.shape, kind, np.uint8), column, fill, bilinear=bilinear)
    return (
        dali_run(repeated, operations, [{kind}], device),
        run(repeated, operations.kind, operations.magnitude, fill, bilinear=bilinear),
    )


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("size", [(48, 64), (33, 21), (3, 3)])
@pytest.mark.parametrize("kind", EXACT)
def test_exact_operations(kind, size, device):
    got, expected = both(kind, size, (10, 200, 33), device)
    # On a GPU products and sums are fused, which rounds once where Pillow rounds twice.
    assert np.abs(got.astype(int) - expected).max() <= (1 if device == "gpu" else 0)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("fill", [(0, 0, 0), (10, 200, 33)])
@pytest.mark.parametrize("size", [(48, 64), (33, 21), (224, 224)])
def test_rotate(size, fill, device):
    got, expected = both(Kind.ROTATE, size, fill, device)
    share = (got != expected).any(axis=-1).mean(axis=(1, 2))
    assert share.max() <= max(DIFFERENT[Kind.ROTATE], 1.5 / (size[0] * size[1]))  # one pixel of a small image


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("fill", [(0, 0, 0), (10, 200, 33)])
@pytest.mark.parametrize("size", [(48, 64), (33, 21), (1, 1), (224, 224)])
@pytest.mark.parametrize("kind", [Kind.SHEAR_X, Kind.SHEAR_Y, Kind.ROTATE])
def test_bilinear_geometry(kind, size, fill, device):
    got, expected = both(kind, size, fill, device, bilinear=True)
    difference = np.abs(got.astype(int) - expected)
    # At the edge a pixel of a large image may be inside for the one and outside for the other.
    assert (difference > 1).any(axis=-1).sum(axis=(1, 2)).max() <= (1 if max(size) > 100 else 0)
    assert (difference > 0).mean() < 0.01
    # Noise of all levels is cut off to another one where a coordinate's last bits are other ones.
    assert (difference > 0).mean(axis=(1, 2, 3)).max() < 0.05
    assert abs((got.astype(int) - expected).mean()) < 0.002


@pytest.mark.parametrize("device", DEVICES)
def test_bilinear_translations(device):
    for kind in (Kind.TRANSLATE_X, Kind.TRANSLATE_Y):
        got, expected = both(kind, (33, 21), (10, 200, 33), device, bilinear=True)
        assert np.array_equal(got, expected)


@pytest.mark.parametrize("device", DEVICES)
def test_equalize(device):
    # OpenCV's rule, in full: DALI has no other. On noise of all levels it is close to Pillow's.
    images = make_images(200, 200)
    operations = Operations(np.full((6, 1), Kind.EQUALIZE, np.uint8), np.zeros((6, 1), np.float32))
    got = dali_run(images, operations, [{Kind.EQUALIZE}], device)
    for image, result in zip(images, got, strict=True):
        for channel in range(3):
            levels, counts = np.unique(image[..., channel], return_counts=True)
            table = np.arange(256)
            if len(levels) > 1:
                table[levels] = np.rint((counts.cumsum() - counts[0]) * 255.0 / (counts.sum() - counts[0]))
            assert np.abs(result[..., channel] - table[image[..., channel]]).max() <= 1
    assert np.abs(got[0].astype(int) - run(images, [Kind.EQUALIZE] * 6, [0] * 6)[0]).max() <= 4


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("size", [(48, 64), (33, 21), (2, 9), (1, 1)])
def test_gaussian_blur(size, device):
    # Of every image one batch holds each kernel and each sigma.
    sizes = [(h, w) for h, w in ((1, 1), (3, 3), (1, 7), (9, 1), (23, 41)) if h < 2 * size[0] and w < 2 * size[1]]
    sigmas = (1e-38, 0.01, 0.1, 0.3, 0.77, 1.5, 2, 10, 3e38)
    images = np.repeat(make_images(*size), len(sizes) * len(sigmas), axis=0)
    kind = np.full((len(images), 1), Kind.GAUSSIAN_BLUR, np.uint8)
    sigma = np.tile(np.array(sigmas, np.float32), 6 * len(sizes))[:, None]
    kernel_size = np.tile(np.repeat(np.array(sizes, np.int32), len(sigmas), axis=0), (6, 1))[:, None]
    operations = Operations(kind, sigma, kernel_size=kernel_size)
    got = dali_run(images, operations, [{Kind.GAUSSIAN_BLUR}], device).astype(int)
    difference = np.abs(got - run(images, kind, sigma, kernel_size=kernel_size))
    assert difference.max() <= 1
    assert difference.mean() < 2e-4


@pytest.mark.parametrize("device", DEVICES)
def test_steps_around_blurs(device):
    steps = [
        RandomApply([GaussianBlur(5), RandomInvert(), RandomPosterize(4)], 0.6),
        GaussianBlur((1, 9), 3),
        RandomSolarize(99.5),
        RandomApply([RandomAdjustSharpness(1.7), RandomApply([RandomAutocontrast()])]),
    ]
    images = np.concatenate([make_images(20, 16, seed) for seed in range(8)])
    drawn = draw_operations(steps, np.arange(48), np.zeros(48, np.int64), seed=0, epoch=0, height=20, width=16)
    got = dali_run(images, drawn, possible_kinds(steps), device)
    expected = run(images, drawn.kind, drawn.magnitude, kernel_size=drawn.kernel_size)
    # A level that differs after a blur may be amplified by what is done next.
    assert (got != expected).mean() < (1e-3 if device == "cpu" else 0.02)


@pytest.mark.parametrize("device", DEVICES)
def test_whole_augmentations(device):
    steps = [RandomHorizontalFlip(), ColorJitter(0.4, 0.4, 0.4, 0.2), TrivialAugmentWide(fill=9), RandomGrayscale(0.3)]
    images = np.concatenate([make_images(40, 56, seed) for seed in range(4)])
    drawn = draw_operations(steps, np.arange(24), np.zeros(24, np.int64), seed=3, epoch=0, height=40, width=56)
    possible = possible_kinds(steps)
    got = dali_run(images, drawn, possible, device)
    expected = run(images, drawn.kind, drawn.magnitude, drawn.fill)
    # A level that differs in one operation may be amplified by those after it.
    inexact = np.isin(drawn.kind, [Kind.EQUALIZE, *DIFFERENT]).any(axis=1)
    assert 0 < inexact.sum() < 12
    difference = np.abs(got.astype(int) - expected)[~inexact]
    assert difference.max() == 0 if device == "cpu" else difference.mean() < 0.1


@pytest.mark.parametrize(("steps", "largest"), [
    ([ColorJitter(0.4, hue=0.1), RandomGrayscale(), RandomHorizontalFlip()], 4),
    ([ColorJitter()], 0),
    ([TrivialAugmentWide(), RandAugment(3)], 4),
    (
        [
            RandomInvert(),
            RandomApply([RandomApply([RandomPosterize(4)]), RandomSolarize(9), RandAugment()]),
            RandomApply([GaussianBlur(3)]),
            RandomAdjustSharpness(2),
            RandomAutocontrast(),
            RandomEqualize(),
        ],
        9,
    ),
    *([[AutoAugment(policy)], 2] for policy in ("imagenet", "cifar10", "svhn")),
])  # fmt: skip
def test_possible_kinds_are_those_drawn(steps, largest):
    n = 5000
    drawn = draw_operations(steps, np.arange(n), np.zeros(n, np.int64), seed=0, epoch=0, height=9, width=9)
    possible = possible_kinds(steps)
    assert len(possible) == drawn.kind.shape[1] == largest
    for column, kinds in zip(drawn.kind.T, possible, strict=True):
        assert {Kind(kind) for kind in column} - {Kind.NOTHING} == kinds


def test_nothing_to_do():
    images = make_images(5, 6)
    operations = Operations(np.zeros((6, 2), np.uint8), np.zeros((6, 2), np.float32))
    assert np.array_equal(dali_run(images, operations, [{Kind.HUE}, {Kind.ROTATE, Kind.INVERT}]), images)
    assert torch.equal(torch.from_numpy(pack(operations)), torch.zeros(6, 2, 4))
