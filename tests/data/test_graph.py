"""The graph by itself: both of its ways, and what becomes of images that cannot be decoded."""

import numpy as np
import pytest
import torch

from fastfeed import FolderSource, transforms
from fastfeed._extension import extension
from fastfeed.data.graph import Graph
from fastfeed.data.pipeline import Entry
from fastfeed.data.plan import draw_augmentations, make_plan
from fastfeed.data.policies import Kind
from fastfeed.data.transforms import padding_fill
from tests.images import write_folder

pytestmark = pytest.mark.dali

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return FolderSource(write_folder(tmp_path_factory.mktemp("graph") / "data", {"a": 9}))


def entry(source, transform, indices, size=None, epoch=0):
    indices = np.array(indices)
    size = size or transform.size
    read = source.read(indices, extension().Pool(1))
    plan = make_plan(transform, read.sizes, indices, seed=3, epoch=epoch, size=size)
    copies = np.zeros_like(indices)
    operations = draw_augmentations(transform, plan, indices, copies, seed=3, epoch=epoch, size=size)
    return Entry(list(read.data), plan, size, operations)


def graph(transform, depth=2, **options):
    return Graph(transform, 8, CPU, 2, depth, **options)


def run(graph, *entries):
    for one in entries:
        graph.submit(one)
    return [graph.result().wait().clone() for _ in entries]


@pytest.mark.parametrize("crop", [
    transforms.RandomResizedCrop(24, (0.3, 1.0)),
    transforms.RandomResizedCrop((16, 31), interpolation="bicubic"),
    transforms.RandomResizedCrop(90, interpolation="lanczos"),
    transforms.CenterCrop(20, 24),
    transforms.CenterCrop((18, 20), 30, "lanczos"),
    transforms.Resize((20, 33)),
    transforms.RandomCrop(28, padding=4, pad_if_needed=True, fill=(9, 80, 200)),
    transforms.RandomCrop((40, 70), pad_if_needed=True),
    transforms.RandomCrop(16, padding=40),
    transforms.RandomResizedCrop(24, (0.3, 1.0), interpolation="random"),
    transforms.CenterCrop(20, (24, 35), "bicubic"),
    transforms.CenterCrop(28),
    transforms.CenterCrop((50, 70)),
    transforms.RandomCrop(20, resize=24),
    transforms.RandomCrop((16, 40), resize=(31, 43), interpolation="lanczos"),
], ids=str)  # fmt: skip
def test_dali_resizes_as_the_extension_does(source, crop):
    transform = transforms.Transform(crop)
    batches = [[0, 1, 2, 3], [4, 5], [6, 7, 8]]
    ours = run(graph(transform, 3), *(entry(source, transform, batch) for batch in batches))
    theirs = run(graph(transform, 3, whole=True), *(entry(source, transform, batch) for batch in batches))
    for batch, a, b in zip(batches, ours, theirs, strict=True):
        assert a.shape == b.shape == (len(batch), *transform.size, 3)
        difference = (a.int() - b.int()).abs()
        if padding_fill(crop) is not None:
            assert difference.max() == 0
            continue
        # At the edges of a window DALI repeats the last pixel, where Pillow leaves the filter short.
        height, width = transform.size
        assert difference[:, height // 4 : -height // 4, width // 4 : -width // 4].max() <= 2
        assert difference.float().mean() < 1


BILINEAR = transforms.TrivialAugmentWide(interpolation="bilinear")


@pytest.mark.parametrize("auto_augment", [None, "trivial", "rand", "auto", BILINEAR])
def test_dali_augments_as_the_extension_does(source, auto_augment):
    # Not resized, so that pixels are the same before; and without equalizing, where DALI has another rule.
    jitter = transforms.ColorJitter(0.4, 0.4, 0.4, 0.1)
    transform = transforms.Transform(
        transforms.RandomCrop(30, pad_if_needed=True),
        horizontal_flip=0.5,
        vertical_flip=0.5,
        augment=[*([auto_augment] if auto_augment else []), jitter, transforms.RandomGrayscale(0.2)],
    )
    compared = 0
    ours, theirs = graph(transform, 1), graph(transform, 1, whole=True)
    for epoch in range(6):
        batch = [0, 1, 2, 3, 4, 5, 6, 7]
        (a,) = run(ours, entry(source, transform, batch, epoch=epoch))
        one = entry(source, transform, batch, epoch=epoch)
        (b,) = run(theirs, one)
        assert (one.plan.flip == 0).all() == (auto_augment is not None)
        for i in range(len(batch)):
            if Kind.EQUALIZE in one.operations.kind[i]:
                continue
            compared += 1
            # Turned images have single pixels that are nearly as near as their neighbours. Levels of interpolated ones
            # may be the next ones, and the colours' jitter doubles it.
            tolerance = 2 if auto_augment == BILINEAR else 0
            different = (a[i].int() - b[i]).abs() > tolerance
            assert (different.any(dim=2).float().mean() < 0.01).item()
    assert compared > 24


def test_sizes_change_from_batch_to_batch(source):
    transform = transforms.train(24)
    for whole in (False, True):
        images = run(
            graph(transform, 2, whole=whole),
            entry(source, transform, [0, 1], (20, 24)),
            entry(source, transform, [2], (32, 48)),
        )
        assert [image.shape for image in images] == [(2, 20, 24, 3), (1, 32, 48, 3)]


def test_a_batch_larger_than_foretold(source):
    transform = transforms.train(24)
    indices = [*range(9)] * 2
    (expected,) = run(Graph(transform, 18, CPU, 1, 1), entry(source, transform, indices))
    small = graph(transform, 2)
    first, large, last = run_in_turn(small, [entry(source, transform, i) for i in ([0, 1], indices, [2, 3])])
    assert torch.equal(large, expected)
    assert torch.equal(first, expected[:2])
    assert torch.equal(last, expected[2:4])


def run_in_turn(graph, entries, depth=2):
    """Keep `depth` batches in flight, as the loader does."""
    images, waiting = [], list(entries)
    for one in waiting[:depth]:
        graph.submit(one)
    for i in range(len(entries)):
        images.append(graph.result().wait().clone())
        if i + depth < len(entries):
            graph.submit(entries[i + depth])
    return images


SOUND = (transforms.train(16, augment="trivial"), [[0, 1, 2, 3], [4, 5, 6, 7], [8, 0, 2, 4], [1, 3, 5, 7]])


def sound_entries(source):
    transform, batches = SOUND
    return [entry(source, transform, batch) for batch in batches]


@pytest.fixture(scope="module", params=[False, True], ids=["windows", "whole"])
def sound(request, source):
    """Whether whole images are decoded, and what comes of images that all are sound."""
    return request.param, run_in_turn(graph(SOUND[0], whole=request.param), sound_entries(source))


@pytest.mark.parametrize("bad", [[0], [3], [0, 1, 2, 3]])
@pytest.mark.parametrize("at", [0, 1, 3])
def test_images_that_cannot_be_decoded_change_no_other(source, at, bad, sound):
    whole, expected = sound
    spoilt = sound_entries(source)
    for i in bad:
        data = spoilt[at].data[i].tobytes().replace(b"\xff\xdb", b"\xff\xfe")  # without tables of quantization
        spoilt[at].data[i] = np.frombuffer(data, np.uint8)
    got = run_in_turn(graph(SOUND[0], whole=whole), spoilt)
    for number, (a, b) in enumerate(zip(expected, got, strict=True)):
        good = [i for i in range(4) if number != at or i not in bad]
        assert torch.equal(a[good], b[good])
        assert sorted(spoilt[number].failed) == (bad if number == at else [])
    assert all("truncated or corrupt" in reason for reason in spoilt[at].failed.values())


@pytest.mark.parametrize("left", [1, 2])
def test_draining_what_is_bad_leaves_a_graph_that_works(source, left):
    transform = transforms.train(16)
    g = graph(transform)
    bad = entry(source, transform, [0, 1])
    bad.data[1] = np.frombuffer(b"\xff\xd8 nothing of an image \xff\xd9", np.uint8)
    for one in [bad, entry(source, transform, [2, 3])][:left]:
        g.submit(one)
    g.drain()
    (expected,) = run(graph(transform, 1), entry(source, transform, [4, 5]))
    assert torch.equal(run(g, entry(source, transform, [4, 5]))[0], expected)
