import pytest
import torch

from fastfeed import DataLoader, FolderSource, ListSource, Mix, MixedTarget, transforms
from fastfeed.data.finish import SampleParameters, finish_reference
from fastfeed.data.mix import draw_mix, mix_target
from tests.images import write_folder

pytestmark = pytest.mark.dali

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]
PIXELS = {"mean": (0, 0, 0), "std": (1 / 255,) * 3}  # batches in levels, 0 to 255


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_folder(tmp_path_factory.mktemp("loader") / "data", {"cat": 5, "dog": 6, "owl": 2})


def loader(dataset, **options):
    return DataLoader(dataset, 4, **{"transform": transforms.train(32), "device": "cpu", **options})


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("mix", [Mix(mixup=0.4), Mix(cutmix=1.0), Mix(0.4, 1.0, per="sample")])
def test_mixed_batches_are_the_reference_of_the_pixels(folder, device, mix):
    levels, mixed = (
        loader(folder, shuffle=True, seed=7, device=device, transform=transform, mix=m)
        for transform, m in ((transforms.train(32, **PIXELS), None), (transforms.train(32), mix))
    )
    for number in range(2):
        for position, ((pixels, labels), (images, target)) in enumerate(zip(levels, mixed, strict=True)):
            n = len(labels)
            plan = draw_mix(mix, n, 32, 32, seed=7, epoch=number, batch=4 * position)
            pixels = pixels.cpu().round().byte().permute(0, 2, 3, 1)
            parameters = SampleParameters(n, partner=plan.partner, weight=plan.weight, cut=plan.box)
            expected = finish_reference(pixels, parameters, transforms.train().mean, transforms.train().std)
            assert torch.equal(images.cpu(), expected)
            assert isinstance(target, MixedTarget)
            assert all(map(torch.equal, target.to("cpu"), mix_target(labels.cpu(), plan)))


def test_mixing_needs_targets_that_can_be_mixed(folder):
    paths = [path for path, _ in FolderSource(folder).samples]
    for targets, kind in (([{"a": 1}], "dict"), (["x"], "tuple"), ([(0, 1)], "list")):
        with pytest.raises(ValueError, match=f"target is {kind}; expected class indices, torch.int64"):
            next(iter(loader(ListSource(paths, targets * len(paths)), mix=Mix(0.2))))


def test_several_labels_at_once_are_mixed_as_their_samples_are(folder):
    """One-hot rows tell whose label became how much of which sample: what class indices tell in a MixedTarget."""
    paths, labels = zip(*FolderSource(folder).samples, strict=True)
    rows = torch.nn.functional.one_hot(torch.tensor(labels)).double()
    of_labels, of_rows = (
        loader(ListSource(paths, targets), shuffle=True, mix=Mix(0.4, 1.0, per="sample")) for targets in (labels, rows)
    )
    for (images, target), (same_images, mixed) in zip(of_labels, of_rows, strict=True):
        assert torch.equal(images, same_images)
        assert mixed.dtype == torch.float64
        torch.testing.assert_close(mixed.cpu(), target.to("cpu").dense(rows.shape[1], torch.float64))


def test_probabilities_instead_of_two_labels(folder):
    mixes = Mix(0.4, 1.0), Mix(0.4, 1.0, num_classes=7)
    for (images, target), (same_images, dense) in zip(*(loader(folder, mix=mix) for mix in mixes), strict=True):
        assert torch.equal(images, same_images)
        assert dense.dtype == torch.float32
        assert torch.equal(dense, target.dense(7))
    with pytest.raises(IndexError, match="Target 2 is out of bounds"):
        list(loader(folder, mix=Mix(0.4, num_classes=2)))
    with pytest.raises(ValueError, match="stable_addresses gives the targets of mix as a MixedTarget"):
        loader(folder, mix=mixes[1], stable_addresses=True)


@pytest.mark.parametrize("mix", [Mix(0.4), Mix(0.4, num_classes=3)])
def test_mixing_that_is_ended(folder, mix):
    data = loader(folder, mix=mix, shuffle=True)
    assert data.mixup_enabled
    data.mixup_enabled = False  # as timm's script sets it
    assert not data.mixup_enabled
    for (images, target), (plain, labels) in zip(data, loader(folder, shuffle=True), strict=True):
        assert torch.equal(images, plain)
        dense = target if isinstance(target, torch.Tensor) else target.dense(3)
        assert torch.equal(dense, torch.nn.functional.one_hot(labels, 3).float())
    data.mixup_enabled, data.epoch = True, 0
    again = loader(folder, mix=mix, shuffle=True)
    assert all(torch.equal(a[0], b[0]) for a, b in zip(data, again, strict=True))
    with pytest.raises(ValueError, match="mixup_enabled cannot be True without mix"):
        loader(folder).mixup_enabled = True
    with pytest.raises(TypeError, match="mixup_enabled is 1"):
        data.mixup_enabled = 1
