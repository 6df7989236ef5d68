"""The cases of what is done to decoded pixels: that their checks see what is wrong, and their models of the work."""

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from benchmarks.case import Options
from benchmarks.cases.augment import PILLOW, STEPS, AugmentCase
from benchmarks.cases.resample import PHOTOGRAPH, ResampleCase
from benchmarks.peers import Absent
from fastfeed._extension import extension
from fastfeed.data.augment import Operations, augment_
from fastfeed.data.policies import Kind, trivial_augment_space

CPU = Options(torch.device("cpu"), quick=True, threads=2)


@pytest.fixture
def resampling():
    case = ResampleCase(CPU, (8, 32, 24, 3), torch.uint8)
    yield case
    case.close()


@pytest.fixture(params=STEPS)
def augmenting(request):
    case = AugmentCase(CPU, f"{request.param}-64x24x32x3", torch.uint8)
    case.step = request.param
    yield case
    case.close()


@pytest.mark.parametrize("provider", ResampleCase.providers)
def test_resample_check(resampling, provider):
    error = resampling.check(provider)
    assert 0 <= error <= 1 if provider == "torch" else error == 0


def interpolated(**changed):
    def build(case):
        def run():
            windows = (window.permute(2, 0, 1)[None] for window in case.windows)
            resized = (F.interpolate(window, (32, 24), **{"mode": "bilinear"} | changed) for window in windows)
            return torch.cat([image.permute(0, 2, 3, 1) for image in resized])

        return run

    return build


def changed(change):
    return lambda case: lambda: change(case.providers["pillow"](case)().clone())


WRONG_PIXELS = {
    "aliased": interpolated(),
    "bicubic": interpolated(mode="bicubic", antialias=True),
    "others": changed(lambda images: images.roll(1, 0)),
    "mirrored": changed(lambda images: images.flip(2)),
    "one missing": changed(lambda images: torch.cat([images[:-1], torch.zeros_like(images[:1])])),
    "one too few": changed(lambda images: images[:-1]),
}


@pytest.mark.parametrize("name", WRONG_PIXELS)
def test_resample_check_sees(resampling, name):
    resampling.providers = ResampleCase.providers | {"torch": WRONG_PIXELS[name]}
    with pytest.raises(AssertionError):
        resampling.check("torch")


def test_a_level_is_allowed_to_others_alone(resampling, monkeypatch):
    monkeypatch.setattr("benchmarks.cases.resample.SAME_ORDER", True)
    off = changed(lambda images: images.bitwise_xor(1))
    resampling.providers = ResampleCase.providers | {"torch": off, "fastfeed": off}
    assert resampling.check("torch") == 1
    with pytest.raises(AssertionError):
        resampling.check("fastfeed")


def test_what_did_nothing_is_seen(resampling, augmenting):
    """Though the batch, which others wrote before, is kept."""
    for case in (resampling, augmenting):
        case.providers = type(case).providers | {"fastfeed": lambda case: lambda: case.out}
        with pytest.raises(AssertionError):
            case.check("fastfeed")


def test_resample_model(resampling):
    height, width = PHOTOGRAPH
    sizes = [window.shape for window in resampling.windows]
    assert len({(h, w) for h, w, _ in sizes}) == 8
    assert all(h <= height and w <= width for h, w, _ in sizes)
    # Every byte of the windows, and 8 images of 32 x 24 pixels.
    assert resampling.bytes_per_run == sum(3 * h * w for h, w, _ in sizes) + 18432
    # A window covers between 8% and all of a photograph: on average about half.
    areas = [w.shape[0] * w.shape[1] for w in ResampleCase(CPU, (64, 8, 8, 3), torch.uint8).windows]
    assert 0.4 < np.mean(areas) / (height * width) < 0.6


@pytest.mark.parametrize("provider", AugmentCase.providers)
def test_augment_check(augmenting, provider):
    error = augmenting.check(provider)
    assert 0 <= error <= 1 if augmenting.step == "blur" else error == 0


def augmented(change):
    def build(case):
        operations = case.operations
        return lambda: augment_(case.images.clone(), change(operations), extension().Pool(1))

    return build


WRONG_OPERATIONS = {
    "none": lambda of: Operations(np.zeros_like(of.kind), of.magnitude, of.fill),
    "others'": lambda of: of.at(np.roll(np.arange(64), 1)),
    "nearest": lambda of: replace(of, bilinear=False),
    "narrow": lambda of: Operations(of.kind, of.magnitude, of.fill, of.kernel_size - 16),
    "filled": lambda of: Operations(of.kind, of.magnitude, (255, 255, 255)),
    "backwards": lambda of: Operations(of.kind[:, ::-1].copy(), of.magnitude[:, ::-1].copy(), of.fill),
}


@pytest.mark.parametrize(
    ("step", "name"),
    [
        *(("trivial", "none"), ("trivial", "others'"), ("trivial", "filled"), ("jitter", "none")),
        ("bilinear", "nearest"),
        *(("jitter", "backwards"), ("blur", "none"), ("blur", "others'"), ("blur", "narrow")),
    ],
)
def test_augment_check_sees(step, name):
    case = AugmentCase(CPU, f"{step}-64x24x32x3", torch.uint8)
    case.providers = AugmentCase.providers | {"wrong": augmented(WRONG_OPERATIONS[name])}
    with pytest.raises(AssertionError):
        case.check("wrong")
    case.close()


def test_augment_check_sees_a_level(augmenting):
    augmenting.providers = AugmentCase.providers | {"wrong": changed(lambda images: images.bitwise_xor(1))}
    with pytest.raises(AssertionError):
        augmenting.check("wrong")


def test_every_operation_is_compared():
    """Whatever a step can draw, Pillow has; and a batch of the case draws nearly all of it."""
    space = set(trivial_augment_space(31).kind.tolist())
    assert space | set(STEPS["jitter"].ranges()) | {Kind.GAUSSIAN_BLUR} == set(PILLOW)
    drawn = {step: AugmentCase(CPU, f"{step}-64x12x12x3", torch.uint8).operations.kind for step in STEPS}
    assert len(set(drawn["trivial"].flatten().tolist())) >= len(space) - 1
    assert drawn["trivial"].shape == (64, 1)
    assert (np.sort(drawn["jitter"], axis=1) == sorted(STEPS["jitter"].ranges())).all()
    assert (drawn["blur"] == Kind.GAUSSIAN_BLUR).all()


def test_augment_model(augmenting):
    # 64 images of 24 x 32 pixels, in and out.
    assert augmenting.bytes_per_run == 2 * 64 * 24 * 32 * 3


def test_images_are_not_changed(augmenting):
    before = augmenting.images.clone()
    for build in augmenting.providers.values():
        run = build(augmenting)
        assert torch.equal(run().clone(), run())
    assert torch.equal(augmenting.images, before)


@pytest.mark.parametrize(
    ("case", "shape"), [(ResampleCase, (2, 8, 8, 3)), (AugmentCase, "jitter-2x8x8x3")], ids=lambda value: str(value)
)
def test_absent_where_dali_does_it(case, shape):
    with pytest.raises(Absent, match="for CPUs: on a GPU DALI"):
        case(Options(torch.device("cuda"), quick=True), shape, torch.uint8)
