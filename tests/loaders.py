"""What the tests of the loader share: transforms with every random part, and batches taken apart into samples."""

from collections.abc import Iterable

import torch

from fastfeed import DataLoader, transforms
from fastfeed.data.steps import ColorJitter, RandomGrayscale
from fastfeed.data.transforms import RandomErasing, RandomResizedCrop, Transform


def everything(auto_augment="trivial", value="random", size=20) -> Transform:
    """Declare a transform that has every random part."""
    return Transform(
        RandomResizedCrop(size),
        horizontal_flip=0.5,
        vertical_flip=0.5,
        augment=[auto_augment, ColorJitter(0.4, 0.4, 0.4, 0.1), RandomGrayscale(0.3)],
        erase=RandomErasing(0.5, value=value),
    )


def make_loader(dataset, batch_size=4, **options) -> DataLoader:
    """Return a loader on the CPU that gives a `SampleInfo` with each batch."""
    defaults = {"transform": transforms.train(16), "device": "cpu", "num_workers": 2, "info": True}
    return DataLoader(dataset, batch_size, **{**defaults, **options})


def ranks(dataset, world_size, batch_size=4, **options) -> list[DataLoader]:
    """Return the loaders of all ranks."""
    return [make_loader(dataset, batch_size, rank=rank, world_size=world_size, **options) for rank in range(world_size)]


def index_of(batches: Iterable) -> list[int]:
    """Return which samples the batches hold, padding left out."""
    return [i for *_, info in batches for i in info.index[info.valid].tolist()]


def by_index(batches: Iterable) -> dict[int, tuple[torch.Tensor, torch.Tensor]]:
    """Return index -> (image, target); what is there twice, padding say, must be the same."""
    samples: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
    for images, target, info in batches:
        for i, *sample in zip(info.index.tolist(), images, target, strict=True):
            before = samples.setdefault(i, tuple(sample))
            assert all(map(torch.equal, before, sample)), f"sample {i} is there twice, and differs"
    return samples


def assert_same_samples(got: dict, expected: dict) -> None:
    """Assert that two results of `by_index` are bitwise equal."""
    assert got.keys() == expected.keys()
    assert [i for i in expected if not all(map(torch.equal, got[i], expected[i]))] == []


def assert_same_batches(got: list, expected: list) -> None:
    """Assert that two lists of batches are bitwise equal, in order."""
    assert [len(info.index) for *_, info in got] == [len(info.index) for *_, info in expected]
    for (images, target, info), (other_images, other_target, other_info) in zip(got, expected, strict=True):
        assert info.path == other_info.path
        assert torch.equal(info.index, other_info.index)
        assert torch.equal(info.valid, other_info.valid)
        assert torch.equal(images, other_images)
        if isinstance(target, torch.Tensor):
            target, other_target = (target,), (other_target,)
        assert all(map(torch.equal, target, other_target))
