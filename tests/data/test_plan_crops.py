"""Windows that are not resized, erased rectangles, and what becomes of flips beside auto-augment."""

import math

import numpy as np
import pytest
from PIL.Image import Resampling

from fastfeed import transforms
from fastfeed.data.plan import blank, draw_augmentations, make_plan, too_small
from fastfeed.data.policies import Kind

N = 20_000


def plan(transform, image, n=N, seed=0, **options):
    return make_plan(transform, np.full((n, 2), image), np.arange(n), seed=seed, epoch=0, **options)


def random_crop(size, **options):
    return transforms.Transform(transforms.RandomCrop(size, **options))


@pytest.mark.parametrize(("image", "size", "padding", "needed"), [
    ((32, 32), (32, 32), 4, False),
    ((40, 50), (32, 24), 0, False),
    ((40, 50), (32, 24), 3, False),
    ((20, 50), (32, 24), 0, True),
    ((20, 10), (32, 24), 2, True),
    ((5, 5), (3, 3), 6, False),
])  # fmt: skip
def test_random_crop_is_a_window_of_the_padded_image(image, size, padding, needed):
    """Against torchvision's rule: pad, pad what is missing on both sides, then a corner that is uniform."""
    p = plan(random_crop(size, padding=padding, pad_if_needed=needed), image)
    before = [padding + (max(s - (i + 2 * padding), 0) if needed else 0) for i, s in zip(image, size, strict=True)]
    picture = np.arange(1, 1 + math.prod(image)).reshape(image)
    padded = np.pad(picture, [(b, b) for b in before])
    corners = set()
    for start, shape, place in zip(p.start[:1500], p.shape[:1500], p.place[:1500], strict=True):
        made = np.zeros(size, int)
        top, left, h, w = place
        window = picture[start[0] : start[0] + shape[0], start[1] : start[1] + shape[1]]
        assert window.shape == tuple(shape)
        made[top : top + h, left : left + w] = window[:h, :w]
        # The one corner at which the padded image holds this.
        views = np.lib.stride_tricks.sliding_window_view(padded, size)
        found = np.argwhere((views == made).all(axis=(2, 3)))
        assert len(found) >= 1
        corners.add(tuple(found[0]))
    if image != (5, 5):  # of which many windows hold nothing
        assert len(corners) > 0.6 * min(math.prod(views.shape[:2]), 1500)


def test_corners_of_random_crops_are_uniform():
    p = plan(random_crop(8), (12, 10))
    counts = np.zeros((5, 3))
    np.add.at(counts, (p.start[:, 0], p.start[:, 1]), 1)
    assert np.abs(counts - N / 15).max() < 5 * math.sqrt(N / 15)


def test_corners_of_random_crops_of_resized_images_are_uniform():
    p = plan(transforms.Transform(transforms.RandomCrop(8, resize=10)), (20, 25))
    assert (p.resized[:, 2:] == (10, 12)).all()
    counts = np.zeros((3, 5))
    np.add.at(counts, (p.resized[:, 0], p.resized[:, 1]), 1)
    assert np.abs(counts - N / 15).max() < 5 * math.sqrt(N / 15)


@pytest.mark.parametrize(("resize", "image", "resized"), [
    (20, (480, 650), (20, 27)),  # 27.08
    (20, (650, 480), (27, 20)),
    (20, (1, 1), (20, 20)),
    (20, (1, 60_000), (20, 1_200_000)),
    (23, (7, 10), (23, 32)),  # 32.86
    ((20, 40), (480, 650), (20, 40)),
    ((33, 20), (1, 60_000), (33, 20)),
])  # fmt: skip
def test_what_images_are_resized_to(resize, image, resized):
    crops = [transforms.CenterCrop(20, resize), transforms.RandomCrop(20, resize=resize)]
    for crop in crops:
        p = plan(transforms.Transform(crop), image, n=50)
        assert (p.resized[:, 2:] == resized).all()
        assert (p.resized[:, :2] >= 0).all()
        assert (p.resized[:, :2] + 20 <= resized).all()
        assert (p.whole[:, 2:] == image).all()
        assert np.array_equal(p.whole[:, :2], p.start)
        assert (p.start >= 0).all()
        assert (p.start + p.shape <= image).all()


def test_long_images_are_decoded_where_the_window_lies():
    p = plan(transforms.Transform(transforms.RandomCrop(224, resize=256)), (256, 20_000), n=100)
    assert (p.shape <= 224 + 2).all()
    assert len(set(p.start[:, 1].tolist())) > 90


@pytest.mark.parametrize(("crop", "size", "resized"), [
    (transforms.CenterCrop(20, (30, 40)), (40, 40), (60, 80)),
    (transforms.RandomCrop((20, 10), resize=(30, 40)), (10, 20), (15, 80)),
    (transforms.RandomCrop(20, resize=30), (10, 10), (15, 18)),  # the image is 50 x 60
    (transforms.RandomCrop(20, resize=30), (10, 50), (50, 60)),
    (transforms.CenterCrop((20, 30), (20, 30)), (7, 13), (7, 13)),
])  # fmt: skip
def test_another_size_changes_what_images_are_resized_to_in_proportion(crop, size, resized):
    p = plan(transforms.Transform(crop), (50, 60), n=3, size=size)
    assert (p.resized[:, 2:] == resized).all()
    assert (p.place == (0, 0, *size)).all()


def test_a_random_interpolation_is_a_draw_of_its_own():
    fixed, random = (plan(transforms.train(8, interpolation=name), (60, 80)) for name in ("bicubic", "random"))
    for name in ("start", "shape", "box", "place", "flip", "noise_key"):
        assert np.array_equal(getattr(fixed, name), getattr(random, name))
    assert (fixed.filter == Resampling.BICUBIC).all()
    assert set(random.filter.tolist()) == {Resampling.BILINEAR, Resampling.BICUBIC}
    cubic = random.filter == Resampling.BICUBIC
    assert abs(cubic.mean() - 0.5) < 5 * 0.5 / math.sqrt(N)
    for values in (random.shape.prod(axis=1), random.start[:, 0], random.flip, np.arange(N)):
        assert abs(np.corrcoef(cubic, values)[0, 1]) < 5 / math.sqrt(N)
    part = make_plan(
        transforms.train(8, interpolation="random"), np.full((3, 2), 50), np.array([5, 0, 77]), seed=0, epoch=0
    )
    assert np.array_equal(part.filter, random.filter[[5, 0, 77]])
    other = make_plan(transforms.train(8, interpolation="random"), np.full((N, 2), 50), np.arange(N), seed=0, epoch=1)
    assert 0.45 < (other.filter != random.filter).mean() < 0.55


def test_images_smaller_than_the_window():
    sizes = np.array([[32, 32], [31, 32], [32, 31], [28, 28], [27, 40]])
    assert too_small(random_crop(32), sizes, (32, 32)).tolist() == [False, True, True, True, True]
    assert too_small(random_crop(32, padding=2), sizes, (32, 32)).tolist() == [False, False, False, False, True]
    assert not too_small(random_crop(32, pad_if_needed=True), sizes, (32, 32)).any()
    assert not too_small(random_crop(32, resize=32), sizes, (32, 32)).any()
    assert not too_small(transforms.Transform(transforms.CenterCrop(32)), sizes, (32, 32)).any()
    assert not too_small(transforms.train(500), sizes, (500, 500)).any()


def test_resize_takes_the_whole_image():
    p = plan(transforms.Transform(transforms.Resize((10, 20))), (33, 47), n=3)
    assert p.start.tolist() == [[0, 0]] * 3
    assert p.shape.tolist() == [[33, 47]] * 3
    assert p.box.tolist() == [[0, 0, 33, 47]] * 3


def test_another_size_keeps_the_window_of_a_random_crop_and_the_share_of_a_central_one():
    a, b = plan(transforms.train(64), (300, 400), n=50), plan(transforms.train(64), (300, 400), n=50, size=(96, 96))
    assert np.array_equal(a.start, b.start)
    assert np.array_equal(a.shape, b.shape)
    assert b.place[0].tolist() == [0, 0, 96, 96]
    whole, half = (plan(transforms.eval(224), (512, 512), n=1, size=size) for size in (None, (112, 112)))
    assert half.box[0, 2:] - half.box[0, :2] == pytest.approx(whole.box[0, 2:] - whole.box[0, :2], abs=1e-9)


@pytest.mark.parametrize("erasing", [
    transforms.RandomErasing(1.0),
    transforms.RandomErasing(1.0, scale=(0.4, 0.9), ratio=(0.2, 1.0)),
    transforms.RandomErasing(0.3),
])  # fmt: skip
def test_erased_rectangles_follow_the_rule(erasing):
    """Against torchvision's, drawn with NumPy: the quantiles of area, ratio and corner."""
    height, width = 60, 80
    p = plan(transforms.Transform(transforms.RandomCrop((height, width)), erase=erasing), (height, width))
    rng = np.random.default_rng(0)
    expected = []
    for _ in range(N):
        box = (0, 0, 0, 0)
        if rng.random() < erasing.p:
            for _ in range(10):
                area = height * width * rng.uniform(*erasing.scale)
                ratio = math.exp(rng.uniform(math.log(erasing.ratio[0]), math.log(erasing.ratio[1])))
                h, w = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
                if h < height and w < width:
                    box = (rng.integers(height - h + 1), rng.integers(width - w + 1), h, w)
                    break
        expected.append(box)
    expected = np.array(expected)
    for values, reference in zip(p.erase.T, expected.T, strict=True):
        # Kolmogorov and Smirnov's distance of two samples; beyond 2 sqrt(2 / N) once in 1500 tests.
        points = np.arange(81)
        ours, theirs = (np.searchsorted(np.sort(v), points, side="right") / N for v in (values, reference))
        assert np.abs(ours - theirs).max() < 2 * math.sqrt(2 / N)
    assert (p.erase[:, :2] + p.erase[:, 2:] <= (height, width)).all()
    assert len(set(p.noise_key.tolist())) == N


def test_flips_are_independent():
    transform = transforms.Transform(transforms.Resize(8), horizontal_flip=0.5, vertical_flip=0.25)
    counts = np.bincount(plan(transform, (9, 9)).flip, minlength=4) / N
    assert counts == pytest.approx([0.375, 0.375, 0.125, 0.125], abs=0.02)


def test_auto_augment_takes_over_the_flips():
    alone = transforms.train(8)
    both = transforms.train(8, augment="trivial")
    p, q = plan(alone, (9, 9), n=200), plan(both, (9, 9), n=200)
    assert np.array_equal(p.flip, q.flip)
    options = {"seed": 0, "epoch": 0, "size": (8, 8)}
    assert draw_augmentations(alone, p, np.arange(200), np.zeros(200, int), **options) is None
    operations = draw_augmentations(both, q, np.arange(200), np.zeros(200, int), **options)
    assert (q.flip == 0).all()
    assert np.array_equal(operations.kind[:, 0] == Kind.HORIZONTAL_FLIP, p.flip == 1)
    assert (operations.kind[:, 1] == Kind.NOTHING).all()
    # Colours change nothing of where a pixel lies: those flips stay with the last pass.
    colours = [transforms.ColorJitter(0.4), transforms.RandomGrayscale(0.5)]
    jitter = transforms.Transform(transforms.Resize(8), 0.5, augment=colours)
    p = plan(jitter, (9, 9), n=200)
    assert draw_augmentations(jitter, p, np.arange(200), np.zeros(200, int), **options).kind.shape == (200, 2)
    assert p.flip.any()


def test_blank_samples_decode_one_pixel():
    p = plan(transforms.eval(24), (50, 60), n=4)
    before = [values.copy() for values in (p.start, p.shape, p.box, p.whole)]
    blank(p, [1, 3])
    blanks = (0, 1, [0, 0, 1, 1], [0, 0, 1, 1])
    for values, old, value in zip((p.start, p.shape, p.box, p.whole), before, blanks, strict=True):
        assert (values[[1, 3]] == value).all()
        assert np.array_equal(values[[0, 2]], old[[0, 2]])
    blank(p, [])
