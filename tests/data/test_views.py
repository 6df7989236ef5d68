"""Several views of each sample, for test-time augmentation."""

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

import fastfeed
from fastfeed import DataLoader, transforms
from fastfeed.data.graph import Graph
from fastfeed.data.order import Batches
from fastfeed.data.plan import make_plan
from fastfeed.data.prepare import Preparer
from fastfeed.data.samplers import Sequential
from fastfeed.data.sources import FolderSource, ListSource
from fastfeed.data.views import view_plan
from fastfeed.transforms import TTA
from tests.images import picture, write_folder
from tests.loaders import index_of, make_loader

LEVELS = {"mean": (0, 0, 0), "std": (1 / 255,) * 3}
SIZES = ((48, 64), (80, 61), (33, 47), (24, 25), (200, 26))
EVAL = transforms.eval(24, resize=30, **LEVELS)

VIEWS = {
    "centre": TTA(),
    "mirrored": TTA(horizontal_flip=True),
    "both flips": TTA(horizontal_flip=True, vertical_flip=True),
    "five crops": TTA(crops=5),
    "ten crops": TTA(crops=5, horizontal_flip=True),
    "ten crops upside down": TTA(crops=5, vertical_flip=True),
    "scales": TTA(scales=(24, 31, 50)),
    "everything": TTA(5, True, True, scales=[40, 24]),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_folder(tmp_path_factory.mktemp("views") / "data", {"cat": 5, "dog": 2}, SIZES)


def five_crops(image, size):
    """Crop as torchvision's FiveCrop does."""
    (width, height), (h, w) = image.size, size
    middle = round((width - w) / 2), round((height - h) / 2)
    corners = (0, 0), (width - w, 0), (0, height - h), (width - w, height - h), middle
    return [image.crop((x, y, x + w, y + h)) for x, y in corners]


def expected_views(image, tta, size=(24, 24), resize=30):
    views = []
    for scale in tta.scales or (resize,):
        short = min(image.size)
        resized = image.resize([scale * side // short for side in image.size], Image.Resampling.BILINEAR)
        for upside_down in (False, True)[: 1 + tta.vertical_flip]:
            turned = ImageOps.flip(resized) if upside_down else resized
            for mirrored in (False, True)[: 1 + tta.horizontal_flip]:
                views += five_crops(ImageOps.mirror(turned) if mirrored else turned, size)[-tta.crops :]
    return np.stack([np.asarray(view) for view in views])


@pytest.mark.dali
@pytest.mark.parametrize("name", VIEWS)
def test_views_are_those_of_pillow(folder, name):
    tta = VIEWS[name]
    data = make_loader(folder, 3, transform=EVAL, tta=tta)
    assert len(data) == 3
    seen = []
    for images, target, info in data:
        assert images.shape == (len(target), tta.views, 3, 24, 24)
        assert images.flatten(0, 1).is_contiguous(memory_format=torch.channels_last)
        for views, path in zip(images, info.path, strict=True):
            expected = expected_views(Image.open(path).convert("RGB"), tta)
            assert np.array_equal(views.permute(0, 2, 3, 1).round().numpy(), expected), path
        seen += target.tolist()
    assert seen == [0] * 5 + [1] * 2


@pytest.mark.dali
def test_a_view_alone_is_an_ordinary_batch(folder):
    plain = torch.cat([images for images, _, _ in make_loader(folder, 3, transform=EVAL)])
    viewed = torch.cat([images for images, _, _ in make_loader(folder, 4, transform=EVAL, tta=VIEWS["ten crops"])])
    assert torch.equal(viewed[:, 4], plain)
    assert not torch.equal(viewed[:, 0], plain)


@pytest.mark.parametrize("name", VIEWS)
def test_the_views_of_a_sample_share_a_window_that_holds_them(name):
    tta, sizes = VIEWS[name], np.array(SIZES)
    plan = make_plan(EVAL, sizes, np.arange(len(sizes)), seed=0, epoch=0)
    views = view_plan(tta, EVAL, plan, sizes, (24, 24))
    assert len(views.start) == len(sizes) * tta.views
    for values in (views.start, views.shape):
        assert (values.reshape(len(sizes), tta.views, 2) == values[:: tta.views, None]).all()
    assert (views.start >= 0).all()
    assert (views.start + views.shape <= np.repeat(sizes, tta.views, axis=0)).all()
    assert (views.box[:, :2] > -1e-9).all()
    assert (views.box[:, 2:] < views.shape + 1e-9).all()


@pytest.mark.dali
def test_the_pipeline_of_a_gpu_makes_the_same_views(folder):
    # On DALI's CPU backend. It decodes each view, and resizes by its own filter.
    tta, source = VIEWS["everything"], FolderSource(folder)
    options = {"size": None, "max_pixels": 10**6, "exif": False, "threads": 1, "tta": tta}
    picks = next(iter(Batches(Sequential().picks(7, None, seed=0, epoch=0), 7)))
    ours, theirs = (
        run(Graph(EVAL, 7, torch.device("cpu"), 1, 1, whole=whole, views=tta.views), picks, source, options)
        for whole in (False, True)
    )
    assert ours.shape == theirs.shape == (7 * tta.views, 24, 24, 3)
    difference = (ours.int() - theirs.int()).abs().float()
    assert difference[:, 4:-4, 4:-4].max() <= 2
    assert difference.mean() < 1


def run(graph, picks, source, options):
    prepared = Preparer(source, EVAL, **options).prepare(0, picks, seed=0)
    graph.submit(prepared.entry)
    return graph.result().wait().clone()


@pytest.mark.dali
@pytest.mark.parametrize("mode", ["replace", "drop"])
def test_a_bad_sample_is_bad_in_all_views(tmp_path, mode):
    paths = [tmp_path / f"{i}.jpg" for i in range(6)]
    for i, path in enumerate(paths):
        picture(40 + i, 50, seed=i).save(path)
    good = torch.cat(
        [images for images, _, _ in make_loader(ListSource(paths, range(6)), 3, transform=EVAL, tta=TTA(5))]
    )
    paths[1].write_bytes(paths[1].read_bytes()[:300])  # truncated
    paths[5].write_bytes(b"")
    data = make_loader(ListSource(paths, range(6)), 3, transform=EVAL, tta=TTA(5), on_error=mode)
    for _ in range(2):
        batches = list(data)
        images, target = (torch.cat([batch[i] for batch in batches]) for i in range(2))
        taken = [0, 2, 2, 3, 4, 3] if mode == "replace" else [0, 2, 3, 4]
        assert target.tolist() == taken
        assert torch.equal(images, good[taken])
        assert index_of(batches) == [0, 2, 3, 4]
    assert [sample.index for sample in data.errors] == [1, 5]


@pytest.mark.dali
def test_sizes_of_a_schedule_and_single_samples(folder):
    data = make_loader(folder, 4, transform=EVAL, tta=TTA(5), size=lambda epoch, step: 24 + 12 * step)
    assert [images.shape[1:] for images, _, _ in data] == [(5, 3, 24, 24), (5, 3, 36, 36)]
    image, target, _ = next(iter(make_loader(folder, None, transform=EVAL, tta=TTA(5))))
    assert image.shape == (5, 3, 24, 24)
    assert target.shape == ()


@pytest.mark.dali
def test_averaged_logits_of_a_model(folder):
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 24 * 24, 4))
    for images, _, _ in make_loader(folder, 3, transform=EVAL, tta=VIEWS["scales"]):
        got = fastfeed.average_logits(model(images.flatten(0, 1)), views=images.shape[1])
        expected = torch.stack([model(images[:, i]) for i in range(3)]).mean(dim=0)
        torch.testing.assert_close(got, expected)


def test_average_logits():
    logits = torch.arange(24.0).view(6, 4)
    assert fastfeed.average_logits(logits, 3).tolist() == [[4, 5, 6, 7], [16, 17, 18, 19]]
    half = torch.tensor([[1.0], [2049.0]], dtype=torch.bfloat16)
    assert fastfeed.average_logits(half, 2).dtype == torch.float32
    assert fastfeed.average_logits(logits.double(), 1).dtype == torch.float64
    assert fastfeed.average_logits(torch.zeros(0, 5), 2).shape == (0, 5)
    for views in (4, 0, -1):
        with pytest.raises(ValueError, match=rf"logits has 6 rows, which do not go up in {views} views"):
            fastfeed.average_logits(logits, views)


@pytest.mark.parametrize(("options", "error", "message"), [
    ({"crops": 3}, ValueError, "TTA: crops is 3; expected 1, the centre, or 5"),
    ({"crops": 5.0}, TypeError, "TTA: crops is 5.0"),
    ({"horizontal_flip": 1}, TypeError, "TTA: horizontal_flip is 1"),
    ({"vertical_flip": None}, TypeError, "TTA: vertical_flip is None"),
    ({"scales": ()}, ValueError, "TTA: scales is empty"),
    ({"scales": (0,)}, ValueError, "TTA: scales is 0"),
    ({"scales": 256.5}, TypeError, "TTA: scales is 256.5"),
])  # fmt: skip
def test_bad_declarations(options, error, message):
    with pytest.raises(error, match=message):
        TTA(**options)


@pytest.mark.dali
@pytest.mark.parametrize(("options", "error", "message"), [
    ({"tta": 5}, TypeError, "tta is 5; expected a fastfeed.transforms.TTA"),
    ({"transform": transforms.train(24)}, ValueError, r"tta takes a transform with a CenterCrop .* RandomResizedCrop"),
    ({"transform": transforms.Transform(transforms.CenterCrop(24))}, ValueError, "CenterCrop of the resized image"),
    ({"transform": transforms.Transform(transforms.CenterCrop(24, 30), 0.5)}, ValueError, "without random flips"),
    ({"transform": transforms.Transform(transforms.CenterCrop(24, 30), erase=0.5)}, ValueError, "and erasing"),
    ({"tta": TTA(scales=(32, 20))}, ValueError, "TTA: scales has 20, and the transform's windows have 24 x 24"),
    ({"mix": fastfeed.Mix(0.2)}, ValueError, "mix goes with training, and tta with evaluation"),
])  # fmt: skip
def test_loaders_that_cannot_have_views(folder, options, error, message):
    with pytest.raises(error, match=message):
        DataLoader(folder, 4, **{"transform": EVAL, "tta": TTA(5), "device": "cpu", **options})


def test_only_for_what_dali_decodes():
    with pytest.raises(ValueError, match="tta: only for images that DALI decodes"):
        DataLoader(torch.utils.data.TensorDataset(torch.zeros(4, 3)), tta=TTA(5), device="cpu")
