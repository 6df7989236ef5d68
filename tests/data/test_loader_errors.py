"""Bad files in a DataLoader: named, and nothing else in the epoch is changed by them."""

import io
import itertools
import logging
import os
import re
import shutil
import tarfile

import numpy as np
import pytest
import torch

from fastfeed import DataLoader, Mix, transforms
from fastfeed.data import graph
from fastfeed.data.errors import BadSample, SampleError
from fastfeed.data.finish import SampleParameters, finish_reference
from fastfeed.data.mix import draw_mix
from fastfeed.data.samplers import RepeatedAugmentation
from fastfeed.data.sources import ListSource, TarSource
from fastfeed.data.tree import replace_leaves
from tests.images import picture

# A warning would be of a plan that was made for a size that is unknown.
pytestmark = [pytest.mark.dali, pytest.mark.filterwarnings("error::RuntimeWarning")]

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]
LEVELS = {"mean": (0, 0, 0), "std": (1 / 255,) * 3}  # batches in levels, 0 to 255
COUNT, BATCH = 10, 4
MODES = ["replace", "drop"]


@pytest.fixture(scope="module")
def clean(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clean")
    for i in range(COUNT):
        picture(40 + i, 60 - i, seed=i).save(folder / f"{i}.jpg", quality=90)
    return folder


@pytest.fixture
def folder(clean, tmp_path):
    return shutil.copytree(clean, tmp_path / "data")


def encoded(format, **options):
    file = io.BytesIO()
    picture(44, 52, seed=99).save(file, format, **options)
    return file.getvalue()


def rewrite(change):
    return lambda path: path.write_bytes(change(path.read_bytes()))


def replaced_by(make):
    def spoil(path):
        path.unlink()
        make(path)

    return spoil


def damage_png(path):
    data = bytearray(encoded("PNG"))
    data[len(data) // 2] ^= 0xFF
    path.write_bytes(data)


# What happens to a file, and the reason that is given. Of the JPEG files the first scan begins after some 600 bytes.
CUT = "a JPEG file without its end: cut short"
BROKEN = r"the file is truncated or corrupt \(\d+ bytes\)"
BAD = {
    "missing": (lambda path: path.unlink(), "No such file or directory"),
    "empty": (rewrite(lambda data: b""), "an empty file"),
    "cut to 1 byte": (rewrite(lambda data: data[:1]), ".*expected JPEG, PNG, BMP or WebP"),
    "cut to 3 bytes": (rewrite(lambda data: data[:3]), "no complete JPEG, PNG, BMP or WebP header"),
    "cut before its size": (rewrite(lambda data: data[:100]), "no complete JPEG, PNG, BMP or WebP header"),
    "cut after its size": (rewrite(lambda data: data[:300]), CUT),
    "cut in half": (rewrite(lambda data: data[: len(data) // 2]), CUT),
    "without its last byte": (rewrite(lambda data: data[:-1]), CUT),
    "garbage": (
        rewrite(lambda data: np.random.default_rng(0).bytes(3000)),
        "no complete JPEG, PNG, BMP or WebP header",
    ),
    "HTML": (rewrite(lambda data: b"<html>" * 100), "an HTML or XML page; expected"),
    "GIF": (rewrite(lambda data: encoded("GIF")), "a GIF file; expected"),
    "without quantization tables": (rewrite(lambda data: data.replace(b"\xff\xdb", b"\xff\xfe")), BROKEN),
    "progressive, half of it": (
        rewrite(lambda data: (whole := encoded("JPEG", progressive=True))[: len(whole) // 2] + b"\xff\xd9"),
        BROKEN,
    ),
    "PNG cut": (rewrite(lambda data: encoded("PNG")[:2000]), "a PNG file without its end: cut short"),
    "PNG damaged": (damage_png, BROKEN),
    "WebP cut": (rewrite(lambda data: encoded("WEBP")[:-100]), "a WebP file without its end: cut short"),
    "BMP cut": (rewrite(lambda data: encoded("BMP")[:-100]), "a BMP file without its end: cut short"),
    "too many pixels": (
        lambda path: picture(90, 80).save(path),
        "its header says 90 x 80 pixels, and max_pixels is 7000",
    ),
    "a folder": (replaced_by(os.mkdir), "a folder"),
    "a pipe": (replaced_by(os.mkfifo), "a pipe or a device, not a file"),
    "unreadable": (lambda path: path.chmod(0), "Permission denied"),
}


def spoil(folder, index, what):
    BAD[what][0](folder / f"{index}.jpg")


def loader(folder, batch_size=BATCH, targets=None, **options):
    source = ListSource([folder / f"{i}.jpg" for i in range(COUNT)], range(COUNT) if targets is None else targets)
    defaults = {"transform": transforms.train(24), "device": "cpu", "info": True, "num_workers": 2, "max_pixels": 7000}
    return DataLoader(source, batch_size, **{**defaults, **options})


def check(batches, expected, bad, mode):
    """Compare an epoch with that of the clean folder."""
    if mode == "drop":
        expected = [batch for batch in expected if not bad.issuperset(batch[2].index.tolist())]
    assert len(batches) == len(expected)
    for (images, target, info), (clean_images, clean_target, clean_info) in zip(batches, expected, strict=True):
        index = clean_info.index
        good = torch.tensor([i not in bad for i in index.tolist()])
        assert [os.path.basename(path) for path in info.path] == [f"{i}.jpg" for i in info.index.tolist()]
        if mode == "drop":
            assert info.index.tolist() == index[good].tolist()
            assert info.valid.tolist() == clean_info.valid[good].tolist()
            assert torch.equal(images, clean_images[good])
            assert torch.equal(target, clean_target[good])
            continue
        assert info.index.tolist() == index.tolist()
        assert info.valid.tolist() == (clean_info.valid & good).tolist()
        assert images.shape == clean_images.shape
        assert torch.equal(images[good], clean_images[good])
        assert torch.equal(target[good], clean_target[good])
        if good.any():
            for position in (~good).nonzero().flatten().tolist():
                # One of the batch's good samples, and its target.
                (stand_in,) = (clean_target == target[position]).nonzero().flatten().tolist()
                assert good[stand_in]
                assert torch.equal(images[position], clean_images[stand_in])


@pytest.mark.parametrize("mode", [*MODES, "raise"])
@pytest.mark.parametrize("what", BAD)
def test_each_kind_of_bad_file(clean, folder, caplog, what, mode):
    if what == "unreadable" and os.geteuid() == 0:
        pytest.skip("the superuser may read every file")
    spoil(folder, 6, what)
    path, reason = str(folder / "6.jpg"), BAD[what][1]
    data, fresh = loader(folder, shuffle=True, on_error=mode), loader(clean, shuffle=True)
    for _ in range(2):
        expected = list(fresh)
        if mode == "raise":
            got = []
            with pytest.raises(SampleError, match=rf"cannot use {re.escape(path)}: {reason}") as raised:
                got.extend(data)
            first = next(i for i, batch in enumerate(expected) if 6 in batch[2].index)
            check(got, expected[:first], set(), mode)
            assert [(bad.index, bad.path) for bad in raised.value.samples] == [(6, path)]
        else:
            check(list(data), expected, {6}, mode)
        (bad,) = data.errors
        assert (bad.index, bad.path, bad.epoch) == (6, path, 0)
        assert re.search(reason, bad.reason)
    messages = [record.getMessage() for record in caplog.records if record.name == "fastfeed"]
    verb = {"replace": "replacing", "drop": "dropping"}
    assert messages == ([] if mode == "raise" else [f"{verb[mode]} sample 6, {path}: {data.errors[0].reason}"])


@pytest.mark.gpu
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("what", ["missing", "cut in half", "without quantization tables"])
def test_a_bad_file_on_a_gpu(clean, folder, what, mode):
    spoil(folder, 6, what)
    data = loader(folder, shuffle=True, on_error=mode, device="cuda")
    assert len(list(data)) == 3
    assert [bad.index for bad in data.errors] == [6]
    data.epoch = 0
    expected = list(loader(clean, shuffle=True, device="cuda"))
    on_cpu = [
        [replace_leaves(batch, lambda _, leaf: leaf.cpu() if torch.is_tensor(leaf) else leaf) for batch in batches]
        for batches in (list(data), expected)
    ]
    check(*on_cpu, {6}, mode)


def test_another_extension_with_good_content_is_good(folder):
    (folder / "6.jpg").write_bytes(encoded("PNG"))
    data = loader(folder, transform=transforms.Transform(transforms.Resize((44, 52)), **LEVELS))
    images, _, _ = list(data)[1]
    assert torch.equal(images[2].permute(1, 2, 0).round().byte(), torch.from_numpy(np.array(picture(44, 52, seed=99))))
    assert data.errors == []


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("prefetch", [1, 3])
@pytest.mark.parametrize("bad", [
    {0: "without quantization tables"},  # in the first batch
    {9: "without quantization tables"},  # in the last one
    {0: "empty", 3: "PNG damaged", 6: "without quantization tables", 9: "missing"},  # in all
    {4: "without quantization tables", 5: "GIF", 7: "PNG damaged"},  # most of a batch
    dict.fromkeys(range(4), "without quantization tables"),  # a whole batch
    dict.fromkeys(range(4, 8), "empty"),
    dict.fromkeys([8, 9], "PNG damaged"),
    {i: "empty" if i % 2 else "without quantization tables" for i in range(COUNT)},  # all files
])  # fmt: skip
def test_many_bad_files(clean, folder, bad, prefetch, mode):
    for index, what in bad.items():
        spoil(folder, index, what)
    data, fresh = loader(folder, on_error=mode, prefetch_factor=prefetch), loader(clean)
    for _ in range(2):
        check(list(data), list(fresh), set(bad), mode)
    assert sorted(sample.index for sample in data.errors) == sorted(bad)


@pytest.mark.parametrize("kind", ["empty", "without quantization tables"])
def test_a_batch_without_good_samples_is_grey(folder, kind):
    for index in range(4, 8):
        spoil(folder, index, kind)
    data = loader(folder, on_error="replace", transform=transforms.train(24, **LEVELS))
    _, (images, target, info), _ = data
    assert images.eq(128).all()
    assert target.tolist() == [4, 5, 6, 7]
    assert not info.valid.any()


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("transform", [
    transforms.train(24, augment="trivial"),
    transforms.train(24, augment=["rand", transforms.ColorJitter(0.4, 0.4, 0.4, 0.1)]),
    transforms.train(24, erase=transforms.RandomErasing(1.0, value="random")),
    transforms.eval(24),
    transforms.Transform(transforms.RandomCrop(24, padding=30)),
    transforms.Transform(transforms.RandomCrop(64, pad_if_needed=True), 0.5, augment=transforms.RandomGrayscale(0.5)),
], ids=["trivial", "rand", "noise", "eval", "padded crop", "crop"])  # fmt: skip
def test_transforms_of_the_others_are_unchanged(clean, folder, transform, mode):
    spoil(folder, 3, "empty")
    spoil(folder, 5, "without quantization tables")
    data, fresh = (loader(path, transform=transform, on_error=mode) for path in (folder, clean))
    for _ in range(2):
        check(list(data), list(fresh), {3, 5}, mode)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("size", [None, 44])
def test_images_that_are_too_small_for_a_crop(clean, folder, size, mode):
    picture(39, 60, seed=1).save(folder / "3.jpg")
    picture(60, 39, seed=1).save(folder / "8.jpg")
    schedule = None if size is None else lambda epoch, step: size
    # The images have 40 to 49 rows.
    transform, small = transforms.Transform(transforms.RandomCrop(40)), set(range(4)) if size else set()
    data, fresh = loader(folder, transform=transform, on_error=mode, size=schedule), loader(clean, transform=transform)
    batches = list(data)
    assert {sample.index for sample in data.errors} == {3, 8} | small
    named = {sample.index: sample.reason for sample in data.errors}
    crop = size or 40
    assert named[3] == f"its 39 x 60 pixels are too few for RandomCrop's {crop} x {crop}: pad_if_needed=True pads it"
    if size is None:
        check(batches, list(fresh), {3, 8}, mode)
    else:  # the window has the size of the schedule, not of the transform in a corner
        images = torch.cat([images for images, _, _ in batches])
        assert images.shape[2:] == (44, 44)
        black = torch.tensor([-m / s for m, s in zip(transform.mean, transform.std, strict=True)]).view(3, 1, 1)
        assert not torch.isclose(images, black, atol=1e-3).all(dim=1).any()


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("mix", [Mix(mixup=0.4), Mix(0.4, 1.0, per="sample")], ids=["batch", "sample"])
def test_mixing_is_of_what_is_in_the_batch(folder, mix, mode):
    spoil(folder, 5, "without quantization tables")
    spoil(folder, 8, "empty")
    spoil(folder, 9, "empty")
    options = {"on_error": mode, "seed": 7}
    plain = loader(folder, transform=transforms.train(24, **LEVELS), **options)
    mixed = loader(folder, mix=mix, **options)
    count = 0
    for position, ((pixels, labels, info), (images, target, mixed_info)) in enumerate(zip(plain, mixed, strict=True)):
        n = len(labels)
        plan = draw_mix(mix, n, 24, 24, seed=7, epoch=0, batch=BATCH * position)
        parameters = SampleParameters(n, partner=plan.partner, weight=plan.weight, cut=plan.box)
        pixels = pixels.round().byte().permute(0, 2, 3, 1)
        expected = finish_reference(pixels, parameters, transforms.train().mean, transforms.train().std)
        assert torch.equal(images, expected)
        assert target.a.tolist() == labels.tolist()
        assert target.b.tolist() == labels[torch.as_tensor(plan.partner).long()].tolist()
        assert torch.equal(mixed_info.valid, info.valid)
        count += 1
    assert count == (3 if mode == "replace" else 2)


@pytest.mark.parametrize("mode", MODES)
def test_targets_go_with_their_images(folder, mode):
    spoil(folder, 5, "empty")
    names = [f"name {i}" for i in range(COUNT)]
    data = loader(folder, targets=names, on_error=mode)
    (_, (images, target, _), _) = data
    assert target == {"replace": ("name 4", "name 6", "name 6", "name 7"), "drop": ("name 4", "name 6", "name 7")}[mode]
    assert len(images) == len(target)
    trees = [{"name": name, "box": torch.full((2,), i)} for i, name in enumerate(names)]
    (_, (_, tree, _), _) = loader(folder, targets=trees, on_error=mode)
    assert tree["name"] == list(target)
    assert [f"name {i}" for i in tree["box"][:, 1].tolist()] == list(target)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(("budget", "allowed"), [(0, 0), (2, 2), (0.25, 2), (0.3, 3), (1.0, 10)])
def test_budget(clean, folder, budget, allowed, mode):
    for index in range(0, COUNT, 2):
        spoil(folder, index, "empty" if index % 4 else "without quantization tables")
    data = loader(folder, 1, on_error=mode, max_errors=budget)
    fresh = loader(clean, 1)
    for _ in range(2):  # every epoch has its own
        got, expected = [], list(fresh)
        if allowed >= 5:
            check(list(data), expected, {0, 2, 4, 6, 8}, mode)
            continue
        last = folder / f"{2 * allowed}.jpg"
        message = f"{allowed + 1} of the epoch's 10 samples are bad, and max_errors={budget} allows {allowed}: the last"
        with pytest.raises(SampleError, match=re.escape(f"{message} is {last}: ")) as raised:
            got.extend(data)
        check(got, expected[: 2 * allowed], {0, 2, 4, 6, 8}, mode)
        assert [sample.index for sample in raised.value.samples] == [2 * allowed]
    assert len(data.errors) == min(allowed + 1, 5)


@pytest.mark.parametrize("options", [{"rank": 0, "world_size": 2}, {"sampler": range(0, COUNT, 2)}])
def test_the_budget_is_a_share_of_what_the_rank_takes(folder, options):
    for index in (0, 2):  # of five samples
        spoil(folder, index, "empty")
    list(loader(folder, on_error="drop", max_errors=0.4, **options))
    with pytest.raises(SampleError, match=r"2 of the epoch's 5 samples are bad, and max_errors=0.39 allows 1"):
        list(loader(folder, on_error="drop", max_errors=0.39, **options))


@pytest.mark.parametrize("prefetch", [1, 2, 3])
@pytest.mark.parametrize("taken", [0, 1, 2])
def test_an_epoch_that_is_left_early(clean, folder, taken, prefetch):
    spoil(folder, 1, "without quantization tables")
    spoil(folder, 5, "without quantization tables")
    data, fresh = (loader(path, 2, on_error="replace", prefetch_factor=prefetch) for path in (folder, clean))
    fresh.epoch = 1
    check(list(itertools.islice(data, taken)), list(itertools.islice(loader(clean, 2), taken)), {1, 5}, "replace")
    assert {sample.index for sample in data.errors} <= ({1, 5} if taken else set())
    data.epoch = 1
    check(list(data), list(fresh), {1, 5}, "replace")


@pytest.mark.parametrize("what", ["empty", "without quantization tables"])
def test_after_an_error_the_epoch_goes_on_where_it_was(clean, folder, what):
    whole = (folder / "5.jpg").read_bytes()
    spoil(folder, 5, what)
    data = loader(folder, shuffle=True, seed=2)
    got = []
    with pytest.raises(SampleError, match="5.jpg"):
        for batch in data:
            got.append(batch)
    state = data.state_dict()
    (folder / "5.jpg").write_bytes(whole)
    data.load_state_dict(state)
    got += list(data)
    check(got, list(loader(clean, shuffle=True, seed=2)), set(), "raise")


@pytest.mark.parametrize("mode", MODES)
def test_repeated_and_padded_samples(clean, folder, mode, caplog):
    spoil(folder, 3, "without quantization tables")
    repeated = {"sampler": RepeatedAugmentation(3, num_samples=30), "on_error": mode}
    with caplog.at_level(logging.WARNING, "fastfeed"):
        data = loader(folder, 10, **repeated)
        for (images, _, info), (clean_images, _, clean_info) in zip(data, loader(clean, 10, **repeated), strict=True):
            kept = info.valid if mode == "replace" else slice(None)
            assert torch.equal(images[kept], clean_images[clean_info.index != 3])
    assert len(data.errors) == len(caplog.records) == 1
    # The last step of three ranks has one sample for all of them, and two of padding.
    for rank in range(3):
        ranks = {"rank": rank, "world_size": 3, "on_error": mode}
        check(list(loader(folder, 3, **ranks)), list(loader(clean, 3, **ranks)), {3}, mode)


def test_the_report_lists_each_sample_once_in_many_epochs(folder, caplog):
    for index in range(COUNT):
        spoil(folder, index, "empty")
    data = loader(folder, on_error="drop", shuffle=True)
    for _ in range(20):
        assert list(data) == []
    assert sorted(data.errors) == [BadSample(i, str(folder / f"{i}.jpg"), "an empty file", 0) for i in range(COUNT)]
    assert len(caplog.records) == COUNT
    data.errors.clear()  # a copy
    assert len(data.errors) == COUNT


def test_a_file_that_goes_bad_and_is_repaired(clean, folder):
    whole = (folder / "2.jpg").read_bytes()
    data, fresh = loader(folder, on_error="replace"), loader(clean)
    check(list(data), list(fresh), set(), "replace")
    spoil(folder, 2, "cut in half")
    check(list(data), list(fresh), {2}, "replace")
    (folder / "2.jpg").write_bytes(whole)
    check(list(data), list(fresh), set(), "replace")
    assert [(sample.index, sample.epoch) for sample in data.errors] == [(2, 1)]


@pytest.mark.parametrize("mode", MODES)
def test_a_bad_member_of_a_tar_shard(clean, tmp_path, mode):
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for i in range(3):
            data = (clean / f"{i}.jpg").read_bytes()
            info = tarfile.TarInfo(f"cat/{i}.jpg")
            info.size = len(data) - (i == 1)
            tar.addfile(info, io.BytesIO(data))
    source = TarSource(tmp_path / "a.tar", target="folder", cache_dir=tmp_path)
    data = DataLoader(source, 3, device="cpu", transform=transforms.train(24), on_error=mode, info=True)
    ((images, _, info),) = data
    assert data.errors == [BadSample(1, f"{tmp_path / 'a.tar'}: cat/1.jpg", CUT, 0)]
    assert info.valid.tolist() == ([True, False, True] if mode == "replace" else [True, True])
    assert len(images) == len(info.path) == len(info.valid)


def test_a_decoder_that_fails_on_anything_is_no_matter_of_files(folder, monkeypatch):
    for index in range(COUNT):
        spoil(folder, index, "without quantization tables")
    monkeypatch.setattr(graph, "BLANK", np.frombuffer((folder / "0.jpg").read_bytes(), np.uint8))
    data = loader(folder, on_error="replace")
    with pytest.raises(RuntimeError, match="DALI failed on a batch, and on an image that is known to be good"):
        list(data)
    assert data.errors == []
