"""That the loaders that are here pass the check, that wrong ones do not, and that nothing of them stays behind."""

import multiprocessing
import os
import sys
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

import fastfeed
from benchmarks.case import Options
from benchmarks.cases.loader import DECODED, MIXED, LoaderCase
from benchmarks.loaders import decode
from benchmarks.loaders import fastfeed as ours
from benchmarks.loaders.ffcv import UnchangedJPEG
from benchmarks.loaders.pillow import loader as pillow
from benchmarks.peers import Absent
from fastfeed.data.mix import draw_mix
from fastfeed.data.transforms import IMAGENET_MEAN, IMAGENET_STD
from fastfeed.demo.baseline import PillowFolder

SHAPE = (8, 3, 32, 32)


def make_case(device="cpu"):
    return LoaderCase(Options(torch.device(device), quick=True, threads=1), SHAPE, torch.float32)


@pytest.fixture(scope="module")
def case():
    case = make_case()
    yield case
    case.close()


# Those whose packages need not be installed may be absent. DALI's mark skips where it is not installed, and only there.
OTHERS = ("torchvision", "torchvision uint8", "timm", "ffcv", "spdl")
WITH_DALI = ("dali", "fastfeed", MIXED, DECODED)
PROVIDERS = [pytest.param(name, marks=pytest.mark.dali) if name in WITH_DALI else name for name in LoaderCase.providers]


def check(case, provider):
    try:
        return case.check(provider)
    except Absent as absent:
        if provider not in OTHERS and not (provider == DECODED and case.device.type == "cuda"):
            raise
        pytest.skip(str(absent))


# Numba's finalizer fails, to no effect, on the functions that FFCV compiles.
@pytest.mark.filterwarnings("ignore:Exception ignored in. <finalize:pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("provider", PROVIDERS)
def test_check(case, provider):
    error = check(case, provider)
    assert error == 0 if provider == "pillow" else 0 <= error < 0.05
    assert multiprocessing.active_children() == []


@pytest.mark.gpu
@pytest.mark.parametrize("provider", PROVIDERS)
def test_check_on_a_gpu(provider):
    case = make_case("cuda")
    try:
        check(case, provider)
        targets, _ = case.providers[provider](case)()
        assert targets.device.type == "cuda"
    finally:
        case.close()


def plain(recipe):
    """A right loader that needs neither DALI nor workers."""
    dataset = PillowFolder(recipe.source.samples, recipe.size, train=recipe.train)
    return torch.utils.data.DataLoader(dataset, recipe.batch_size, shuffle=recipe.train)


def changed(change):
    return lambda recipe: [change(images, target, recipe.train) for images, target in plain(recipe)]


def short(recipe):
    return list(plain(recipe))[: -1 if recipe.train else None]


def aliased(recipe):
    """Centre crops resampled bilinearly, but not antialiased."""
    if recipe.train:
        return plain(recipe)
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (IMAGENET_MEAN, IMAGENET_STD))

    def centre_crop(path):
        pixels = torch.from_numpy(np.array(Image.open(path).convert("RGB"))).permute(2, 0, 1) / 255
        height, width = (side // 3 for side in pixels.shape[1:])
        small = F.interpolate(pixels[None], (height, width), mode="bilinear")[0]
        top, left = (height - recipe.size) // 2, (width - recipe.size) // 2
        return (small[:, top : top + recipe.size, left : left + recipe.size] - mean) / std

    images = torch.stack([centre_crop(path) for path, _ in recipe.source.samples])
    targets = torch.tensor([target for _, target in recipe.source.samples])
    return list(zip(images.split(recipe.batch_size), targets.split(recipe.batch_size), strict=True))


WRONG = {
    "mirrored": changed(lambda images, target, train: (images.flip(3), target)),
    "other order of channels": changed(lambda images, target, train: (images.flip(1), target)),
    "one pixel off": changed(lambda images, target, train: (images.roll(1, 3), target)),
    "aliased": aliased,
    "half precision": changed(lambda images, target, train: (images.half(), target)),
    "half precision in training": changed(lambda images, target, train: (images.half() if train else images, target)),
    "other size in training": changed(lambda images, target, train: (images[..., :-1] if train else images, target)),
    "others' targets": changed(lambda images, target, train: (images, target if train else target.roll(1))),
    "other targets in training": changed(lambda images, target, train: (images, target * 0 if train else target)),
    "a batch too few": short,
    "a batch too many": lambda recipe: [*plain(recipe), next(iter(plain(recipe)))],
}


@pytest.mark.parametrize("name", WRONG)
def test_check_sees(case, name, monkeypatch):
    monkeypatch.setattr(case, "loaders", {**WRONG, "plain": plain})
    assert case.check("plain") == 0
    with pytest.raises(AssertionError):
        case.check(name)


def changed_mixed(change, **more):
    return lambda recipe: [
        change(images, target)
        for images, target in ours.loader(recipe, **{"mix": ours.MIX, "dtype": torch.bfloat16} | more)
    ]


WRONG_MIXED = {
    "single precision": changed_mixed(lambda images, target: (images, target), dtype=torch.float32),
    "other layout": changed_mixed(lambda images, target: (images.contiguous(), target)),
    "mixup only": changed_mixed(lambda images, target: (images, target), mix=fastfeed.Mix(mixup=0.2)),
    "cutmix only": changed_mixed(lambda images, target: (images, target), mix=fastfeed.Mix(cutmix=1.0)),
    "unmixed": changed_mixed(lambda images, target: (images, target), mix=None),
    "unmixed targets": changed_mixed(lambda images, target: (images, target.a)),
    "others' weights": changed_mixed(
        lambda images, target: (images, fastfeed.MixedTarget(target.b, target.a, target.lam))
    ),
    "others' images": changed_mixed(lambda images, target: (images.roll(1, 0), target)),
}


@pytest.mark.dali
@pytest.mark.parametrize("name", WRONG_MIXED)
def test_check_of_mixing_sees(case, name, monkeypatch):
    right = changed_mixed(lambda images, target: (images, target))
    monkeypatch.setattr(case, "loaders", {MIXED: right})
    assert case.check(MIXED) < 0.01
    monkeypatch.setattr(case, "loaders", {MIXED: WRONG_MIXED[name]})
    with pytest.raises(AssertionError):
        case.check(MIXED)


def test_check_has_batches_of_mixup_and_of_cutmix(case):
    recipe = case.recipe(train=False)
    plans = [
        draw_mix(ours.MIX, recipe.batch_size, recipe.size, recipe.size, seed=0, epoch=0, batch=start)
        for start in range(0, len(recipe.source), recipe.batch_size)
    ]
    assert any(0.1 < plan.weight[0] < 0.9 for plan in plans)
    assert any(0.1 < plan.lam[0] < 0.9 and plan.box.any() for plan in plans)


# Each takes the right windows, as arrays, and makes something else of them.
WRONG_WINDOWS = {
    "mirrored": lambda windows: [window[:, ::-1] for window in windows],
    "bgr": lambda windows: [window[..., ::-1] for window in windows],
    "one pixel off": lambda windows: [np.roll(window, 1, axis=1) for window in windows],
    "smaller": lambda windows: [window[:-1] for window in windows],
    "others' windows": lambda windows: windows[1:] + windows[:1],
}


@pytest.mark.dali
@pytest.mark.parametrize("name", WRONG_WINDOWS)
def test_check_of_decoding_sees(case, name, monkeypatch):
    right = decode.loader

    def wrong(recipe):
        for windows, batch in right(recipe):
            yield WRONG_WINDOWS[name]([np.asarray(windows[i]) for i in range(recipe.batch_size)]), batch

    monkeypatch.setattr(decode, "loader", wrong)
    with pytest.raises(AssertionError):
        case.check(DECODED)


@pytest.mark.dali
def test_check_of_decoding_sees_a_batch_too_few(case, monkeypatch):
    right = decode.loader
    monkeypatch.setattr(decode, "loader", lambda recipe: list(right(recipe))[:-1])
    with pytest.raises(AssertionError):
        case.check(DECODED)


@pytest.mark.dali
def test_windows_that_are_decoded_are_those_of_our_loader(case):
    recipe = case.recipe(train=True)
    windows, loader = decode.loader(recipe), ours.loader(recipe)
    mean, std = (np.array(values, np.float32) for values in (IMAGENET_MEAN, IMAGENET_STD))
    for _ in range(2):  # epochs
        for (decoded, batch), (images, target) in zip(windows, loader, strict=True):
            assert batch.targets.tolist() == target.tolist()
            for i, image in enumerate(images):
                resized = Image.fromarray(np.asarray(decoded[i])).resize(image.shape[1:], Image.Resampling.BILINEAR)
                expected = (np.asarray(resized, np.float32) / 255 - mean) / std
                expected = expected[:, ::-1] if batch.entry.plan.flip[i] else expected
                # A level of 255 is about 0.02; Pillow before 13 rounds in another order.
                np.testing.assert_allclose(image.permute(1, 2, 0), expected, atol=0.02)


def test_loaders_may_reuse_memory(case, monkeypatch):
    def reusing(recipe):
        memory = None
        for batch in plain(recipe):
            memory = batch if memory is None else memory
            yield [kept.copy_(part) for kept, part in zip(memory, batch, strict=True)]

    monkeypatch.setattr(case, "loaders", {"reusing": reusing})
    assert case.check("reusing") == 0


def test_workers_end_with_a_check_that_fails(case, monkeypatch):
    seen = []

    def failing(recipe):
        for images, target in pillow(recipe):
            seen.extend(multiprocessing.active_children())
            yield images.double(), target

    monkeypatch.setattr(case, "loaders", {"failing": failing})
    with pytest.raises(AssertionError, match="float64"):
        case.check("failing")
    assert seen != []
    assert multiprocessing.active_children() == []


@pytest.mark.dali
@pytest.mark.parametrize("provider", WITH_DALI)
def test_threads_end_with_a_check(case, provider):
    def threads_after_a_check():
        check(case, provider)
        return len(os.listdir("/proc/self/task"))

    threads_after_a_check()  # which may leave those of the process
    assert threads_after_a_check() == threads_after_a_check()


@pytest.mark.dali
@pytest.mark.parametrize("provider", WITH_DALI)
def test_every_epoch_holds_every_sample_once(case, provider):
    run = case.providers[provider](case)
    expected = sorted(target for _, target in case.source.samples)
    epochs = [(run() if provider == DECODED else run()[0]).tolist() for _ in range(3)]
    assert [sorted(epoch) for epoch in epochs] == [expected] * 3
    assert epochs[0] != epochs[1] != epochs[2]


@pytest.mark.parametrize(
    ("provider", "module", "install"),
    [
        ("torchvision", "torchvision.transforms", r"pip install .*\[peers\]"),
        ("torchvision uint8", "torchvision.io", r"pip install .*\[peers\]"),
        ("timm", "timm.data", r"pip install .*\[peers\]"),
        ("dali", "nvidia.dali", "pip install .*nvidia-dali-cuda1"),
        ("ffcv", "ffcv", r"pip install .*\[ffcv\]"),
        ("spdl", "spdl.io", r"pip install .*\[peers\]"),
        ("fastfeed", "nvidia.dali", "pip install .*nvidia-dali-cuda1"),
        (MIXED, "nvidia.dali", "pip install .*nvidia-dali-cuda1"),
        (DECODED, "nvidia.dali", "pip install .*nvidia-dali-cuda1"),
    ],
)
def test_what_is_not_installed_is_absent(case, provider, module, install, monkeypatch):
    if provider == "torchvision uint8":
        monkeypatch.setitem(sys.modules, "torchvision.transforms.v2", ModuleType("v2"))
    monkeypatch.setitem(sys.modules, module, None)
    monkeypatch.delitem(sys.modules, "torchvision.extension", raising=False)
    with pytest.raises(Absent, match=f"not installed: {install}"):
        case.check(provider)
    with pytest.raises(Absent):
        case.providers[provider](case)


def test_spdl_without_ffmpeg_is_absent(case, monkeypatch):
    def missing():
        raise RuntimeError("libavutil.so.60: cannot open shared object file")

    for name in ("spdl.io", "spdl.pipeline", "spdl.io.utils"):
        monkeypatch.setitem(sys.modules, name, SimpleNamespace(get_ffmpeg_versions=missing))
    with pytest.raises(Absent, match="apt install ffmpeg"):
        case.check("spdl")


def test_import_of_ffcv_leaves_the_number_of_threads(case, tmp_path, monkeypatch):
    (tmp_path / "ffcv.py").write_text("import torch; torch.set_num_threads(1); raise ImportError('no library')")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "ffcv", raising=False)
    torch.set_num_threads(2)
    with pytest.raises(Absent, match="cannot be imported: no library"):
        case.check("ffcv")
    assert torch.get_num_threads() == 2


class Field:
    """In the place of FFCV's field of images, which writes them anew."""

    metadata_type = "metadata"

    def to_binary(self):
        return "binary"

    def encode(self, destination, image, malloc):
        destination["encoded"] = image.mode


@pytest.mark.parametrize(
    ("mode", "name", "unchanged"),
    [("RGB", "a.jpg", True), ("L", "a.jpg", True), ("CMYK", "a.jpg", False), ("RGBA", "a.png", False)],
)
def test_ffcv_file_holds_the_jpeg_file(tmp_path, mode, name, unchanged):
    path = tmp_path / name
    Image.new(mode, (5, 3)).save(path)
    storage = []

    def malloc(size):
        storage.append(np.zeros(size, np.uint8))
        return 77, storage[0]

    destination = {}
    field = UnchangedJPEG(Field(), mode=4)
    assert (field.metadata_type, field.to_binary()) == ("metadata", "binary")
    field.encode(destination, str(path), malloc)
    if unchanged:
        assert destination == {"mode": 4, "width": 5, "height": 3, "data_ptr": 77}
        assert storage[0].tobytes() == path.read_bytes()
    else:
        assert destination == {"encoded": "RGB"}
